"""Pretraining a small GPT on text: gradient quality control against AdamW, at equal tokens.

Every method sees the same data in the same order from the same initial weights (per seed), in
microbatches of ``microbatch_size`` sequences of ``context`` tokens, and the same token budget; they
differ in when AdamW steps (`gqc_lab.studies.pretraining.methods.METHODS`).

The learning rate warms up linearly and decays as a cosine in tokens, so equally for all methods.
The held-out loss [nats per token] is measured on the same sequences for every method and seed.  A
run ends when its tokens are spent; a window that is open then is left without a step, since its
gradient was not judged good enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from gqc import wrappers
from gqc.scalers import VarianceGradientScaler
from gqc_lab.data.text import TextData, draw_batch, load_text_data, validation_batch
from gqc_lab.loop.experiment import Experiment
from gqc_lab.loop.placement import find_device, find_dtype, make_generator
from gqc_lab.loop.scaler_controls import COUNT, VARIANCE, apply_scaler
from gqc_lab.models.gpt import GPT, GPTConfig, make_gpt
from gqc_lab.studies.pretraining.hyperparameters import (
    group_values,
    make_controls,
    wrap,
)
from gqc_lab.studies.pretraining.settings import PretrainingConfig

MEASURED = (
    *("num_draws", "steps", "grad_norm", "gradient_norm_threshold", "noise_scale", "lr"),
    "examples",
)
EVALUATION_CHUNK = 64  # sequences per forward pass; bounds memory, does not change the loss


def build(config: PretrainingConfig) -> Pretraining:
    """Return the experiment of that config, before its first step."""
    data = load_text_data(config.corpus, config.tokenizer, config.validation_fraction)
    return Pretraining(config, data)


def recorded_draws(history: pd.DataFrame) -> tuple[int, ...]:
    """Return the draws of a finished run, for the method ``"replay"``.

    Its last window, if the run ended inside it, is listed as one draw longer than it was: the
    replay then leaves it open too.

    Args:
        history: of one run, with the columns ``stepped`` and ``num_draws``.
    """
    draws = history.loc[history["stepped"], "num_draws"].astype(int).tolist()
    if len(history) and not history["stepped"].iloc[-1]:
        draws.append(int(history["num_draws"].iloc[-1]) + 1)
    return tuple(draws)


def replay_config(run: Pretraining, data_seed: int) -> PretrainingConfig:
    """Return the replay of a finished run: its batch sizes in order, on other data.

    Weights, learning rate and all else are those of ``run``; so is the order of the text where
    ``data_seed`` is the run's own, and the replay is then the run over again.
    """
    draws = recorded_draws(run.history)
    return replace(run.config, method="replay", draws=draws, data_seed=data_seed)


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

    Records: ``microbatch``, ``tokens``, ``seconds``, ``loss`` [nats per token], ``stepped``,
    ``num_draws`` (of the window with this microbatch, so far), ``steps``, ``grad_norm`` (of the
    mean gradient of the window so far; None where no decision read it), ``gradient_norm_threshold``
    (None without), ``noise_scale`` (the wrapper's estimate of ``tr(Sigma) / |G|^2`` [microbatches],
    None without or while unresolved), ``lr``, ``examples`` [sequences], ``val_loss`` (None without
    an evaluation), ``changes``.  With a scaler also ``factor`` (on the gradient of this step, None
    without a step) and the scaler's metrics after this microbatch (``vgs/...``); with
    ``noisy_share``, ``is_noisy``.

    Controls: ``lr_scale``, the method's own, and those of `gqc_lab.loop.scaler_controls`
    with a scaler.
    """

    unit = "tokens"
    loss_unit = "nat/token"
    evaluated = ("val_loss",)

    def __init__(self, config: PretrainingConfig, data: TextData) -> None:
        self.config: PretrainingConfig = config
        self.device = find_device(config.device)
        self.model = _make_model(config, data.tokenizer.size).to(
            self.device, find_dtype(config.dtype)
        )
        optimizer: Optimizer = _make_adamw(self.model, config)
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
        self._microbatch_tokens = config.microbatch_tokens
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

    def twin(self, estimator: str | None = None) -> Pretraining:
        """Return another of the same config, at its start, with ``estimator`` if one is given."""
        estimator = estimator or self.config.vgs_estimator
        return Pretraining(replace(self.config, vgs_estimator=estimator), self.data)

    def draw_batch(self) -> tuple[Tensor, Tensor]:
        c = self.config
        inputs, targets = draw_batch(
            self._train, c.microbatch_size, c.context, self.generators["data"]
        )
        if c.noisy_share:
            targets, self._is_noisy = shuffle_targets(
                targets, c.noisy_share, self.generators["noise"]
            )
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
        every, before = self.config.evaluation_tokens, self.done - self._microbatch_tokens
        return self.done >= self.total or self.done // every > before // every

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        inputs, targets = (t.split(EVALUATION_CHUNK) for t in self._held_out)
        sums = [
            _token_loss(self.model, x, y, reduction="sum")
            for x, y in zip(inputs, targets, strict=True)
        ]
        return {"val_loss": torch.stack(sums).sum().item() / self._held_out[1].numel()}

    def summary(self) -> dict[str, Any]:
        """Return the result numbers so far.

        The base's, and ``val_loss`` (the last one) [nats per token], its ``perplexity`` per token,
        ``steps`` of the optimizer, ``mean_logical_batch_examples`` (sequences per step, over closed
        windows; None before the first), ``num_forced`` (steps taken because ``max_draws`` was
        reached), ``num_discarded`` (microbatches thrown away for NaN or inf).
        """
        history = self.history
        losses = history["val_loss"].dropna() if len(history) else pd.Series(dtype=float)
        val_loss = float(losses.iloc[-1]) if len(losses) else None
        draws = history.loc[history["stepped"], "num_draws"] if len(history) else losses
        statistics = self.wrapper.statistics()
        return {
            **super().summary(),
            "val_loss": val_loss,
            "perplexity": None if val_loss is None else math.exp(min(val_loss, 700.0)),
            "steps": statistics["steps"],
            "mean_logical_batch_examples": (
                float(draws.mean()) * self.config.microbatch_size if len(draws) else None
            ),
            "num_forced": statistics["num_forced"],
            "num_discarded": statistics["num_discarded"],
        }


