"""Anthropic's client: its types accept every event and every message."""

import anthropic
import pytest
from anthropic import Anthropic
from conftest import MESSAGES, SCHEMA, WEATHER, Server, is_person, is_weather

TOOL = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": WEATHER["function"]["parameters"],
}


@pytest.fixture(scope="module")
def client(url):
    return Anthropic(base_url=url, api_key="none", max_retries=0)


def ask(client, **more):
    arguments = {"model": "stories", "messages": MESSAGES, "max_tokens": 20}
    return client.messages.create(**(arguments | {"extra_body": {"seed": 1}} | more))


def checked(value):
    """A value that has exactly the fields of its type, all the way down."""
    data = value.model_dump(warnings="error", by_alias=True, exclude_unset=True)
    type(value).model_validate(data, strict=True)
    assert not value.model_extra, value.model_extra
    return value


def names(events):
    """The types of events, each once in a row."""
    types = [event.type for event in events]
    return [name for index, name in enumerate(types) if index == 0 or types[index - 1] != name]


def test_a_message_has_the_fields_of_its_type(client):
    message = checked(ask(client))
    assert message.stop_reason == "max_tokens" and message.content[0].text
    assert message.usage.output_tokens == 20
    counted = client.messages.count_tokens(model="stories", messages=MESSAGES)
    assert counted.input_tokens == message.usage.input_tokens + message.usage.cache_read_input_tokens


def test_the_events_have_their_types_and_order(client):
    whole = ask(client)
    events = [checked(event) for event in ask(client, stream=True)]
    assert names(events) == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    text = "".join(event.delta.text for event in events if event.type == "content_block_delta")
    assert text == whole.content[0].text
    assert events[-2].delta.stop_reason == "max_tokens" and events[-2].usage.output_tokens == 20


def test_the_helper_for_streams_puts_them_together(client):
    with client.messages.stream(
        model="stories", messages=MESSAGES, max_tokens=20, system="Be kind.", extra_body={"seed": 1}
    ) as stream:
        text = "".join(stream.text_stream)
        assert stream.get_final_message().content[0].text == text


def test_a_tool_is_called_and_its_result_goes_back(client):
    more = {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "get_weather"}, "max_tokens": 200}
    message = checked(ask(client, **more))
    [block] = message.content
    assert message.stop_reason == "tool_use" and is_weather(block.input)
    with client.messages.stream(model="stories", messages=MESSAGES, extra_body={"seed": 1}, **more) as stream:
        [streamed] = stream.get_final_message().content
    assert streamed.input == block.input
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "Rain."}
    told = MESSAGES + [
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [result]},
    ]
    assert ask(client, messages=told, tools=[TOOL], tool_choice={"type": "none"}).content


def test_a_text_ends_at_its_stop_sequence(client):
    message = ask(client, stop_sequences=["."], max_tokens=200)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", ".")


def test_json_fits_its_schema(client):
    import json

    config = {"format": {"type": "json_schema", "schema": SCHEMA}}
    message = ask(client, output_config=config, max_tokens=200)
    assert is_person(json.loads(message.content[0].text))


def test_errors_are_the_clients_own(client):
    with pytest.raises(anthropic.BadRequestError) as error:
        ask(client, extra_body={"temperature": -1})
    assert error.value.body["error"]["type"] == "invalid_request_error" and "temperature" in str(error.value)
    with pytest.raises(anthropic.NotFoundError):
        ask(client, model="claude-opus")
    with pytest.raises(anthropic.BadRequestError) as error:
        ask(client, tools=[{"type": "web_search_20250305", "name": "web_search"}])
    assert "web_search" in str(error.value)


def test_both_styles_of_keys_are_read():
    with Server(environment={"BITNET_API_KEY": "secret"}) as server:
        for keys in ({"api_key": "secret"}, {"auth_token": "secret"}):
            client = Anthropic(base_url=server.url, max_retries=0, **keys)
            assert ask(client).content
        with pytest.raises(anthropic.AuthenticationError):
            ask(Anthropic(base_url=server.url, max_retries=0, api_key="other"))
