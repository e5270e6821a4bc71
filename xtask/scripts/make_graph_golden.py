#!/usr/bin/env python3
"""Write tiny random models of the graphs qwen2, qwen3, minicpm, hunyuan-dense and gemma3, and the logits an engine must give.

    make_graph_golden.py OUT_DIR [NAME ...]           writes OUT_DIR/NAME/... for all names of MODELS, or for these

Files of each folder: model.gguf; tokens.json; logits.npy (f32 [tokens, vocab]: transformers in float64, activations not
rounded); logits-int8.npy (a numpy pass with int8 activations: one scale for 32 inputs, or for a row with i2_s weights).
The embedding models also have hidden-int8.npy (f32 [tokens, hidden]: what the head would multiply, from the same pass); each of
their projections has an input norm of its own, and their vectors are stored in float16, as in the published files.
Tensor names, their order and metadata keys follow llama.cpp's converter. The seeds are tried in turn until no
rounded activation lies near a tie, so a correct engine agrees at every position. Some come also as directories with the same
weights: hf, as transformers saves them in float16 (minicpm-longrope with the keys of MiniCPM's own code), and of qwen2 and
qwen3 mlx, quantized as mlx-lm reads it (scale and bias of a group: d and -d for two bits, 2d and -d for signs). If mlx-lm is
there, it runs them, too.

References: Qwen2ForCausalLM; Qwen3ForCausalLM; GraniteForCausalLM, which multiplies embedding, residual and logits as MiniCPM does (its own
class is not in transformers, and llama.cpp runs both with one graph); HunYuanDenseV1ForCausalLM.
Needs numpy, torch and transformers 5."""
import json
import os
import shutil
import struct
import sys

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

F32, I2_S = 0, 36
FORMS = {"q1_0": (41, 128), "q2_0": (42, 64), "pq2_0": (142, 128), "ptq1_0": (143, 128)}  # type id, weights of a block
NUM_TOKENS, VOCAB = 24, 301
MARGIN = 2e-4  # distance of every rounded activation from a tie, in units of its scale

MODELS = {
    # heads:KV heads x head size; the published files of each graph choose tied or untied as here
    "qwen2": dict(graph="qwen2", form="q2_0", d=128, L=2, H=2, KV=1, hd=64, F=192, tie=True, theta=1e6),
    "qwen2-i2_s": dict(graph="qwen2", form="i2_s", d=128, L=2, H=4, KV=2, hd=32, F=256, tie=False, theta=1e4),
    "qwen3": dict(graph="qwen3", form="q1_0", d=128, L=2, H=2, KV=1, hd=64, F=128, tie=False, theta=1e6, yarn=(4.0, 16)),
    "minicpm": dict(graph="minicpm", form="ptq1_0", d=128, L=2, H=4, KV=2, hd=32, F=256, tie=True, theta=1e4,
                    embedding=12.0, residual=1.4 / 2 ** 0.5, logit=128 / 256),
    "minicpm-longrope": dict(graph="minicpm", form="ptq1_0", d=128, L=2, H=2, KV=1, hd=64, F=128, tie=True, theta=1e4,
                             embedding=12.0, residual=1.4 / 2 ** 0.5, logit=128 / 256, short=[1 + i / 8 for i in range(32)],
                             long=[1 + i / 4 for i in range(32)]),
    "qwen3-embedding": dict(graph="qwen3", form="i2_s", d=128, L=2, H=4, KV=2, hd=64, F=256, tie=True, theta=1e6, input_norms=True),
    "gemma3-embedding": dict(graph="gemma3", form="i2_s", d=128, L=2, H=4, KV=1, hd=64, F=384, tie=True, theta=1e4, input_norms=True,
                             embedding=128 ** 0.5),
    "hunyuan-dense": dict(graph="hunyuan-dense", form="q1_0", d=128, L=2, H=2, KV=1, hd=64, F=256, tie=True, theta=11158839.9),
}


