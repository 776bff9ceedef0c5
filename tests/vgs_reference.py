"""Gradient streams with known variance, and slow references of what VGS computes from them.

The references are written from the formulas, in float64 and element by element where that is not
too slow, and share no code with :mod:`gqc`.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

import gqc.scalers
from gqc.scalers import sketch

Stream = Callable[[int], Tensor]


def normal(*shape: int, seed: int) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uniform_noise(numel: int, mean: float = 0.0, deviation: float = 1.0, seed: int = 0) -> Stream:
    """All elements equal; they move together.  Ratio deviation^2 / mean^2."""
    values = normal(10_000, seed=seed)
    return lambda t: torch.full((numel,), mean + deviation * values[t].item())


def heterogeneous_constant(numel: int) -> Stream:
    """Constant in time, one element in six is 6 and the others 0: spatial variance / mean^2 = 5."""
    gradient = torch.zeros(numel)
    gradient[::6] = 6.0
    assert numel % 6 == 0
    return lambda t: gradient.clone()


def iid_noise(numel: int, ratio: float, seed: int = 0) -> Stream:
    """A Gaussian mean vector, and in each element Gaussian noise with ``ratio`` times its power."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(numel, generator=generator)
    mean /= mean.square().mean().sqrt()
    return lambda t: mean + math.sqrt(ratio) * torch.randn(numel, generator=generator)


def feed(
    scaler: gqc.scalers.VarianceGradientScaler,
    params: list[Tensor],
    steps: Iterable[list[Tensor | None]],
) -> list[float]:
    """Training steps with the given gradients; returns the factors."""
    factors = []
    for grads in steps:
        for param, grad in zip(params, grads, strict=True):
            param.grad = None if grad is None else grad.clone().to(param.dtype).view_as(param)
        factors.append(scaler.scale_gradients())
        scaler.step()
    return factors


def measure(stream: Stream, num: int, **options: object) -> tuple[float, float]:
    """V of one tensor and the share unresolved, after ``num`` gradients, nothing being scaled."""
    param = torch.zeros(stream(0).numel(), requires_grad=True)
    options = {"alpha": 0.0, "variance_cap": None, **options}
    scaler = gqc.scalers.VarianceGradientScaler([param], **options)
    feed(scaler, [param], ([stream(t)] for t in range(num)))
    return scaler.get_normalized_variance(), scaler.metrics()["vgs/unresolved"]


def variances_of(scaler, cap=None):
    """V of each tensor."""
    return torch.tensor(scaler._estimator.read(cap).ratios, dtype=torch.float64)


class PublishedReference:
    """V of a published version from its formulas, for one or more tensors."""

    def __init__(self, version: str, beta: float = 0.99, eps: float = 1e-8) -> None:
        self.version, self.beta, self.eps = version, beta, eps
        self.averages: list[tuple[float, float]] | None = None
        self.num = 0

    def statistics(self, grads: list[Tensor]) -> list[tuple[float, float]]:
        if self.version == "spatial":
            grads = [torch.cat([g.flatten() for g in grads])]
        pairs = []
        for grad in grads:
            g = grad.double().flatten()
            n = len(g)
            mean, mean_abs = g.sum() / n, g.abs().sum() / n
            if self.version == "spatial":
                pair = mean_abs, (g.abs() - mean_abs).square().sum() / (n - 1)
            elif self.version == "tensor_spatial":
                pair = mean_abs, (g - mean).square().sum() / n
            elif self.version == "tensor_mean":
                pair = mean, mean**2
            else:
                pair = mean, g.square().sum() / n
            pairs.append((pair[0].item(), pair[1].item()))
        return pairs

    def update(self, grads: list[Tensor]) -> None:
        new = self.statistics(grads)
        if self.averages is None:
            starts_at_first = self.version in ("spatial", "tensor_spatial")
            self.averages = new if starts_at_first else [(0.0, 0.0)] * len(new)
            if starts_at_first:
                self.num = 1
                return
        keep = self.beta
        self.averages = [
            (keep * old[0] + (1 - keep) * x[0], keep * old[1] + (1 - keep) * x[1])
            for old, x in zip(self.averages, new, strict=True)
        ]
        self.num += 1

    def variances(self) -> list[float]:
        assert self.averages is not None
        share = 1 - self.beta**self.num
        values = []
        for first, second in self.averages:
            mean, var = first / share, second / share
            if self.version in ("tensor_mean", "mean_square"):
                var = max(var - mean**2, 0.0)
            value = var / (max(mean**2, 1e-12) + self.eps)
            values.append(min(max(value, 0.0), 1e6) if math.isfinite(value) else 0.0)
        return values


