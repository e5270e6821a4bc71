"""Print stories of an exported model, by Hugging Face's own BitNetForCausalLM in float32.

    python sample.py --model exported/hf-packed --prompt "Once upon a time" --seeds 0 1 2
"""
import argparse

import torch
from transformers import AutoTokenizer, BitNetForCausalLM


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="exported/hf-packed")
    p.add_argument("--prompt", default="Once upon a time")
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    p.add_argument("--temperature", type=float, default=0.8)
    p.add_argument("--top-k", type=int, default=40)
    p.add_argument("--top-p", type=float, default=0.95)
    p.add_argument("--min-p", type=float, default=0.05)
    p.add_argument("--max-tokens", type=int, default=300)
    p.add_argument("--threads", type=int)
    a = p.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    tokenizer = AutoTokenizer.from_pretrained(a.model)
    model = torch.nn.Module.float(BitNetForCausalLM.from_pretrained(a.model)).eval()  # its own .float() refuses quantized models
    prompt = tokenizer(a.prompt, return_tensors="pt").input_ids
    how = {"do_sample": False}
    if a.temperature > 0:
        how = {"do_sample": True, "temperature": a.temperature, "top_k": a.top_k, "top_p": a.top_p, "min_p": a.min_p}
    for seed in a.seeds:
        torch.manual_seed(seed)
        ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=a.max_tokens, **how)
        print(f"--- seed {seed}\n{tokenizer.decode(ids[0], skip_special_tokens=True)}\n", flush=True)


if __name__ == "__main__":
    main()
