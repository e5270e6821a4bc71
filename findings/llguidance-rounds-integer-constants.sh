#!/usr/bin/env bash
# Expected: under {"const": 9007199254740993} the one answer is 9007199254740993; JSON has integers of
# any size, and Python's json and serde_json read this one exactly.
# Seen: llguidance keeps numbers as f64. The one answer is 9007199254740992, which the schema forbids,
# and 9007199254740993 is refused. No error is reported. "enum" and "minimum" are rounded alike.
# We depend on it in: crates/bitnet-server/src/schema/mod.rs (check_exact, inward), which refuses such
# constants and moves such bounds inwards.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check llguidance==1.9.1
"$dir/venv/bin/python" - <<'PYTHON'
import llguidance
from llguidance import LLMatcher, LLTokenizer

tokenizer = LLTokenizer("byte")


def accepts(schema, text):
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(schema))
    assert not matcher.get_error(), matcher.get_error()
    tokens = list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


print("llguidance", llguidance.__version__)
integer = 2**53 + 1
seen = []
for schema in ({"const": integer}, {"enum": [integer]}, {"type": "integer", "minimum": integer}):
    takes = accepts(schema, str(integer)), accepts(schema, str(integer - 1))
    print(f"{schema}: takes {integer}: {takes[0]}, takes {integer - 1}: {takes[1]}")
    seen.append(takes)
raise SystemExit(0 if seen == [(False, True), (False, True), (True, True)] else 1)
PYTHON
