"""LangChain: ChatOpenAI with chats and with responses, ChatAnthropic, ChatOllama, and embeddings of OpenAI and Ollama."""

import openai
import pytest
from conftest import EMBEDDING_MODEL, SCHEMA, WEATHER, Server, is_person, is_weather
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_ollama import ChatOllama, OllamaEmbeddings
from langchain_openai import ChatOpenAI, OpenAIEmbeddings


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


def of_surfaces(url, max_tokens):
    """A model for each API."""
    openai = {"base_url": url + "/v1", "api_key": "none", "model": "stories", "max_retries": 0}
    return {
        "responses": ChatOpenAI(**openai, use_responses_api=True, max_tokens=max_tokens, temperature=0),
        "messages": ChatAnthropic(
            base_url=url, api_key="none", model="stories", max_tokens=max_tokens, max_retries=0
        ),
        "ollama": ChatOllama(base_url=url, model="stories", num_predict=max_tokens, temperature=0, seed=1),
    }


@pytest.mark.parametrize("surface", ["responses", "messages", "ollama"])
def test_every_api_answers_and_streams(url, surface):
    model = of_surfaces(url, 20)[surface]
    answer = model.invoke([SystemMessage("Tell stories."), HumanMessage("Once upon a time")])
    assert answer.text and answer.usage_metadata["output_tokens"] == 20
    whole = None
    for chunk in model.stream("Once upon a time"):
        whole = chunk if whole is None else whole + chunk
    assert whole.text and whole.usage_metadata["output_tokens"] == 20


@pytest.mark.parametrize("surface", ["responses", "messages"])
def test_every_api_calls_tools_and_reads_their_results(url, surface):
    model = of_surfaces(url, 200)[surface]
    with_tools = model.bind_tools([WEATHER], tool_choice="any")
    answer = with_tools.invoke("Once upon a time")
    call = answer.tool_calls[0]
    assert call["name"] == "get_weather" and is_weather(call["args"])
    results = [ToolMessage("Rain.", tool_call_id=call["id"]) for call in answer.tool_calls]
    told = [HumanMessage("Once upon a time"), answer, *results]
    assert of_surfaces(url, 20)[surface].bind_tools([WEATHER]).invoke(told)


def test_a_response_continues_an_earlier_one():
    with Server("--chat-template", "chatml") as server:
        model = of_surfaces(server.url, 20)["responses"]
        first = model.invoke("Once upon a time")
        second = model.invoke("And then?", previous_response_id=first.response_metadata["id"])
    assert second.usage_metadata["input_tokens"] > first.usage_metadata["input_tokens"] + 20


def test_texts_become_the_same_vectors_through_both_apis():
    with Server("-m", EMBEDDING_MODEL, "--model-name", "tiny") as server:
        # It would otherwise ask OpenAI's servers how its own models cut texts.
        openai = OpenAIEmbeddings(
            base_url=server.url + "/v1", api_key="none", model="tiny", check_embedding_ctx_length=False
        )
        ollama = OllamaEmbeddings(base_url=server.url, model="tiny")
        texts = ["a text", "another"]
        vectors = openai.embed_documents(texts)
        assert len(vectors) == 2 and openai.embed_query("another") == vectors[1]
        for ours, others in zip(vectors, ollama.embed_documents(texts), strict=True):
            assert all(abs(a - b) < 1e-6 for a, b in zip(ours, others, strict=True))
