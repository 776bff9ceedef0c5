"""The knobs of the pretraining experiment, their ranges, and their values by scale and method."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from gqc.scalers.settings import ESTIMATORS
from gqc.wrappers.gnr import MODES
from gqc_lab.data.text import TOKENIZERS
from gqc_lab.errors import check_name
from gqc_lab.loop.controls import Points
from gqc_lab.loop.norm_schedule import CURVES
from gqc_lab.loop.placement import DTYPES

METHODS = ("adamw", "gnts", "gns", "normtest", "mht", "gnr", "sbc", "replay", "vgs")
VGS_ALPHA = 0.1  #: of method vgs where none is given


@dataclass(frozen=True)
class PretrainingConfig:
    """Everything that decides a run; use `config` for values that fit a scale.

    Args:
        method: one of `METHODS`; see `gqc_lab.studies.pretraining.training`.
        scale: name of the preset that the values come from.
        seed: of the weights, and of the data unless ``data_seed`` is given.
        corpus, tokenizer, validation_fraction: see `gqc_lab.data.text.load_text_data`.
        width, depth, heads, context: see `gqc_lab.models.gpt.GPTConfig`.
        train_tokens: only that many of the first training tokens are read, again and again; None:
            all.
        noisy_share: share of the microbatches, drawn at random, whose targets change places; their
            records say ``is_noisy``.
        microbatch_size: sequences per microbatch.
        tokens: training budget; whole microbatches are trained.
        lr: peak learning rate; min_lr: final one, as a fraction of it; lr_warmup: fraction of the
            tokens.
        beta1, beta2, weight_decay: of AdamW; gains of layer norms are not decayed.
        accumulation: adamw and vgs: microbatches per step.
        start_norm, end_norm, norm_warmup, norm_warmup_multiplier: gnts: threshold after warmup and
            at the end [loss / parameter], warmup as a fraction of the microbatches, first threshold
            / ``start_norm``.
        norm_curve, norm_exponent, norm_points: gnts: see `gqc_lab.loop.norm_schedule.NormSchedule`.
        min_draws, max_draws: gnts, gns, normtest, mht and gnr: microbatches per step; gns, normtest
            and mht draw two at least, gnr draws ``min_draws``.
        noise_tolerance, theta, confidence, error_tolerance, target_gradient_norm, gnr_mode: gns,
            normtest, mht (two) and gnr (two): see `gqc.wrappers`.
        gns_reactive: gns: let the open window into its estimate.
        final_accumulation: sbc: microbatches per step at the end.
        draws: replay: microbatches of each step.
        vgs_alpha: scale the gradient of each step by its variance, whatever the method: ``alpha``
            of `gqc.scalers.VarianceGradientScaler`; 0 measures only, None does neither (method vgs
            takes 0.1 then).
        vgs_beta, vgs_warmup_steps, vgs_estimator: of that scaler; the rest are live controls.
        evaluation_tokens: training tokens between evaluations; there is always one at the end.
        evaluation_sequences: held-out sequences per evaluation.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"``; dtype: of the parameters.
    Raises:
        ValueError: a value out of its range, one line naming it.
    """

    method: str
    scale: str
    width: int
    depth: int
    heads: int
    context: int
    microbatch_size: int
    tokens: int
    evaluation_tokens: int
    evaluation_sequences: int
    seed: int = 0
    data_seed: int | None = None
    corpus: str = "kjv"
    tokenizer: str = "character"
    validation_fraction: float = 0.05
    train_tokens: int | None = None
    noisy_share: float = 0.0
    lr: float = 3e-3
    min_lr: float = 0.1
    lr_warmup: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.1
    accumulation: int = 1
    start_norm: float = 0.5
    end_norm: float = 0.5
    norm_warmup: float = 0.05
    norm_warmup_multiplier: float = 10.0
    norm_curve: str = "cosine"
    norm_exponent: float = 1.0
    norm_points: tuple[tuple[float, float], ...] = ()
    min_draws: int = 1
    max_draws: int = 64
    noise_tolerance: float = 1.0
    gns_reactive: bool = False
    theta: float = 1.0
    confidence: float = 0.98
    error_tolerance: float = 0.03
    target_gradient_norm: float = 1.0
    gnr_mode: str = "global"
    final_accumulation: int = 8
    draws: tuple[int, ...] = ()
    vgs_alpha: float | None = None
    vgs_beta: float = 0.99
    vgs_warmup_steps: int = 100
    vgs_estimator: str = "sketch"
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_name("method", self.method, METHODS)
        check_name("scale", self.scale, SCALES)
        check_name("tokenizer", self.tokenizer, TOKENIZERS)
        check_name("dtype", self.dtype, DTYPES)
        check_name("gnr_mode", self.gnr_mode, MODES)
        check_name("vgs_estimator", self.vgs_estimator, ESTIMATORS)
        for name in COUNTS:
            _check_integer(name, getattr(self, name), 1)
        _check_integer("seed", self.seed, 0)
        _check_integer("vgs_warmup_steps", self.vgs_warmup_steps, 0)
        if self.method == "vgs" and self.vgs_alpha is None:
            object.__setattr__(self, "vgs_alpha", VGS_ALPHA)
        if self.vgs_alpha is not None:
            _check_number("vgs_alpha", self.vgs_alpha, 0, True, math.inf, False)
        if self.data_seed is not None:
            _check_integer("data_seed", self.data_seed, 0)
        if self.train_tokens is not None:
            _check_integer("train_tokens", self.train_tokens, self.context + 1)
        for name, bounds in RANGES.items():
            _check_number(name, getattr(self, name), *bounds)
        object.__setattr__(self, "draws", tuple(self.draws))
        check_name("norm_curve", self.norm_curve, CURVES)
        points = Points().check("norm_points", self.norm_points)
        object.__setattr__(self, "norm_points", points)
        self._check_together()

    def _check_together(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width={self.width}: expected a multiple of heads={self.heads}")
        if self.tokens < self.microbatch_tokens:
            raise ValueError(
                f"tokens={self.tokens}: expected at least one microbatch, microbatch_size x "
                f"context = {self.microbatch_tokens}"
            )
        if self.max_draws < self.min_draws:
            raise ValueError(
                f"max_draws={self.max_draws}: expected at least min_draws={self.min_draws}"
            )
        for draw in self.draws:
            _check_integer("draws: one of them", draw, 1)
        if (self.method == "replay") != bool(self.draws):
            raise ValueError(
                f"draws has {len(self.draws)} entries with method={self.method!r}: expected some "
                "for 'replay' (recorded_draws(history) of another run), none otherwise"
            )

    @property
    def name(self) -> str:
        """The method, and whether its gradients are scaled too, in a word or three."""
        is_both = self.vgs_alpha is not None and self.method != "vgs"
        return f"{self.method} + vgs" if is_both else self.method

    @property
    def microbatch_tokens(self) -> int:
        """Tokens per microbatch."""
        return self.microbatch_size * self.context

    @property
    def num_microbatches(self) -> int:
        """Whole microbatches in the budget."""
        return self.tokens // self.microbatch_tokens


COUNTS = (
    *("width", "depth", "heads", "context", "microbatch_size", "tokens", "accumulation"),
    *("min_draws", "max_draws", "final_accumulation", "evaluation_tokens", "evaluation_sequences"),
)

#: name -> (smallest, is it allowed itself, largest, is it allowed itself)
RANGES: dict[str, tuple[float, bool, float, bool]] = {
    "validation_fraction": (0, False, 1, False),
    "lr": (0, False, math.inf, False),
    "min_lr": (0, True, 1, True),
    "lr_warmup": (0, True, 1, True),
    "beta1": (0, True, 1, False),
    "beta2": (0, True, 1, False),
    "weight_decay": (0, True, math.inf, False),
    "start_norm": (0, False, math.inf, False),
    "end_norm": (0, True, math.inf, False),
    "norm_warmup": (0, True, 1, True),
    "norm_warmup_multiplier": (0, False, math.inf, False),
    "norm_exponent": (0, False, 100, True),
    "noise_tolerance": (0, False, math.inf, False),
    "theta": (0, False, math.inf, False),
    "confidence": (0, False, 1, False),
    "error_tolerance": (0, False, math.inf, False),
    "target_gradient_norm": (0, False, math.inf, False),
    "vgs_beta": (0, False, 1, False),
    "noisy_share": (0, True, 1, True),
}

#: scale -> what is trained, on how much
SCALES: dict[str, dict[str, Any]] = {
    # 29k parameters, a second per run on one core: for tests, not for conclusions
    "smoke": {
        "width": 32,
        "depth": 2,
        "heads": 2,
        "context": 64,
        "microbatch_size": 8,
        "tokens": 2**17,
        "evaluation_tokens": 2**14,
        "evaluation_sequences": 64,
    },
    # 0.16M parameters, half a minute per run on one core.  Microbatches of 4 sequences, where
    # stepping on each and on pairs of them is equally good: larger ones would leave an adaptive
    # batch nothing to choose.
    "laptop": {
        "width": 64,
        "depth": 3,
        "heads": 4,
        "context": 64,
        "microbatch_size": 4,
        "tokens": 2**20,
        "evaluation_tokens": 2**16,
        "evaluation_sequences": 256,
    },
    # the source's size: 50M parameters, 282M tokens; for a GPU
    "paper": {
        "width": 512,
        "depth": 16,
        "heads": 8,
        "context": 512,
        "microbatch_size": 8,
        "tokens": 282_000_000,
        "evaluation_tokens": 2**21,
        "evaluation_sequences": 512,
        "corpus": "hf:Salesforce/wikitext:wikitext-103-raw-v1",
        "tokenizer": "byte",
        "lr": 6e-4,
    },
    # the source's larger control: 16 times the parameters (0.79G), the same tokens
    "paper-16x": {
        "width": 1536,
        "depth": 28,
        "heads": 16,
        "context": 512,
        "microbatch_size": 8,
        "tokens": 282_000_000,
        "evaluation_tokens": 2**21,
        "evaluation_sequences": 512,
        "corpus": "hf:Salesforce/wikitext:wikitext-103-raw-v1",
        "tokenizer": "byte",
        "lr": 2.5e-4,
    },
}

#: (scale, method) -> tuned values.  Laptop: the least validation loss of ten runs per method, one
#: seed (100, which no report uses), three settings at lr 5e-3 | 1e-2 | 2e-2:
#:
#: - adamw, accumulation 1, 2, 4:
#:   1.546 1.550 1.585 | 1.577 1.552 1.560 | 1.774 1.590 1.585, and lr 2.5e-3 with 1: 1.547
#: - gnts, start-end norm .6-.6, .7-.7, .9-.5:
#:   1.699 1.621 1.565 | 1.548 1.561 1.587 | 1.774 1.762 1.760, and lr 1e-2 with .5-.5: 1.657
#: - gns, tolerance 10, 3, 1:
#:   1.546 1.599 1.693 | 1.548 1.574 1.635 | 1.563 1.592 1.624, and lr 2.5e-3 with 10: 1.590
#: - normtest, theta 4, 2, 1:
#:   1.562 1.613 1.832 | 1.574 1.590 1.712 | 1.588 1.604 1.694, and lr 2.5e-3 with 4: 1.602
#: - mht, error tolerance .2, .1, .05:
#:   1.560 1.609 1.719 | 1.564 1.617 1.741 | 1.979 1.775 2.239, and lr 2.5e-3 with .2: 1.609
#: - gnr, min_draws 1, 2, 4:
#:   1.551 1.543 1.577 | 1.583 1.565 1.551 | 1.754 1.619 1.565, and lr 2.5e-3 with 1: 1.549
#: - sbc, final accumulation 2, 4, 8:
#:   1.543 1.549 1.558 | 1.555 1.553 1.551 | 1.599 1.594 1.590, and lr 2.5e-3 with 2: 1.577
#:
#: The best of gns, normtest, mht and sbc lie at the loosest setting, where they draw two or three
#: microbatches.  One seed does not resolve 0.02: sbc from 1 to 2 is adamw with 2 but for the first
#: step, and they differ by 0.007; adamw and gnts as chosen gave 1.542 and 1.569 on seed 101.
#: replay: the lr of gnts.  Smoke: by eye, so that windows of several draws occur (a warmup of 5 %
#: is 13 microbatches there, and some seeds got stuck at max_draws).  Paper: not tuned.
#: vgs: not tuned either, at any scale: AdamW's own values, with the scaler's published defaults.
TUNED: dict[tuple[str, str], dict[str, Any]] = {
    ("smoke", "adamw"): {"lr": 1e-2},
    ("smoke", "gnts"): {"lr": 1e-2, "start_norm": 0.7, "end_norm": 0.4, "norm_warmup": 0.2},
    ("smoke", "gns"): {"lr": 1e-2},
    ("smoke", "normtest"): {"lr": 1e-2},
    ("smoke", "mht"): {"lr": 1e-2, "error_tolerance": 0.1},
    ("smoke", "gnr"): {"lr": 1e-2},
    ("smoke", "sbc"): {"lr": 1e-2},
    ("smoke", "replay"): {"lr": 1e-2},
    ("smoke", "vgs"): {"lr": 1e-2},
    ("laptop", "adamw"): {"lr": 5e-3, "accumulation": 1},
    ("laptop", "gnts"): {"lr": 1e-2, "start_norm": 0.6, "end_norm": 0.6},
    ("laptop", "gns"): {"lr": 5e-3, "noise_tolerance": 10.0},
    ("laptop", "normtest"): {"lr": 5e-3, "theta": 4.0},
    ("laptop", "mht"): {"lr": 5e-3, "error_tolerance": 0.2},
    ("laptop", "gnr"): {"lr": 5e-3, "min_draws": 2},
    ("laptop", "sbc"): {"lr": 5e-3, "final_accumulation": 2},
    ("laptop", "replay"): {"lr": 1e-2},
    ("laptop", "vgs"): {"lr": 5e-3, "accumulation": 1},
}


def config(scale: str = "smoke", **overrides: Any) -> PretrainingConfig:
    """The config of a scale, with the values tuned for its method (``"gnts"`` if none is given).

    Args:
        scale: ``"smoke"``, ``"laptop"``, ``"paper"`` or ``"paper-16x"``.
        overrides: any field of `PretrainingConfig`; they win over the scale's and the tuned values.
    Raises:
        ValueError: unknown scale or field, or a value out of its range.
    """
    check_name("scale", scale, SCALES)
    for name in overrides:
        check_name("field", name, [f.name for f in fields(PretrainingConfig)])
    method = overrides.setdefault("method", "gnts")
    check_name("method", method, METHODS)
    values = {**SCALES[scale], **TUNED.get((scale, method), {}), **overrides}
    return PretrainingConfig(scale=scale, **values)


def _check_integer(name: str, value: Any, least: int) -> None:
    if not (isinstance(value, int) and not isinstance(value, bool) and value >= least):
        raise ValueError(f"{name}={value!r}: expected an integer of at least {least}")


def _check_number(
    name: str, value: Any, low: float, has_low: bool, high: float, has_high: bool
) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    inside = is_number and (low <= value if has_low else low < value)
    if not (inside and (value <= high if has_high else value < high)):
        brackets = "([", ")]"
        bounds = f"{brackets[0][has_low]}{low:g}, {high:g}{brackets[1][has_high]}"
        raise ValueError(f"{name}={value!r}: expected a number in {bounds}")
