#!/usr/bin/env bash
# Expected: a bound restricts the value of a number, not how it is written: {"type": "number"} and
# {"type": "number", "minimum": 0} both take 1e5, and a bound as large as the largest f64 restricts
# nothing.
# Seen: with any bound llguidance takes no exponent at all, so 1e5 is refused where 100000 is taken;
# and from 1e18 on (the largest f64 of OpenAPI generators, for example) the schema is an error.
# We depend on it in: crates/bitnet-server/src/schema/mod.rs (bound_numbers), which moves such bounds
# inwards and leaves out those that no number reaches.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check llguidance==1.9.1
"$dir/venv/bin/python" - <<'PYTHON'
import sys

import llguidance
from llguidance import LLMatcher, LLTokenizer

tokenizer = LLTokenizer("byte")


def accepts(schema, text):
    """Whether a text fits; None if the schema is an error."""
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(schema))
    if matcher.get_error():
        return None
    tokens = list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


print("llguidance", llguidance.__version__)
seen = []
for more, text in (
    ({}, "1e5"),
    ({"minimum": 0}, "1e5"),
    ({"minimum": 0}, "100000"),
    ({"maximum": sys.float_info.max}, "1"),
):
    seen.append(accepts({"type": "number"} | more, text))
    print(f"number {more}: {text}: {seen[-1]}")
raise SystemExit(0 if seen == [True, False, True, None] else 1)
PYTHON