def percentile(values: list[float], level: float) -> float:
    """Linear between the order statistics."""
    ordered = sorted(values)
    place = level * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def debiased_sums(gradients: list[Tensor], beta: float) -> tuple[float, float, float]:
    """sum sigma^2, sum mu^2 and kappa of one tensor from explicit weights: s - m^2 in float64."""
    weights = [beta ** (len(gradients) - 1 - i) for i in range(len(gradients))]
    weights = [w / sum(weights) for w in weights]
    g = [x.double().flatten() for x in gradients]
    m = sum(w * x for w, x in zip(weights, g, strict=True))
    s = sum(w * x**2 for w, x in zip(weights, g, strict=True))
    kappa = sum(w**2 for w in weights)
    variance = ((s - m**2) / (1 - kappa)).sum().item()
    signal = ((m**2 - kappa * s) / (1 - kappa)).sum().item()
    return variance, signal, kappa


def debiased_ratio(gradients: list[Tensor], beta: float, cap: float | None = None) -> float:
    """sum sigma^2 / sum mu^2 of one tensor."""
    if len(gradients) == 1:
        return 0.0
    variance, signal, kappa = debiased_sums(gradients, beta)
    return bounded_ratio(variance, signal, 1 / kappa if cap is None else cap)


def bounded_ratio(variance: float, signal: float, largest: float) -> float:
    if variance <= 0:
        return 0.0
    return min(variance / signal, largest) if signal > 0 else largest


def sketch_hashes(tensor: Tensor, size: int = 64, seed: int = 0) -> list[Tensor]:
    """The three hashes of a tensor (or the one tensor, if it is small), bucket by bucket."""
    flat, cpu = tensor.double().flatten(), torch.device("cpu")
    if len(flat) <= size**2:
        return [flat]
    sums = flat
    if len(flat) >= max(16 * size**2, 4096):
        part = len(flat) // 64
        sums = torch.zeros(8 * part, dtype=torch.float64)
        fold = sketch._fold_signs(seed, cpu)
        for eighth, number in itertools.product(range(8), range(8)):
            first = (8 * eighth + number) * part
            own = fold[number, 0, eighth] * flat[first : first + part]
            sums[number * part : (number + 1) * part] += own
        rest = flat[64 * part :]
        sums[: len(rest)] += rest
    longest = max(32 * size**2, 4096)
    rounds = math.ceil(len(sums) / longest)
    length = math.ceil(len(sums) / rounds)
    side = math.ceil(math.sqrt(length))
    index = torch.arange(len(sums))
    number, place = index // length, index % length
    signed = sums * sketch._signs(longest, seed, cpu)[place]
    hashes = []
    for bucket, count in (
        (place // side, math.ceil(length / side)),
        (place % side, side),
        (place % (side + 1), side + 1),
    ):
        values = torch.zeros(rounds * count, dtype=torch.float64)
        hashes.append(values.index_add(0, number * count + bucket, signed))
    return hashes


def hashed_ratio(gradients: list[Tensor], beta: float, size: int = 64, seed: int = 0) -> float:
    """Median noise over median signal of the hashes."""
    if len(gradients) == 1:
        return 0.0
    sketched = zip(*(sketch_hashes(g, size, seed) for g in gradients), strict=True)
    sums = [debiased_sums(list(values), beta) for values in sketched]
    variance, signal = (statistics.median(s[i] for s in sums) for i in range(2))
    return bounded_ratio(variance, signal, 1 / sums[0][2])


def clip_norm(param: Tensor, largest: float) -> None:
    """Rescale the gradient to at most this norm."""
    param.grad *= min(1.0, largest / param.grad.norm().item())
