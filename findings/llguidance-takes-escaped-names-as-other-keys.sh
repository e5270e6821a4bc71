#!/usr/bin/env bash
# Expected: {"properties": {"a": integer}, "additionalProperties": string} forbids {"\u0061": "x"}:
# JSON reads the name as "a", whose value must be an integer. And llguidance takes no such escape
# anyway: in a plain string, and in the names of an object without `properties`, "\u0061" is refused.
# Seen: beside `properties` (or `patternProperties`) llguidance takes such escapes in the names of
# further keys, and compares the names as they are written. So an answer can set "a" to a string, also a
# second time, and a JSON parser keeps the last value. Without "u" in `json_allowed_escapes` it
# cannot.
# We depend on it in: crates/bitnet-server/src/schema/mod.rs (options), which leaves "u" out.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check llguidance==1.9.1 jsonschema==4.26.0
"$dir/venv/bin/python" - <<'PYTHON'
import json

import jsonschema
import llguidance
from llguidance import LLMatcher, LLTokenizer

tokenizer = LLTokenizer("byte")


def accepts(schema, text):
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(schema))
    assert not matcher.get_error(), matcher.get_error()
    tokens = list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


print("llguidance", llguidance.__version__)
named = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "additionalProperties": {"type": "string"},
}
without_u = named | {"x-guidance": {"json_allowed_escapes": 'nrbtf\\"'}}
escaped, twice = r'{"\u0061":"x"}', r'{"a":1,"\u0061":"x"}'
seen = []
for what, schema, text in (
    ("a string", {"type": "string"}, r'"\u0061"'),
    ("an object without properties", {"type": "object"}, escaped),
    ("an object with the property a", named, escaped),
    ("an object with the property a", named, twice),
    ("the same, without the escape u", without_u, escaped),
):
    valid = jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))
    seen.append((valid, accepts(schema, text)))
    print(f"{what}: {text}: jsonschema {seen[-1][0]}, llguidance {seen[-1][1]}")
expected = [(True, False), (True, False), (False, True), (False, True), (False, False)]
raise SystemExit(0 if seen == expected else 1)
PYTHON
