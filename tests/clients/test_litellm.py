"""LiteLLM, which gateways use: the library, and its proxy before a server."""

import json
import os
import pathlib
import secrets
import subprocess
import sys

# Its price list is not ours to fetch.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import anthropic
import litellm
import pytest
from conftest import EMBEDDING_MODEL, MESSAGES, SCHEMA, WEATHER, Server, free_port, is_person, is_weather, status, wait_until
from openai import OpenAI


def ask(url, **more):
    arguments = {"model": "openai/stories", "messages": MESSAGES, "api_base": url + "/v1", "api_key": "none", "seed": 1}
    return litellm.completion(**(arguments | {"max_tokens": 20} | more))


def test_a_chat_is_answered(url):
    answer = ask(url)
    assert answer.choices[0].message.content and answer.usage.completion_tokens == 20


def test_a_stream_brings_the_same_text(url):
    text = "".join(chunk.choices[0].delta.content or "" for chunk in ask(url, stream=True))
    assert text == ask(url).choices[0].message.content


def test_log_probabilities_come(url):
    content = ask(url, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert len(content) == 20 and all(len(entry.top_logprobs) == 2 for entry in content)


def test_json_fits_its_schema(url):
    form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}
    answer = ask(url, response_format=form, max_tokens=200)
    assert is_person(json.loads(answer.choices[0].message.content))


def test_a_tool_is_called_with_arguments_that_fit(url):
    more = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 200}
    [call] = ask(url, **more).choices[0].message.tool_calls
    assert call.function.name == "get_weather" and is_weather(json.loads(call.function.arguments))
    whole = litellm.stream_chunk_builder(list(ask(url, stream=True, **more)), messages=MESSAGES)
    [streamed] = whole.choices[0].message.tool_calls
    assert streamed.function.arguments == call.function.arguments


def test_errors_keep_their_types(url):
    with pytest.raises(litellm.BadRequestError):
        ask(url, temperature=-1)
    with pytest.raises(litellm.ContextWindowExceededError):
        ask(url, max_tokens=10_000_000)
    with pytest.raises(litellm.NotFoundError):
        ask(url, model="openai/gpt-4o")


@pytest.fixture(scope="module")
def proxy(url, tmp_path_factory):
    """OpenAI's client before LiteLLM's proxy before the server, and before one for vectors."""
    folder = tmp_path_factory.mktemp("proxy")
    vectors = Server("-m", EMBEDDING_MODEL, "--model-name", "tiny")
    models = {
        "stories": {"model": "openai/stories", "api_base": url + "/v1", "api_key": "none"},
        "claude": {"model": "anthropic/stories", "api_base": url, "api_key": "none"},
        "vectors": {"model": "openai/tiny", "api_base": vectors.url + "/v1", "api_key": "none"},
    }
    models = [{"model_name": name, "litellm_params": model} for name, model in models.items()]
    config = folder / "config.yaml"
    config.write_text(json.dumps({"model_list": models}))
    port = free_port()
    program = pathlib.Path(sys.executable).parent / "litellm"
    command = [program, "--config", config, "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
    log = (folder / "log.txt").open("w")
    key = "sk-" + secrets.token_hex(32)
    environment = os.environ | {"LITELLM_MASTER_KEY": key}
    process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until("ready", lambda: process.poll() is not None or status(address + "/health/liveliness") == 200)
        assert process.poll() is None, (folder / "log.txt").read_text()
        yield OpenAI(base_url=address, api_key=key, max_retries=0)
    finally:
        process.terminate()
        process.wait()
        vectors.stop()


def through(proxy, **more):
    arguments = {"model": "stories", "messages": MESSAGES, "seed": 1, "max_tokens": 20}
    return proxy.chat.completions.create(**(arguments | more))


def test_the_proxy_brings_the_same_text_whole_and_in_a_stream(url, proxy):
    whole = through(proxy)
    assert whole.choices[0].message.content == ask(url).choices[0].message.content
    assert whole.usage.completion_tokens == 20
    chunks = through(proxy, stream=True, stream_options={"include_usage": True})
    text, usage = "", None
    for chunk in chunks:
        usage = chunk.usage or usage
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text == whole.choices[0].message.content and usage.completion_tokens == 20


def test_the_proxy_brings_calls_of_tools(proxy):
    more = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 200}
    [call] = through(proxy, **more).choices[0].message.tool_calls
    assert call.function.name == "get_weather" and is_weather(json.loads(call.function.arguments))


def test_the_proxy_brings_what_is_wrong(proxy):
    with pytest.raises(Exception, match="temperature"):
        through(proxy, temperature=-1)
    # The server is still asked afterwards.
    assert through(proxy).choices[0].message.content


def test_the_proxy_brings_responses_whole_and_in_a_stream(proxy):
    more = {"model": "stories", "input": "Once upon a time", "max_output_tokens": 20}
    whole = proxy.responses.create(**more)
    assert whole.output_text and whole.usage.output_tokens == 20
    events = list(proxy.responses.create(**more, stream=True))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text and events[-1].type == "response.incomplete"


def test_the_proxy_brings_messages_whole_and_in_a_stream(proxy):
    client = anthropic.Anthropic(base_url=str(proxy.base_url), api_key=proxy.api_key, max_retries=0)
    more = {"model": "claude", "messages": MESSAGES, "max_tokens": 20}
    whole = client.messages.create(**more)
    assert whole.content[0].text and whole.usage.output_tokens == 20
    with client.messages.stream(**more) as stream:
        assert "".join(stream.text_stream)
    forced = {"tool_choice": {"type": "any"}, "max_tokens": 200}
    weather = WEATHER["function"]
    tool = {"name": weather["name"], "description": weather["description"], "input_schema": weather["parameters"]}
    [call, *_] = client.messages.create(**(more | forced), tools=[tool]).content
    assert call.name == "get_weather" and is_weather(call.input)


def test_the_proxy_brings_vectors(proxy):
    answer = proxy.embeddings.create(model="vectors", input=["a text", "another"])
    assert len(answer.data) == 2 and answer.usage.prompt_tokens > 1
    # LiteLLM itself refuses `dimensions` for names that are not OpenAI's.
    alone = proxy.embeddings.create(model="vectors", input="another")
    assert alone.data[0].embedding == answer.data[1].embedding
