r"""Gradient streams of known noise-to-signal ratio, and the reading of every VGS estimator.

A stream is a sequence of gradients of one tensor,
:math:`g_t = \mu + \epsilon_t`.  Its *truth* is the ratio that V is meant to be,

.. math:: R = \frac{\sum_j \mathrm{Var}\,\epsilon_j}{\sum_j \mu_j^2},

known by construction, with ``numel`` elements and ``ratio`` = R >= 0.  Each one separates
estimators that agree on others.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from gqc.noise import ema_kappa
from gqc.scalers import VarianceGradientScaler
from gqc_lab.data.images import load_image_data
from gqc_lab.loop.placement import find_device, find_dtype, make_generator
from gqc_lab.models.mlp import make_mlp

#: scale -> of the comparison of all estimators (notebook 04): gradients of each stream, elements of
#: a gradient, elements where their number varies, decay of the averages, which resolve ratios up to
#: (1 + beta) / (1 - beta)
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {"steps": 100, "numel": 512, "sizes": [64, 512, 2048], "beta": 0.98},
    "laptop": {"steps": 1000, "numel": 4096, "sizes": [64, 512, 4096], "beta": 0.99},
    "paper": {"steps": 5000, "numel": 4096, "sizes": [64, 512, 4096, 32768, 1048576], "beta": 0.99},
}

#: estimator -> the version of the method that it is the V of, in order of appearance
VERSIONS = {
    "spatial": "1.x",
    "tensor_spatial": "2.0",
    "tensor_mean": "3.0",
    "mean_square": "3.1",
    "elementwise": "4.0",
    "sketch": "4.0",
}


@dataclass(frozen=True)
class Stream:
    """Gradients of one tensor with a known noise-to-signal ratio.

    Args:
        truth: the ratio R, >= 0; ``inf`` where the mean is zero.
        numel: elements of a gradient.
        start: from a generator to endless flat float32 gradients.
    """

    name: str
    truth: float
    numel: int
    start: Callable[[torch.Generator], Iterator[Tensor]]

    def gradients(self, seed: int) -> Iterator[Tensor]:
        """Return the endless stream of that seed."""
        return self.start(make_generator(seed, self.name))


def heterogeneous(numel: int) -> Stream:
    """Return a constant stream: one element in eight is 8, the others 0."""

    def start(generator: torch.Generator) -> Iterator[Tensor]:
        gradient = torch.zeros(numel)
        gradient[::8] = 8.0
        while True:
            yield gradient

    return Stream("constant, heterogeneous", 0.0, numel, start)


def uniform(numel: int, mean: float, deviation: float, name: str | None = None) -> Stream:
    """Return a stream of equal elements, Gaussian in time: R = (deviation / mean)^2."""

    def start(generator: torch.Generator) -> Iterator[Tensor]:
        while True:
            yield (mean + deviation * torch.randn(1, generator=generator)).repeat(numel)

    truth = (deviation / mean) ** 2 if mean else math.inf
    return Stream(name or f"uniform noise, ratio {truth:g}", truth, numel, start)


def smoking_gun(numel: int) -> Stream:
    """Return the published test of version 2.0: a uniform gradient of ones times ``randn * 2``.

    Its mean is zero, so the ratio is infinite; version 2.0 calls it 0.000000.
    """
    return uniform(numel, 0.0, 2.0, name="uniform noise, published")


def iid(numel: int, ratio: float, has_equal_means: bool = False) -> Stream:
    """Return a stream of independent noise of ``ratio`` times the power of the mean gradient.

    Args:
        ratio: ``inf``: the means are 0, the noise has power 1.
        has_equal_means: all means are 1; otherwise Gaussian ones, of mean square 1.
    """
    signal, noise = (1.0, math.sqrt(ratio)) if ratio < math.inf else (0.0, 1.0)

    def start(generator: torch.Generator) -> Iterator[Tensor]:
        mean = torch.ones(numel) if has_equal_means else _direction(numel, generator)
        while True:
            yield signal * mean + noise * torch.randn(numel, generator=generator)

    kind = "equal means" if has_equal_means else "iid noise"
    return Stream(f"{kind}, ratio {ratio:g}".replace("inf", "∞"), ratio, numel, start)


def rotating(numel: int, ratio: float, period: float) -> Stream:
    r"""Return a stream of independent noise around a mean that turns in a plane.

    The ratio is the same at any time; :func:`drift_prediction` is what the average over time makes
    of it.  ``period``: updates until the mean is back.
    """

    def start(generator: torch.Generator) -> Iterator[Tensor]:
        one = _direction(numel, generator)
        other = _direction(numel, generator)
        other = _unit(other - one * (one @ other) / numel)
        t = 0
        while True:
            angle = 2 * math.pi * t / period
            mean = math.cos(angle) * one + math.sin(angle) * other
            yield mean + math.sqrt(ratio) * torch.randn(numel, generator=generator)
            t += 1

    return Stream(f"rotating mean, period {period:g}", ratio, numel, start)


def drift_prediction(ratio: float, period: float, beta: float) -> float:
    r"""Return the expected V of :func:`rotating` after many updates; ``inf`` if unresolved.

    The average keeps the share
    :math:`q = (1-\beta)^2 / |1 - \beta e^{i\omega}|^2`, :math:`\omega = 2\pi/\mathrm{period}`, of
    the mean's power; the rest counts as variance:
    :math:`V = \frac{1 - q + R(1-\kappa)}{q - \kappa}`, :math:`\kappa = (1-\beta)/(1+\beta)`.
    """
    q = (1 - beta) ** 2 / (1 - 2 * beta * math.cos(2 * math.pi / period) + beta**2)
    kappa = (1 - beta) / (1 + beta)
    return (1 - q + ratio * (1 - kappa)) / (q - kappa) if q > kappa else math.inf


def correlated(numel: int, ratio: float, correlation: float) -> Stream:
    r"""Return a stream whose noise depends on that of the draw before.

    :math:`\epsilon_t = \rho\,\epsilon_{t-1} + \sqrt{1 - \rho^2}\, z_t` with
    independent z; its power does not depend on the correlation rho, at least 0 and below 1.
    """

    def start(generator: torch.Generator) -> Iterator[Tensor]:
        mean = _direction(numel, generator)
        noise = torch.randn(numel, generator=generator)
        while True:
            yield mean + math.sqrt(ratio) * noise
            fresh = torch.randn(numel, generator=generator)
            noise = correlation * noise + math.sqrt(1 - correlation**2) * fresh

    return Stream(f"noise with correlation {correlation:g}", ratio, numel, start)


def heavy_tailed(numel: int, ratio: float, degrees: int) -> Stream:
    """Return a stream of Student's t noise, of more than 2 ``degrees`` of freedom.

    Some draws are much larger than others as a whole.
    """

    def start(generator: torch.Generator) -> Iterator[Tensor]:
        mean = _direction(numel, generator)
        while True:
            chi_square = torch.randn(degrees, generator=generator).square().sum()
            scale = ((degrees - 2) / chi_square * ratio).sqrt()
            yield mean + scale * torch.randn(numel, generator=generator)

    return Stream(f"noise with {degrees} degrees of freedom", ratio, numel, start)


def minibatches(per_example: Tensor, batch_size: int) -> Stream:
    r"""Return a stream of minibatch gradients: :math:`R = R_1 / \mathrm{batch}`, exactly.

    Examples are drawn with replacement.

    Args:
        per_example: gradient of each example [examples, elements] at the same weights.
    """
    mean = per_example.double().mean(0)
    variance = (per_example.double() - mean).square().mean(0).sum()
    truth = float(variance / mean.square().sum()) / batch_size

    def start(generator: torch.Generator) -> Iterator[Tensor]:
        while True:
            rows = torch.randint(len(per_example), (batch_size,), generator=generator)
            yield per_example[rows].mean(0)

    return Stream(f"minibatches of {batch_size}", truth, per_example.shape[1], start)


def digits_gradients(width: int = 16, label_noise: float = 0.3, seed: int = 0) -> Tensor:
    """Return the gradient of every training image of the digits [images, parameters].

    Of a perceptron with two hidden layers at its initial weights, for :func:`minibatches`.
    """
    data = load_image_data("digits", label_noise, seed)
    sizes = (data.train_images.shape[1], width, 2, data.num_classes)
    model = make_mlp(*sizes, make_generator(seed, "weights"))
    weights: dict[str, Tensor] = dict(model.named_parameters())

    def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, weights, (image[None],))
        return torch.nn.functional.cross_entropy(logits, label[None])

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    grads = each(weights, data.train_images, data.train_labels)
    return torch.cat([g.detach().flatten(1) for g in grads.values()], dim=1)


def measure(
    streams: Iterable[Stream],
    steps: int,
    estimators: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    beta: float = 0.99,
    seeds: Iterable[int] = (0,),
    at: Iterable[int] = (),
    device: str = "cpu",
    dtype: str = "float32",
) -> pd.DataFrame:
    """Return V of every estimator on every stream, capped only by what ``beta`` resolves.

    All estimators read the same gradients.

    Args:
        steps: gradients of each stream.
        estimators: label -> options of :class:`~gqc.scalers.VarianceGradientScaler`; None: each
            ``estimator=`` there is, under its name.
        beta: decay of the statistics, unless ``estimators`` gives one.
        at: further updates at which V is read.
    Returns: a row for each reading: ``stream``, ``truth``, ``numel``, ``seed``, ``estimator``,
        ``step``, ``variance`` (V), ``is_unresolved``, ``ceiling`` (the most that beta resolves).
    """
    if estimators is None:
        estimators = {name: {"estimator": name} for name in VERSIONS}
    place: dict[str, Any] = {"device": find_device(device), "dtype": find_dtype(dtype)}
    read_at, rows = {steps, *at}, []
    for stream in streams:
        for seed in seeds:
            parameter = torch.zeros(stream.numel, **place, requires_grad=True)
            common = {"beta": beta, "variance_cap": None}
            scalers = {
                label: VarianceGradientScaler([parameter], **{**common, **options})
                for label, options in estimators.items()
            }
            for step, gradient in enumerate(islice(stream.gradients(seed), steps), 1):
                parameter.grad = gradient.to(**place)
                for scaler in scalers.values():
                    scaler.update_statistics()
                if step in read_at:
                    shared = (stream.name, stream.truth, stream.numel, seed)
                    for label, scaler in scalers.items():
                        rows.append((*shared, label, step, *_reading(scaler, step)))
    columns = ["stream", "truth", "numel", "seed", "estimator", "step"]
    return pd.DataFrame(rows, columns=[*columns, "variance", "is_unresolved", "ceiling"])


def judge(frame: pd.DataFrame, factor: float = 1.4) -> pd.Series:
    """Is each reading of :func:`measure` right, within ``factor``?

    Where the truth is 0: V < 0.01.  Where it is infinite: the signal is not resolved, or V is at
    least the most that beta resolves, divided by ``factor``.
    """
    v, truth = frame["variance"], frame["truth"]
    is_near = (v <= factor * truth) & (v >= truth / factor)
    is_top = frame["is_unresolved"] | (v >= frame["ceiling"] / factor)
    right = is_near.where(truth > 0, v < 0.01).where(truth < math.inf, is_top)
    return right.rename("is_right")


def _reading(scaler: VarianceGradientScaler, step: int) -> tuple[float, bool, float]:
    ceiling = 1 / ema_kappa(torch.tensor(float(step)), scaler.beta).item()
    is_unresolved = scaler.metrics()["vgs/unresolved"] > 0
    return scaler.get_normalized_variance(), is_unresolved, ceiling


def _direction(numel: int, generator: torch.Generator) -> Tensor:
    return _unit(torch.randn(numel, generator=generator))


def _unit(vector: Tensor) -> Tensor:
    """Scale a vector to mean square 1."""
    return vector / vector.square().mean().sqrt()
