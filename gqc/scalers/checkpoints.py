"""Checkpoints of the variance gradient scaler: the present format and all published ones.

A file names its version in ``vgs_version``; without that it is a 2.0 if it has
``param_grad_mean_ema``, else a 1.x.  Statistics of a published one go to its own of `ESTIMATORS`,
those of 4.0 and 4.1 to the estimator they name.  Any other estimator starts again, statistics and
warmup, with a warning: numbers of one definition mean nothing in another.  So does the sketch from
a file of 4.0, which had other projections.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gqc.checks import check_count

VERSION = "4.1"
SCALARS = ("grad_mean_ema", "grad_var_ema", "grad_norm_ema", "grad_max_ema")
VECTORS = ("param_grad_mean_ema", "param_grad_sq_ema")
CONFIG = ("enabled", "beta", "alpha", "eps", "warmup_steps")
ESTIMATORS = {
    "1.x": "spatial",
    "2.0": "tensor_spatial",
    "3.0": "tensor_mean",
    "3.1": "mean_square",
    "3.2": "mean_square",
}
WRONG = {
    "1.x": "it measured how different the layers are, not noise",
    "2.0": "it measured how different the elements of a tensor are, and zero for uniform noise",
    "3.0": "it measured the noise of each tensor's mean, which hides independent noise",
    "3.1": "it measured the spread of the elements, and called constant gradients noisy",
    "3.2": "it measured the spread of the elements, and called constant gradients noisy",
    "4.0": "its sketch overlooked the signal of half of the gradients that few elements hold",
}


class VGSMigrationWarning(UserWarning):
    """A checkpoint's configuration was kept, its statistics and warmup start again."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds, in one form for all versions.

    Attributes:
        version: a key of `WRONG`, or `VERSION`.
        config: constructor arguments, those that the file has.
        estimator: None in published files.
        statistics: what the estimator's ``load_state_dict`` takes.
        shapes: of the parameters; published ones say their numbers of elements, or nothing (None).
    """

    version: str
    config: dict[str, Any]
    step_count: int
    statistics: dict[str, Any]
    estimator: str | None = None
    shapes: list[list[int]] | None = None

    def is_of(self, estimator: str) -> bool:
        """Can that estimator continue with the statistics?"""
        if self.version in ESTIMATORS:
            return ESTIMATORS[self.version] == estimator
        return self.version == VERSION or estimator != "sketch"

    def check_same(self, estimator: str, shapes: list[list[int]]) -> None:
        """Raise ValueError unless the file is of this estimator and of parameters of ``shapes``."""
        if self.version in ESTIMATORS:
            if self.shapes is None or not self.is_of(estimator):
                return
            shapes = [[math.prod(shape)] for shape in shapes]
        elif self.estimator != estimator:
            raise ValueError(
                f"checkpoint of estimator {self.estimator!r} given to {estimator!r}: "
                f"construct the scaler with estimator={self.estimator!r}"
            )
        saved = self.shapes or []
        if shapes != saved:
            pairs = [p for p in zip(saved, shapes, strict=False) if p[0] != p[1]]
            detail = f"; first difference: {pairs[0][0]} and {pairs[0][1]}" if pairs else ""
            raise ValueError(
                f"checkpoint of {len(saved)} parameters given to a scaler of {len(shapes)}, or "
                f"their shapes differ{detail}"
            )

    def migration_message(self, estimator: str) -> str:
        """The warning for loading into ``estimator``, which cannot use the statistics."""
        message = (
            f"checkpoint of VGS {self.version}: {WRONG[self.version]}. Its configuration is kept; "
            f"the variance statistics and the warmup start again with estimator={estimator!r}. "
            "Retrain if the result matters: the gradients so far were scaled by the wrong number"
        )
        if self.version in ESTIMATORS:
            message += (
                ". Steps may become much smaller: where the new estimate is at variance_cap the "
                "factor is 1 / (1 + alpha * variance_cap). To keep the old behaviour construct the "
                f"scaler with estimator={ESTIMATORS[self.version]!r}"
            )
        return message


def read_checkpoint(state: Mapping[str, Any]) -> Checkpoint:
    """Recognise the version of ``state`` and check that it is whole.

    Raises: ValueError: of a newer or unknown version, or keys are missing or of the wrong kind.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"VGS checkpoint is a {type(state).__name__}: expected a state_dict")
    version = version_of(state)
    if version in ("4.0", VERSION):
        return _read_present(state, version)
    if version not in WRONG:
        raise ValueError(
            f"VGS checkpoint of version {version!r}: this version reads 1.x, 2.0, 3.0, 3.1, 3.2, "
            f"4.0 and {VERSION}; upgrade gqc-kit if the file is newer"
        )
    return _read_published(state, version)


