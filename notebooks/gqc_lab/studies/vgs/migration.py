"""Resuming a training from a VGS checkpoint of a published version.

Some steps on a small noisy problem under the estimator that the version had; a file in the
version's format; and on from there with a scaler of today, which cannot use the statistics.
"""

import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import pandas as pd
import torch
from torch import Tensor

from gqc.scalers import VarianceGradientScaler, VGSMigrationWarning
from gqc.scalers.checkpoints import CONFIG, SCALARS
from gqc_lab.errors import check_name
from gqc_lab.loop.placement import find_device, find_dtype, make_generator

#: published file -> its estimator, and the version that it states
VERSIONS: dict[str, tuple[str, str | None]] = {
    "1.x": ("spatial", None),
    "2.0-unversioned": ("tensor_spatial", None),
    "2.0": ("tensor_spatial", "2.0"),
    "2.0.1": ("tensor_spatial", "2.0"),  # as it did
    "3.0": ("tensor_mean", "3.0"),
    "3.1": ("mean_square", "3.1"),
    "3.2": ("mean_square", "3.2"),
}
LIMITS = ("min_scaling_factor", "variance_cap")  #: settings that are in files since 3.2

#: columns of :func:`measure` that say whether a promise holds
PROMISES = ("warns_once", "statistics_restart", "warmup_restarts", "config_kept", "goes_on")

SHAPES = ((16, 8), (16,), (1,))
LR, NOISE = 0.02, 1.0  #: of SGD; standard deviation of each element of a gradient
STEPS = 120  #: of each training, before the file and after it

Make = Callable[..., VarianceGradientScaler]


def published_state(scaler: VarianceGradientScaler, version: str) -> dict[str, Any]:
    """Return the state of a scaler in the format of a published version.

    Args:
        scaler: of the estimator that the version, of `VERSIONS`, had, with statistics.
    Raises: ValueError: another version, or the scaler is of another estimator.
    """
    check_name("version", version, VERSIONS)
    name, stated = VERSIONS[version]
    if scaler.estimator != name:
        raise ValueError(f"estimator={scaler.estimator!r}: version {version} had {name!r}")
    estimator: Any = scaler._estimator
    state: dict[str, Any] = {
        **{key: getattr(scaler, key) for key in CONFIG},
        "step_count": scaler.step_count,
        **dict(zip(SCALARS, estimator.raw.tolist(), strict=True)),
        **({"vgs_version": stated} if stated else {}),
        **({key: getattr(scaler, key) for key in LIMITS} if version == "3.2" else {}),
    }
    if name != "spatial":
        state["param_grad_mean_ema"] = estimator.param_grad_mean_ema.clone()
        state["param_grad_sq_ema"] = estimator.param_grad_sq_ema.clone()
        state["param_numel"] = torch.tensor([float(p.numel()) for p in scaler._parameters.tensors])
    return state


def measure(
    versions: Sequence[str] = tuple(VERSIONS),
    seed: int = 0,
    device: str = "auto",
    dtype: str = "float32",
    make: Make = VarianceGradientScaler,
) -> pd.DataFrame:
    """Load a file of each version, continue training, and check each promise.

    Args:
        seed: of problem, noise, and the configuration in the file, which is nobody's default.
        make: the scaler of today, from parameters and keyword arguments.
    Returns: a row each: ``version``, ``num_warnings``; ``warns_once`` (one warning, a
        ``VGSMigrationWarning``); ``statistics_restart`` (no variance, and from then on bit for bit
        the factors of a new scaler with the file's configuration); ``warmup_restarts`` (factor 1
        for the file's warmup, and below 1 right after); ``config_kept`` (every setting in the
        file); ``goes_on`` (the loss is finite and lower than when the file was loaded);
        ``loss_before``, ``loss_after``, ``least_factor``.
    """
    where: dict[str, Any] = {"device": find_device(device), "dtype": find_dtype(dtype)}
    return pd.DataFrame([_migrate(version, seed, where, make) for version in versions])


def _migrate(version: str, seed: int, where: Mapping[str, Any], make: Make) -> dict[str, Any]:
    check_name("version", version, VERSIONS)
    problem = _Problem.start(seed, where)
    config = _config(seed)
    old = VarianceGradientScaler(problem.params, estimator=VERSIONS[version][0], **config)
    problem.train(old, STEPS)
    file = _through_a_file(published_state(old, version))
    settings = {key: value for key, value in config.items() if key in file}
    fresh_problem = problem.copy()
    fresh = make(fresh_problem.params, **settings)

    scaler, before = make(problem.params), problem.loss()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scaler.load_state_dict(file)
    kept = {key: getattr(scaler, key) for key in settings}
    is_empty = scaler.get_normalized_variance() == 0
    factors = problem.train(scaler, STEPS)
    warmup, after = config["warmup_steps"], problem.loss()
    return {
        "version": version,
        "num_warnings": len(caught),
        "warns_once": [w.category for w in caught] == [VGSMigrationWarning],
        "statistics_restart": is_empty and factors == fresh_problem.train(fresh, STEPS),
        "warmup_restarts": set(factors[:warmup]) == {1.0} and factors[warmup] < 1,
        "config_kept": kept == settings,
        "goes_on": math.isfinite(after) and after < before,
        "loss_before": before,
        "loss_after": after,
        "least_factor": min(factors),
    }


def _config(seed: int) -> dict[str, Any]:
    """Return a configuration that no version has by default."""
    beta, alpha, eps, warmup = torch.rand(4, generator=make_generator(seed, "config")).tolist()
    return {
        "beta": 0.9 + 0.08 * beta,
        "alpha": 0.2 + 0.3 * alpha,
        "eps": 1e-7 + 1e-7 * eps,
        "warmup_steps": 8 + int(8 * warmup),
        "min_scaling_factor": 0.05,
        "variance_cap": 20.0,
    }


def _through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@dataclass
class _Problem:
    r"""Parameters w, and the loss :math:`\frac12\|w-w^*\|^2` with noise in its gradients."""

    targets: list[Tensor]
    params: list[Tensor]
    noise: torch.Generator

    @classmethod
    def start(cls, seed: int, where: Mapping[str, Any]) -> Self:
        """Return the problem at w = 0."""
        generator = make_generator(seed, "problem")
        targets = [torch.randn(shape, generator=generator).to(**where) for shape in SHAPES]
        return cls(targets, [torch.zeros_like(t, requires_grad=True) for t in targets], generator)

    def copy(self) -> "_Problem":
        """Return the same problem from here on, with parameters of its own."""
        params = [p.detach().clone().requires_grad_() for p in self.params]
        return _Problem(self.targets, params, self.noise.clone_state())

    def loss(self) -> float:
        """Return the loss without noise."""
        pairs = zip(self.params, self.targets, strict=True)
        return sum(float((p.detach() - t).square().sum()) / 2 for p, t in pairs)

    def train(self, scaler: VarianceGradientScaler, steps: int) -> list[float]:
        """Take steps of SGD with gradients scaled by ``scaler``, and return its factors."""
        optimizer, factors = torch.optim.SGD(self.params, LR), []
        for _ in range(steps):
            for param, target in zip(self.params, self.targets, strict=True):
                noise = torch.randn(param.shape, generator=self.noise).to(param)
                param.grad = param.detach() - target + NOISE * noise
            factors.append(scaler.scale_gradients())
            optimizer.step()
            scaler.step()
        return factors
