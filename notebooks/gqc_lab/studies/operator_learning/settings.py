"""The knobs of operator learning, the published ways of weighing inverse losses, and the scales."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from gqc.clipping import CLIPPERS
from gqc_lab.errors import check_name
from gqc_lab.loop.placement import DTYPES
from gqc_lab.models.operator import OperatorConfig
from gqc_lab.studies.operator_learning.losses import check_weights

ENCODER_LEARNS = ("inverse", "all", "none")
DECODER_LEARNS = ("inverse", "all")


@dataclass(frozen=True)
class OperatorLearningConfig:
    """Everything that decides a run; use `config` for values that fit a scale and a method.

    Args:
        method: name of the way in `METHODS` that the values come from.
        scale: name of the preset that the sizes come from.
        source, num_train, num_test, nu, data_seed: see `gqc_lab.data.burgers.load_burgers_data`.
        step: stored frames that A goes on by; 5 is a time of 0.1.
        stride: frames between the starts of training examples.
        batch_size: examples in a batch.
        pretraining_epochs: E and D learn ``inv_enc``, and ``inv_dec`` with the weight
            ``pretraining_inv_dec``, before A begins; the source has none of it.
        epochs: of the operator, counted from 0 after the pretraining.
        tokens, latent_dim, hidden, blocks, codec_blocks, heads, neighbors, is_normalized: see
            `gqc_lab.models.operator.OperatorConfig`.
        pretraining_lr, lr, lr_warmup: learning rates of the two phases; each goes to 0 as a cosine,
            after a warmup of so many batches.
        codec_lr: share of ``lr`` with which E and D learn after the pretraining, in (0, 1].  At 1
            the onset of inverse losses throws A back for some epochs, at any weight: Adam takes
            steps of the same size for gradients of any.
        weight_decay, beta1, beta2: of AdamW.
        ema_decay: of the averaged weights that are evaluated; the average begins anew with A.
        lambda_forward, lambda_spectral, lambda_rollout, lambda_inv_enc, lambda_inv_dec,
            inverse_loss_warmup_epochs, inverse_loss_max_weight, inverse_loss_frequency,
            inverse_loss_max_share: see `gqc_lab.studies.operator_learning.losses`.
        has_curriculum: whether the warmup and the cap of the weight are in force.
        rollout_steps: of ``rollout``.
        clip, max_norm: what a gradient norm is taken over, "total", "group" (E, A, D) or "tensor",
            and its bound.
        encoder_learns: after the pretraining, from the ``"inverse"`` losses alone, as where latents
            are computed beforehand; from ``"all"``; or from ``"none"``, frozen.
        decoder_learns: from the ``"inverse"`` losses alone, or from ``"all"``: spectral, rollout.
        test_steps: of rollouts in evaluations.
        evaluation_epochs: epochs between evaluations; there is always one at the end.
        seed: of weights and order; device, dtype: see `gqc_lab.loop.placement`.
    Raises:
        ValueError: a value out of its range, one line naming it.
    """

    method: str
    scale: str
    num_train: int
    num_test: int
    pretraining_epochs: int
    epochs: int
    ema_decay: float
    inverse_loss_warmup_epochs: float
    tokens: int = 32
    latent_dim: int = 16
    hidden: int = 96
    blocks: int = 3
    heads: int = 6
    codec_blocks: int = 1
    neighbors: int = 16
    is_normalized: bool = True
    source: str = "simulated"
    nu: float = 0.01
    data_seed: int = 0
    step: int = 5
    stride: int = 2
    batch_size: int = 12
    pretraining_inv_dec: float = 0.1
    pretraining_lr: float = 1e-3
    lr: float = 1e-3
    lr_warmup: int = 50
    codec_lr: float = 0.1
    weight_decay: float = 0.03
    beta1: float = 0.9
    beta2: float = 0.999
    lambda_forward: float = 1.0
    lambda_spectral: float = 0.05
    lambda_rollout: float = 0.0
    lambda_inv_enc: float = 0.0
    lambda_inv_dec: float = 0.0
    inverse_loss_max_weight: float = 0.05
    inverse_loss_frequency: int = 1
    inverse_loss_max_share: float = 1.0
    has_curriculum: bool = False
    rollout_steps: int = 2
    clip: str = "total"
    max_norm: float = 1.0
    encoder_learns: str = "inverse"
    decoder_learns: str = "inverse"
    test_steps: int = 19
    evaluation_epochs: int = 1
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_name("scale", self.scale, SCALES)
        check_name("clip", self.clip, CLIPPERS)
        check_name("encoder_learns", self.encoder_learns, ENCODER_LEARNS)
        check_name("decoder_learns", self.decoder_learns, DECODER_LEARNS)
        check_name("dtype", self.dtype, DTYPES)
        for name, least in COUNTS.items():
            value = getattr(self, name)
            if not (isinstance(value, int) and not isinstance(value, bool) and value >= least):
                raise ValueError(f"{name}={value!r}: expected an integer of at least {least}")
        for name in ("pretraining_lr", "lr", "max_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected a number above 0")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay!r}: expected a number in [0, 1)")
        if not 0 < self.codec_lr <= 1:
            raise ValueError(f"codec_lr={self.codec_lr!r}: expected a share in (0, 1]")
        for name in ("pretraining_lr", "lr", "pretraining_inv_dec", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected a finite number >= 0")
        check_weights(self.loss_weights)
        self.sizes  # noqa: B018  checks them

    @property
    def loss_weights(self) -> dict[str, float]:
        """The ``weights`` of `losses.compute_operator_loss_bundle`."""
        names = [f.name for f in fields(self)]
        return {n: getattr(self, n) for n in names if n.startswith(("lambda_", "inverse_loss_"))}

    @property
    def sizes(self) -> OperatorConfig:
        """Of the model."""
        return OperatorConfig(**{f.name: getattr(self, f.name) for f in fields(OperatorConfig)})


COUNTS = {
    **dict.fromkeys(("epochs", "step", "stride", "batch_size", "rollout_steps"), 1),
    **dict.fromkeys(("evaluation_epochs", "test_steps"), 1),
    **dict.fromkeys(("pretraining_epochs", "lr_warmup", "seed", "data_seed"), 0),
}

_SOURCE = {"epochs": 35, "inverse_loss_warmup_epochs": 15}

#: scale -> sizes; those of paper are the source's, but for the pretraining
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {
        "num_train": 4,
        "num_test": 2,
        "stride": 8,
        "pretraining_epochs": 4,
        "epochs": 8,
        "tokens": 16,
        "latent_dim": 16,
        "hidden": 16,
        "blocks": 1,
        "heads": 2,
        "neighbors": 32,
        "pretraining_lr": 3e-3,
        "lr": 3e-3,
        "lr_warmup": 5,
        "ema_decay": 0.9,
        "inverse_loss_warmup_epochs": 3,
        "test_steps": 4,
    },
    "laptop": {
        **_SOURCE,
        "num_train": 40,
        "num_test": 16,
        "pretraining_epochs": 30,
        "lr": 3e-4,  # at the source's 1e-3, on so little data, the loss of some epochs rises
        "ema_decay": 0.99,  # a twenty-fifth of the source's batches
        "hidden": 48,
        "blocks": 2,
        "heads": 4,
    },
    "paper": {
        **_SOURCE,
        "num_train": 1000,
        "num_test": 100,
        "pretraining_epochs": 10,
        "ema_decay": 0.999,
    },
}


def _inverse(weight: float, **rest: Any) -> dict[str, Any]:
    return {"lambda_inv_enc": weight, "lambda_inv_dec": weight, **rest}


_CLIP = {"clip": "group", "max_norm": 0.3}
_CURRICULUM = {"has_curriculum": True}

#: method -> what it changes; the three between are the fix's parts alone
METHODS: dict[str, dict[str, Any]] = {
    "baseline": _inverse(0.0),
    "exploding": _inverse(0.5),
    "fixed": _inverse(0.001, **_CLIP, **_CURRICULUM),
    "weight only": _inverse(0.001),
    "clip only": _inverse(0.5, **_CLIP),
    "curriculum only": _inverse(0.5, **_CURRICULUM),
    "diagnostic": _inverse(0.001, **_CLIP, **_CURRICULUM),
}


_UNPRETRAINED = {"pretraining_epochs": 0, "codec_lr": 1.0}
_NO_NORMS = {**_UNPRETRAINED, "is_normalized": False}

#: variant -> what it changes in an exploding run, to find what an explosion takes; each of its
#: words changes one thing, and all but the first begin without pretraining, at one learning rate
VARIANTS: dict[str, dict[str, Any]] = {
    "as published": {},
    "no pretraining": _UNPRETRAINED,
    "encoder frozen": {**_UNPRETRAINED, "encoder_learns": "none"},
    "encoder from all": {**_UNPRETRAINED, "encoder_learns": "all", "decoder_learns": "all"},
    "unclipped": {**_UNPRETRAINED, "max_norm": 1e30},
    "lr 0.1": {**_UNPRETRAINED, "lr": 0.1},
    "deep": {**_UNPRETRAINED, "blocks": 6, "codec_blocks": 6},
    "no norms": _NO_NORMS,
    "no norms, lr 0.01": {**_NO_NORMS, "lr": 0.01},
    "no norms, lr 0.1": {**_NO_NORMS, "lr": 0.1},
    "no norms, lr 0.1, unclipped": {**_NO_NORMS, "lr": 0.1, "max_norm": 1e30},
    "no norms, deep, lr 0.01": {**_NO_NORMS, "lr": 0.01, "blocks": 6, "codec_blocks": 6},
}


def config(
    scale: str = "smoke", method: str = "baseline", **overrides: Any
) -> OperatorLearningConfig:
    """The config of a scale and a method.

    Args:
        scale: ``"smoke"``, ``"laptop"`` or ``"paper"``.
        method: of `METHODS`; ``"diagnostic"`` is ``"fixed"`` with a seventh of the epochs (5 of
            35).
        overrides: any field of `OperatorLearningConfig`.
    Raises:
        ValueError: unknown scale, method or field, or a value out of its range.
    """
    check_name("scale", scale, SCALES)
    check_name("method", method, METHODS)
    for name in overrides:
        check_name("field", name, [f.name for f in fields(OperatorLearningConfig)])
    values = {**SCALES[scale], **METHODS[method]}
    if method == "diagnostic":
        values["epochs"] = max(1, values["epochs"] // 7)
    return OperatorLearningConfig(**{"method": method, "scale": scale, **values, **overrides})


def variant_config(
    scale: str, variant: str, weight: float, **overrides: Any
) -> OperatorLearningConfig:
    """The config of a run without curriculum whose inverse losses both have ``weight``.

    Args:
        variant: of `VARIANTS`; at every scale with the source's learning rate of 1e-3, unless it
            says otherwise.
        overrides: as of `config`; they give way to the variant's own.
    """
    check_name("variant", variant, VARIANTS)
    both = {"lambda_inv_enc": weight, "lambda_inv_dec": weight}
    return config(scale, "exploding", **{"lr": 1e-3, **overrides, **both, **VARIANTS[variant]})