def version_of(state: Mapping[str, Any]) -> Any:
    """The version that a file names, or that its keys are those of."""
    version = state.get("vgs_version")
    if version is None:
        version = "2.0" if "param_grad_mean_ema" in state else "1.x"
    return {"1.0": "1.x", "2.0.1": "2.0"}.get(version, version)


def _read_present(state: Mapping[str, Any], version: str) -> Checkpoint:
    require(state, ("estimator", "config", "step_count", "shapes", "statistics"), version)
    for key, kind in (("config", Mapping), ("statistics", Mapping), ("shapes", list)):
        if not isinstance(state[key], kind):
            raise ValueError(f"VGS checkpoint: {key!r} is a {type(state[key]).__name__}: damaged")
    return Checkpoint(
        version,
        dict(state["config"]),
        check_count(f"VGS checkpoint {version}: step_count", state["step_count"], 0),
        dict(state["statistics"]),
        state["estimator"],
        [list(shape) for shape in state["shapes"]],
    )


def _read_published(state: Mapping[str, Any], version: str) -> Checkpoint:
    require(state, (*CONFIG, "step_count", *SCALARS), version)
    if version != "1.x":
        require(state, (*VECTORS, "param_numel"), version)
    steps = check_count(f"VGS checkpoint {version}: step_count", state["step_count"], 0)
    updates = check_count("num_updates", state.get("num_updates", steps), 0)
    raw = [_number(state[key] or 0.0, key, version) for key in SCALARS]
    counts = [0 if state[key] is None else updates for key in SCALARS]  # None before the first step
    statistics: dict[str, Any] = {
        "num_updates": updates,
        "averages": {
            "raw": torch.tensor(raw, dtype=torch.float32, device="cpu"),
            "count": torch.tensor(counts, dtype=torch.float32, device="cpu"),
        },
    }
    for key in VECTORS:
        value = state.get(key)
        if version != "1.x" and not (isinstance(value, Tensor) and value.dim() == 1):
            raise ValueError(f"VGS checkpoint {version}: {key!r} is not a tensor of one dimension")
        statistics[key] = value
    config = {k: state[k] for k in (*CONFIG, "min_scaling_factor", "variance_cap") if k in state}
    numels = state.get("param_numel")
    if numels is not None:
        numels = torch.as_tensor(numels, device="cpu").long().view(-1, 1).tolist()
    return Checkpoint(version, config, steps, statistics, shapes=numels)


def require(state: Mapping[str, Any], keys: tuple[str, ...], version: str) -> None:
    """Raise ValueError, which names them, where ``state`` lacks any of ``keys``."""
    if missing := [key for key in keys if key not in state]:
        raise ValueError(f"VGS checkpoint of version {version} lacks {missing}: it is damaged")


def _number(value: Any, key: str, version: str) -> float:
    if (isinstance(value, Tensor) and value.numel() == 1) or isinstance(value, (int, float)):
        return float(value)
    raise ValueError(f"VGS checkpoint {version}: {key}={value!r} is not a number")
