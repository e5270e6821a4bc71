"""huggingface_hub: its client of chats, which writes schemas and its own messages in forms of its own."""

import json

import pytest
from conftest import MESSAGES, SCHEMA, WEATHER, is_person, is_weather
from huggingface_hub import InferenceClient


@pytest.fixture
def client(url):
    return InferenceClient(base_url=url + "/v1", api_key="none")


def test_a_stream_brings_the_same_text(client):
    options = {"model": "stories", "max_tokens": 20, "seed": 1}
    whole = client.chat_completion(MESSAGES, **options).choices[0].message.content
    chunks = client.chat_completion(MESSAGES, stream=True, **options)
    assert whole and "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole


def test_json_fits_its_schema(client):
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
    for seed in range(4):
        answer = client.chat_completion(MESSAGES, model="stories", response_format=form, max_tokens=120, seed=seed)
        assert is_person(json.loads(answer.choices[0].message.content))


def test_a_tool_is_called_and_its_result_goes_back(client):
    options = {"model": "stories", "tools": [WEATHER], "seed": 1}
    answer = client.chat_completion(MESSAGES, tool_choice="required", max_tokens=100, **options)
    message = answer.choices[0].message
    (call,) = message.tool_calls
    assert call.function.name == "get_weather" and is_weather(json.loads(call.function.arguments))
    result = {"role": "tool", "tool_call_id": call.id, "content": "It rains."}
    answer = client.chat_completion([*MESSAGES, message, result], max_tokens=10, **options)
    assert answer.choices[0].message.content
