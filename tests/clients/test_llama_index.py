"""LlamaIndex's OpenAILike and OpenAILikeEmbedding: its own classes need no class of ours."""

import asyncio
import json
import urllib.request

import pydantic
import pytest
from conftest import ROOT, Server, is_weather
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

MODEL = {"model": "stories", "api_key": "none", "max_retries": 0}


@pytest.fixture(scope="module")
def model(url):
    return OpenAILike(
        api_base=url + "/v1", max_tokens=20, temperature=0, is_chat_model=True, **MODEL
    )


def test_messages_are_answered(model):
    answer = model.chat([ChatMessage(role="user", content="Once upon a time")])
    assert answer.message.content
    assert answer.raw.usage.completion_tokens == 20


def test_a_stream_brings_the_same_text(model):
    messages = [ChatMessage(role="user", content="Once upon a time")]
    pieces = [piece.delta for piece in model.stream_chat(messages)]
    assert len(pieces) > 5
    assert "".join(pieces) == model.chat(messages).message.content


def test_tasks_get_the_texts_of_calls(model):
    prompts = [[ChatMessage(role="user", content=text)] for text in ("The dog", "A little girl")]

    async def run():
        return await asyncio.gather(*map(model.achat, prompts))

    texts = [answer.message.content for answer in asyncio.run(run())]
    assert texts == [model.chat(prompt).message.content for prompt in prompts]


def test_a_prompt_is_continued(url):
    model = OpenAILike(api_base=url + "/v1", max_tokens=20, temperature=0, **MODEL)
    text = model.complete("Once upon a time").text
    assert text
    assert "".join(piece.delta for piece in model.stream_complete("Once upon a time")) == text


def test_a_tool_is_called_with_arguments_that_fit(url):
    model = OpenAILike(
        api_base=url + "/v1",
        max_tokens=200,
        is_chat_model=True,
        is_function_calling_model=True,
        additional_kwargs={"seed": 1},
        **MODEL,
    )

    def get_weather(city: str, days: int) -> str:
        """The weather of a city."""
        return "rain"

    class Weather(pydantic.BaseModel):
        city: str = pydantic.Field(max_length=10)
        days: int = pydantic.Field(ge=1, le=9)

    answer = model.chat_with_tools(
        [FunctionTool.from_defaults(get_weather, fn_schema=Weather)],
        user_msg="Once upon a time",
        tool_required=True,
        tool_choice="required",
    )
    [call, *_] = model.get_tool_calls_from_response(answer)
    assert call.tool_name == "get_weather" and is_weather(call.tool_kwargs)


def test_texts_get_the_vectors_of_the_server():
    path = ROOT / "tests/data/golden-graphs/qwen3-embedding/model.gguf"
    with Server("-m", str(path), "--ctx-size", "64", "--model-name", "vectors") as server:
        model = OpenAILikeEmbedding(
            model_name="vectors", api_base=server.url + "/v1", api_key="none", max_retries=0
        )
        vectors = model.get_text_embedding_batch(["ab", "c"])
        request = urllib.request.Request(
            server.url + "/v1/embeddings",
            json.dumps({"input": ["ab", "c"]}).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            expected = [entry["embedding"] for entry in json.load(response)["data"]]
    assert len(vectors) == 2
    for vector, numbers in zip(vectors, expected):
        assert vector == pytest.approx(numbers, abs=1e-6)
