"""OpenAI's own client: what its types expect is what comes."""

import json

import openai
import pytest
from conftest import MESSAGES, SCHEMA, WEATHER, is_person, is_weather
from openai import OpenAI


@pytest.fixture(scope="module")
def client(url):
    return OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)


def ask(client, **more):
    arguments = {"model": "stories", "messages": MESSAGES, "seed": 1, "max_tokens": 20}
    return client.chat.completions.create(**(arguments | more))


def test_a_chat_is_answered(client):
    answer = ask(client)
    assert answer.object == "chat.completion" and answer.id and answer.created
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 20
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 20
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0


def test_a_stream_brings_the_same_text(client):
    whole = ask(client).choices[0].message.content
    text, reasons, usage = "", [], None
    for index, chunk in enumerate(ask(client, stream=True, stream_options={"include_usage": True})):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            if index == 0:
                assert choice.delta.role == "assistant"
            text += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
    assert text == whole and reasons == ["length"] and usage.completion_tokens == 20


def test_the_helper_for_streams_puts_them_together(client):
    # It takes an answer that ends for want of tokens for an error.
    more = {"stop": ".", "max_tokens": 200}
    with client.chat.completions.stream(model="stories", messages=MESSAGES, seed=1, **more) as stream:
        for _ in stream:
            pass
        answer = stream.get_final_completion()
    assert answer.choices[0].message.content == ask(client, **more).choices[0].message.content


def test_a_stream_can_be_left(client):
    with ask(client, stream=True, max_tokens=None) as stream:
        next(iter(stream))
    assert ask(client, max_tokens=3).usage.completion_tokens == 3


def test_several_answers_differ_and_can_be_had_again(client):
    first, again = ask(client, n=3, temperature=1.0), ask(client, n=3, temperature=1.0)
    texts = [choice.message.content for choice in first.choices]
    assert len(set(texts)) > 1
    assert texts == [choice.message.content for choice in again.choices]


def test_log_probabilities_come(client):
    answer = ask(client, logprobs=True, top_logprobs=2, max_tokens=5, temperature=0)
    content = answer.choices[0].logprobs.content
    assert len(content) == 5
    assert all(len(entry.top_logprobs) == 2 and entry.logprob <= 0 for entry in content)
    assert "".join(entry.token for entry in content) == answer.choices[0].message.content
    streamed = []
    for chunk in ask(client, logprobs=True, top_logprobs=2, max_tokens=5, temperature=0, stream=True):
        for choice in chunk.choices:
            streamed += choice.logprobs.content if choice.logprobs else []
    assert [(entry.token, entry.logprob) for entry in streamed] == [(entry.token, entry.logprob) for entry in content]


def test_json_fits_its_schema(client):
    form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}
    for seed in range(4):
        answer = ask(client, response_format=form, seed=seed, max_tokens=200, temperature=1.2).choices[0]
        assert answer.finish_reason == "stop" and is_person(json.loads(answer.message.content)), answer


def test_answers_are_parsed_into_types(client):
    from pydantic import BaseModel, Field

    class Person(BaseModel):
        name: str = Field(max_length=12)
        age: int = Field(ge=0, le=99)

    answer = client.chat.completions.parse(
        model="stories", messages=MESSAGES, seed=1, max_tokens=200, response_format=Person
    )
    person = answer.choices[0].message.parsed
    assert len(person.name) <= 12 and 0 <= person.age <= 99


def test_a_tool_is_called_with_arguments_that_fit(client):
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice in ("required", named):
        answer = ask(client, tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False, max_tokens=200).choices[0]
        [call] = answer.message.tool_calls
        assert call.id and call.function.name == "get_weather" and is_weather(json.loads(call.function.arguments))
        assert answer.finish_reason in ("tool_calls", "stop")
        # What the tool says goes back to the model.
        told = MESSAGES + [
            answer.message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "Rain."},
        ]
        assert ask(client, messages=told, tools=[WEATHER], tool_choice="none").choices[0].message.content


def test_a_streamed_call_is_put_together(client):
    more = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 200}
    whole = ask(client, **more).choices[0].message.tool_calls[0]
    with client.chat.completions.stream(model="stories", messages=MESSAGES, seed=1, **more) as stream:
        for _ in stream:
            pass
        [call] = stream.get_final_completion().choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == (whole.function.name, whole.function.arguments)


def test_a_text_is_continued(client):
    answer = client.completions.create(model="stories", prompt="The dog", max_tokens=5, echo=True, n=2, seed=1)
    assert [choice.text.startswith("The dog") for choice in answer.choices] == [True, True]
    stream = client.completions.create(model="stories", prompt="The dog", max_tokens=5, seed=1, stream=True)
    assert "The dog" + "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text
    logprobs = client.completions.create(model="stories", prompt="The dog", max_tokens=5, logprobs=2).choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == 5


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["stories"]
    assert client.models.retrieve("stories").object == "model"


def test_errors_are_the_clients_own(client):
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, temperature=-1)
    assert error.value.param == "temperature" and error.value.code == "invalid_value"
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, extra_body={"frobnicate": 1})
    assert error.value.param == "frobnicate"
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, max_tokens=10_000_000)
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as error:
        ask(client, model="gpt-4o")
    assert error.value.code == "model_not_found"
