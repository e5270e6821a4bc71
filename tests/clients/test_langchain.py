"""LangChain's ChatOpenAI."""

import openai
import pytest
from conftest import SCHEMA, WEATHER, is_person, is_weather
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI


def chat(url, max_tokens):
    return ChatOpenAI(base_url=url + "/v1", api_key="none", model="stories", seed=1, max_tokens=max_tokens, max_retries=0)


@pytest.fixture(scope="module")
def model(url):
    return chat(url, 20)


@pytest.fixture(scope="module")
def long_model(url):
    """With room for JSON."""
    return chat(url, 200)


def test_messages_are_answered(model):
    answer = model.invoke([SystemMessage("Tell stories."), HumanMessage("Once upon a time")])
    assert answer.content
    assert answer.response_metadata["finish_reason"] == "length"
    assert answer.usage_metadata["output_tokens"] == 20


def test_a_stream_brings_the_same_text(model):
    chunks = list(model.stream("Once upon a time", stream_usage=True))
    assert len(chunks) > 5
    assert "".join(chunk.content for chunk in chunks) == model.invoke("Once upon a time").content
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) == 20


def test_batches_are_answered_side_by_side(model):
    prompts = ["Once upon a time", "The dog", "A little girl"]
    together = [answer.content for answer in model.batch(prompts)]
    assert together == [model.invoke(prompt).content for prompt in prompts]


def test_log_probabilities_come(model):
    answer = model.bind(logprobs=True, top_logprobs=2).invoke("Once upon a time")
    assert len(answer.response_metadata["logprobs"]["content"]) == 20


def test_a_tool_is_called_with_arguments_that_fit(model, long_model):
    with_tools = long_model.bind_tools([WEATHER], tool_choice="required", parallel_tool_calls=False)
    answer = with_tools.invoke("Once upon a time")
    [call] = answer.tool_calls
    assert call["name"] == "get_weather" and is_weather(call["args"]) and not answer.invalid_tool_calls
    told = [HumanMessage("Once upon a time"), answer, ToolMessage("Rain.", tool_call_id=call["id"])]
    assert model.invoke(told).content
    whole = None
    for chunk in with_tools.stream("Once upon a time"):
        whole = chunk if whole is None else whole + chunk
    assert [streamed["args"] for streamed in whole.tool_calls] == [call["args"]]


def test_json_fits_its_schema(long_model):
    person = SCHEMA | {"title": "person", "description": "Somebody."}
    for method in ("json_schema", "function_calling"):
        assert is_person(long_model.with_structured_output(person, method=method).invoke("Once upon a time")), method


def test_errors_come_through(model):
    with pytest.raises(openai.BadRequestError) as error:
        model.invoke("Once", temperature=-1)
    assert error.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as error:
        model.invoke("Once", max_tokens=10_000_000)
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        model.invoke("Once", model="gpt-4o")
