"""Reference numbers for the program's tests of the shipped model: Hugging Face's, in float32.

    python reference.py --model exported/hf-packed --text tinystories-valid.txt --out ../../tests/data/stories

Writes greedy.json (64 greedy tokens after a prompt), logits.npy (f32 [tokens, vocab] of the prompt and its first
tokens), valid.txt (the first stories of the text) and perplexity.json (evaluate.py's figures for them).
"""
import argparse
import json
import pathlib
import subprocess
import sys

import numpy as np
import torch
from transformers import AutoTokenizer, BitNetForCausalLM


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="exported/hf-packed")
    p.add_argument("--text", required=True)
    p.add_argument("--out", type=pathlib.Path, required=True)
    p.add_argument("--prompt", default="Once upon a time")
    p.add_argument("--stories", type=int, default=20)
    a = p.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(a.model)
    model = torch.nn.Module.float(BitNetForCausalLM.from_pretrained(a.model)).eval()
    prompt = tokenizer(a.prompt).input_ids
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(64):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        logits = model(torch.tensor([ids[:16]])).logits[0].float().numpy()
    greedy = {"prompt": a.prompt, "prompt_tokens": prompt, "tokens": ids[len(prompt):], "logits_tokens": ids[:16]}
    (a.out / "greedy.json").write_text(json.dumps(greedy) + "\n")
    np.save(a.out / "logits.npy", logits)
    stories = [s.strip() for s in open(a.text, encoding="utf-8").read().split("<|endoftext|>")][:a.stories]
    valid = a.out / "valid.txt"
    valid.write_text("\n<|endoftext|>\n".join(stories) + "\n", encoding="utf-8")
    here = pathlib.Path(__file__).parent
    figures = subprocess.run([sys.executable, here / "evaluate.py", "--model", a.model, "--text", valid], check=True, capture_output=True)
    (a.out / "perplexity.json").write_bytes(figures.stdout)
    print(tokenizer.decode(ids))


if __name__ == "__main__":
    main()
