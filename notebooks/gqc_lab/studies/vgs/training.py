r"""Training where gradients are noisy, with the variance gradient scaler and without.

Two tasks: classify digits of which a share of the training labels is wrong, and regress the values
of a small Markov chain on TD targets :math:`r + \gamma \hat v(s')` (semi-gradient: the target is
not differentiated).  SGD, SGD with momentum, or AdamW, wrapped so that each step's gradient is
scaled; with ``alpha`` 0 the scaler only measures and training is that of the plain optimizer.

Methods share data, order and initial weights per seed.  ``constant_factor`` is the baseline that
separates "reacts to noise" from "smaller steps".
"""

import math
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from gqc.gradients import collect, multiply_, total_norm
from gqc.wrappers import OptimizerWrapperVGS
from gqc_lab.data.images import ImageData, load_image_data
from gqc_lab.data.markov import MarkovChain, draw_transitions, make_chain
from gqc_lab.loop.controls import Controls
from gqc_lab.loop.experiment import Experiment
from gqc_lab.loop.placement import find_device, find_dtype, make_generator
from gqc_lab.loop.scaler_controls import COUNT, SCALER, VARIANCE, apply_scaler, scaler_controls
from gqc_lab.loop.settings import Setting
from gqc_lab.models.mlp import make_mlp
from gqc_lab.studies.vgs.settings import VGSTrainingConfig
from gqc_lab.studies.vgs.settings import comparison as comparison
from gqc_lab.studies.vgs.settings import config as config


def build(config: VGSTrainingConfig) -> "VGSTraining":
    """Return the experiment of that config, before its first step."""
    return Digits(config) if config.task == "digits" else Values(config)


class VGSTraining(Experiment):
    """Experiment of this module; `build` makes it.

    Records: ``lr``, ``grad_norm`` (of the raw gradient), ``factor`` (on this gradient),
    ``update_norm`` (of the change of all weights), the scaler's metrics after this step
    (``vgs/...``), ``val_loss`` and ``val_error`` (None except on evaluations).

    Controls: those of `gqc_lab.loop.scaler_controls`, and ``lr_scale``.
    """

    unit = "examples"
    evaluated = ("val_loss", "val_error")
    measured = ("lr", "grad_norm", "factor", "update_norm", VARIANCE, COUNT)

    def __init__(self, config: VGSTrainingConfig, sizes: tuple[int, int], data_hash: str) -> None:
        self.config: VGSTrainingConfig = config
        self.device = find_device(config.device)
        self.dtype = find_dtype(config.dtype)
        layers = (sizes[0], config.width, config.depth, sizes[1])
        model = make_mlp(*layers, make_generator(config.seed, "weights"))
        self.model = model.to(self.device, self.dtype)
        self.wrapper = _wrap(self.model, config)
        self.scaler = self.wrapper.scaler
        self._parameters = list(self.model.parameters())
        self._measured: dict[str, float] = {}
        constants = {"task": config.task, "optimizer": config.optimizer, "method": config.method}
        super().__init__(
            config,
            label=f"{config.task}, {config.optimizer}, {config.method}",
            total=config.steps * config.batch_size,
            parts={"model": self.model, "optimizer": self.wrapper},
            generators={"data": make_generator(config.seed, "data")},
            controls=Controls(
                {
                    **scaler_controls(self.scaler),
                    "lr_scale": Setting(1.0, "factor of the learning rate", low=0),
                }
            ),
            constants={**constants, "alpha": config.alpha, "seed": config.seed},
            data_hash=data_hash,
        )

    def twin(self, estimator: str | None = None) -> "VGSTraining":
        """Return another of the same config, at its start, with ``estimator`` if one is given."""
        return build(replace(self.config, estimator=estimator or self.config.estimator))

    def set_hyperparameters(self) -> None:
        applied, c = self.controls.applied, self.config
        warm = min(1.0, (self.microbatch + 1) / max(c.lr_warmup, 1))
        for group in self.wrapper.param_groups:
            group["lr"] = c.lr * applied["lr_scale"] * warm
        apply_scaler(self.scaler, applied)

    def update(self, loss: Tensor) -> bool:
        loss.backward()
        grads = collect(self._parameters)
        norm, factor = total_norm(grads), self.scaler.get_scaling_factor()
        constant = self.config.constant_factor
        if constant is not None and self.microbatch >= self.config.warmup_steps:
            multiply_(grads, constant)
            factor = constant
        before = [p.detach().clone() for p in self._parameters]
        stepped = self.wrapper.step()
        moves = [p.detach() - b for p, b in zip(self._parameters, before, strict=True)]
        update_norm = total_norm(moves).item()
        self._measured = {"grad_norm": norm.item(), "factor": factor, "update_norm": update_norm}
        return stepped

    def amount(self, batch: Any) -> int:
        return self.config.batch_size

    def measure(self, batch: Any, stepped: bool) -> dict[str, Any]:
        return {"lr": self.wrapper.param_groups[0]["lr"], **self._measured, **self.scaler.metrics()}

    def is_evaluation_due(self) -> bool:
        return self.done >= self.total or self.microbatch % self.config.evaluation_steps == 0

    def summary(self) -> dict[str, Any]:
        """Return the result numbers so far: the base's, those of `stability`, ``lr``, ``steps`` and
        ``at_cap``, the share of steps after the warmup whose V is the cap or more."""
        history, c, numbers = self.history, self.config, {}
        if self.microbatch:
            is_evaluated = [value is not None for value in self.column("val_loss")]
            numbers = stability(history, c.warmup_steps, is_evaluated)
            v = history["vgs/normalized_variance"][history["microbatch"] > c.warmup_steps]
            cap = math.inf if c.variance_cap is None else c.variance_cap
            numbers["at_cap"] = float((v >= cap).mean()) if len(v) else None
        return {**super().summary(), "lr": c.lr, "steps": self.microbatch, **numbers}


