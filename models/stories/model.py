"""The BitNet b1.58 graph of Hugging Face's `BitNetForCausalLM`, with quantization-aware training.

Tokens of several documents stand in one flat row [T]; `lengths` says where each ends, and attention stays inside one.
Parameters have Hugging Face's names. The projections read activations as int8 codes with one scale a token (absmax)
and weights as -1, 0, +1 with one scale a tensor (absmean); gradients pass both roundings unchanged (straight-through).
Codes and ternary weights are exact in bfloat16, so only sums are rounded in training; `exact` makes these float32 too.
"""
import torch
import torch.nn.functional as F
from torch import nn


def ternarize(weight):
    """Master weight -> (codes in {-1, 0, 1}, scale = mean |w|)."""
    scale = weight.float().abs().mean().clamp(min=1e-5)
    return (weight.float() * (1.0 / scale)).round().clamp(-1, 1), scale


def quantize_activations(x):
    """x [T, K] -> (integer codes in -128..127, multiplier per token [T, 1] that was applied)."""
    multiplier = 127.0 / x.float().abs().amax(-1, keepdim=True).clamp(min=1e-5)
    return (x.float() * multiplier).round().clamp(-128, 127), multiplier


class BitLinear(torch.autograd.Function):
    """y = quantized(x) · ternary(W)ᵀ for the rows of several weight tensors that read the same x."""

    @staticmethod
    def forward(ctx, x, dtype, *weights):
        codes, multiplier = quantize_activations(x)
        ternary = [ternarize(w) for w in weights]
        rows = torch.cat([t for t, _ in ternary]).to(dtype)
        scales = torch.cat([s.expand(t.shape[0]) for t, s in ternary])
        codes = codes.to(dtype)
        ctx.save_for_backward(codes, multiplier, rows, scales)
        ctx.num_rows = [w.shape[0] for w in weights]
        return ((codes @ rows.T).float() * (scales / multiplier)).to(dtype)

    @staticmethod
    def backward(ctx, grad):
        codes, multiplier, rows, scales = ctx.saved_tensors
        grad_x = (grad.float() * scales).to(rows.dtype) @ rows
        grad_rows = (grad.float() / multiplier).to(rows.dtype).T @ codes
        return grad_x, None, *grad_rows.split(ctx.num_rows)


class RMSNorm(nn.Module):
    def __init__(self, size, eps=1e-5):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def projection(rows, columns, gain=1.0):
    layer = nn.Linear(columns, rows, bias=False)
    nn.init.normal_(layer.weight, std=gain * columns**-0.5)
    return layer


def residual_gain(c):
    """Keeps the sum of all blocks' outputs as large as one."""
    return (2 * c["num_hidden_layers"]) ** -0.5


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, kv = c["hidden_size"], c["num_key_value_heads"] * c["head_dim"]
        self.q_proj, self.k_proj, self.v_proj = projection(d, d), projection(kv, d), projection(kv, d)
        self.o_proj, self.attn_sub_norm = projection(d, d, residual_gain(c)), RMSNorm(d)


