#!/usr/bin/env bash
# Expected: mlx-lm builds a Qwen3.5 hybrid from `layer_types`, the list that transformers writes and obeys; or it refuses a list
# that it cannot build.
# Seen: it reads `full_attention_interval` alone, 4 if the key is missing. Of a model whose every second layer has full attention,
# transformers saves the list; if the interval was not given by name, the file has no other trace of it, and mlx-lm makes linear
# attention of a layer of full attention. Loading then fails for the tensors of that layer.
# We depend on it in: crates/bitnet-models/src/huggingface/hybrid.rs obeys `layer_types` and takes the interval only where there
# is no list.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet 'mlx[cpu]==0.32.4' mlx-lm==0.32.2 transformers==5.24.0
"$dir/venv/bin/python" - 2>"$dir/log" <<'PYTHON' || { cat "$dir/log"; exit 1; }
from importlib.metadata import version

from mlx_lm.models.qwen3_5 import Model, ModelArgs
from transformers import Qwen3_5TextConfig

print("mlx-lm", version("mlx-lm"), "transformers", version("transformers"))
kinds = ["linear_attention", "full_attention"] * 2
config = Qwen3_5TextConfig(
    layer_types=kinds, num_hidden_layers=4, hidden_size=64, intermediate_size=64, vocab_size=32, num_attention_heads=2,
    num_key_value_heads=1, head_dim=32, linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=32,
    linear_value_head_dim=32,
).to_dict()
print("transformers saves layer_types", config["layer_types"], "and an interval:", "full_attention_interval" in config)
model = Model(ModelArgs.from_dict(config))
built = ["linear_attention" if layer.is_linear else "full_attention" for layer in model.layers]
print("mlx-lm builds            ", built)
expected = ["linear_attention"] * 3 + ["full_attention"]
raise SystemExit(0 if config["layer_types"] == kinds and built == expected else 1)
PYTHON
