"""Train a small BitNet b1.58 story model on plain text files.

    python train.py --data tinystories-1.txt tinystories-2.txt tales.txt:0.2 --valid tinystories-valid.txt --out run

Writes into --out: tokenizer.json, config.json, log.csv, checkpoint.pt (the newest) and best.pt (the least validation
loss, what export.py reads). Started again with the same --out it goes on from checkpoint.pt; a new --steps then
re-plans the schedule. SIGTERM saves and stops.
"""
import argparse
import json
import math
import os
import signal
import time

import torch
from tokenizers import Tokenizer

import data
from model import BitNet
from muon import Muon


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", nargs="+", required=True, help="FILE or FILE:SHARE; files with SHARE < 1 are left out of stage two")
    p.add_argument("--valid", help="FILE kept out of training; without it there is no validation and best.pt is the last")
    p.add_argument("--out", default="run")
    p.add_argument("--steps", type=int, default=2800)
    p.add_argument("--batch-tokens", type=int, default=4096)
    p.add_argument("--vocab", type=int, default=4096)
    p.add_argument("--hidden", type=int, default=256)
    p.add_argument("--ffn", type=int, default=768)
    p.add_argument("--layers", type=int, default=6)
    p.add_argument("--heads", type=int, default=4)
    p.add_argument("--kv-heads", type=int, default=2)
    p.add_argument("--context", type=int, default=512)
    p.add_argument("--muon-lr", type=float, default=0.02)
    p.add_argument("--adam-lr", type=float, default=0.003)
    p.add_argument("--weight-decay", type=float, default=0.1)
    p.add_argument("--warmup", type=int, default=80)
    p.add_argument("--stage-two", type=float, default=0.6, help="where the second stage begins, as a part of all steps")
    p.add_argument("--eval-every", type=int, default=300)
    p.add_argument("--save-minutes", type=float, default=10)
    p.add_argument("--patience", type=int, default=5, help="validations without improvement after which training stops")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--no-compile", action="store_true")
    return p.parse_args()


def schedule(step, a):
    """Two stages, as for BitNet b1.58: (stage, part of the peak learning rate, part of the weight decay).

    The first falls from 1 to 2/3. The second starts lower, at 1/2, falls to zero and has no weight decay.
    """
    done, two = step / a.steps, a.stage_two
    if done < two:
        return 1, min(1.0, (step + 1) / a.warmup) * (1 - done / two / 3), 1.0
    return 2, 0.5 * (1 - done) / (1 - two), 0.0


def bits_per_byte(model, documents, num_bytes, a):
    """Bits per byte of documents (BOS first, no EOS), each alone; text beyond the context continues in a new window."""
    pieces = [d[i:i + a.context + 1] for d in documents for i in range(0, len(d) - 1, a.context)]
    nats = 0.0
    while pieces:
        tokens, targets, lengths = [], [], []
        while pieces and len(tokens) + len(pieces[-1]) - 1 <= a.batch_tokens:
            piece = pieces.pop()
            tokens, targets, lengths = tokens + piece[:-1], targets + piece[1:], lengths + [len(piece) - 1]
        while len(tokens) < a.batch_tokens:  # filled up, so that the compiled shape is the one of training
            fill = min(a.context, a.batch_tokens - len(tokens))
            tokens, targets, lengths = tokens + [0] * fill, targets + [-1] * fill, lengths + [fill]
        with torch.no_grad():
            nats += float(model.loss(torch.tensor(tokens), torch.tensor(targets), lengths))
    return nats / math.log(2) / num_bytes


def load_tokenizer(a, texts):
    path = f"{a.out}/tokenizer.json"
    if not os.path.exists(path):
        data.train_tokenizer((d for docs, share in texts if share >= 1 for d in docs), a.vocab).save(path)
    return Tokenizer.from_file(path)


