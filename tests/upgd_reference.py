"""UPGD from its formulas, element by element in float64, and with the released roundings.

``Slow`` is what the optimizers are checked against.  ``released_step`` repeats the operations of
the released code in their order, tensor by tensor, for the comparison of bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gqc.upgd import UPGD, UPGDW, AdaptiveUPGD

OPTIMIZERS = {"upgd": UPGD, "adaptive": AdaptiveUPGD, "upgdw": UPGDW}
NORMALIZATIONS = ("minmax", "max", "minmax_published", "max_published")


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else 1 - sigmoid(-x)


def rows_of(index: int, shape: torch.Size) -> range:
    """The elements that share all but the last coordinate with element ``index``."""
    last = shape[-1] if shape else 1
    return range(index // last * last, index // last * last + last)


@dataclass
class Slow:
    """One optimizer over all parameters, as lists of Python floats."""

    shapes: list[torch.Size]
    weights: list[list[float]]
    is_adam: bool
    lr: float = 0.05
    weight_decay: float = 0.1
    beta_utility: float = 0.9
    betas: tuple[float, float] = (0.8, 0.9)
    eps: float = 1e-3
    sigma: float = 0.0
    normalization: str = "minmax"
    scope: str = "global"
    protect: bool = True
    step_scale: float = 1.0
    adaptive_noise: bool = False
    noise_reference: str = "rms"
    noise_beta: float = 0.7
    min_noise_std: float = 1e-6
    instant_noise_scale: bool = True
    num_steps: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        zeros = [[0.0] * len(w) for w in self.weights]
        self.num_steps = [0] * len(self.weights)
        self.u = [list(z) for z in zeros]
        self.m = [list(z) for z in zeros]
        self.v = [list(z) for z in zeros]
        self.norms: list[list[float]] = [[] for _ in zeros]

    def step(self, grads: list[list[float] | None], noise: list[list[float]]) -> None:
        """``noise`` has standard deviation 1; a None gradient leaves its parameter alone."""
        here = [k for k, g in enumerate(grads) if g is not None]
        for k in here:
            self.num_steps[k] += 1
            self.norms[k].append(math.sqrt(sum(g * g for g in grads[k])))
            for i, g in enumerate(grads[k]):
                b, (b1, b2) = self.beta_utility, self.betas
                self.u[k][i] = b * self.u[k][i] + (1 - b) * -g * self.weights[k][i]
                self.m[k][i] = b1 * self.m[k][i] + (1 - b1) * g
                self.v[k][i] = b2 * self.v[k][i] + (1 - b2) * g * g
        scaled = {k: [self.scaled(k, i, here) for i in range(len(self.u[k]))] for k in here}
        for k in here:
            std = self.std(k)
            for i, g in enumerate(grads[k]):
                xi, gate = noise[k][i] * std, 1 - scaled[k][i]
                d = self.direction(k, i) if self.is_adam else g
                update = (d + xi) * gate if self.protect else d + xi * gate
                w = self.weights[k][i] * (1 - self.lr * self.weight_decay)
                self.weights[k][i] = w - self.step_scale * self.lr * update

    def corrected(self, k: int) -> list[float]:
        return [u / (1 - self.beta_utility ** self.num_steps[k]) for u in self.u[k]]

    def direction(self, k: int, i: int) -> float:
        m = self.m[k][i] / (1 - self.betas[0] ** self.num_steps[k])
        v = self.v[k][i] / (1 - self.betas[1] ** self.num_steps[k])
        return m / (math.sqrt(v) + self.eps)

    def scaled(self, k: int, i: int, here: list[int]) -> float:
        is_published = self.normalization.endswith("_published")
        x = self.corrected(k)[i]
        if self.scope == "local" and self.normalization.startswith("max"):
            row = [self.corrected(k)[j] for j in rows_of(i, self.shapes[k])]
            return sigmoid(x / max(math.sqrt(sum(y * y for y in row)), 1e-12))
        pool = here if self.scope == "global" else [k]
        seen = [y for j in pool for y in (self.u[j] if is_published else self.corrected(j))]
        low, high = min(seen), max(seen)
        if self.normalization.startswith("max"):
            return sigmoid(x / high)
        if is_published:
            z = min(max((x - low) / (high - low + 1e-8), 0.0), 1.0)
        else:
            z = (x - low) / (high - low) if high > low else 0.5
        return sigmoid(2 * (z - 0.5))

    def std(self, k: int) -> float:
        if not self.adaptive_noise:
            return self.sigma
        norm = self.norms[k][-1]
        if not self.instant_noise_scale:
            n = len(self.norms[k])
            weights = [(1 - self.noise_beta) * self.noise_beta ** (n - 1 - j) for j in range(n)]
            norm = sum(w * x for w, x in zip(weights, self.norms[k], strict=True))
            norm /= 1 - self.noise_beta**n
        if self.noise_reference == "rms":
            norm /= math.sqrt(len(self.weights[k]))
        return max(self.sigma * norm, self.min_noise_std)


def released_step(
    params: list[Tensor],
    states: list[dict],
    noise: list[Tensor],
    *,
    lr: float,
    weight_decay: float,
    beta: float,
    sigma: float,
    normalization: str,
    scope: str = "global",
    protect: bool = True,
    adam: tuple[float, float, float] | None = None,
    step_scale: float = 1.0,
) -> None:
    """One step in place, with every rounding where the released code has it.

    Args:
        states: empty at first.
        adam: beta1, beta2, eps.
    """
    for p, state in zip(params, states, strict=True):
        for key in ("u", "m", "v"):
            state.setdefault(key, torch.zeros_like(p))
        state["t"] = state.get("t", 0) + 1
        state["u"].mul_(beta).add_(-p.grad * p, alpha=1 - beta)
        if adam:
            state["m"].mul_(adam[0]).add_(p.grad, alpha=1 - adam[0])
            state["v"].mul_(adam[1]).add_(p.grad**2, alpha=1 - adam[1])
    low = torch.stack([state["u"].min() for state in states]).min()
    high = torch.stack([state["u"].max() for state in states]).max()
    for p, state, z in zip(params, states, noise, strict=True):
        t, u_hat = state["t"], state["u"] / (1 - beta ** state["t"])
        if scope == "local" and normalization == "max_published":
            scaled = torch.sigmoid(torch.nn.functional.normalize(u_hat, dim=-1))
        elif normalization == "max_published":
            scaled = torch.sigmoid(u_hat / high)
        else:
            if scope == "local":
                low, high = state["u"].min(), state["u"].max()
            unit = torch.clamp((u_hat - low) / (high - low + 1e-8), 0.0, 1.0)
            scaled = torch.sigmoid(2.0 * (unit - 0.5))
        d = p.grad
        if adam:
            m_hat, v_hat = state["m"] / (1 - adam[0] ** t), state["v"] / (1 - adam[1] ** t)
            d = m_hat / (v_hat.sqrt() + adam[2])
        xi = z * sigma
        update = (d + xi) * (1 - scaled) if protect else d + xi * (1 - scaled)
        p.mul_(1 - lr * weight_decay).add_(update, alpha=-step_scale * lr)
