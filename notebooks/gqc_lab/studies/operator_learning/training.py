"""Learning Burgers' equation in a latent space, with inverse losses weighted in several ways.

E and D are trained as an autoencoder first, the same for every method of a seed.  Then, with a new
optimizer, A learns to step latents that E makes, while E and D learn from the inverse losses (see
``encoder_learns`` and ``decoder_learns``).  The two phases are in one history: ``epoch`` is
negative in the first.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gqc.clipping import CLIPPERS, clip_grad_norm_per_group_
from gqc_lab.data.burgers import BurgersData, load_burgers_data
from gqc_lab.loop.controls import Controls
from gqc_lab.loop.experiment import Experiment
from gqc_lab.loop.placement import find_device, find_dtype, make_generator
from gqc_lab.loop.settings import Setting, control
from gqc_lab.models.operator import Operator, make_operator
from gqc_lab.studies.operator_learning.losses import LossBundle, compute_operator_loss_bundle
from gqc_lab.studies.operator_learning.measures import (
    EVALUATED,
    measure_operator,
    persistence,
    summarize_run,
)
from gqc_lab.studies.operator_learning.settings import OperatorLearningConfig

PARTS = ("encoder", "approximator", "decoder")  #: parameter groups


def build(config: OperatorLearningConfig) -> "OperatorLearning":
    """Return the experiment of that config, before its first step."""
    data = load_burgers_data(
        config.source, config.num_train, config.num_test, config.nu, config.data_seed
    )
    return OperatorLearning(config, data)


def is_lost(record: Mapping[str, Any]) -> bool:
    """Is this record's loss or gradient NaN or infinite, so that the run cannot recover?"""
    return not (math.isfinite(record["loss"]) and math.isfinite(record["grad_norm"]))