class FeedForward(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, f = c["hidden_size"], c["intermediate_size"]
        self.gate_proj, self.up_proj, self.down_proj = projection(f, d), projection(f, d), projection(d, f, residual_gain(c))
        self.ffn_sub_norm = RMSNorm(f)


def rotate(x, cos, sin):
    """Half-split rotary embedding of x [T, heads, head_dim]."""
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


class CausalAttention(torch.autograd.Function):
    """softmax(q · kᵀ / √d + mask) · v for q, k, v [heads, T, head_dim]. On a CPU, for a few hundred tokens in bfloat16,
    this takes half the time of `scaled_dot_product_attention`."""

    @staticmethod
    def forward(ctx, q, k, v):
        ctx.scale = q.shape[-1] ** -0.5
        mask = torch.full((q.shape[1], q.shape[1]), float("-inf"), dtype=q.dtype).triu(1)
        p = torch.baddbmm(mask.expand(q.shape[0], -1, -1), q, k.mT, alpha=ctx.scale).softmax(-1)
        ctx.save_for_backward(q, k, v, p)
        return p @ v

    @staticmethod
    def backward(ctx, grad):
        q, k, v, p = ctx.saved_tensors
        grad_p = grad @ v.mT
        grad_scores = torch.ops.aten._softmax_backward_data(grad_p, p, -1, p.dtype) * ctx.scale
        return grad_scores @ k, grad_scores.mT @ q, p.mT @ grad


@torch.compiler.disable
def attend(q, k, v, lengths):
    """Causal attention inside each document. q, k, v: [T, heads, head_dim] -> [T, heads * head_dim]."""
    parts = zip(*(t.transpose(0, 1).contiguous().split(lengths, 1) for t in (q, k, v)))
    return torch.cat([CausalAttention.apply(*part) for part in parts], 1).transpose(0, 1).flatten(1)


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.head_dim, self.groups = c["head_dim"], c["num_attention_heads"] // c["num_key_value_heads"]
        self.input_layernorm, self.self_attn = RMSNorm(c["hidden_size"]), Attention(c)
        self.post_attention_layernorm, self.mlp = RMSNorm(c["hidden_size"]), FeedForward(c)

    def read(self, x, cos, sin, dtype):
        """Residual -> rotated queries, keys, values, keys and values repeated for each query head."""
        a = self.self_attn
        y = BitLinear.apply(self.input_layernorm(x), dtype, a.q_proj.weight, a.k_proj.weight, a.v_proj.weight)
        y = y.view(x.shape[0], -1, self.head_dim)
        heads = a.q_proj.weight.shape[0] // self.head_dim
        q, k, v = y.split([heads, heads // self.groups, heads // self.groups], 1)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        return q, k.repeat_interleave(self.groups, 1), v.repeat_interleave(self.groups, 1)

    def write(self, x, attended, dtype):
        """Residual and attention's result -> the next residual."""
        a, m = self.self_attn, self.mlp
        x = x + BitLinear.apply(a.attn_sub_norm(attended), dtype, a.o_proj.weight)
        gate_up = BitLinear.apply(self.post_attention_layernorm(x), dtype, m.gate_proj.weight, m.up_proj.weight)
        gate, up = gate_up.float().chunk(2, -1)
        return x + BitLinear.apply(m.ffn_sub_norm(F.relu(gate).square() * up), dtype, m.down_proj.weight)

    def forward(self, x, cos, sin, lengths, dtype):
        return self.write(x, attend(*self.read(x, cos, sin, dtype), lengths), dtype)


class Decoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        nn.init.normal_(self.embed_tokens.weight, std=0.06)
        self.layers = nn.ModuleList(Block(c) for _ in range(c["num_hidden_layers"]))
        self.norm = RMSNorm(c["hidden_size"])


class TiedLoss(torch.autograd.Function):
    """Summed cross-entropy of hidden · embeddingᵀ, a slice of rows at a time, so that the logits stay in cache."""
    rows = 1024

    @staticmethod
    def forward(ctx, hidden, embedding, targets, dtype):
        table, loss = embedding.to(dtype), 0.0
        grad_hidden, grad_table = torch.empty(hidden.shape, dtype=dtype), torch.zeros_like(embedding)
        for h, t, g in zip(hidden.to(dtype).split(TiedLoss.rows), targets.split(TiedLoss.rows), grad_hidden.split(TiedLoss.rows)):
            part, grad = loss_and_grad(h @ table.T, t)
            loss = loss + part
            g.copy_(grad @ table)
            grad_table += grad.T @ h
        ctx.save_for_backward(grad_hidden, grad_table)
        return loss

    @staticmethod
    def backward(ctx, grad):
        grad_hidden, grad_table = ctx.saved_tensors
        return grad_hidden.float() * grad, grad_table * grad, None, None


def loss_and_grad(logits, targets):
    log_p = logits.float().log_softmax(-1)
    hit = torch.arange(logits.shape[-1]) == targets[:, None]
    return -torch.where(hit, log_p, 0.0).sum(), (log_p.exp() - hit.float()).to(logits.dtype)


class BitNet(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.model = config, Decoder(config)

    def compile(self):
        """Fuses norms, roundings and activations (Inductor)."""
        global loss_and_grad
        loss_and_grad = torch.compile(loss_and_grad)
        Block.read, Block.write = torch.compile(Block.read), torch.compile(Block.write)

    def hidden(self, tokens, lengths, dtype):
        """Flat tokens [T] of documents of the given lengths -> normed hidden states [T, hidden]."""
        position = torch.cat([torch.arange(n) for n in lengths]).float()
        half = self.config["head_dim"] // 2
        angle = position[:, None] * self.config["rope_theta"] ** (-torch.arange(half) / half)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, cos, sin, lengths, dtype)
        return self.model.norm(x)

    def loss(self, tokens, targets, lengths, dtype=torch.bfloat16):
        """Summed next-token loss in nats."""
        return TiedLoss.apply(self.hidden(tokens, lengths, dtype), self.model.embed_tokens.weight, targets, dtype)
