"""Muon (Jordan et al., 2024): momentum whose update is orthogonalized, for the matrices between embedding and head."""
import torch


def orthogonalize(g, steps=5):
    """Newton-Schulz: moves the singular values of each matrix of g [N, rows, columns] close to one."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[1] > g.shape[2]
    x = (g.mT if tall else g).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Decoupled weight decay; the step is lr · sqrt(max(1, rows / columns)) · orthogonalized Nesterov momentum."""

    def __init__(self, params, lr, weight_decay, momentum=0.95):
        by_shape = {}
        for p in params:
            by_shape.setdefault(p.shape, []).append(p)
        super().__init__([{"params": ps} for ps in by_shape.values()], dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            params, beta = group["params"], group["momentum"]
            grad = torch.stack([p.grad for p in params]).float()
            state = self.state[params[0]]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(grad)
            momentum = state["momentum"].lerp_(grad, 1 - beta)
            update = orthogonalize(grad.lerp(momentum, beta))
            rate = group["lr"] * max(1.0, grad.shape[1] / grad.shape[2]) ** 0.5
            for p, u in zip(params, update):
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(u, alpha=-rate)
