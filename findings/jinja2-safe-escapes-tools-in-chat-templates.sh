#!/usr/bin/env bash
# Expected: transformers renders chat templates without autoescaping, so the filter `safe` changes nothing and
# `"Tools: "|safe + (tools | tojson)` shows the model JSON.
# Seen: `safe` makes a Markup string, whose `+` escapes the other side even with autoescaping off, so the model
# is shown `&#34;` for every quote; `~` in the same place does not escape. A published template of llama.cpp's
# folder (functionary 3.1) joins its tools so.
# We depend on it in: crates/bitnet-tokenizers/src/jinja (our `safe` gives plain text) and
# tests/templates/compare.py (EXPECTED).
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet transformers==5.24.0 jinja2==3.1.6
"$dir/venv/bin/python" - <<'PYTHON'
import jinja2
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

print("transformers", transformers.__version__, "jinja2", jinja2.__version__)
tools = [{"name": "f"}]
seen = {}
for operator in ("+", "~"):
    template = "{{ 'Tools: ' | safe " + operator + " (tools | tojson) }}"
    rendered, _ = render_jinja_template(
        conversations=[[{"role": "user", "content": "a"}]], tools=tools, chat_template=template
    )
    seen[operator] = rendered[0]
    print(f"joined with {operator}:", rendered[0])
expected = {"+": "Tools: [{&#34;name&#34;: &#34;f&#34;}]", "~": 'Tools: [{"name": "f"}]'}
raise SystemExit(0 if seen == expected else 1)
PYTHON
