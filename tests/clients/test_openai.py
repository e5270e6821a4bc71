"""OpenAI's own client: what its types expect is what comes."""

import openai
import pytest
from openai import OpenAI


@pytest.fixture(scope="module")
def client(url):
    return OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)


def ask(client, **more):
    arguments = {"model": "stories", "messages": [{"role": "user", "content": "Once upon a time"}], "seed": 1, "max_tokens": 20}
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
    messages = [{"role": "user", "content": "Once upon a time"}]
    with client.chat.completions.stream(model="stories", messages=messages, seed=1, max_tokens=20) as stream:
        for _ in stream:
            pass
        answer = stream.get_final_completion()
    assert answer.choices[0].message.content == ask(client).choices[0].message.content


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
