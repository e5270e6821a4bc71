"""The AI SDK of npm: texts, streams, objects and a task of two tools. NPM_PACKAGES is a folder with its packages."""

import json
import os
import shutil
import subprocess

import pytest
from forced import TASK, WEATHER, Forced

FOLDER = os.environ.get("NPM_PACKAGES", "")
pytestmark = pytest.mark.skipif(not FOLDER or not shutil.which("node"), reason="no Node.js, or no NPM_PACKAGES")

HEAD = """
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { createOpenAI } from "@ai-sdk/openai";
import { generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
// Its warnings would be part of the output.
globalThis.AI_SDK_LOG_WARNINGS = false;
const baseURL = process.env.URL;
const compatible = createOpenAICompatible({ name: "bitnet", baseURL, supportsStructuredOutputs: true })("stories");
const openai = createOpenAI({ baseURL, apiKey: "none" }).chat("stories");
// Its default is the Responses API.
const responses = createOpenAI({ baseURL, apiKey: "none" })("stories");
const more = { seed: 1, temperature: 0, maxRetries: 0 };
"""


def node(url, script):
    """What a script prints, as JSON."""
    result = subprocess.run(
        ["node", "--input-type=module", "-e", HEAD + script],
        cwd=FOLDER,
        env=os.environ | {"URL": url},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_texts_and_streams_are_the_same(url):
    answer = node(
        url + "/v1",
        """
        const out = [];
        for (const model of [compatible, openai, responses]) {
          const whole = await generateText({ model, prompt: "Once upon a time", maxOutputTokens: 20, ...more });
          let text = "";
          const stream = streamText({ model, prompt: "Once upon a time", maxOutputTokens: 20, ...more });
          for await (const part of stream.textStream) text += part;
          out.push([whole.text, text, whole.finishReason, whole.usage.outputTokens]);
        }
        console.log(JSON.stringify(out));
        """,
    )
    for whole, streamed, reason, tokens in answer:
        assert whole and whole == streamed and (reason, tokens) == ("length", 20)


def test_objects_fit_their_schema(url):
    answer = node(
        url + "/v1",
        """
        const schema = z.object({ name: z.string().max(12), age: z.number().int().min(0).max(99) });
        const out = [];
        for (const model of [compatible, openai, responses]) {
          const { object } = await generateObject({ model, schema, prompt: "Once", maxOutputTokens: 200, ...more });
          out.push(object);
        }
        console.log(JSON.stringify(out));
        """,
    )
    assert all(sorted(person) == ["age", "name"] for person in answer)


@pytest.mark.parametrize("model", ["compatible", "openai", "responses"])
def test_a_task_of_two_tools_is_done(url, model):
    with Forced(url, ["get_capital", "get_weather", None]) as forced:
        answer = node(
            forced.url,
            """
            const calls = [];
            const tools = {
              get_capital: tool({
                description: "The capital of a country.", inputSchema: z.object({ country: z.enum(["France"]) }),
                execute: async ({ country }) => { calls.push(["get_capital", country]); return "Paris"; },
              }),
              get_weather: tool({
                description: "The weather of a city.", inputSchema: z.object({ city: z.enum(["Paris"]) }),
                execute: async ({ city }) => { calls.push(["get_weather", city]); return %s; },
              }),
            };
            const done = await generateText({ model: %s, tools, prompt: %s, stopWhen: stepCountIs(5), ...more });
            console.log(JSON.stringify({ calls, text: done.text, steps: done.steps.length }));
            """
            % (json.dumps(WEATHER), model, json.dumps(TASK)),
        )
    assert answer["calls"] == [["get_capital", "France"], ["get_weather", "Paris"]]
    assert answer["steps"] == 3 and answer["text"]
