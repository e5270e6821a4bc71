"""Ollama's client: chats, prompts, tools, forms, vectors, and its description of the model."""

import json

import ollama
import pytest
from conftest import EMBEDDING_MODEL, MESSAGES, SCHEMA, WEATHER, Server, is_person

OPTIONS = {"seed": 1, "num_predict": 20}


@pytest.fixture(scope="module")
def client(url):
    return ollama.Client(host=url)


def test_a_chat_is_answered_whole_and_in_lines(client):
    whole = client.chat(model="stories", messages=MESSAGES, options=OPTIONS)
    assert whole.message.content and whole.done and whole.eval_count == 20 and whole.done_reason == "length"
    lines = list(client.chat(model="stories:latest", messages=MESSAGES, options=OPTIONS, stream=True))
    assert "".join(line.message.content for line in lines) == whole.message.content
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1].total_duration > 0


def test_a_prompt_is_continued(client):
    whole = client.generate(model="stories", prompt="Once upon a time", options=OPTIONS, raw=True)
    lines = client.generate(model="stories", prompt="Once upon a time", options=OPTIONS, raw=True, stream=True)
    assert whole.response and "".join(line.response for line in lines) == whole.response
    assert client.generate(model="stories").done_reason == "load"


def test_json_fits_its_schema(client):
    options = OPTIONS | {"num_predict": 200}
    answer = client.chat(model="stories", messages=MESSAGES, options=options, format=SCHEMA)
    assert is_person(json.loads(answer.message.content))
    # Without a schema the object may be cut off.
    answer = client.chat(model="stories", messages=MESSAGES, options=options, format="json")
    assert answer.message.content.startswith("{")


def test_tools_and_their_results_are_read(client):
    call = {"function": {"name": "get_weather", "arguments": {"city": "Paris", "days": 1}}}
    messages = MESSAGES + [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_name": "get_weather", "content": "Rain."},
    ]
    answer = client.chat(model="stories", messages=messages, tools=[WEATHER], options=OPTIONS)
    assert answer.done and answer.message.role == "assistant"


def test_the_model_is_described(client):
    [model] = client.list().models
    assert model.model == "stories:latest" and model.size > 0
    [running] = client.ps().models
    assert running.model == "stories:latest" and running.context_length > 0
    shown = client.show("stories")
    assert "tools" in shown.capabilities and shown.modelinfo["general.architecture"]


def test_texts_become_vectors():
    with Server("-m", EMBEDDING_MODEL, "--model-name", "tiny") as server:
        client = ollama.Client(host=server.url)
        texts = ["a text", "another"]
        answer = client.embed(model="tiny", input=texts)
        assert len(answer.embeddings) == 2 and answer.prompt_eval_count > 1
        for vector in answer.embeddings:
            assert abs(sum(value * value for value in vector) - 1) < 1e-5
        [alone] = client.embed(model="tiny:latest", input="another", truncate=True, keep_alive="5m").embeddings
        assert alone == answer.embeddings[1]
        [short] = client.embed(model="tiny", input="another", dimensions=4).embeddings
        assert len(short) == 4
        old = client.embeddings(model="tiny", prompt="a text").embedding
        length = sum(value * value for value in old) ** 0.5
        assert all(abs(a / length - b) < 1e-5 for a, b in zip(old, answer.embeddings[0], strict=True))
        assert "embedding" in client.show("tiny").capabilities


def test_errors_are_the_clients_own(client):
    with pytest.raises(ollama.ResponseError) as error:
        client.chat(model="llama3", messages=MESSAGES)
    assert error.value.status_code == 404 and "llama3" in error.value.error
    with pytest.raises(ollama.ResponseError) as error:
        client.chat(model="stories", messages=MESSAGES, options={"mirostat": 2})
    assert error.value.status_code == 400 and "mirostat" in error.value.error
    with pytest.raises(ollama.ResponseError) as error:
        client.embed(model="stories", input="a text")
    assert error.value.status_code == 400 and "--pooling" in error.value.error