def pack(form, codes, scales):
    """codes [rows, cols], scales f16 [blocks] -> bytes"""
    group = FORMS[form][1]
    c, d = codes.reshape(-1, group), scales.astype("<f2").reshape(-1, 1).view(np.uint8)
    if form == "q1_0":
        return np.hstack([d, np.packbits(c > 0, axis=1, bitorder="little")]).tobytes()
    if form == "ptq1_0":
        t = (c + 1).astype(np.int64)

        def digits(part, count):  # [blocks, digits, bytes], the first digit is the most significant of five
            v = sum(part[:, n] * 3 ** (4 - n) for n in range(count))
            return ((v * 256 + 242) // 243).astype(np.uint8)

        parts = [digits(t[:, :80].reshape(-1, 5, 16), 5), digits(t[:, 80:120].reshape(-1, 5, 8), 5),
                 digits(t[:, 120:].reshape(-1, 4, 2), 4)]
        return np.hstack(parts + [d]).tobytes()
    q = (c + 1).astype(np.uint8).reshape(len(c), -1, 4)
    return np.hstack([d, q[:, :, 0] | q[:, :, 1] << 2 | q[:, :, 2] << 4 | q[:, :, 3] << 6]).tobytes()


def pack_i2_s(codes, scale):
    q = (codes + 1).astype(np.uint8).reshape(-1, 4, 32)
    return (q[:, 0] << 6 | q[:, 1] << 4 | q[:, 2] << 2 | q[:, 3]).tobytes() + struct.pack("<f", scale) + bytes(28)


def write_gguf(path, meta, tensors):
    """tensors: name, dims (inputs first), type id, bytes"""
    text = lambda s: struct.pack("<Q", len(s.encode())) + s.encode()

    def pair(key, v):
        if isinstance(v, bool): return text(key) + struct.pack("<I?", 7, v)
        if isinstance(v, int): return text(key) + struct.pack("<II", 4, v)
        if isinstance(v, float): return text(key) + struct.pack("<If", 6, v)
        if isinstance(v, str): return text(key) + struct.pack("<I", 8) + text(v)
        if isinstance(v[0], str): return text(key) + struct.pack("<IIQ", 9, 8, len(v)) + b"".join(map(text, v))
        return text(key) + struct.pack("<IIQ", 9, 5, len(v)) + np.array(v, "<i4").tobytes()

    with open(path, "wb") as f:
        f.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(meta)) + b"".join(pair(k, v) for k, v in meta.items()))
        offset = 0
        for name, dims, kind, raw in tensors:
            f.write(text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset))
            offset += -(-len(raw) // 32) * 32
        f.write(bytes(-f.tell() % 32))
        for *_, raw in tensors:
            f.write(raw + bytes(-len(raw) % 32))


def tokenizer():
    """bytes as tokens, then two control tokens, then padding: enough to run the file"""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in keep]
    tokens = [chr(b) for b in keep] + [chr(256 + i) for i in range(len(others))] + ["<|endoftext|>", "<|im_end|>"]
    padding = VOCAB - len(tokens)
    types = [1] * 256 + [3] * 2 + [5] * padding
    tokens += [f"[PAD{i}]" for i in range(padding)]
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": types, "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.eos_token_id": 257,
            "tokenizer.ggml.padding_token_id": 256, "tokenizer.ggml.add_bos_token": False}


