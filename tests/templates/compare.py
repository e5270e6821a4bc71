"""Compares our chat templates with jinja2 as transformers sets it up.

`compare_constructs` renders the small templates of constructs.py. `compare_templates` renders the
templates below given folders with conversations of many kinds: plain, system messages, tools, calls, results, reasoning, documents. The text must be equal to that of jinja2 for the
messages as they are, or in the form that the template reads: parts joined or made, arguments as strings,
system messages joined. Exceptions stand in EXPECTED with their reason.
"""

import importlib.util
import json
import pathlib

import constructs
from jinja import now, theirs

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Tells the <weather> of a \"place\".",
            "parameters": {
                "type": "object",
                "properties": {
                    "zone": {"type": "string", "enum": ["a", "b"], "description": "A zone"},
                    "city": {"type": ["string", "null"], "description": "Größe"},
                    "days": {"type": "array", "items": {"type": "integer"}, "default": [1]},
                    "place": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]},
                },
                "required": ["zone", "city"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "The time", "parameters": {"type": "object", "properties": {}}}},
]


def call(identity, name, arguments):
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def conversations():
    """Names and requests without a template."""
    system = {"role": "system", "content": "Be brief.\n"}
    user = {"role": "user", "content": " What is 2 + 2? "}
    answer = {"role": "assistant", "content": "\n4\n"}
    more = {"role": "user", "content": "And <b>3</b>?"}
    calls = {"role": "assistant", "content": "", "tool_calls": [call("callid001", "get_weather", {"zone": "a", "city": "Köln", "days": [1, 2], "place": {"x": 1.5}})]}
    two = {"role": "assistant", "content": "Let me see.", "tool_calls": [call("callid001", "get_weather", {"zone": "b", "city": None}), call("callid002", "now", {})]}
    silent = {"role": "assistant", "content": None, "tool_calls": calls["tool_calls"]}
    result = {"role": "tool", "tool_call_id": "callid001", "name": "get_weather", "content": "{\"sky\": \"blue\"}"}
    result2 = {"role": "tool", "tool_call_id": "callid002", "name": "now", "content": "12:00"}
    thought = {"role": "assistant", "reasoning_content": "2 and 2 …", "content": "4"}
    inline = {"role": "assistant", "content": "<think>\n2 and 2\n</think>\n\n4"}
    plain = {
        "user": [user],
        "turns": [user, answer, more],
        "system": [system, user],
        "system turns": [system, user, answer, more],
        "answered": [user, answer],
        "two users": [user, more],
        "late system": [user, system],
        "reasoning": [user, thought, more],
        "inline reasoning": [user, inline, more],
        "reasoning last": [user, thought],
        "parts": [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]}],
    }
    tools = {
        "tools": [user],
        "tools system": [system, user],
        "call": [user, calls],
        "null content call": [user, silent, result],
        "result": [user, calls, result],
        "two results": [system, user, two, result, result2],
        "after results": [user, calls, result, answer, more],
        "reasoning call": [user, {**calls, "reasoning_content": "I need it."}, result],
    }
    for prompt in (True, False):
        for name, messages in plain.items():
            yield f"{name}, prompt {prompt}", {"messages": messages, "add_generation_prompt": prompt}
        for name, messages in tools.items():
            yield f"{name}, prompt {prompt}", {"messages": messages, "add_generation_prompt": prompt, "tools": TOOLS}
    for thinking in (True, False):
        for name in ("user", "system turns", "reasoning"):
            variables = {"enable_thinking": thinking, "thinking": thinking, "reasoning_effort": "low"}
            yield f"{name}, thinking {thinking}", {"messages": plain[name], "add_generation_prompt": True, "variables": variables}
    documents = [{"title": "T", "text": "Words.", "doc_id": 1}]
    yield "documents", {"messages": [user], "documents": documents, "add_generation_prompt": True}
    yield "continue", {"messages": [user, answer], "continue_final_message": True}


def transformers():
    """The folder of transformers, which has templates, too."""
    return pathlib.Path(importlib.util.find_spec("transformers").origin).parent


def templates(packages):
    """Names and sources of the templates below the folders."""
    seen = {}
    for package in packages:
        for path in sorted(pathlib.Path(package).rglob("*.jinja*")):
            source = path.read_text(encoding="utf-8")
            if seen.setdefault(source, path) == path:
                yield f"{pathlib.Path(package).name}/{path.name}", source


# Differences that stay: the end of a template's name, with the reason.
EXPECTED = {
    # `safe` makes text that jinja2 then joins to other text by escaping that for HTML, so that the
    # model is shown `&lt;` and `&#34;`. Ours is plain text.
    "meetkai-functionary-medium-v3.1.jinja": "jinja2 escapes text that is joined to `safe` text",
}


def readable_forms(request):
    """The request with its messages in other forms, of which a template may read one only."""
    request = json.loads(json.dumps(request))
    messages = request["messages"]
    joined = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            content = "\n".join(part["text"] for part in content)
        joined.append({**message, "content": content})
    yield {**request, "messages": joined}
    yield {**request, "messages": [{**m, "content": [{"type": "text", "text": m.get("content")}]} for m in messages]}
    texts = json.loads(json.dumps(messages))
    for message in texts:
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    yield {**request, "messages": texts}
    system = [m["content"] for m in messages if m["role"] == "system"]
    others = [m for m in messages if m["role"] != "system"]
    if system:
        yield {**request, "messages": [{"role": "system", "content": "\n\n".join(system)}, *others]}


def complain(name, request, ours, theirs):
    print(f"DIFFERENT: {name}")
    for side, (text, error) in (("ours", ours), ("theirs", theirs)):
        print(f"  {side}: {error if text is None else json.dumps(text, ensure_ascii=False)}")


def compare_constructs(ours):
    bad = total = 0
    for source in constructs.all_of_them():
        request = {
            "template": source,
            "messages": constructs.MESSAGES,
            "variables": constructs.VARIABLES,
            "now": now(),
            "bos_token": "<s>",
            "eos_token": "</s>",
        }
        expected, found = theirs(request), ours.render(request)
        total += 1
        if expected[0] != found[0]:
            bad += 1
            complain(source[:200], request, found, expected)
    print(f"constructs: {total - bad} of {total} equal")
    return bad


def compare_templates(ours, packages):
    count = dict.fromkeys(["equal", "refused by both", "equal in the form that the template reads", "expected", "different"], 0)
    names = []
    for name, source in templates(packages):
        names.append(name)
        different = []
        for conversation, request in conversations():
            request = {**request, "template": source, "now": now(), "bos_token": "<s>", "eos_token": "</s>"}
            expected, found = theirs(request), ours.render(request)
            if expected[0] == found[0]:
                count["refused by both" if expected[0] is None else "equal"] += 1
            elif found[0] in [theirs(form)[0] for form in readable_forms(request)] and found[0] is not None:
                count["equal in the form that the template reads"] += 1
            elif any(name.endswith(end) for end in EXPECTED):
                count["expected"] += 1
            else:
                count["different"] += 1
                different.append((conversation, request, found, expected))
        for conversation, request, found, expected in different[:2]:
            complain(f"{name}: {conversation} ({len(different)} in all)", request, found, expected)
    for end, reason in EXPECTED.items():
        print(f"expected: {end}: {reason}")
    print(f"templates: {len(names)}; renderings: {sum(count.values())}: {count}")
    return count["different"] + (not names)