def shuffle_targets(
    targets: Tensor, share: float, generator: torch.Generator
) -> tuple[Tensor, bool]:
    """Return the targets, shuffled with probability ``share``, and whether they are.

    Args:
        targets: of one microbatch, any shape; all of them change places with each other.
        share: in [0, 1].
        generator: advanced alike whatever comes out.
    """
    chance = torch.rand((), generator=generator).item()
    order = torch.randperm(targets.numel(), generator=generator)
    if not chance < share:
        return targets, False
    return targets.flatten()[order].view_as(targets), True


def _make_model(c: PretrainingConfig, vocabulary: int) -> GPT:
    sizes = GPTConfig(vocabulary, c.context, c.width, c.depth, c.heads)
    return make_gpt(sizes, make_generator(c.seed, "weights"))


def _make_adamw(model: GPT, c: PretrainingConfig) -> AdamW:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": c.weight_decay},
        {"params": gains, "weight_decay": 0.0},
    ]
    beta2 = c.beta2
    if c.beta2_tokens is not None:
        beta2 = 0.5 ** (c.microbatch_tokens * c.accumulation / c.beta2_tokens)
    return AdamW(groups, lr=c.lr, betas=(c.beta1, beta2), fused=True)


def _token_loss(model: GPT, inputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    logits = model(inputs).flatten(0, 1)
    return F.cross_entropy(logits.float(), targets.flatten(), reduction=reduction)
