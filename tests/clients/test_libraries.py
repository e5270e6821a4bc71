"""What `bitnet convert` writes loads in transformers and mlx-lm, and what transformers saves loads in `bitnet`."""

import json
import os
import subprocess

import numpy
import pytest
from conftest import BITNET, ROOT

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import AutoModelForCausalLM

# A model without values that lie in the middle of two steps of rounding, so that all logits are the same to the last digits.
STRICT = ROOT / "tests/data/golden/strict-b158/model-i2_s.gguf"
STORIES = ROOT / "models/stories/stories.gguf"
TOKENS = [256, 246, 157, 65, 147, 119, 133, 202]


def convert(source, out, *arguments, form="safetensors"):
    subprocess.run([BITNET, "convert", source, "--type", form, *arguments, "-o", out], check=True)
    return out


def logits(model, folder, tokens=TOKENS):
    """The program's logits, a row for each token."""
    out = folder / "logits.npy"
    subprocess.run([BITNET, "logits", "-m", model, "--kv-type", "f32", "--tokens", ",".join(map(str, tokens)), "-o", out], check=True)
    return numpy.load(out).reshape(len(tokens), -1)


def load(folder, dtype):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@torch.no_grad()
def theirs(model):
    return model(torch.tensor([TOKENS])).logits[0].float().numpy()


@pytest.mark.parametrize("dtype", ["auto", torch.float32])
def test_a_converted_file_has_the_same_logits_in_transformers(tmp_path, dtype):
    model = load(convert(STRICT, tmp_path / "model", "--tables", "f32"), dtype)
    assert abs(theirs(model) - logits(STRICT, tmp_path)).max() < 1e-5


def test_a_converted_file_runs_in_transformers_without_options(tmp_path):
    model = load(convert(STRICT, tmp_path / "model"), "auto")
    assert model.dtype == torch.bfloat16
    # bf16 has three digits.
    found, expected = theirs(model).ravel(), logits(STRICT, tmp_path).ravel()
    assert numpy.corrcoef(found, expected)[0, 1] > 0.99


def test_float_masters_that_transformers_saves_have_the_same_logits(tmp_path):
    masters = ROOT / "tests/data/golden/strict-rms/hf-bf16"
    load(masters, "auto").save_pretrained(tmp_path / "saved")
    tokens = [64, 60, 40, 43, 57]
    assert (logits(tmp_path / "saved", tmp_path, tokens) == logits(masters, tmp_path, tokens)).all()


def test_a_converted_file_loads_in_mlx_lm(tmp_path):
    import mlx.core as mx
    import mlx_lm

    mx.set_default_device(mx.cpu)
    folder = convert(STORIES, tmp_path / "model", "--bf16-scales")
    model, tokenizer = mlx_lm.load(str(folder))
    assert tokenizer.decode(tokenizer.encode("Once upon a time")).endswith("Once upon a time")
    # Its product of ternary weights is a kernel of Metal, so only its inputs are compared here.
    layer, reference = model.layers[0], load(convert(STORIES, tmp_path / "f32"), "auto").model.layers[0]
    scale = numpy.array(layer.mlp.up_proj.weight_scale.astype(mx.float32))
    assert (scale == reference.mlp.up_proj.weight_scale.float().numpy()).all()
    norm = numpy.array(layer.input_layernorm.weight.astype(mx.float32))
    assert (norm == reference.input_layernorm.weight.detach().float().numpy()).all()


@pytest.mark.parametrize("graph", ["qwen2", "qwen3"])
def test_a_file_with_group_scales_has_the_same_logits_in_mlx_lm(tmp_path, graph):
    import mlx.core as mx
    from mlx_lm.utils import load_model

    mx.set_default_device(mx.cpu)
    source = ROOT / "tests/data/golden-graphs" / graph
    model, _ = load_model(convert(source / "model.gguf", tmp_path / "model", form="mlx"))
    model.set_dtype(mx.float32)
    tokens = json.loads((source / "tokens.json").read_text())["tokens"]
    found = numpy.array(model(mx.array([tokens]))[0])
    expected = numpy.load(source / "logits.npy").reshape(found.shape)
    assert abs(found - expected).max() < 1e-4
