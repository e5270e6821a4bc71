"""LiteLLM, which gateways use."""

import os

# Its price list is not ours to fetch.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
import pytest


def ask(url, **more):
    messages = [{"role": "user", "content": "Once upon a time"}]
    arguments = {"model": "openai/stories", "messages": messages, "api_base": url + "/v1", "api_key": "none", "seed": 1}
    return litellm.completion(**(arguments | {"max_tokens": 20} | more))


def test_a_chat_is_answered(url):
    answer = ask(url)
    assert answer.choices[0].message.content and answer.usage.completion_tokens == 20


def test_a_stream_brings_the_same_text(url):
    text = "".join(chunk.choices[0].delta.content or "" for chunk in ask(url, stream=True))
    assert text == ask(url).choices[0].message.content


def test_errors_are_told_apart(url):
    with pytest.raises(litellm.BadRequestError):
        ask(url, temperature=-1)
    with pytest.raises(litellm.ContextWindowExceededError):
        ask(url, max_tokens=10_000_000)
    with pytest.raises(litellm.NotFoundError):
        ask(url, model="openai/gpt-4o")