def main():
    a = arguments()
    torch.manual_seed(a.seed)
    torch.set_num_threads(a.threads)
    os.makedirs(a.out, exist_ok=True)
    sources = [data.parse_source(s) for s in a.data]
    texts = [(data.read_documents(path), share) for path, share in sources]
    tokenizer = load_tokenizer(a, texts)
    mixture = data.Mixture([(data.encode_documents(tokenizer, docs, a.context), share) for docs, share in texts], a.batch_tokens, a.seed)
    valid = data.read_documents(a.valid) if a.valid else []
    valid_bytes = sum(len(d.encode()) for d in valid)
    valid = [e.ids for e in tokenizer.encode_batch(valid)]

    config = dict(vocab_size=a.vocab, hidden_size=a.hidden, intermediate_size=a.ffn, num_hidden_layers=a.layers,
                  num_attention_heads=a.heads, num_key_value_heads=a.kv_heads, head_dim=a.hidden // a.heads,
                  max_position_embeddings=a.context, rope_theta=10000.0)
    json.dump(config, open(f"{a.out}/config.json", "w"), indent=1)
    model = BitNet(config)
    matrices = [p for n, p in model.named_parameters() if "proj" in n]
    others = [p for n, p in model.named_parameters() if "proj" not in n]
    optimizers = [Muon(matrices, a.muon_lr, a.weight_decay),
                  torch.optim.AdamW(others, a.adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]
    if not a.no_compile:
        model.compile()
    progress = dict(step=0, seconds=0.0, best=math.inf, since_best=0)
    newest, log = f"{a.out}/checkpoint.pt", f"{a.out}/log.csv"
    if os.path.exists(newest):
        saved = torch.load(newest)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"]):
            optimizer.load_state_dict(state)
        progress = saved["progress"]
        mixture.restore(saved["mixture"])
    else:
        print("step,tokens,seconds,train_nats,valid_bits_per_byte", file=open(log, "w"))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters; "
          + ", ".join(f"{path}: {sum(map(len, pieces)):,} tokens x {share}" for (path, share), (pieces, _) in zip(sources, mixture.sources)), flush=True)

    def save(path, **extra):
        torch.save(dict(model=model.state_dict(), progress=progress, arguments=vars(a), **extra), path + ".tmp")
        os.replace(path + ".tmp", path)

    def save_all():
        save(newest, optimizers=[o.state_dict() for o in optimizers], mixture=mixture.state())

    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    last_save, losses, clock = time.monotonic(), [], time.monotonic()
    while progress["step"] < a.steps and not stop:
        stage, rate, decay = schedule(progress["step"], a)
        for optimizer, peak in zip(optimizers, (a.muon_lr, a.adam_lr)):
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
        for group in optimizers[0].param_groups:
            group["weight_decay"] = a.weight_decay * decay
        tokens, targets, lengths = mixture.next(stage)
        loss = model.loss(torch.from_numpy(tokens).long(), torch.from_numpy(targets).long(), lengths) / a.batch_tokens
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        progress["step"] += 1
        now = time.monotonic()
        progress["seconds"] += now - clock
        clock = now
        if progress["step"] % 20 == 0 or progress["step"] == a.steps:
            bits = ""
            if valid and (progress["step"] % a.eval_every == 0 or progress["step"] == a.steps):
                bits = bits_per_byte(model, valid, valid_bytes, a)
            elif not valid and progress["step"] == a.steps:
                bits = 0.0
            step, train_nats = progress["step"], sum(losses) / len(losses)
            losses = []
            line = f"{step},{step * a.batch_tokens},{progress['seconds']:.0f},{train_nats:.4f},{bits and format(bits, '.4f')}"
            print(line, flush=True)
            print(line, file=open(log, "a"))
            if bits != "":
                better = bits < progress["best"]
                progress["best"], progress["since_best"] = (bits, 0) if better else (progress["best"], progress["since_best"] + 1)
                if better:
                    save(f"{a.out}/best.pt")
                if progress["since_best"] >= a.patience:
                    print("early stop")
                    break
        if now - last_save > 60 * a.save_minutes:
            save_all()
            last_save = now
    save_all()


if __name__ == "__main__":
    main()
