"""Pretraining a small GPT on text: gradient quality control against AdamW, at equal tokens.

Every method sees the same data in the same order from the same initial weights (per seed), in
microbatches of ``microbatch_size`` sequences of ``context`` tokens, and the same token budget; they
differ in when AdamW steps (`gqc_lab.studies.pretraining.methods.METHODS`).

The learning rate warms up linearly and decays as a cosine in tokens, so equally for all methods.
The held-out loss [nats per token] is measured on the same sequences for every method and seed.  A
run ends when its tokens are spent; a window that is open then is left without a step, since its
gradient was not judged good enough.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Self

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from gqc import wrappers
from gqc.scalers import VarianceGradientScaler
from gqc.schedules import THRESHOLD, cosine_with_warmup, interpolate, power_growth
from gqc_lab.data.text import draw_batch, load_text_data, shuffle_targets, validation_batch
from gqc_lab.loop.controls import NORM_NAMES, Controls, NormSchedule, norm_controls, norm_schedule
from gqc_lab.loop.experiment import Experiment
from gqc_lab.loop.placement import find_device, find_dtype, make_generator
from gqc_lab.loop.scaler_controls import COUNT, VARIANCE, apply_scaler, scaler_controls
from gqc_lab.loop.settings import Setting, control
from gqc_lab.models.gpt import GPT, GPTConfig, make_gpt, param_groups
from gqc_lab.studies.pretraining.methods import METHODS
from gqc_lab.studies.pretraining.settings import PretrainingConfig

MEASURED = (
    *("num_draws", "steps", "grad_norm", "gradient_norm_threshold", "noise_scale", "lr"),
    "examples",
)
DECAY = 0.2  #: share of a run in which "constant, then decay" decays, in a straight line
EVALUATION_CHUNK = 64  # sequences per forward pass; bounds memory, does not change the loss


class TypicalNorm:
    r"""Running mean of the norms of single microbatches: what a relative threshold multiplies.

    :math:`\bar r = \sum_k \beta^{k} r_{t-k} / \sum_k \beta^{k}` over the first draws of windows,
    whose norm GNTS reads anyway.
    """

    BETA = 0.99

    def __init__(self) -> None:
        self.total = self.weight = 0.0

    def update(self, wrapper: wrappers.OptimizerWrapper, stepped: bool) -> None:
        """Take in the norm of the last draw, if it was the first of its window."""
        window: Any = wrapper.last_window if stepped else wrapper
        if window.num_draws == 1 and window.grad_norm is not None:
            self.total = self.BETA * self.total + window.grad_norm
            self.weight = self.BETA * self.weight + 1

    @property
    def mean(self) -> float:
        """The mean; infinite before the first draw, so that it steps at once."""
        return self.total / self.weight if self.weight else math.inf

    def state_dict(self) -> dict[str, float]:
        return {"total": self.total, "weight": self.weight}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.total, self.weight = state["total"], state["weight"]


class Pretraining(Experiment):
    """Experiment of this module; `build` makes it.

    Records, losses in nats per token: ``num_draws`` (of the window with this microbatch, so far),
    ``steps``, ``grad_norm`` (of the mean gradient of the window so far; None where no decision read
    it), ``gradient_norm_threshold`` (None without), ``noise_scale`` (the wrapper's estimate of
    ``tr(Sigma) / |G|^2`` [microbatches], None without or while unresolved), ``lr``, ``examples``
    [sequences], ``val_loss`` (None without an evaluation).  With a scaler also ``factor`` (on the
    gradient of this step, None without a step) and the scaler's metrics after this microbatch
    (``vgs/...``); with ``noisy_share``, ``is_noisy``.

    Controls: ``lr_scale``, the method's own, and those of `gqc_lab.loop.scaler_controls`
    with a scaler.
    """

    unit = "tokens"
    loss_unit = "nat/token"
    evaluated = ("val_loss",)

    def __init__(self, config: PretrainingConfig) -> None:
        self.config: PretrainingConfig = config
        data = load_text_data(config.corpus, config.tokenizer, config.validation_fraction)
        self.device = find_device(config.device)
        sizes = GPTConfig(data.vocabulary, config.context, config.width, config.depth, config.heads)
        model = make_gpt(sizes, make_generator(config.seed, "weights"))
        self.model = model.to(self.device, find_dtype(config.dtype))
        optimizer = _make_adamw(self.model, config)
        self.scaler: VarianceGradientScaler | None = None
        if config.vgs_alpha is not None:
            names = ("alpha", "beta", "warmup_steps", "estimator")
            options: dict[str, Any] = {name: getattr(config, f"vgs_{name}") for name in names}
            optimizer = scaled = wrappers.OptimizerWrapperVGS(optimizer, **options)
            self.scaler = scaled.scaler
        self.wrapper = wrap(optimizer, config)
        self.measured = MEASURED + (() if self.scaler is None else ("factor", VARIANCE, COUNT))
        self._factor: float | None = None
        self.typical = TypicalNorm()
        self.data = data
        if len(data.train) <= config.context:
            raise ValueError(
                f"context={config.context}: expected fewer than the {len(data.train)} training "
                f"tokens of {config.corpus!r}"
            )
        held_out = validation_batch(data.validation, config.evaluation_sequences, config.context)
        self._held_out = [t.to(self.device) for t in held_out]
        self._train = data.train[: config.train_tokens]
        self._is_noisy = False
        data_seed = config.seed if config.data_seed is None else config.data_seed
        streams = ("data", "noise") if config.noisy_share else ("data",)
        super().__init__(
            config,
            label=config.name,
            total=config.num_microbatches * config.microbatch_tokens,
            parts={"model": self.model, "optimizer": self.wrapper, "typical": self.typical},
            generators={name: make_generator(data_seed, name) for name in streams},
            controls=make_controls(config, self.scaler),
            constants={"method": config.name, "seed": config.seed},
            data_hash=data.hash,
        )

    def set_hyperparameters(self) -> None:
        applied = self.controls.applied
        values = group_values(self.config, applied, self.microbatch, self.typical.mean)
        for group in self.wrapper.param_groups:
            group |= values
        if self.scaler is not None:
            apply_scaler(self.scaler, applied)

    def twin(self, estimator: str | None = None) -> Self:
        """Return another of the same config, at its start, with ``estimator`` if one is given."""
        estimator = estimator or self.config.vgs_estimator
        return type(self)(replace(self.config, vgs_estimator=estimator))

    def draw_batch(self) -> tuple[Tensor, Tensor]:
        c = self.config
        generator = self.generators["data"]
        inputs, targets = draw_batch(self._train, c.microbatch_size, c.context, generator)
        if c.noisy_share:
            noise = self.generators["noise"]
            targets, self._is_noisy = shuffle_targets(targets, c.noisy_share, noise)
        return inputs.to(self.device), targets.to(self.device)

    def compute_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return _token_loss(self.model, *batch)

    def update(self, loss: Tensor) -> bool:
        loss.backward()
        factor = None if self.scaler is None else self.scaler.get_scaling_factor()
        stepped = self.wrapper.step(metric=loss.detach())
        self._factor = factor if stepped else None
        self.typical.update(self.wrapper, stepped)
        return stepped

    def amount(self, batch: tuple[Tensor, Tensor]) -> int:
        return batch[0].numel()

    def measure(self, batch: tuple[Tensor, Tensor], stepped: bool) -> dict[str, Any]:
        statistics = self.wrapper.statistics()
        window: Any = self.wrapper.last_window if stepped else self.wrapper
        scaled = {} if self.scaler is None else {"factor": self._factor, **self.scaler.metrics()}
        noisy = {"is_noisy": self._is_noisy} if self.config.noisy_share else {}
        return {
            "num_draws": window.num_draws,
            "steps": statistics["steps"],
            "grad_norm": window.grad_norm,
            "gradient_norm_threshold": statistics.get("gradient_norm_threshold"),
            "noise_scale": statistics.get("noise_scale"),
            "lr": statistics["lr"],
            "examples": self.microbatch * self.config.microbatch_size,
            **scaled,
            **noisy,
        }

    def is_evaluation_due(self) -> bool:
        every, each = self.config.evaluation_tokens, self.done // self.microbatch
        return self.done >= self.total or self.done // every > (self.done - each) // every

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        wrapper: Any = self.wrapper
        if is_averaged := self.config.method == "schedule-free":
            wrapper.eval()
        inputs, targets = (t.split(EVALUATION_CHUNK) for t in self._held_out)
        sums = [
            _token_loss(self.model, x, y, reduction="sum")
            for x, y in zip(inputs, targets, strict=True)
        ]
        if is_averaged:
            wrapper.train()
        return {"val_loss": torch.stack(sums).sum().item() / self._held_out[1].numel()}

    def summary(self) -> dict[str, Any]:
        """Return the result numbers so far.

        The base's, and ``val_loss`` (the last one, also if it is NaN) [nats per token], its
        ``perplexity`` per token, ``steps`` of the optimizer, ``mean_logical_batch_examples``
        (sequences per step, over closed windows; None before the first), ``num_forced`` (steps
        taken because ``max_draws`` was reached), ``num_discarded`` (microbatches thrown away for
        NaN or inf).
        """
        history = self.history
        val_loss = self.last("val_loss")
        draws = history.loc[history["stepped"], "num_draws"] if len(history) else pd.Series()
        examples = float(draws.mean()) * self.config.microbatch_size if len(draws) else None
        statistics = self.wrapper.statistics()
        return {
            **super().summary(),
            "val_loss": val_loss,
            "perplexity": None if val_loss is None else math.exp(min(val_loss, 700.0)),
            "steps": statistics["steps"],
            "mean_logical_batch_examples": examples,
            "num_forced": statistics["num_forced"],
            "num_discarded": statistics["num_discarded"],
        }


build = Pretraining


def _make_adamw(model: GPT, c: PretrainingConfig) -> Optimizer:
    beta2 = c.beta2
    if c.beta2_tokens is not None:
        beta2 = 0.5 ** (c.microbatch_tokens * c.accumulation / c.beta2_tokens)
    common: dict[str, Any] = {"lr": c.lr, "betas": (c.beta1, beta2)}
    if c.method == "schedule-free":
        from pytorch_optimizer import ScheduleFreeAdamW

        return ScheduleFreeAdamW(param_groups(model, c.weight_decay), **common)
    return AdamW(param_groups(model, c.weight_decay), **common, fused=True)


def _token_loss(model: GPT, inputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    logits = model(inputs).flatten(0, 1)
    return F.cross_entropy(logits.float(), targets.flatten(), reduction=reduction)


def wrap(optimizer: Optimizer, c: PretrainingConfig) -> wrappers.OptimizerWrapper:
    """Return ``optimizer`` in the wrapper of the method of ``c``."""
    method = METHODS[c.method]
    kind, arguments = getattr(wrappers, method.wrapper), method.arguments(c)
    if method.has_draws:
        fewest = max(kind.fewest_draws, c.min_draws)
        arguments |= {"min_draws": fewest, "max_draws": c.max_draws}
    return kind(optimizer, **arguments)


def make_controls(c: PretrainingConfig, scaler: VarianceGradientScaler | None) -> Controls:
    """Return what may be changed while the method of ``c`` runs, and ``scaler`` with it."""
    controls = {"lr_scale": Setting(1.0, "factor of the scheduled learning rate", low=0)}
    check: Callable[[Mapping[str, Any]], object] | None = None
    if tunable := METHODS[c.method].tunable:
        controls[tunable] = control(c, tunable, low=0, above=-math.inf)  # 0: draw up to max_draws
    if scaler is not None:
        controls |= scaler_controls(scaler)
    if c.method.startswith("gnts"):
        total = c.num_microbatches
        values = {n: getattr(c, n) for n in NORM_NAMES if n != "norm_warmup_microbatches"}
        schedule = NormSchedule(norm_warmup_microbatches=round(c.norm_warmup * total), **values)
        controls |= norm_controls(schedule, total)
        check = norm_schedule
    return Controls(controls, check)


def group_values(
    c: PretrainingConfig, controls: Mapping[str, Any], microbatch: int, typical: float = 1.0
) -> dict[str, float]:
    """Return what stands in the wrapper's param groups at a microbatch, counted from 0.

    ``typical``: norm of a single microbatch, for a relative threshold.
    """
    total, lr = c.num_microbatches, c.lr * controls["lr_scale"]
    values = {"lr": _learning_rate(c, lr, microbatch)}
    if c.method.startswith("gnts"):
        factor = typical if c.method == "gnts relative" else 1.0
        values[THRESHOLD] = norm_schedule(controls).threshold(microbatch, total) * factor
    if c.method == "sbc":
        most, exponent = c.final_accumulation, c.growth_exponent
        # Rounded, or a batch of hardly more than one microbatch would be two of them.
        draws = round(power_growth(total, 1, most, exponent, microbatch))
        values["logical_batch_size"] = draws * c.microbatch_size
    if tunable := METHODS[c.method].tunable:
        values[tunable] = controls[tunable]
    return values


def _learning_rate(c: PretrainingConfig, peak: float, microbatch: int) -> float:
    """Return the learning rate at a microbatch: a warmup, and what ``lr_curve`` says."""
    total = c.num_microbatches
    warmup, last = round(c.lr_warmup * total), peak * c.min_lr
    step = microbatch + 1  # a warmup from 0 would make the first microbatch a step of size 0
    if c.lr_curve == "cosine":
        return cosine_with_warmup(warmup, total, 0.0, peak, last, step)
    decay = (round((1 - DECAY) * total), peak), (total, last)
    is_level = c.lr_curve == "constant"
    return interpolate([(0, 0.0), (warmup, peak), *(() if is_level else decay)], step)