class Digits(VGSTraining):
    """Cross-entropy [nat] on wrong labels; ``val_error`` is the share of errors on true ones."""

    loss_unit: ClassVar[str] = "nat"

    def __init__(self, config: VGSTrainingConfig) -> None:
        self.data: ImageData = load_image_data("digits", config.label_noise, config.seed)
        pixels = self.data.train_images.shape[1]
        super().__init__(config, (pixels, self.data.num_classes), self.data.hash)
        self._test_images = self.data.test_images.to(self.device, self.dtype)
        self._test_labels = self.data.test_labels.to(self.device)

    def draw_batch(self) -> tuple[Tensor, Tensor]:
        images, labels = self.data.train_images, self.data.train_labels
        size, generator = self.config.batch_size, self.generators["data"]
        rows = torch.randint(len(images), (size,), generator=generator)
        return images[rows].to(self.device, self.dtype), labels[rows].to(self.device)

    def compute_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(self.model(batch[0]).float(), batch[1])

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        logits = self.model(self._test_images).float()
        errors = (logits.argmax(1) != self._test_labels).float().mean()
        return {
            "val_loss": F.cross_entropy(logits, self._test_labels).item(),
            "val_error": errors.item(),
        }


class Values(VGSTraining):
    """Mean square TD error; ``val_loss`` is the mean square error of the values, exact, and
    ``val_error`` its root relative to the values' own standard deviation."""

    loss_unit: ClassVar[str] = "reward²"

    def __init__(self, config: VGSTrainingConfig) -> None:
        chain = make_chain(discount=config.discount, reward_noise=config.reward_noise)
        self.chain: MarkovChain = chain
        super().__init__(config, (chain.features.shape[1], 1), chain.hash)
        self._features = chain.features.to(self.device, self.dtype)

    def draw_batch(self) -> tuple[Tensor, Tensor, Tensor]:
        drawn = draw_transitions(self.chain, self.config.batch_size, self.generators["data"])
        states, rewards, following = (t.to(self.device) for t in drawn)
        return states, rewards, following

    def compute_loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        states, rewards, following = batch
        values = self.model(self._features[states]).squeeze(1).float()
        with torch.no_grad():
            next_values = self.model(self._features[following]).squeeze(1).float()
        return F.mse_loss(values, rewards + self.chain.discount * next_values)

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        learnt = self.model(self._features).squeeze(1).double().cpu()
        truth, weights = self.chain.values, self.chain.occupancy
        error = float((weights * (learnt - truth).square()).sum())
        spread = float((weights * (truth - (weights * truth).sum()).square()).sum())
        return {"val_loss": error, "val_error": math.sqrt(error / spread)}


