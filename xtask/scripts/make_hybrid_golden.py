#!/usr/bin/env python3
"""Write a tiny random Qwen3.5 text model as a Hugging Face directory, and the logits an engine must give.

    make_hybrid_golden.py OUT_DIR

Files: config.json and model.safetensors as transformers writes them (BF16); tokens.json; logits.npy (f32 [tokens, vocab]:
Qwen3_5ForCausalLM in float64 where its code allows, activations not rounded).
Projections are trits with one scale for 64 columns, so that they can be packed without loss. There are more value heads
than key heads: transformers groups them, other engines tile them. Needs numpy, torch, safetensors and transformers 5."""
import json
import os
import sys

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

NUM_TOKENS, VOCAB, GROUP = 40, 131, 64

config = Qwen3_5TextConfig(
    vocab_size=VOCAB, hidden_size=128, intermediate_size=128, num_hidden_layers=3, num_attention_heads=2,
    num_key_value_heads=1, head_dim=64, linear_num_key_heads=2, linear_num_value_heads=6, linear_key_head_dim=64,
    linear_value_head_dim=64, tie_word_embeddings=False, max_position_embeddings=512,
    layer_types=["linear_attention", "full_attention", "linear_attention"],
)


def tensor(name, shape, rng):
    """A random tensor whose values BF16 holds."""
    if name.endswith("A_log"):
        values = rng.uniform(-1, 1.5, shape)
    elif name.endswith(("dt_bias", "norm.weight")) and not name.endswith("linear_attn.norm.weight"):
        values = rng.normal(0, 0.4, shape)  # transformers adds 1 to these norms
    elif name.endswith("linear_attn.norm.weight"):
        values = rng.normal(1, 0.3, shape)
    elif name.endswith(("in_proj_a.weight", "in_proj_b.weight", "conv1d.weight", "embed_tokens.weight", "lm_head.weight")):
        values = rng.normal(0, 1 if "embed" in name else 0.3, shape)
    else:
        codes = rng.integers(-1, 2, (shape[0], shape[1] // GROUP, GROUP))
        scales = rng.integers(64, 128, (shape[0], shape[1] // GROUP, 1)) / 1024
        values = (codes * scales).reshape(shape)
    return torch.tensor(values).to(torch.bfloat16)


def main():
    out, rng = sys.argv[1], np.random.default_rng(5)
    os.makedirs(out, exist_ok=True)
    model = Qwen3_5ForCausalLM(config)
    tensors = {name: tensor(name, tuple(old.shape), rng) for name, old in model.state_dict().items()}
    model.load_state_dict({name: values.double() for name, values in tensors.items()})
    tokens = rng.integers(0, VOCAB, NUM_TOKENS)
    with torch.no_grad():
        logits = model.double().eval()(torch.tensor(tokens)[None]).logits[0]
    np.save(os.path.join(out, "logits.npy"), logits.float().numpy())
    with open(os.path.join(out, "tokens.json"), "w") as file:
        json.dump({"tokens": tokens.tolist()}, file)
    save_file(tensors, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    written = config.to_diff_dict() | {"architectures": ["Qwen3_5ForCausalLM"], "dtype": "bfloat16"}
    with open(os.path.join(out, "config.json"), "w") as file:
        json.dump(written | {key: config.to_dict()[key] for key in ("rope_parameters", "layer_types")}, file, indent=2)


main()
