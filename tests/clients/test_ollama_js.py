"""Ollama's client for JavaScript: chats, lines, tools and vectors. NPM_PACKAGES is a folder with its package."""

import json
import os
import shutil
import subprocess

import pytest
from conftest import EMBEDDING_MODEL, WEATHER, Server

FOLDER = os.environ.get("NPM_PACKAGES", "")
pytestmark = pytest.mark.skipif(not FOLDER or not shutil.which("node"), reason="no Node.js, or no NPM_PACKAGES")

HEAD = """
import { Ollama } from "ollama";
const client = new Ollama({ host: process.env.URL });
const options = { seed: 1, num_predict: 20 };
const messages = [{ role: "user", content: "Once upon a time" }];
"""


def node(url, script):
    """What a script prints, as JSON."""
    command = ["node", "--input-type=module", "-e", HEAD + script]
    environment = os.environ | {"URL": url}
    result = subprocess.run(command, cwd=FOLDER, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_a_chat_is_answered_whole_and_in_lines(url):
    answer = node(
        url,
        """
        const whole = await client.chat({ model: "stories", messages, options });
        let text = "";
        for await (const line of await client.chat({ model: "stories", messages, options, stream: true })) {
          text += line.message.content;
        }
        console.log(JSON.stringify({ whole, text }));
        """,
    )
    assert answer["whole"]["eval_count"] == 20
    assert answer["text"] == answer["whole"]["message"]["content"] != ""


def test_a_prompt_is_continued_and_tools_are_read(url):
    answer = node(
        url,
        """
        const text = await client.generate({ model: "stories", prompt: "Once upon a time", options, raw: true });
        const chat = await client.chat({ model: "stories", messages, options, tools: [%s] });
        const models = await client.list();
        console.log(JSON.stringify({ text, chat, models }));
        """
        % json.dumps(WEATHER),
    )
    assert answer["text"]["response"] and answer["chat"]["done"]
    assert [model["name"] for model in answer["models"]["models"]] == ["stories:latest"]


def test_texts_become_vectors():
    with Server("-m", EMBEDDING_MODEL, "--model-name", "tiny") as server:
        answer = node(
            server.url,
            """
            const many = await client.embed({ model: "tiny", input: ["a text", "another"] });
            const one = await client.embed({ model: "tiny", input: "another", truncate: true });
            const old = await client.embeddings({ model: "tiny", prompt: "a text" });
            console.log(JSON.stringify({ many, one, old }));
            """,
        )
    assert len(answer["many"]["embeddings"]) == 2
    assert answer["one"]["embeddings"] == answer["many"]["embeddings"][1:]
    assert len(answer["old"]["embedding"]) == len(answer["one"]["embeddings"][0])


def test_errors_are_the_clients_own(url):
    answer = node(
        url,
        """
        const failed = async (call) => call.then(() => null, (error) => [error.status_code, error.message]);
        console.log(JSON.stringify([
          await failed(client.chat({ model: "llama3", messages })),
          await failed(client.embed({ model: "stories", input: "a text" })),
        ]));
        """,
    )
    assert answer[0][0] == 404 and "llama3" in answer[0][1]
    assert answer[1][0] == 400 and "--pooling" in answer[1][1]
