"""Write a trained checkpoint in the two forms Hugging Face reads.

    python export.py --run run --out exported

exported/hf-bf16: master weights, ternarized when the model is loaded (quantization_mode "online").
exported/hf-packed: codes + 1, four rows to a byte, and one scale a tensor (linear_class "autobitlinear", "offline").
`bitnet convert` makes a GGUF file of either.
"""
import argparse
import json
import os
import shutil

import torch
from safetensors.torch import save_file

from data import BOS, EOS
from model import ternarize


def pack(codes):
    """Codes [M, K] in {-1, 0, 1} -> uint8 [M / 4, K]; bits 2g and 2g + 1 hold row g · M / 4 + i, plus one."""
    groups = (codes + 1).to(torch.uint8).chunk(4)
    return groups[0] | groups[1] << 2 | groups[2] << 4 | groups[3] << 6


def hf_config(c, bos, mode):
    return {
        "architectures": ["BitNetForCausalLM"], "model_type": "bitnet",
        "vocab_size": c["vocab_size"], "hidden_size": c["hidden_size"], "intermediate_size": c["intermediate_size"],
        "num_hidden_layers": c["num_hidden_layers"], "num_attention_heads": c["num_attention_heads"],
        "num_key_value_heads": c["num_key_value_heads"], "hidden_act": "relu2", "rms_norm_eps": 1e-5,
        "max_position_embeddings": c["max_position_embeddings"], "rope_theta": c["rope_theta"],
        "rope_parameters": {"rope_type": "default", "rope_theta": c["rope_theta"]}, "tie_word_embeddings": True,
        "bos_token_id": bos, "eos_token_id": bos + 1, "pad_token_id": bos + 1, "torch_dtype": "bfloat16",
        "quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": mode},
    }


def write(folder, tensors, config, run):
    os.makedirs(folder, exist_ok=True)
    save_file({name: t.contiguous() for name, t in tensors.items()}, f"{folder}/model.safetensors", metadata={"format": "pt"})
    tokens = {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS}
    ids = {"bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"], "pad_token_id": config["pad_token_id"]}
    for name, value in {
        "config.json": config,
        "generation_config.json": {**ids, "do_sample": True, "temperature": 0.8},
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **tokens, "add_bos_token": True,
                                  "model_max_length": config["max_position_embeddings"], "clean_up_tokenization_spaces": False},
        "special_tokens_map.json": tokens,
    }.items():
        with open(f"{folder}/{name}", "w") as f:
            json.dump(value, f, indent=1)
    shutil.copy(f"{run}/tokenizer.json", folder)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--run", default="run", help="what train.py wrote")
    p.add_argument("--checkpoint", default="best.pt")
    p.add_argument("--out", default="exported")
    a = p.parse_args()
    config = json.load(open(f"{a.run}/config.json"))
    bos = next(t["id"] for t in json.load(open(f"{a.run}/tokenizer.json"))["added_tokens"] if t["content"] == BOS)
    saved = torch.load(f"{a.run}/{a.checkpoint}")
    master = {name: t.bfloat16() for name, t in saved["model"].items()}
    packed = dict(master)
    for name, weight in master.items():
        if "_proj." in name:
            codes, scale = ternarize(weight)
            packed[name] = pack(codes)
            packed[name.replace(".weight", ".weight_scale")] = scale.bfloat16().reshape(1)
    write(f"{a.out}/hf-bf16", master, hf_config(config, bos, "online"), a.run)
    write(f"{a.out}/hf-packed", packed, hf_config(config, bos, "offline"), a.run)
    print(f"{a.out}: step {saved['progress']['step']}, {saved['progress']['best']:.4f} bits per byte in training")


if __name__ == "__main__":
    main()
