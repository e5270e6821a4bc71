"""Perplexity, bits per byte and activation sparsity of an exported model, by Hugging Face's own BitNetForCausalLM in float32.

    python evaluate.py --model exported/hf-packed --text tinystories-valid.txt

Documents are separated by lines `<|endoftext|>`. Each is read alone, BOS first, and every later token counts (no EOS).
What is longer than the context is read in windows that move by half of it, each token counted once.
"""
import argparse
import json
import math

import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, BitNetForCausalLM

from model import quantize_activations


def windows(ids, context):
    """(tokens, number of leading tokens that only give context) for one document."""
    yield ids[:context], 1
    start = 0
    while start + context < len(ids):
        start += context // 2
        end = min(start + context, len(ids))
        yield ids[start:end], context - context // 2


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="exported/hf-packed")
    p.add_argument("--text", required=True)
    p.add_argument("--ctx", type=int, default=512)
    p.add_argument("--threads", type=int)
    a = p.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    tokenizer = AutoTokenizer.from_pretrained(a.model)
    model = torch.nn.Module.float(BitNetForCausalLM.from_pretrained(a.model)).eval()  # its own .float() refuses quantized models
    documents = [d for d in (d.strip() for d in open(a.text, encoding="utf-8").read().split("<|endoftext|>")) if d]

    zeros = [[0, 0, 0] for _ in model.model.layers]  # values, exact zeros, zero codes

    def count(layer):
        def hook(_, inputs):
            x = inputs[0].flatten(0, -2)
            z = zeros[layer]
            z[0] += x.numel()
            z[1] += int((x == 0).sum())
            z[2] += int((quantize_activations(x)[0] == 0).sum())
        return hook

    for i, layer in enumerate(model.model.layers):
        layer.mlp.down_proj.register_forward_pre_hook(count(i))

    nats, tokens = 0.0, 0
    with torch.no_grad():
        for document in documents:
            for ids, skip in windows(tokenizer(document).input_ids, a.ctx):
                logits = model(torch.tensor([ids])).logits[0]
                nats += float(F.cross_entropy(logits[skip - 1:-1].double(), torch.tensor(ids[skip:]), reduction="sum"))
                tokens += len(ids) - skip
    num_bytes = sum(len(d.encode()) for d in documents)
    print(json.dumps({
        "documents": len(documents), "tokens": tokens, "nats": round(nats, 4), "perplexity": round(math.exp(nats / tokens), 4),
        "bytes": num_bytes, "bits_per_byte": round(nats / math.log(2) / num_bytes, 5),
        "ffn_zeros_after_relu2": [round(z[1] / z[0], 4) for z in zeros],
        "ffn_int8_zeros_into_down": [round(z[2] / z[0], 4) for z in zeros]}, indent=1))


if __name__ == "__main__":
    main()