def interleave(w, heads):
    """Rows of rotated heads with the two elements of a pair side by side, as llama.cpp's converter stores them for minicpm."""
    return w.reshape(heads, 2, len(w) // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


class Model:
    """Random tensors: `tensors` as the file has them, `weights` (float64, rows in the order of the graph) for the references."""

    def __init__(self, o, seed):
        self.o, self.rng, self.tensors, self.weights = o, np.random.default_rng(seed), [], {}
        d, H, KV, hd, F = (o[k] for k in ("d", "H", "KV", "hd", "F"))
        tied = o["tie"]
        if "short" in o: self.factors("rope_factors_long.weight", o["long"]), self.factors("rope_factors_short.weight", o["short"])
        if not tied: self.linear("output.weight", VOCAB, d, 2.0)
        self.linear("token_embd.weight", VOCAB, d, 2.0 if tied else 8.0)
        for i in range(o["L"]):
            p = f"blk.{i}."
            self.norm(p + "attn_norm.weight", d)
            self.linear(p + "ffn_down.weight", d, F, 1.5)
            self.linear(p + "ffn_gate.weight", F, d, 1.2)
            self.linear(p + "ffn_up.weight", F, d, 1.2)
            self.norm(p + "ffn_norm.weight", d)
            for name, rows in (("attn_k", KV * hd), ("attn_output", None), ("attn_q", H * hd), ("attn_v", KV * hd)):
                if o["graph"] in ("hunyuan-dense", "qwen3", "gemma3") and name in ("attn_k", "attn_q"): self.norm(p + name + "_norm.weight", hd, 1.4)
                if o["graph"] == "qwen2" and rows: self.vector(p + name + ".bias", self.rng.normal(0, 0.5, rows))
                heads = {"attn_q": H, "attn_k": KV}.get(name) if o["graph"] == "minicpm" else None
                self.linear(p + name + ".weight", *((d, H * hd) if rows is None else (rows, d)), heads=heads)
            if o["graph"] == "gemma3": self.norm(p + "post_attention_norm.weight", d), self.norm(p + "post_ffw_norm.weight", d)
            if o.get("input_norms"):
                widths = dict(attn_q=d, attn_k=d, attn_v=d, attn_output=H * hd, ffn_gate=d, ffn_up=d, ffn_down=F)
                for name, width in widths.items(): self.norm(f"{p}{name}_norm_in.weight", width)
        self.norm("output_norm.weight", d)

    def factors(self, name, x):
        self.tensors.append((name, (len(x),), F32, np.array(x, "<f4").tobytes()))

    def linear(self, name, rows, cols, gain=1.0, heads=None):
        rng, form = self.rng, self.o["form"]
        order = (lambda w: interleave(w, heads)) if heads else (lambda w: w)
        if form == "i2_s" and name.startswith("blk."):
            codes, scale = rng.choice([-1, 0, 1], (rows, cols)), np.float32(gain / np.sqrt(cols * 2 / 3))
            self.tensors.append((name, (cols, rows), I2_S, pack_i2_s(codes, scale)))
            self.weights[name] = codes * float(scale)
            return
        if form == "i2_s":
            w = rng.normal(0, gain / np.sqrt(cols), (rows, cols)).astype("<f2")
            self.tensors.append((name, (cols, rows), 1, w.tobytes()))
            self.weights[name] = w.astype(np.float64)
            return
        kind, group = FORMS[form]
        blocks = rows * cols // group
        assert cols % group == 0, (name, cols)
        values = {"q1_0": [-1, 1], "ptq1_0": [-1, 0, 1]}.get(form, [-1, 0, 1, 2])
        odds = None if len(values) < 4 else [0.33, 0.33, 0.33, 0.01]
        codes = rng.choice(values, (rows, blocks // rows, group), p=odds)
        scales = gain / np.sqrt(np.mean(codes.astype(float) ** 2) * cols) * rng.uniform(0.6, 1.4, (rows, blocks // rows))
        scales[rng.random(scales.shape) < 0.01] = 0
        scales = scales.astype("<f2")
        self.tensors.append((name, (cols, rows), kind, pack(form, order(codes).reshape(rows, cols), order(scales))))
        self.weights[name] = (codes * scales.astype(np.float64)[..., None]).reshape(rows, cols)

    def vector(self, name, x):
        x = np.asarray(x, "<f2")  # so that directories in float16 hold the same
        kind, stored = (1, x) if self.o.get("input_norms") else (F32, x.astype("<f4"))
        self.tensors.append((name, (len(x),), kind, stored.tobytes()))
        self.weights[name] = x.astype(np.float64)

    def norm(self, name, n, mean=1.0):
        self.vector(name, self.rng.normal(mean, 0.1 * mean, n))

    def meta(self, name):
        o, a = self.o, self.o["graph"]
        m = {"general.architecture": a, "general.type": "model", "general.name": f"Golden {name}", f"{a}.block_count": o["L"],
             f"{a}.context_length": 4096, f"{a}.embedding_length": o["d"], f"{a}.feed_forward_length": o["F"],
             f"{a}.attention.head_count": o["H"], f"{a}.attention.head_count_kv": o["KV"]}
        if a == "hunyuan-dense":  # its converter stretches the base and says that nothing else scales
            m |= {f"{a}.rope.scaling.type": "none", f"{a}.rope.scaling.factor": 1.0, f"{a}.rope.scaling.original_context_length": 262144}
        if "yarn" in o:
            factor, original = o["yarn"]
            m |= {f"{a}.rope.scaling.type": "yarn", f"{a}.rope.scaling.factor": factor, f"{a}.rope.scaling.original_context_length": original}
        if "short" in o: m |= {f"{a}.rope.scaling.type": "longrope", f"{a}.rope.scaling.original_context_length": 4096}
        m |= {f"{a}.rope.freq_base": o["theta"], f"{a}.attention.layer_norm_rms_epsilon": 1e-6}
        if o.get("input_norms"): m |= {f"{a}.pooling_type": 1}  # as the published files say, whose makers take the last token
        if a in ("hunyuan-dense", "qwen3", "gemma3"): m |= {f"{a}.attention.key_length": o["hd"], f"{a}.attention.value_length": o["hd"]}
        if a == "minicpm":
            m |= {f"{a}.rope.dimension_count": o["hd"], f"{a}.embedding_scale": o["embedding"], f"{a}.residual_scale": o["residual"],
                  f"{a}.logit_scale": o["logit"]}
        return m | {"general.quantization_version": 2} | tokenizer()


class Net:
    """The graphs in numpy, one position after another, with activations rounded to int8 in runs of `run` inputs (0: a whole row)."""

    def __init__(self, model, run, dtype=np.float64):
        self.W, self.o, self.run, self.dtype = {n: w.astype(dtype) for n, w in model.weights.items()}, model.o, run, dtype
        self.past, self.position = [None] * self.o["L"], 0
        n, base = self.o["hd"], float(self.o["theta"])
        self.frequencies, self.rope_scale = base ** (-np.arange(0, n, 2) / n), 1.0
        if "short" in self.o: self.frequencies = self.frequencies / np.array(self.o["short"])
        if "yarn" in self.o:
            factor, original = self.o["yarn"]
            pair = lambda turns: n * np.log(original / (turns * 2 * np.pi)) / (2 * np.log(base))
            low, high = max(np.floor(pair(32)), 0), min(np.ceil(pair(1)), n - 1)
            ramp = np.clip((np.arange(n // 2) - low) / max(high - low, 0.001), 0, 1)
            self.frequencies = self.frequencies / factor * ramp + self.frequencies * (1 - ramp)
            self.rope_scale = 1 + 0.1 * np.log(factor)
        self.quantized = {n for n, _, kind, _ in model.tensors if kind not in (F32, 1)}

    def mul(self, name, x):
        if self.o.get("input_norms") and name.startswith("blk."): x = self.rms(x, name.replace(".weight", "_norm_in.weight"))
        if name in self.quantized:
            run = self.run or len(x)
            parts = x.reshape(-1, run)
            top = np.abs(parts).max(-1, keepdims=True)
            top[top == 0] = 1
            t = parts * (self.dtype(127) / top) if not self.run else parts / (top / self.dtype(127))
            self.margin = min(self.margin, float(np.abs(np.abs(t - np.rint(t)) - 0.5).min()))
            x = (np.rint(t) * (top / self.dtype(127))).reshape(-1)
        return self.W[name] @ x

    def rms(self, x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.dtype(1e-6)) * self.W[name]

    def rope(self, x):
        half = x.shape[-1] // 2
        angle = self.position * self.frequencies
        c, s = ((f(angle) * self.rope_scale).astype(self.dtype) for f in (np.cos, np.sin))
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * c - b * s, b * c + a * s], -1)

    def attention(self, p, x, i):
        o, H, KV, hd = self.o, self.o["H"], self.o["KV"], self.o["hd"]
        q, k, v = (self.mul(f"{p}attn_{n}.weight", x) + self.W.get(f"{p}attn_{n}.bias", 0) for n in "qkv")
        q, k, v = q.reshape(H, hd), k.reshape(KV, hd), v.reshape(KV, hd)
        if o["graph"] in ("qwen3", "gemma3"):
            q, k = self.rms(q, p + "attn_q_norm.weight"), self.rms(k, p + "attn_k_norm.weight")
        q, k = self.rope(q), self.rope(k)
        if o["graph"] == "hunyuan-dense":  # its norms come after the rotation
            q, k = self.rms(q, p + "attn_q_norm.weight"), self.rms(k, p + "attn_k_norm.weight")
        K, V = self.past[i] or (np.empty((0, KV, hd), self.dtype),) * 2
        K, V = np.concatenate([K, k[None]]), np.concatenate([V, v[None]])
        self.new[i] = (K, V)
        out = np.empty((H, hd), self.dtype)
        for h in range(H):
            score = K[:, h * KV // H] @ q[h] / np.sqrt(self.dtype(hd))
            e = np.exp(score - score.max())
            out[h] = e / e.sum() @ V[:, h * KV // H]
        return self.mul(p + "attn_output.weight", out.reshape(-1))

    def step(self, token):
        o = self.o
        self.margin, self.new = 1.0, [None] * o["L"]
        embedding, residual = (self.dtype(o.get(k, 1.0)) for k in ("embedding", "residual"))
        x = self.W["token_embd.weight"][token] * embedding
        for i in range(o["L"]):
            p = f"blk.{i}."
            after = (lambda y, name: self.rms(y, p + name)) if o["graph"] == "gemma3" else (lambda y, name: y)
            x = x + after(self.attention(p, self.rms(x, p + "attn_norm.weight"), i), "post_attention_norm.weight") * residual
            h = self.rms(x, p + "ffn_norm.weight")
            gate = self.mul(p + "ffn_gate.weight", h)
            if o["graph"] == "gemma3": act = gate * self.dtype(0.5) * (1 + np.tanh(np.sqrt(self.dtype(2 / np.pi)) * (gate + self.dtype(0.044715) * gate ** 3)))
            else: act = gate / (1 + np.exp(-gate))
            x = x + after(self.mul(p + "ffn_down.weight", act * self.mul(p + "ffn_up.weight", h)), "post_ffw_norm.weight") * residual
        self.hidden = x = self.rms(x, "output_norm.weight") / self.dtype(o.get("logit", 1.0))
        return self.mul("token_embd.weight" if o["tie"] else "output.weight", x)

    def keep(self):
        self.past, self.position = self.new, self.position + 1


def choose_tokens(net, rng):
    """Tokens one by one, each such that no activation of its position is near a tie; None if there is none for a position."""
    tokens, logits, hidden = [], [], []
    for _ in range(NUM_TOKENS):
        for token in rng.permutation(256)[:100]:
            row = net.step(int(token))
            if net.margin >= MARGIN: break
        else:
            return None, None, None
        net.keep()
        tokens.append(int(token)), logits.append(row), hidden.append(net.hidden)
    return tokens, np.array(logits), np.array(hidden)


class Normed(torch.nn.Module):
    """A projection with a norm of its own input, whose weight is `scale`."""

    def __init__(self, linear, scale):
        super().__init__()
        self.linear, self.scale = linear, torch.tensor(scale)

    def forward(self, x):
        return self.linear(torch.nn.functional.rms_norm(x, x.shape[-1:], self.scale, 1e-6))


def transformers_model(model):
    o, W = model.o, model.weights
    common = dict(vocab_size=VOCAB, hidden_size=o["d"], intermediate_size=o["F"], num_hidden_layers=o["L"], num_attention_heads=o["H"],
                  num_key_value_heads=o["KV"], rms_norm_eps=1e-6, tie_word_embeddings=o["tie"], max_position_embeddings=4096,
                  attn_implementation="eager", rope_parameters={"rope_type": "default", "rope_theta": o["theta"]})
    if "yarn" in o:
        common["rope_parameters"] |= {"rope_type": "yarn", "factor": o["yarn"][0], "original_max_position_embeddings": o["yarn"][1]}
    if "short" in o:
        common["rope_parameters"] |= {"rope_type": "longrope", "short_factor": o["short"], "long_factor": o["long"],
                                      "original_max_position_embeddings": 4096}
    if o["graph"] == "qwen2":
        from transformers import Qwen2Config, Qwen2ForCausalLM
        net = Qwen2ForCausalLM(Qwen2Config(**common))
    elif o["graph"] == "qwen3":
        from transformers import Qwen3Config, Qwen3ForCausalLM
        net = Qwen3ForCausalLM(Qwen3Config(**common, head_dim=o["hd"]))
    elif o["graph"] == "gemma3":
        from transformers import Gemma3TextConfig, Gemma3ForCausalLM
        common["rope_parameters"] = {k: common["rope_parameters"] for k in ("full_attention", "sliding_attention")}
        net = Gemma3ForCausalLM(Gemma3TextConfig(**common, head_dim=o["hd"], query_pre_attn_scalar=o["hd"], layer_types=["full_attention"] * o["L"]))
    elif o["graph"] == "minicpm":
        from transformers import GraniteConfig, GraniteForCausalLM
        net = GraniteForCausalLM(GraniteConfig(**common, embedding_multiplier=o["embedding"], residual_multiplier=o["residual"],
                                               logits_scaling=o["logit"], attention_multiplier=o["hd"] ** -0.5))
    else:
        from transformers import HunYuanDenseV1Config, HunYuanDenseV1ForCausalLM
        net = HunYuanDenseV1ForCausalLM(HunYuanDenseV1Config(**common, head_dim=o["hd"]))
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
             "post_attention_layernorm": "ffn_norm", "self_attn.query_layernorm": "attn_q_norm", "self_attn.key_layernorm": "attn_k_norm",
             "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
    if o["graph"] == "gemma3":
        names |= {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
                  "post_feedforward_layernorm": "post_ffw_norm"}
    tops = {"model.embed_tokens.weight": "token_embd.weight", "lm_head.weight": "output.weight", "model.norm.weight": "output_norm.weight"}
    net = net.double().eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name in tops: weight = W[tops[name]]
            else:
                _, _, layer, rest = name.split(".", 3)
                module, kind = rest.rsplit(".", 1)
                weight = W[f"blk.{layer}.{names[module]}.{kind}"]
            assert tuple(parameter.shape) == weight.shape, (name, parameter.shape, weight.shape)
            # Gemma's norms multiply by 1 + weight; the file has the sum.
            parameter.copy_(torch.tensor(weight - (o["graph"] == "gemma3" and weight.ndim == 1)))
    if o.get("input_norms"):
        for name, module in list(net.named_modules()):
            if name.rsplit(".", 1)[-1] in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
                _, _, layer, rest = name.split(".", 3)
                parent, child = name.rsplit(".", 1)
                setattr(net.get_submodule(parent), child, Normed(module, W[f"blk.{layer}.{names[rest]}_norm_in.weight"]))
    return net


def save_hf(folder, net, o, tokens, reference):
    shutil.rmtree(f"{folder}/hf", ignore_errors=True)
    net.half().save_pretrained(f"{folder}/hf")
    if os.path.exists(f"{folder}/hf/generation_config.json"): os.remove(f"{folder}/hf/generation_config.json")
    if o["graph"] not in ("minicpm", "hunyuan-dense"): return
    config = json.load(open(f"{folder}/hf/config.json"))
    if o["graph"] == "minicpm":  # the keys of its own class, which transformers does not have
        for key in [key for key in config if key.endswith(("_multiplier", "_scaling"))]: del config[key]
        config |= {"architectures": ["MiniCPMForCausalLM"], "model_type": "minicpm", "rope_theta": o["theta"], "scale_emb": o["embedding"],
                   "scale_depth": 1.4, "dim_model_base": 256, "rope_scaling": config.pop("rope_parameters")}
    else:  # as published: the base of short contexts, and what stretches it
        exponent = o["hd"] / (o["hd"] - 2)
        config |= {"rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "alpha": (o["theta"] / 1e4) ** (1 / exponent), "factor": 1.0}}
        del config["rope_parameters"]
    json.dump(config, open(f"{folder}/hf/config.json", "w"), indent=2)
    if o["graph"] == "hunyuan-dense":
        from transformers import AutoModelForCausalLM
        with torch.no_grad(): found = AutoModelForCausalLM.from_pretrained(f"{folder}/hf", dtype=torch.float64)(torch.tensor([tokens])).logits[0]
        assert np.abs(found.numpy() - reference).max() < 1e-4


def save_mlx(folder, o, tokens, reference):
    shutil.rmtree(f"{folder}/mlx", ignore_errors=True)
    os.makedirs(f"{folder}/mlx")
    bits, group = (1, 128) if o["form"] == "q1_0" else (2, 64)
    tensors = {}
    for name, w in load_file(f"{folder}/hf/model.safetensors").items():
        if w.ndim == 1:
            tensors[name] = w
            continue
        runs = w.reshape(len(w), -1, group)
        d = np.where(runs == 0, np.inf, np.abs(runs)).min(-1)
        d = np.where(np.isinf(d), 0, d).astype(np.float16)
        codes = np.rint(runs / np.where(d == 0, 1, d)[..., None].astype(float)).astype(np.int64)
        codes = ((codes + 1) // 2 if bits == 1 else codes + 1).astype(np.uint32).reshape(len(w), -1, 32 // bits)
        words = (codes << (bits * np.arange(32 // bits, dtype=np.uint32))).sum(-1, dtype=np.uint32)
        module = name.removesuffix(".weight")
        tensors |= {name: words, f"{module}.scales": d * np.float16(2 if bits == 1 else 1), f"{module}.biases": -d}
    save_file(tensors, f"{folder}/mlx/model.safetensors", metadata={"format": "mlx"})
    config = json.load(open(f"{folder}/hf/config.json"))
    config["quantization"] = config["quantization_config"] = {"group_size": group, "bits": bits, "mode": "affine"}
    json.dump(config, open(f"{folder}/mlx/config.json", "w"), indent=2)
    check_mlx(f"{folder}/mlx", tokens, reference)


def check_mlx(folder, tokens, reference):
    try:
        import mlx.core as mx
        from mlx_lm.utils import load_model
    except ImportError:
        return print("  mlx-lm is not here, so it did not run", folder)
    from pathlib import Path
    net, _ = load_model(Path(folder))
    net.set_dtype(mx.float32)
    found = np.array(net(mx.array([tokens]))[0].astype(mx.float32))
    print("  mlx-lm to transformers", np.abs(found - reference).max())


def make(folder, name, o):
    run, seed, tokens = (0 if o["form"] == "i2_s" else 32), 0, None
    while tokens is None:
        seed += 1
        model = Model(o, seed)
        tokens, rounded, hidden = choose_tokens(Net(model, run), np.random.default_rng(seed + 1000))
        if tokens is None: continue
        check = Net(model, run, np.float32)
        single = np.array([(check.step(t), check.keep())[0] for t in tokens])
        if np.abs(single - rounded).max() > 2e-5: tokens = None  # a rounding flips between float32 and float64
    os.makedirs(folder, exist_ok=True)
    write_gguf(f"{folder}/model.gguf", model.meta(name), model.tensors)
    net = transformers_model(model)
    with torch.no_grad(): reference = net(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
    plain = Net(model, run)
    plain.quantized = set()
    own = np.array([(plain.step(t), plain.keep())[0] for t in tokens])
    assert np.abs(own - reference).max() < 5e-5, np.abs(own - reference).max()
    json.dump({"tokens": tokens, "seed": seed}, open(f"{folder}/tokens.json", "w"))
    np.save(f"{folder}/logits.npy", reference.astype("<f4"))
    np.save(f"{folder}/logits-int8.npy", rounded.astype("<f4"))
    if o.get("input_norms"): np.save(f"{folder}/hidden-int8.npy", hidden.astype("<f4"))
    print(name, "seed", seed, "std", reference.std().round(2), "numpy to transformers", np.abs(own - reference).max(),
          "int8 to unrounded", np.abs(rounded - reference).max().round(3), os.path.getsize(f"{folder}/model.gguf"), "bytes")
    if name in ("qwen2", "qwen3", "hunyuan-dense", "minicpm-longrope"): save_hf(folder, net, o, tokens, reference)
    if name in ("qwen2", "qwen3"): save_mlx(folder, o, tokens, reference)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[2:] or MODELS:
        options = MODELS[name]
        make(os.path.join(sys.argv[1], name), name, options)
