"""Settings of operator learning, the published ways of weighing inverse losses, and the scales.

`read_training` reads a published configuration as such settings.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqc_lab.errors import check_keys, check_name
from gqc_lab.loop.settings import Config, Setting, make_config, read_scales, setting, settings_of
from gqc_lab.models.operator_sizes import OperatorConfig

ENCODER_LEARNS = ("inverse", "all", "none")
DECODER_LEARNS = ("inverse", "all")
_COUNT = Setting(low=1)

#: scale -> sizes; those of paper are the source's, except for the pretraining
SCALES = read_scales(Path(__file__).with_name("scales.csv"))


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


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Keys of ``weights``; ``inverse_loss_max_share`` is ours, and 1 is no bound."""

    lambda_forward: float = setting(1.0, "weight of the forward loss", low=0)
    lambda_spectral: float = setting(0.05, "weight of the spectral loss", low=0)
    lambda_rollout: float = setting(0.0, "weight of the rollout loss", low=0)
    lambda_inv_enc: float = setting(0.0, "weight of the inverse encoding loss", low=0)
    lambda_inv_dec: float = setting(0.0, "weight of the inverse decoding loss", low=0)
    inverse_loss_warmup_epochs: float = setting(15.0, "epochs of the inverse warmup", low=0)
    inverse_loss_max_weight: float = setting(0.05, "cap of the inverse weights", low=0)
    inverse_loss_frequency: int = setting(1, "batches per inverse loss", low=1)
    inverse_loss_max_share: float = setting(1.0, "cap of their share of the total", low=0, high=1)


WEIGHTS = settings_of(LossWeights)


