r"""Effect of a falling factor of the gradient on the updates of Adam and of SGD.

A noisy quadratic, :math:`g = h w + \xi`, is minimised twice with the same noise: with g, and with
:math:`f_t\,g`, where f falls from 1 to `FACTOR` over so many steps, evenly in its logarithm.

Adam divides by the root of an average of :math:`g^2` that forgets over
:math:`1/(1-\beta_2)` steps.  Where :math:`\ln f` changes by c a step, the ratio of updates is then
near :math:`e^{c/(1-\beta_2)}` as long as c is small against :math:`1-\beta_2`: a factor is
invisible if it moves little while Adam forgets.
"""

import math
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from gqc_lab.loop.placement import find_device, find_dtype, make_generator

FACTOR = 1 / 6  #: that of VGS at alpha 0.1 with V at its cap
OPTIMIZERS = ("adamw", "sgd")
SIZE, NOISE, BETAS, LR = 1000, 1.0, (0.9, 0.99), 1e-3
MEMORY = round(1 / (1 - BETAS[1]))  #: steps over which the second moments forget
WARMUP = 10 * MEMORY  #: steps before the factor begins to fall, and after it is down


def measure(
    durations: Sequence[int] = (1, 100, 1000, 10000),
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> pd.DataFrame:
    """Return the least ratio of updates with the factor to those without, over windows.

    ``durations`` are steps in which the factor falls.

    Returns: a row for each optimizer and duration: ``optimizer``, ``duration``, ``least_ratio``
        (norm of the updates summed over a window with the factor, over that without; least over
        windows from the beginning of the fall on), ``last_ratio`` (of the last window), ``factor``.
    Raises: ValueError: a duration below 1, or none.
    """
    if not durations or min(durations) < 1:
        raise ValueError(f"durations={list(durations)}: expected at least one, each at least 1")
    rows = []
    for optimizer in OPTIMIZERS:
        for duration in durations:
            ratio = ratios(optimizer, duration, seed, device, dtype)
            ratio = ratio[WARMUP // MEMORY :]
            least, last = ratio.min().item(), ratio[-1].item()
            rows.append([optimizer, duration, least, last, FACTOR])
    columns = ["optimizer", "duration", "least_ratio", "last_ratio", "factor"]
    return pd.DataFrame(rows, columns=columns)


def ratios(
    optimizer: str, duration: int, seed: int = 0, device: str = "cpu", dtype: str = "float32"
) -> Tensor:
    """Return the ratio of updates of each window of `MEMORY` steps; see :func:`measure`."""
    place, kind = find_device(device), find_dtype(dtype)
    generator = make_generator(seed, "factor invariance")
    curvature = torch.rand(SIZE, generator=generator).to(place, kind)
    start = torch.randn(SIZE, generator=generator).to(place, kind)
    pair = [start.clone().requires_grad_() for _ in range(2)]
    inner = [_make(optimizer, param) for param in pair]
    windows = math.ceil((2 * WARMUP + duration) / MEMORY)
    rest = torch.empty(windows)
    step = 0
    for window in range(windows):
        before = [param.detach().clone() for param in pair]
        noise = NOISE * torch.randn(MEMORY, SIZE, generator=generator).to(place, kind)
        for xi in noise:
            share = min(max((step - WARMUP) / duration, 0.0), 1.0)
            for param, own, factor in zip(pair, inner, (1.0, FACTOR**share), strict=True):
                param.grad = torch.addcmul(xi, curvature, param.detach()).mul_(factor)
                own.step()
            step += 1
        plain, scaled = [(p.detach() - b).norm() for p, b in zip(pair, before, strict=True)]
        rest[window] = (scaled / plain).item()
    return rest


def _make(name: str, param: Tensor) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD([param], LR)
    return torch.optim.AdamW([param], LR, betas=BETAS, weight_decay=0.0, fused=True)
