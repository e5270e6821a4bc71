"""LangChain's ChatOpenAI."""

import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI


@pytest.fixture(scope="module")
def model(url):
    return ChatOpenAI(base_url=url + "/v1", api_key="none", model="stories", seed=1, max_tokens=20, max_retries=0)


def test_messages_are_answered(model):
    answer = model.invoke([SystemMessage("Tell stories."), HumanMessage("Once upon a time")])
    assert answer.content
    assert answer.response_metadata["finish_reason"] == "length"
    assert answer.usage_metadata["output_tokens"] == 20


def test_a_stream_brings_the_same_text(model):
    chunks = list(model.stream("Once upon a time"))
    assert len(chunks) > 5
    assert "".join(chunk.content for chunk in chunks) == model.invoke("Once upon a time").content


def test_batches_are_answered_side_by_side(model):
    prompts = ["Once upon a time", "The dog", "A little girl"]
    together = [answer.content for answer in model.batch(prompts)]
    assert together == [model.invoke(prompt).content for prompt in prompts]


def test_log_probabilities_come(model):
    answer = model.bind(logprobs=True, top_logprobs=2).invoke("Once upon a time")
    assert len(answer.response_metadata["logprobs"]["content"]) == 20
