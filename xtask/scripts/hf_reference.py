#!/usr/bin/env python3
"""Logits of a model directory as Hugging Face's transformers compute them, for `xtask model crossval --reference OUT`.

hf_reference.py MODEL_DIR OUT [--tokens 1,2,3 | --tokens-file FILE.json | --text TEXT] [--as-is]

Needs torch (the CPU build will do), transformers and, for --text, the model's tokenizer. Writes OUT/logits.npy
(f32 [tokens, vocab]) and OUT/tokens.json. The model runs in float32.

The projections are computed exactly: an activation row becomes int8 (s = 127 / max(absmax, 1e-5), q = round half to even of
x * s), the product with the ternary weights is a sum of integers, then it is divided by s and multiplied by the weights'
scale. Checkpoints hold the weights packed (uint8, weight_scale) or as float masters, which are quantized here by
1 / mean |w|. --as-is leaves the layers that transformers itself puts in place of them (packed ones of the published 2B
model compute in bfloat16 there)."""
import argparse
import json
import os

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # compiling would need a C++ compiler

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

DEFAULT_TOKENS = 64
SHARDS = "model.safetensors.index.json"


class Exact(torch.nn.Module):
    """y = (q . w) / s * scale, with q . w in double, where sums of such integers are exact."""

    def __init__(self, codes, scale, norm=None):
        super().__init__()
        self.codes, self.scale, self.norm = codes.double(), scale.float(), norm

    def forward(self, x):
        if self.norm is not None:
            x = self.norm(x)
        s = torch.full_like(x[..., :1], 127.0) / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        q = (x * s).round().clamp(-128, 127)
        return (q.double() @ self.codes.T).to(x.dtype) / s * self.scale


class Norm(torch.nn.Module):
    """The norm that a projection has of its own (use_rms_norm)."""

    def __init__(self, weight, eps):
        super().__init__()
        self.weight, self.eps = weight.float(), eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def read_tensors(folder):
    """All tensors of a directory's safetensors files."""
    index = os.path.join(folder, SHARDS)
    names = ["model.safetensors"]
    if os.path.exists(index):
        names = sorted(set(json.load(open(index))["weight_map"].values()))
    tensors = {}
    for name in names:
        with safe_open(os.path.join(folder, name), "pt") as file:
            for key in file.keys():
                tensors[key] = file.get_tensor(key)
    return tensors


def unpack(packed):
    """uint8 [rows / 4, cols], the code of row i + g * rows / 4 in bits 2g, to -1, 0, 1."""
    return torch.cat([(packed >> shift) & 3 for shift in (0, 2, 4, 6)]).to(torch.int8) - 1


def exact_layers(model, tensors, quantization):
    """Puts exact layers in place of the projections."""
    divides = quantization.get("linear_class", "bitlinear") == "bitlinear"
    for name, module in list(model.named_modules()):
        for child in [child for child, _ in module.named_children() if child.endswith("_proj")]:
            weight = tensors[f"{name}.{child}.weight"]
            if weight.dtype == torch.uint8:
                stored = tensors[f"{name}.{child}.weight_scale"].float()
                codes, scale = unpack(weight), 1.0 / stored if divides else stored
            else:
                inverse = 1.0 / weight.float().abs().mean().clamp(min=1e-5)
                codes, scale = (weight.float() * inverse).round().clamp(-1, 1), 1.0 / inverse
            norm = None
            if quantization.get("use_rms_norm"):
                norm = Norm(tensors[f"{name}.{child}.rms_norm.weight"], quantization.get("rms_norm_eps", 1e-6))
            setattr(module, child, Exact(codes, scale, norm))


def load(folder, as_is):
    if as_is:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    config = AutoConfig.from_pretrained(folder)
    quantization = getattr(config, "quantization_config", None) or {}
    if not isinstance(quantization, dict):
        quantization = quantization.to_dict()
    config.quantization_config = None
    del config.quantization_config
    tensors = read_tensors(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.to_empty(device="cpu")
    exact_layers(model, tensors, quantization)
    rest = {key: value.float() for key, value in tensors.items() if value.dtype != torch.uint8}
    own = dict(model.named_parameters())
    missing = [key for key in own if key not in rest and not (key == "lm_head.weight" and config.tie_word_embeddings)]
    assert not missing, f"the checkpoint lacks {missing}"
    with torch.no_grad():
        for key, parameter in own.items():
            if key in rest:
                parameter.copy_(rest[key])
    model.tie_weights()
    # Buffers that no file holds, such as rotary frequencies, are computed when a module is made.
    for module in model.modules():
        if hasattr(module, "inv_freq"):
            fresh = type(module)(config=config)
            module.inv_freq = fresh.inv_freq
            module.original_inv_freq = getattr(fresh, "original_inv_freq", fresh.inv_freq)
            module.attention_scaling = fresh.attention_scaling
    return model.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--tokens", help="ids, separated by commas")
    source.add_argument("--tokens-file", help='JSON: a list of ids, or {"tokens": [...]}')
    source.add_argument("--text")
    parser.add_argument("--as-is", action="store_true", help="transformers' own layers")
    options = parser.parse_args()

    model = load(options.model, options.as_is)
    vocab = model.config.vocab_size
    if options.tokens:
        tokens = [int(token) for token in options.tokens.split(",")]
    elif options.tokens_file:
        tokens = json.load(open(options.tokens_file))
        tokens = tokens["tokens"] if isinstance(tokens, dict) else tokens
    elif options.text:
        tokens = AutoTokenizer.from_pretrained(options.model)(options.text)["input_ids"]
    else:
        tokens = np.random.default_rng(0).integers(0, vocab, DEFAULT_TOKENS).tolist()
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0].float().numpy()
    os.makedirs(options.out, exist_ok=True)
    np.save(os.path.join(options.out, "logits.npy"), logits.astype(np.float32))
    with open(os.path.join(options.out, "tokens.json"), "w") as file:
        json.dump({"tokens": tokens}, file)
    print(f"{options.out}: logits {logits.shape} of {options.model}")


if __name__ == "__main__":
    main()
