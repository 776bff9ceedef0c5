"""Settings of pretraining: their meaning, ranges and defaults, and their values by scale."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqc_lab.loop.controls import NORM_SETTINGS as NORM
from gqc_lab.loop.scaler_controls import SCALER
from gqc_lab.loop.settings import (
    Config,
    Pairs,
    Setting,
    make_config,
    read_scales,
    read_tuned,
    setting,
)
from gqc_lab.studies.pretraining.methods import METHODS

ESTIMATORS = "gqc.scalers.settings:ESTIMATORS"
LR_CURVES = ("cosine", "constant", "constant, then decay")
VGS_ALPHA = 0.1  #: of method vgs where none is given
_COUNT = Setting(low=1)
_SHARE = Setting(low=0, high=1)
_POSITIVE = Setting(above=0)

#: scale -> what is trained, on how much
SCALES = read_scales(Path(__file__).with_name("scales.csv"))

#: (scale, method) -> values; the trials that they were chosen from are in the file
TUNED = read_tuned(Path(__file__).with_name("tuned.csv"), ("scale", "method"), "val_loss")


def _read_corpus(name: str, value: Any) -> str:
    """Refuse a corpus that cannot be there; `gqc_lab.data.text` reads it."""
    text = str(value)
    is_name = text in ("kjv", "pydoc") or text.startswith("hf:")
    if not (is_name or Path(text).expanduser().is_file()):
        raise ValueError(
            f"{name}={value!r}: no such file; expected 'kjv', 'pydoc', a text's path, or 'hf:NAME'"
        )
    return text


def _read_draws(name: str, value: Any) -> tuple[int, ...]:
    return tuple(Setting(kind=int, low=1).check(f"{name}: one of them", n) for n in value)


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig(Config):
    """Everything that decides a run; use `config` for values that fit a scale."""

    method: str = setting(meaning="what decides when AdamW steps", choices=tuple(METHODS))
    scale: str = setting(meaning="sizes and budget", choices=tuple(SCALES))
    data_seed: int | None = setting(None, "seed of the data, None: ``seed``", low=0)
    corpus: str = setting("kjv", "text, see `gqc_lab.data.text`", read=_read_corpus)
    tokenizer: str = setting("character", "what a token is", choices="gqc_lab.data.text:TOKENIZERS")
    validation_fraction: float = setting(0.05, "share of the text held out", above=0, below=1)
    train_tokens: int | None = setting(None, "read only the first so many; None: all", low=1)
    noisy_share: float = setting(0.0, "share of microbatches with shuffled targets", like=_SHARE)
    width: int = setting(meaning="channels of a token", like=_COUNT)
    depth: int = setting(meaning="transformer blocks", like=_COUNT)
    heads: int = setting(meaning="attention heads, a divisor of ``width``", like=_COUNT)
    context: int = setting(meaning="tokens of a sequence", like=_COUNT)
    microbatch_size: int = setting(meaning="sequences per microbatch", like=_COUNT)
    tokens: int = setting(meaning="training budget", label="training tokens", low=1)
    evaluation_tokens: int = setting(
        meaning="training tokens between evaluations; there is always one at the end", like=_COUNT
    )
    evaluation_sequences: int = setting(meaning="held-out sequences per evaluation", like=_COUNT)
    lr: float = setting(3e-3, "peak learning rate", label="learning rate", above=0)
    min_lr: float = setting(0.1, "final learning rate, as a fraction of ``lr``", like=_SHARE)
    lr_warmup: float = setting(0.05, "lr warmup, as a fraction of the tokens", like=_SHARE)
    lr_curve: str = setting("cosine", "learning rate after its warmup", choices=LR_CURVES)
    beta1: float = setting(0.9, "AdamW's decay of the first moment", low=0, below=1)
    beta2: float = setting(0.99, "AdamW's decay of the second moment", low=0, below=1)
    beta2_tokens: int | None = setting(None, "half-life instead of ``beta2`` [tokens]", low=1)
    weight_decay: float = setting(0.1, "of AdamW; gains of layer norms are not decayed", low=0)
    accumulation: int = setting(1, "adamw, vgs: microbatches per step", like=_COUNT)
    start_norm: float = setting(0.5, like=NORM["start_norm"], above=0)
    end_norm: float = setting(0.5, like=NORM["end_norm"])
    norm_warmup: float = setting(0.05, "gnts: threshold's warmup, share of the run", like=_SHARE)
    norm_warmup_multiplier: float = setting(10.0, like=NORM["norm_warmup_multiplier"], above=0)
    norm_curve: str = setting("cosine", like=NORM["norm_curve"])
    norm_exponent: float = setting(1.0, like=NORM["norm_exponent"])
    norm_points: Pairs = setting((), like=NORM["norm_points"])
    min_draws: int = setting(1, "fewest microbatches per step; some methods take two", like=_COUNT)
    max_draws: int = setting(64, "microbatches after which a step is forced", like=_COUNT)
    noise_tolerance: float = setting(1.0, "noise-to-signal ratio allowed in a step", like=_POSITIVE)
    gns_reactive: bool = setting(False, "gns: let the open window into its estimate")
    theta: float = setting(1.0, "square root of the noise-to-signal ratio allowed", like=_POSITIVE)
    confidence: float = setting(0.98, "mht: of the mean loss's interval", above=0, below=1)
    error_tolerance: float = setting(
        0.03, "half-width of the mean loss's interval, as a share of the mean", like=_POSITIVE
    )
    target_gradient_norm: float = setting(1.0, "of every gradient [loss/parameter]", like=_POSITIVE)
    gnr_mode: str = setting("global", "gnr: what has that norm", choices="gqc.wrappers.gnr:MODES")
    final_accumulation: int = setting(8, "sbc: microbatches per step at the end", like=_COUNT)
    growth_exponent: float = setting(2.0, "sbc: exponent of the batch's growth", like=_POSITIVE)
    draws: tuple[int, ...] = setting((), "replay: microbatches of each step", read=_read_draws)
    vgs_alpha: float | None = setting(
        None,
        "strength of scaling each step's gradient by its variance, whatever the method; 0 measures "
        f"only, None does neither (method vgs takes {VGS_ALPHA} then)",
        like=SCALER["alpha"],
    )
    vgs_beta: float = setting(0.99, like=SCALER["beta"])
    vgs_warmup_steps: int = setting(100, like=SCALER["warmup_steps"])
    vgs_estimator: str = setting("sketch", "estimator of the variance", choices=ESTIMATORS)

    def check_together(self) -> None:
        if self.method == "vgs" and self.vgs_alpha is None:
            object.__setattr__(self, "vgs_alpha", VGS_ALPHA)
        if self.train_tokens is not None:
            Setting(kind=int, low=self.context + 1).check("train_tokens", self.train_tokens)
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
        if (self.method == "replay") != bool(self.draws):
            raise ValueError(
                f"draws has {len(self.draws)} entries with method={self.method!r}: expected some "
                "for 'replay' (recorded_draws(history) of another run), none otherwise"
            )

    @property
    def name(self) -> str:
        """Method, and whether its gradients are scaled too."""
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


def config(scale: str = "smoke", **overrides: Any) -> PretrainingConfig:
    """Return the config of a scale, with the values tuned for its method (``"gnts"`` by default).

    ``overrides``, any field of `PretrainingConfig`, win over the scale's and the tuned values.

    Raises: ValueError: unknown scale or field, or a value out of its range.
    """
    values = {"method": "gnts", **overrides}

    def tuned(values: dict[str, Any]) -> dict[str, Any]:
        return TUNED.get((values["scale"], values["method"]), {})

    return make_config(PretrainingConfig, SCALES, scale, values, tuned)
