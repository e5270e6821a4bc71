"""OpenAI's client and the Responses API: its types accept every event and every response."""

import json

import openai
import pytest
from conftest import SCHEMA, WEATHER, Server, is_person, is_weather
from openai import OpenAI
from openai.types import responses

TOOL = {"type": "function", "strict": True, **WEATHER["function"]}
# The events of a text, in their order.
TEXT_EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.incomplete",
]
CALL_EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
    "response.completed",
]


@pytest.fixture(scope="module")
def client(url):
    return OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)


def ask(client, **more):
    arguments = {"model": "stories", "input": "Once upon a time", "max_output_tokens": 20}
    return client.responses.create(**(arguments | {"extra_body": {"seed": 1}} | more))


def checked(value):
    """A value that has exactly the fields of its type, all the way down."""
    data = value.model_dump(warnings="error", by_alias=True, exclude_unset=True)
    type(value).model_validate(data, strict=True)
    return value


def names(events):
    """The types of events, each once in a row."""
    types = [event.type for event in events]
    return [name for index, name in enumerate(types) if index == 0 or types[index - 1] != name]


def test_a_response_has_the_fields_of_its_type(client):
    response = checked(ask(client))
    assert response.output_text and response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage.output_tokens == 20 and response.usage.input_tokens_details.cached_tokens >= 0
    unknown = set(response.model_extra or {}) - {"store"}
    assert not unknown, unknown


def test_the_events_of_a_text_have_their_types_and_order(client):
    whole = ask(client)
    events = [checked(event) for event in ask(client, stream=True)]
    assert names(events) == TEXT_EVENTS
    assert [event.sequence_number for event in events] == list(range(len(events)))
    for event in events:
        assert not event.model_extra, event
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text == events[-1].response.output_text


def test_the_helper_for_streams_puts_them_together(client):
    arguments = {"model": "stories", "input": "Once upon a time", "max_output_tokens": 20}
    with client.responses.stream(**arguments, extra_body={"seed": 1}) as stream:
        seen = [event.type for event in stream]
    assert "response.output_text.delta" in seen and seen[-1] == "response.incomplete"


def test_a_function_is_called_and_its_output_goes_back(client):
    more = {"tools": [TOOL], "tool_choice": {"type": "function", "name": "get_weather"}, "max_output_tokens": 200}
    response = checked(ask(client, **more))
    [call] = response.output
    assert call.type == "function_call" and is_weather(json.loads(call.arguments))
    events = [checked(event) for event in ask(client, stream=True, **more)]
    assert names(events) == CALL_EVENTS
    streamed = next(event for event in events if event.type == "response.function_call_arguments.done")
    assert streamed.arguments == call.arguments
    told = [{"role": "user", "content": "Rain?"}, call.to_dict(), {"type": "function_call_output", "call_id": call.call_id, "output": "Rain."}]
    assert ask(client, input=told, tools=[TOOL], tool_choice="none").output_text


def test_json_is_parsed_into_a_type(client):
    from pydantic import BaseModel, Field

    class Person(BaseModel):
        name: str = Field(max_length=12)
        age: int = Field(ge=0, le=99)

    response = client.responses.parse(
        model="stories", input="Once", max_output_tokens=200, text_format=Person, extra_body={"seed": 1}
    )
    assert len(response.output_parsed.name) <= 12
    form = {"format": {"type": "json_schema", "name": "person", "schema": SCHEMA, "strict": True}}
    assert is_person(json.loads(ask(client, text=form, max_output_tokens=200).output_text))


def test_responses_are_kept_continued_and_deleted(client):
    first = ask(client)
    assert client.responses.retrieve(first.id).output_text == first.output_text
    second = ask(client, input="And then?", previous_response_id=first.id)
    items = checked(client.responses.input_items.list(second.id, order="asc"))
    assert [item.type for item in items] == ["message"] * 3
    tokens = client.responses.input_tokens.count(model="stories", input="Once upon a time")
    assert tokens.input_tokens == first.usage.input_tokens
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, previous_response_id=first.id)
    assert error.value.code == "previous_response_not_found"


def test_hosted_features_are_refused_by_name(client):
    for more, param in [
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "conv_1"}, "conversation"),
    ]:
        with pytest.raises(openai.BadRequestError) as error:
            ask(client, **more)
        assert error.value.param == param


def test_a_restart_loses_nothing(tmp_path):
    arguments = {"model": "stories", "input": "Once", "max_output_tokens": 5}
    with Server("--state-dir", str(tmp_path)) as server:
        client = OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
        stored = [client.responses.create(**arguments).id for _ in range(20)]
        server.process.kill()
        server.process.wait()
    with Server("--state-dir", str(tmp_path)) as server:
        client = OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
        assert [client.responses.retrieve(name).id for name in stored] == stored


def test_every_event_of_the_stream_is_one_of_the_types():
    # If the SDK renames an event, this test names it.
    known = {part.model_fields["type"].annotation.__args__[0] for part in responses.ResponseStreamEvent.__origin__.__args__}
    assert set(TEXT_EVENTS + CALL_EVENTS) <= known
