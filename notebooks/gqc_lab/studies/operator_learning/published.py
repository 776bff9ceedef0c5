"""Read the ``training:`` section of a published configuration as an operator experiment."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from gqc_lab.studies.operator_learning.settings import (
    WEIGHTS,
    OperatorLearningConfig,
    config,
)

STORED = 0.02  #: time between the frames that are stored

#: key of the section -> field of the config
FIELDS = {
    **{name: name for name in WEIGHTS},
    "epochs": "epochs",
    "num_epochs": "epochs",
    "batch_size": "batch_size",
    "lr": "lr",
    "learning_rate": "lr",
    "weight_decay": "weight_decay",
    "ema_decay": "ema_decay",
    "stride": "stride",
    "time_stride": "stride",
    "rollout_steps": "rollout_steps",
    "rollout_length": "rollout_steps",
    "seed": "seed",
    "amp": "has_amp",
    "use_amp": "has_amp",
    "compile": "is_compiled",
}
#: keys that are understood, and have no counterpart here
LEFT_OUT = {
    "ttc": "test-time conditioning is not implemented",
    "test_time_conditioning": "test-time conditioning is not implemented",
    "num_workers": "data is in memory",
    "pin_memory": "data is in memory",
    "log_interval": "every batch is recorded",
    "patience": "runs have a fixed length, so that methods are compared at equal cost",
}


def read_training(
    section: Mapping[str, Any], scale: str = "smoke", **overrides: Any
) -> OperatorLearningConfig:
    """Return the config of a published configuration.

    Args:
        section: its ``training:`` section, or a mapping that has one.
        scale: of the data and the model, whose sizes are not in the section.
        overrides: fields that win over the section's.
    Raises: ValueError: an unknown key, or a value out of its range.
    Warns: what the section asks for and does not get; a run that ends within the warmup of its
        inverse losses, as the published diagnostic does.
    """
    section = section.get("training", section)
    own: dict[str, Any] = {}
    for key, value in section.items():
        if key in FIELDS:
            own[FIELDS[key]] = value
        elif key == "betas":
            own["beta1"], own["beta2"] = value
        elif key == "dt":
            own["step"] = round(value / STORED)
        elif key in LEFT_OUT:
            if value:
                warnings.warn(f"{key}={value!r}: {LEFT_OUT[key]}; left out", stacklevel=2)
        elif key not in ("grad_clip", "grad_clip_per_param"):
            known = [*FIELDS, "betas", "dt", "grad_clip", "grad_clip_per_param", *LEFT_OUT]
            raise ValueError(
                f"unknown key {key!r} in the training section: expected one of {known}"
            )
    own |= _clipping(section)
    inverse = max(own.get("lambda_inv_enc", 0), own.get("lambda_inv_dec", 0))
    own["has_curriculum"] = "inverse_loss_warmup_epochs" in own
    method = "baseline" if not inverse else "fixed" if own["has_curriculum"] else "exploding"
    found = config(scale, method, **{**own, **overrides})
    warmup = found.inverse_loss_warmup_epochs
    if inverse and found.has_curriculum and found.epochs <= warmup:
        warnings.warn(
            f"epochs={found.epochs} end within the warmup of the inverse losses, whose weight is 0 "
            f"in the first inverse_loss_warmup_epochs={warmup}: this run cannot test them",
            stacklevel=2,
        )
    return found


def _clipping(section: Mapping[str, Any]) -> dict[str, Any]:
    """The published flag ``grad_clip_per_param`` was read by no code; here it clips each part."""
    total, each = section.get("grad_clip"), section.get("grad_clip_per_param")
    bound = total if each is None or isinstance(each, bool) else each
    clip = {"clip": "group"} if each else {}
    return clip if bound is None else {**clip, "max_norm": float(bound)}
