"""LiteLLM, which gateways use: the library, and its proxy before a server."""

import json
import os
import pathlib
import secrets
import subprocess
import sys

# Its price list is not ours to fetch.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
import pytest
from conftest import MESSAGES, SCHEMA, WEATHER, free_port, is_person, is_weather, status, wait_until
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
    """OpenAI's client before LiteLLM's proxy before the server."""
    folder = tmp_path_factory.mktemp("proxy")
    model = {"model": "openai/stories", "api_base": url + "/v1", "api_key": "none"}
    config = folder / "config.yaml"
    config.write_text(json.dumps({"model_list": [{"model_name": "stories", "litellm_params": model}]}))
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
