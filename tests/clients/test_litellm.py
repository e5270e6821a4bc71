"""LiteLLM, which gateways use."""

import json
import os

# Its price list is not ours to fetch.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
import pytest
from conftest import MESSAGES, SCHEMA, WEATHER, is_person, is_weather


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


def test_errors_are_told_apart(url):
    with pytest.raises(litellm.BadRequestError):
        ask(url, temperature=-1)
    with pytest.raises(litellm.ContextWindowExceededError):
        ask(url, max_tokens=10_000_000)
    with pytest.raises(litellm.NotFoundError):
        ask(url, model="openai/gpt-4o")
