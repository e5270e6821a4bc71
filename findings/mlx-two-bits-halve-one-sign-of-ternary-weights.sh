#!/usr/bin/env bash
# Expected: two bits have four levels, so `mx.quantize(bits=2)` keeps a group of weights that are only −d, 0 and d;
# or, as a quantizer of four even levels from −d to d would, it keeps both signs and moves the zeros by d/3.
# Seen: it keeps zeros and +d, and turns every −d into −d/2: the scale is −d/2 and the bias +d. With scale d and bias −d the
# same four levels hold the weights exactly, and `mx.dequantize` gives them back. With one bit, signs are kept exactly.
# We depend on it in: crates/bitnet-models/src/huggingface/mlx.rs takes scales of either sign, and reads such a group as what it
# is now (+2, 0 and −1 times d/2), not as the ternary weights it was made from.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet 'mlx[cpu]==0.32.4' numpy==2.4.6
"$dir/venv/bin/python" - <<'PYTHON'
import mlx.core as mx
import numpy as np

print("mlx", mx.__version__)
d = 0.5
codes = np.random.default_rng(0).choice([-1, 0, 1], (8, 128)).astype(np.float32)
weights = mx.array(codes * d)
q, scales, biases = mx.quantize(weights, group_size=128, bits=2)
found = np.array(mx.dequantize(q, scales, biases, group_size=128, bits=2)) / d
becomes = {int(code): sorted({float(x) for x in found[codes == code]}) for code in (-1, 0, 1)}
print("in units of d: -1, 0 and 1 become", becomes)
print("scale and bias in units of d:", float(scales[0, 0]) / d, float(biases[0, 0]) / d)

words = ((codes + 1).astype(np.uint32).reshape(8, -1, 16) << (2 * np.arange(16, dtype=np.uint32))).sum(-1, dtype=np.uint32)
ones = mx.ones((8, 1))
exact = np.array(mx.dequantize(mx.array(words), ones * d, ones * -d, group_size=128, bits=2)) / d
print("with scale d and bias -d the weights come back:", bool((exact == codes).all()))
signs = np.where(codes < 0, -1, 1).astype(np.float32)
kept = mx.dequantize(*mx.quantize(mx.array(signs * d), group_size=128, bits=1), group_size=128, bits=1)
print("signs come back from one bit:", bool((np.array(kept) / d == signs).all()))
same = becomes == {-1: [-0.5], 0: [0.0], 1: [1.0]} and (exact == codes).all() and (np.array(kept) / d == signs).all()
raise SystemExit(0 if same else 1)
PYTHON