def stability(
    history: pd.DataFrame, warmup_steps: int = 0, is_evaluated: list[bool] | None = None
) -> dict[str, float | None]:
    """Return numbers on how steadily one run trained.

    Args:
        is_evaluated: the records where NaN is a loss that has diverged; None: where there is one.
    Returns: ``val_loss`` and ``val_error`` (the last), ``tail_val_loss`` (mean over the last
        quarter of the evaluations), ``val_loss_sd`` and ``loss_sd`` (standard deviations over the
        second half, of evaluations and of training losses), ``num_not_finite`` (training losses;
        left out of ``loss_sd``); after the warmup ``mean_factor``, ``factor_sd``, ``unresolved``
        (mean share of tensors), ``variance`` (median V).  None where there is nothing to take them
        from, or a loss there is not finite.
    """
    rows = history[history["val_loss"].notna() if is_evaluated is None else is_evaluated]
    loss, evaluations = (c.where(np.isfinite(c)) for c in (history["loss"], rows["val_loss"]))
    half = evaluations[len(evaluations) // 2 :]
    warm = history[history["microbatch"] > warmup_steps]
    numbers = {
        "val_loss": evaluations.iloc[-1] if len(rows) else math.nan,
        "val_error": rows["val_error"].iloc[-1] if len(rows) else math.nan,
        "tail_val_loss": evaluations[3 * len(evaluations) // 4 :].mean(skipna=False),
        "val_loss_sd": half.std(skipna=False),
        "loss_sd": loss[len(loss) // 2 :].std(),
        "num_not_finite": float(loss.isna().sum()),
        "mean_factor": warm["factor"].mean(),
        "factor_sd": warm["factor"].std(),
        "unresolved": warm["vgs/unresolved"].mean(),
        "variance": warm["vgs/normalized_variance"].median(),
    }
    return {name: float(value) if math.isfinite(value) else None for name, value in numbers.items()}


def adam_response(factors: ArrayLike, beta1: float, beta2: float) -> NDArray[np.floating]:
    r"""Return the size of Adam's updates with scaled gradients, relative to unscaled ones.

    For independent gradients of constant size, multiplied by :math:`f_t`:
    :math:`\sqrt{E m_t^2} \propto (\sum_s \beta_1^{2(t-s)} f_s^2)^{1/2}` and
    :math:`E v_t \propto \sum_s \beta_2^{t-s} f_s^2`, hence

    .. math:: \rho_t = \sqrt{\frac{\sum_s \beta_1^{2(t-s)} f_s^2}{\sum_s \beta_1^{2(t-s)}}
        \Big/ \frac{\sum_s \beta_2^{t-s} f_s^2}{\sum_s \beta_2^{t-s}}}.

    A constant factor gives 1; a step down gives a dip that heals in :math:`1/(1-\beta_2)` steps.

    Args:
        factors: :math:`f_t > 0` at every step from the first.
    """
    squares: Any = pd.Series(np.square(np.asarray(factors, dtype=float)))
    first, second = (squares.ewm(alpha=1 - decay).mean() for decay in (beta1**2, beta2))
    return np.sqrt(first / second).to_numpy()


def _wrap(model: nn.Module, c: VGSTrainingConfig) -> OptimizerWrapperVGS:
    optimizer: torch.optim.Optimizer
    if c.optimizer == "adamw":
        optimizer = torch.optim.AdamW(
            model.parameters(), c.lr, betas=(c.beta1, c.beta2), weight_decay=c.weight_decay
        )
    else:
        momentum = c.momentum if c.optimizer == "momentum" else 0.0
        optimizer = torch.optim.SGD(model.parameters(), c.lr, momentum=momentum)
    names = (*SCALER, "estimator", "aggregate")
    return OptimizerWrapperVGS(optimizer, **{name: getattr(c, name) for name in names})
