#!/usr/bin/env bash
# Expected: Anthropic's Messages API has sampling parameters, so its Python client takes `temperature`, `top_k` and
# `top_p`, as release 0.125.0 does.
# Seen: `messages.create` and `messages.stream` of 2.14.0 take none of the three and raise a TypeError; they go through
# only in `extra_body`. Clients of a server like ours get its defaults unless they know that.
# We depend on it in: tests/clients/test_anthropic.py (`extra_body`) and docs/serving.md.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
seen=""
for version in 0.125.0 2.14.0; do
  "$dir/venv/bin/pip" install --quiet "anthropic==$version"
  taken=$("$dir/venv/bin/python" - <<'PYTHON'
import inspect

from anthropic.resources.messages import Messages

names = inspect.signature(Messages.create).parameters
print(",".join(name for name in ("temperature", "top_k", "top_p") if name in names) or "none")
PYTHON
  )
  echo "anthropic $version: messages.create takes $taken"
  seen="$seen $taken"
done
[ "$seen" = " temperature,top_k,top_p none" ]
