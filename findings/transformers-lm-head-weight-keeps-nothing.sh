#!/usr/bin/env bash
# Expected: a BitNet checkpoint whose modules_to_not_convert is ["lm_head.weight"] keeps its head in
#     floats: the docstring of replace_with_bitnet_linear in transformers gives this very entry as
#     its example.
# Seen: the entry matches no module, so the head is quantized like every other linear layer. Entries
#     are matched with the names of modules ("lm_head"), never with the names of parameters.
# We depend on it in: crates/bitnet-models/src/huggingface/modules.rs, which refuses a list that does
#     not keep the head.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet transformers==5.24.0
"$dir/venv/bin/python" - <<'PYTHON'
import pathlib
import transformers
from transformers.quantizers.quantizers_utils import should_convert_module

print("transformers", transformers.__version__)
source = pathlib.Path(transformers.__file__).parent / "integrations" / "bitnet.py"
documented = "(e.g. `lm_head.weight`), the corresponding module will not be" in source.read_text()
quantized = {entry: should_convert_module("lm_head", [entry]) for entry in ["lm_head.weight", "lm_head"]}
print("the docstring names lm_head.weight:", documented)
print("the head is quantized with:", quantized)
raise SystemExit(0 if documented and quantized == {"lm_head.weight": True, "lm_head": False} else 1)
PYTHON