class OperatorLearning(Experiment):
    """Experiment of this module; `build` makes it.

    Records: ``epoch`` (with its fraction), ``lr``, ``grad_norm`` and ``grad_norm/PART`` before
    clipping, ``loss/NAME``, ``weight/NAME``, ``share/NAME`` of each loss, and `measures.EVALUATED`
    (None except at the end of an epoch).
    """

    unit = "examples"
    evaluated = EVALUATED

    def __init__(self, config: OperatorLearningConfig, data: BurgersData) -> None:
        self.config: OperatorLearningConfig = config
        self.data = data
        self.device, self.dtype = find_device(config.device), find_dtype(config.dtype)
        self.model: Operator = _make_model(config).to(self.device, self.dtype)
        average = get_ema_multi_avg_fn(config.ema_decay)
        self.average = AveragedModel(self.model, multi_avg_fn=average)
        self.optimizer = torch.optim.AdamW(
            [{"params": list(getattr(self.model, part).parameters())} for part in PARTS],
            config.lr,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._positions = data.positions.to(self.device, self.dtype)
        self._fields = data.train.to(self.device, self.dtype)
        self._test = data.test.to(self.device, self.dtype)
        self._starts = self._list_starts()
        self.batches = len(self._starts) // config.batch_size  #: in an epoch
        self._order: tuple[int, Tensor] | None = None
        self._bundle: LossBundle | None = None
        self._norms: dict[str, float] = {}
        if not self.batches:
            raise ValueError(
                f"batch_size={config.batch_size}: expected at most the {len(self._starts)} "
                "training examples"
            )
        epochs = config.pretraining_epochs + config.epochs
        super().__init__(
            config,
            label=config.method,
            total=epochs * self.batches * config.batch_size,
            parts={"model": self.model, "average": self.average, "optimizer": self.optimizer},
            generators={},
            controls=Controls(
                {
                    "lr_scale": Setting(1.0, "factor of the learning rate", low=0),
                    "inverse_scale": Setting(1.0, "factor of the inverse losses' weights", low=0),
                    "max_norm": control(config, "max_norm"),
                }
            ),
            constants={
                "method": config.method,
                "inverse_weight": max(config.lambda_inv_enc, config.lambda_inv_dec),
                "seed": config.seed,
            },
            data_hash=data.hash,
        )

    @property
    def epoch(self) -> float:
        """Epoch of the batch in progress, with its fraction; negative in the pretraining."""
        return self.microbatch / self.batches - self.config.pretraining_epochs

    @property
    def is_pretraining(self) -> bool:
        return self.microbatch < self.config.pretraining_epochs * self.batches

    def set_hyperparameters(self) -> None:
        c, before = self.config, self.config.pretraining_epochs * self.batches
        is_first = self.is_pretraining
        if self.microbatch == before:
            # The average's next update copies; moments of other losses would only mislead Adam.
            self.average.n_averaged.zero_()
            self.optimizer.state.clear()
        at = self.microbatch if is_first else self.microbatch - before
        length = before if is_first else c.epochs * self.batches
        warm = min(1.0, (at + 1) / max(c.lr_warmup, 1))
        share = warm * 0.5 * (1 + math.cos(math.pi * at / length))
        for part, group in zip(PARTS, self.optimizer.param_groups, strict=True):
            own = 1.0 if is_first or part == "approximator" else c.codec_lr
            lr = c.pretraining_lr if is_first else c.lr
            group["lr"] = lr * share * self.controls.applied["lr_scale"] * own
        self.model.encoder.requires_grad_(is_first or c.encoder_learns != "none")

    def draw_batch(self) -> tuple[Tensor, Tensor]:
        """Return fields (batch, points) and those after each step (batch, steps, points)."""
        c, (epoch, at) = self.config, divmod(self.microbatch, self.batches)
        if self._order is None or self._order[0] != epoch:
            # A stream for each epoch, so that a resumed run needs no other state than its number.
            generator = make_generator(c.seed, f"order {epoch}")
            self._order = epoch, torch.randperm(len(self._starts), generator=generator)
        rows = self._starts[self._order[1][at * c.batch_size : (at + 1) * c.batch_size]]
        frames = rows[:, 1:] + c.step * torch.arange(self._num_steps() + 1)
        fields = self._fields[rows[:, :1], frames]
        return fields[:, 0], fields[:, 1:]

    def compute_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.has_amp):
            if self.is_pretraining:
                self._bundle = self._codec_losses(batch[0])
            else:
                self._bundle = self._operator_losses(*batch)
        return self._bundle.total

    def _codec_losses(self, fields: Tensor) -> LossBundle:
        weights = {"lambda_inv_enc": 1.0, "lambda_inv_dec": self.config.pretraining_inv_dec}
        latents = self.model.encoder(fields, self._positions)
        return compute_operator_loss_bundle(weights=weights, **self._inverse(fields, latents))

    def _inverse(self, fields: Tensor, latents: Tensor) -> dict[str, Any]:
        codec = {"encoder": self.model.encoder, "decoder": self.model.decoder}
        places = {"positions": self._positions, "query_positions": self._positions}
        return {"fields": fields, "latents": latents, **places, **codec}

    def _operator_losses(self, fields: Tensor, following: Tensor) -> LossBundle:
        c, model, x = self.config, self.model, self._positions
        with torch.no_grad():
            next_latents = model.encoder(following[:, 0], x)
        with torch.set_grad_enabled(c.encoder_learns == "all"):
            latents = model.encoder(fields, x)
        predicted = model.approximator(latents)
        predicted_fields = rollout = None
        # Frozen for these two, the decoder passes gradients on to A and gets none.
        model.decoder.requires_grad_(c.decoder_learns == "all")
        if c.lambda_spectral:
            predicted_fields = model.decoder(predicted, x)
        if c.lambda_rollout:
            states = model.rollout(latents, c.rollout_steps)
            rollout = model.decoder(states.flatten(0, 1), x).unflatten(0, states.shape[:2])
        model.decoder.requires_grad_(True)
        scale = self.controls.applied["inverse_scale"]
        weights = dict(c.loss_weights)
        for name in ("lambda_inv_enc", "lambda_inv_dec"):
            weights[name] *= scale
        return compute_operator_loss_bundle(
            weights=weights,
            predicted_latents=predicted,
            next_latents=next_latents,
            predicted_fields=predicted_fields,
            next_fields=following[:, 0],
            predicted_rollout=rollout,
            target_rollout=following if rollout is not None else None,
            **self._inverse(fields, latents),
            current_epoch=self.epoch if c.has_curriculum else None,
            batch=self.microbatch,
        )

    def update(self, loss: Tensor) -> bool:
        loss.backward()
        max_norm, clip = self.controls.applied["max_norm"], self.config.clip
        bound = max_norm if clip == "group" else math.inf
        norms = clip_grad_norm_per_group_(self.optimizer, bound).tolist()
        if clip != "group":
            CLIPPERS[clip](self.optimizer, max_norm)
        self._norms = {"grad_norm": math.hypot(*norms)} | {
            f"grad_norm/{part}": norm for part, norm in zip(PARTS, norms, strict=True)
        }
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update_parameters(self.model)
        return True

    def amount(self, batch: Any) -> int:
        return self.config.batch_size

    def measure(self, batch: Any, stepped: bool) -> dict[str, Any]:
        bundle: Any = self._bundle
        return {
            "epoch": (self.microbatch - 1) / self.batches - self.config.pretraining_epochs,
            "lr": self.optimizer.param_groups[PARTS.index("approximator")]["lr"],
            **self._norms,
            **bundle.record(),
        }

    def is_evaluation_due(self) -> bool:
        epoch, rest = divmod(self.microbatch, self.batches)
        epoch -= self.config.pretraining_epochs
        is_due = epoch >= 0 and epoch % self.config.evaluation_epochs == 0
        return self.done >= self.total or (rest == 0 and is_due)

    def evaluate(self) -> dict[str, float]:
        """Return the errors of the averaged weights on the test trajectories."""
        c, model = self.config, self.average.module
        return measure_operator(model, self._test, self._positions, c.step, c.test_steps)

    def predict(self, trajectory: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return true and predicted fields of one test trajectory, each (steps + 1, points)."""
        c = self.config
        truth = self._test[trajectory, : c.step * c.test_steps + 1 : c.step]
        with torch.inference_mode():
            states = self.average.module(truth[:1], self._positions, c.test_steps)[0]
        predicted = torch.cat([truth[:1], states])
        return truth.double().cpu().numpy(), predicted.double().cpu().numpy()

    def summary(self) -> dict[str, Any]:
        """Return the result numbers so far: the base's, `measures.summarize_run`, persistence."""
        numbers = summarize_run(self.history) if self.microbatch else {}
        numbers |= {n: v for n in self.evaluated if (v := self.last(n)) is not None}  # also NaN
        still, own = persistence(self._test, self.config.step), numbers.get("nrmse")
        times = still / own if own else None
        compared = {"persistence_nrmse": still, "times_better_than_persistence": times}
        return {**super().summary(), **numbers, **compared}

    def _num_steps(self) -> int:
        return self.config.rollout_steps if self.config.lambda_rollout else 1

    def _list_starts(self) -> Tensor:
        """Return (trajectory, frame) of every example."""
        c, (trajectories, frames, _) = self.config, self._fields.shape
        last, end = frames - 1 - c.step * self._num_steps(), c.step * c.test_steps
        if last < 0 or end >= frames:
            raise ValueError(
                f"step={c.step}, test_steps={c.test_steps}: the data has {frames} frames, expected "
                f"more than {max(end, c.step * self._num_steps())}"
            )
        rows = torch.arange(0, last + 1, c.stride)
        return torch.cartesian_prod(torch.arange(trajectories), rows)


def _make_model(c: OperatorLearningConfig) -> Operator:
    model = make_operator(c.sizes, make_generator(c.seed, "weights"))
    for part in PARTS if c.is_compiled else ():
        getattr(model, part).compile()
    return model
