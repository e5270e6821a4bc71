"""Conversations: tools, forms and thinking, read by the code of the server and compared with it."""

import asyncio
import json
import re
import urllib.error
import urllib.request

import pytest

import bitnet

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 12},
                "unit": {"enum": ["C", "F"]},
            },
            "required": ["city", "unit"],
        },
    },
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"enum": [7, 8, 9]}},
    "required": ["name", "age"],
}
OPTIONS = {"seed": 3, "max_tokens": 80}


@pytest.fixture(scope="module")
def server():
    with bitnet.serve() as server:
        yield server


def ask(server, **fields):
    """The server's choice for a chat request, or the message of its error."""
    body = json.dumps({"messages": [{"role": "user", "content": "The weather"}], **fields})
    request = urllib.request.Request(
        f"{server.base_url}/chat/completions", body.encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["choices"][0]
    except urllib.error.HTTPError as error:
        return json.load(error)["error"]["message"]


def test_a_schema_forms_the_answer_as_the_server_does(model, server):
    result = model.chat("The weather", schema=PERSON, **OPTIONS)
    person = json.loads(result)
    assert sorted(person) == ["age", "name"] and person["age"] in (7, 8, 9)
    form = {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}
    choice = ask(server, response_format=form, **OPTIONS)
    assert result == choice["message"]["content"]
    assert result.finish_reason == choice["finish_reason"] == "stop"
    assert result.message == {"role": "assistant", "content": str(result)}


def test_a_class_with_a_schema_is_a_schema(model):
    class Person:
        @staticmethod
        def model_json_schema():
            return PERSON

    assert model.chat("Hi", schema=Person, **OPTIONS) == model.chat("Hi", schema=PERSON, **OPTIONS)


def test_a_required_call_parses_and_fits_as_the_servers(model, server):
    tools = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    result = model.chat("The weather", stop=["a"], **tools, **OPTIONS)
    (call,) = result.tool_calls
    arguments = json.loads(call.arguments)
    assert call.name == "weather" and call.id.startswith("call_")
    assert sorted(arguments) == ["city", "unit"] and arguments["unit"] in ("C", "F")
    assert result == "" and "<tool_call>" in result.full_text
    choice = ask(server, **tools, **OPTIONS)
    function = choice["message"]["tool_calls"][0]["function"]
    assert function == {"name": call.name, "arguments": call.arguments}
    assert result.finish_reason == choice["finish_reason"] == "tool_calls"
    assert result.message["tool_calls"] == [
        {"id": call.id, "type": "function", "function": function}
    ]
    again = [{"role": "user", "content": "Hi"}, result.message]
    again.append({"role": "tool", "tool_call_id": call.id, "content": "rain"})
    assert model.chat(again, max_tokens=3).finish_reason == "length"


def test_a_named_call_is_the_only_one(model):
    other = {"type": "function", "function": {"name": "other"}}
    choice = {"type": "function", "function": {"name": "other"}}
    result = model.chat("The weather", tools=[WEATHER, other], tool_choice=choice, **OPTIONS)
    assert {(call.name, *json.loads(call.arguments)) for call in result.tool_calls} == {("other",)}
    plain = model.chat("The weather", tools=[WEATHER], tool_choice="none", **OPTIONS)
    assert plain == model.chat("The weather", **OPTIONS) and plain.tool_calls == []


def test_streams_bring_the_text_and_then_the_calls(model):
    tools = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    whole = model.chat("The weather", **tools, **OPTIONS)
    messages = [{"role": "user", "content": "The weather"}]
    pieces = list(model.stream(messages, **tools, **OPTIONS))

    async def run():
        pieces = [piece async for piece in model.astream(messages, **tools, **OPTIONS)]
        return pieces, await model.achat(messages, **tools, **OPTIONS)

    async_pieces, async_whole = asyncio.run(run())
    for found in (pieces, async_pieces):
        assert "".join(found) == whole.full_text
        assert [piece.tool_calls for piece in found[:-1]] == [[]] * (len(found) - 1)
        (call,) = found[-1].tool_calls
        assert call[1:] == whole.tool_calls[0][1:]
        assert found[-1].finish_reason == "tool_calls"
    assert async_whole.tool_calls[0][1:] == whole.tool_calls[0][1:]


def test_a_call_that_is_cut_has_the_first_part_of_its_arguments(model):
    tools = {"tools": [WEATHER], "tool_choice": "required"}
    result = model.chat("The weather", **tools, seed=3, max_tokens=14)
    assert result.finish_reason == "length"
    whole = model.chat("The weather", **tools, **OPTIONS)
    assert len(result.tokens) == 14 and whole.full_text.startswith(result.full_text)
    assert all(whole.tool_calls[0].arguments.startswith(call.arguments) for call in result.tool_calls)


@pytest.mark.parametrize(
    ("fields", "request_fields"),
    [
        ({"tools": [{}]}, {"tools": [{}]}),
        ({"tools": [WEATHER, WEATHER]}, {"tools": [WEATHER, WEATHER]}),
        ({"tool_choice": "required"}, {"tool_choice": "required"}),
        (
            {"schema": {"type": "no such type"}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"type": "no such type"}},
                }
            },
        ),
        (
            {"schema": PERSON, "tools": [WEATHER]},
            {"response_format": {"type": "json_object"}, "tools": [WEATHER]},
        ),
        (
            {"tools": [WEATHER], "ignore_eos": True},
            {"tools": [WEATHER], "ignore_eos": True},
        ),
        ({"thinking_budget": -2}, {"thinking_token_budget": -2}),
    ],
)
def test_an_invalid_conversation_has_the_servers_text(model, server, fields, request_fields):
    expected = ask(server, **request_fields)
    assert isinstance(expected, str)
    with pytest.raises(bitnet.RequestError, match=re.escape(expected)):
        model.chat("The weather", **fields)


def test_forms_are_compiled_by_a_helper_process_first():
    fields = json.dumps(
        {
            "messages": [{"role": "user", "content": "Hi"}],
            "response_format": {"type": "json_schema", "json_schema": {"schema": PERSON}},
        }
    )
    engine = bitnet._native.Engine.load(None, program=["/no/such/program"])
    with pytest.raises(bitnet.RequestError, match="helper process for forms cannot be started"):
        engine.read_chat(fields)


def test_thinking_is_kept_apart_and_ends_at_its_budget(tmp_path):
    template = tmp_path / "thinks.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
        "{% if add_generation_prompt %}<think>\n{% endif %}"
    )
    thinks = bitnet.load(chat_template=template)
    result = thinks.chat("Once upon a time", thinking_budget=6, **OPTIONS)
    thinking, text = result.full_text.split("</think>", 1)
    assert result.reasoning and result.reasoning == thinking.strip()
    assert len(thinks.tokenize(thinking, bos=False)) <= 7
    assert result == text.strip("\n") or result == text
    formed = thinks.chat("Once", thinking_budget=4, schema=PERSON, **OPTIONS)
    assert json.loads(formed)["age"] in (7, 8, 9) and formed.reasoning
    assert thinks.generate("Once", max_tokens=4).reasoning is None