@dataclass(frozen=True, kw_only=True)
class OperatorLearningConfig(OperatorConfig, LossWeights, Config):
    """Everything that decides a run; use `config` for values that fit a scale and a method.

    Sizes of the model and weights of the losses are fields too.  E, A and D are encoder,
    approximator and decoder.  With ``codec_lr`` 1 the onset of inverse losses throws A back for
    some epochs, at any weight: Adam takes steps of the same size for gradients of any.  The source
    has no pretraining.
    """

    method: str = setting(meaning="way of weighing the inverse losses", choices=tuple(METHODS))
    scale: str = setting(meaning="sizes, data and epochs", choices=tuple(SCALES))
    source: str = setting("simulated", "simulated, or the path of a PDEBench HDF5 file")
    num_train: int = setting(meaning="training trajectories", like=_COUNT)
    num_test: int = setting(meaning="test trajectories", like=_COUNT)
    nu: float = setting(0.01, "viscosity, pi times the diffusivity", low=0.001, high=1)
    data_seed: int = setting(0, "seed of the data", low=0)
    step: int = setting(5, "stored frames per step of A; 5 is a time of 0.1", like=_COUNT)
    stride: int = setting(2, "frames between the starts of training examples", like=_COUNT)
    batch_size: int = setting(12, "examples in a batch", like=_COUNT)
    pretraining_epochs: int = setting(meaning="epochs of E and D alone, before A begins", low=0)
    pretraining_inv_dec: float = setting(0.1, "weight of ``inv_dec`` in them", low=0)
    pretraining_lr: float = setting(1e-3, "learning rate of the pretraining", above=0)
    epochs: int = setting(meaning="epochs of the operator, counted from 0", like=_COUNT)
    lr: float = setting(1e-3, "learning rate; goes to 0 as a cosine", above=0)
    lr_warmup: int = setting(50, "batches of its warmup, in both phases", low=0)
    codec_lr: float = setting(
        0.1, "share of ``lr`` with which E and D learn after the pretraining", above=0, high=1
    )
    weight_decay: float = setting(0.03, "of AdamW", low=0)
    beta1: float = setting(0.9, "AdamW's decay of the first moment", low=0, below=1)
    beta2: float = setting(0.999, "AdamW's decay of the second moment", low=0, below=1)
    ema_decay: float = setting(meaning="of the weights that are evaluated", low=0, below=1)
    has_curriculum: bool = setting(False, "whether the weight has its warmup and cap")
    rollout_steps: int = setting(2, "steps of the rollout loss", like=_COUNT)
    clip: str = setting(
        "total",
        "what a norm is taken over: all, E, A and D each, or a tensor",
        choices="gqc.clipping:CLIPPERS",
    )
    max_norm: float = setting(1.0, "bound of the gradient norm", above=0)
    encoder_learns: str = setting(
        "inverse",
        "from the inverse losses alone, as where latents are computed beforehand; from all; frozen",
        choices=ENCODER_LEARNS,
    )
    decoder_learns: str = setting(
        "inverse", "from the inverse losses alone, or from all", choices=DECODER_LEARNS
    )
    has_amp: bool = setting(False, "are losses computed in bfloat16, by autocast?")
    is_compiled: bool = setting(False, "are E, A and D compiled? takes a minute at first")
    test_steps: int = setting(19, "steps of rollouts in evaluations", like=_COUNT)
    evaluation_epochs: int = setting(
        1, "epochs between evaluations; there is always one at the end", like=_COUNT
    )

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weights for `losses.compute_operator_loss_bundle`."""
        return {name: getattr(self, name) for name in WEIGHTS}

    @property
    def sizes(self) -> OperatorConfig:
        """Sizes of the model."""
        return OperatorConfig(**{name: getattr(self, name) for name in settings_of(OperatorConfig)})


def config(
    scale: str = "smoke", method: str = "baseline", **overrides: Any
) -> OperatorLearningConfig:
    """Return the config of a scale and a method; ``overrides``, any of its fields, win.

    ``"diagnostic"`` is ``"fixed"`` with a seventh of the epochs (5 of 35).

    Raises: ValueError: unknown scale, method or field, or a value out of its range.
    """

    def own(values: dict[str, Any]) -> dict[str, Any]:
        shorter = {"epochs": max(1, SCALES[scale]["epochs"] // 7)} if method == "diagnostic" else {}
        return METHODS[method] | shorter

    return make_config(OperatorLearningConfig, SCALES, scale, {"method": method, **overrides}, own)


def variant_config(
    scale: str, variant: str, weight: float, **overrides: Any
) -> OperatorLearningConfig:
    """Return the config of a run without curriculum whose inverse losses both have ``weight``.

    At every scale with the source's learning rate of 1e-3, unless the variant, of `VARIANTS`, says
    otherwise; ``overrides`` give way to its own.
    """
    check_name("variant", variant, VARIANTS)
    both = {"lambda_inv_enc": weight, "lambda_inv_dec": weight}
    return config(scale, "exploding", **{"lr": 1e-3, **overrides, **both, **VARIANTS[variant]})


STORED = 0.02  #: time between the frames that are stored

#: key of the ``training:`` section of a published configuration -> field of the config
FIELDS = {
    **{n: n for n in (*WEIGHTS, "epochs", "batch_size", "lr", "weight_decay", "ema_decay")},
    **{n: n for n in ("stride", "rollout_steps", "seed")},
    "num_epochs": "epochs",
    "learning_rate": "lr",
    "time_stride": "stride",
    "rollout_length": "rollout_steps",
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
    known = {*FIELDS, *LEFT_OUT, "betas", "dt", "grad_clip", "grad_clip_per_param"}
    check_keys("training section: ", section, known)
    own: dict[str, Any] = {}
    for key, value in section.items():
        if key in FIELDS:
            own[FIELDS[key]] = value
        elif key == "betas":
            own["beta1"], own["beta2"] = value
        elif key == "dt":
            own["step"] = round(value / STORED)
        elif key in LEFT_OUT and value:
            warnings.warn(f"{key}={value!r}: {LEFT_OUT[key]}; left out", stacklevel=2)
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
