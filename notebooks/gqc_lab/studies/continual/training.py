r"""Learn a stream of tasks online, and measure how much ability to learn is left.

A multilayer perceptron reads permuted images (`gqc_lab.data.streams`) once and in order, and takes
a step on every batch.  What counts is the **online accuracy**: the share of examples that were
classified rightly *before* the step on them.  Methods:

- ``"sgd"``, ``"adamw"``; ``"l2"``: SGD with weight decay;
- ``"pgd"``: SGD with noise on every weight, ``"shrink_perturb"``: the same with decay;
- ``"upgd"``: noise and steps gated by utility, ``"upgd_nonprotecting"``: the noise alone;
- ``"adaptive_upgd"``, ``"upgdw"``: the same along Adam's direction.

Any of them with the variance gradient scaler (``vgs``).  Methods share weights and stream per seed.

Source: arXiv:2404.00781, whose streams have 200 to 400 tasks of other images.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer

from gqc.gradients import collect, multiply_, tensor_norms
from gqc.upgd import UPGD, UPGDW, AdaptiveUPGD
from gqc.wrappers import OptimizerWrapperVGS
from gqc_lab.data.streams import TaskStream
from gqc_lab.loop.controls import Controls
from gqc_lab.loop.experiment import Experiment
from gqc_lab.loop.placement import find_device, find_dtype, make_generator
from gqc_lab.loop.settings import Setting, control
from gqc_lab.models.mlp import make_mlp
from gqc_lab.studies.continual import measures
from gqc_lab.studies.continual.methods import METHODS
from gqc_lab.studies.continual.settings import ContinualConfig

FIFTH = 5  #: the first and the last fifth of the tasks are compared


def build(config: ContinualConfig) -> "Continual":
    """Return the experiment of that config, before its first step."""
    sizes = (config.num_tasks, config.task_examples)
    return Continual(config, TaskStream(config.stream, config.data, *sizes, config.seed))


class PerturbedSGD(Optimizer):
    r"""SGD with noise on every weight alike: :math:`w \leftarrow w(1-\eta\lambda)-\eta(g+\xi)`.

    With ``weight_decay`` 0 it is perturbed gradient descent, with both online shrink and perturb.
    What UPGD does without its gates, and without the factor 1/2 of a neutral one.

    Args:
        lr: :math:`\eta > 0`; weight_decay: :math:`\lambda \ge 0`.
        sigma: deviation of :math:`\xi`, >= 0 [gradient].
        generator: of the noise, on the CPU; whoever passes it saves it.
    Source: Ash and Adams 2020, arXiv:1910.08475; as an online method, the controls of
        arXiv:2404.00781.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        weight_decay: float = 0.0,
        sigma: float = 0.0,
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "sigma": sigma})
        self._generator = generator

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            directions = [p.grad for p in params]
            if group["sigma"] > 0 and params:
                numels = [p.numel() for p in params]
                flat = torch.empty(sum(numels)).normal_(
                    0.0, group["sigma"], generator=self._generator
                )
                noise = flat.to(params[0].device, params[0].dtype).split(numels)
                directions = [g + x.view_as(g) for g, x in zip(directions, noise, strict=True)]
            for p, direction in zip(params, directions, strict=True):
                if group["weight_decay"]:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(direction, alpha=-group["lr"])


#: name in `methods.METHODS` -> class
OPTIMIZERS: dict[str, Any] = {
    each.__name__: each for each in (SGD, AdamW, PerturbedSGD, UPGD, AdaptiveUPGD, UPGDW)
}


def make_optimizer(
    params: Iterable[Tensor], c: ContinualConfig, generator: torch.Generator
) -> Optimizer:
    """Return the optimizer of the method of ``c``; ``generator``: of its noise, if it has any."""
    method = METHODS[c.method]
    names = {*method.space, *method.takes}
    arguments = {name: getattr(c, name) for name in names - {"beta1", "beta2"}}
    arguments |= method.options
    if "beta1" in names:
        arguments["betas"] = (c.beta1, c.beta2)
    if "sigma" in names:
        arguments["generator"] = generator
    if method.has_gates:  # a run that diverged ends as the others do, and is counted
        arguments |= {"normalization": c.normalization, "adaptive_noise": c.adaptive_noise}
        arguments["nonfinite"] = "skip"
    return OPTIMIZERS[method.optimizer](params, **arguments)


class Means:
    """Running means of numbers by name; part of a checkpoint."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}

    def add(self, name: str, value: float) -> None:
        """Count one more value of ``name``."""
        total = self._sums.setdefault(name, [0.0, 0])
        total[0] += value
        total[1] += 1

    def take(self, name: str) -> float | None:
        """Return the mean of ``name`` since it was last taken; None without values."""
        total, count = self._sums.pop(name, (0.0, 0))
        return total / count if count else None

    def state_dict(self) -> dict[str, list[float]]:
        return {name: list(total) for name, total in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        self._sums = {name: list(total) for name, total in state.items()}


class Continual(Experiment):
    """Experiment of this module; `build` makes it.

    Records, ``loss`` in nat: ``task`` (from 1), ``num_correct`` (of the batch, before its step),
    and at the end of a task (None elsewhere) means over it, `ONLINE`, and `NETWORK`.
    """

    #: share of examples classified rightly before the step on them; mean of
    #: `measures.plasticity`; mean factor of VGS; `measures.noise_to_signal`
    ONLINE = ("online_accuracy", "plasticity", "factor", "noise_to_signal")
    #: of the network, on the first examples of the task; rank of its last hidden activations
    NETWORK = ("dead_share", "weight_norm", "effective_rank")

    #: fields of the config that stand next to the results
    REPORTED = ("vgs", "adaptive_noise", "gradient_factor", "lr", "weight_decay", "sigma")

    unit = "examples"
    evaluated = (*ONLINE, *NETWORK)

    def __init__(self, config: ContinualConfig, stream: TaskStream) -> None:
        self.config: ContinualConfig = config
        self.stream = stream
        self.device, self.dtype = find_device(config.device), find_dtype(config.dtype)
        pixels, classes = stream.scans.pixels.shape[1], stream.scans.num_classes
        sizes = (pixels, config.width, config.depth, classes)
        model = make_mlp(*sizes, make_generator(config.seed, "weights"))
        self.model = model.to(self.device, self.dtype)
        self._parameters = list(self.model.parameters())
        noise = make_generator(config.seed, "noise")
        self.inner = make_optimizer(self._parameters, config, noise)
        self.optimizer = self.inner
        if config.vgs:
            options = {n: getattr(config, f"vgs_{n}") for n in ("alpha", "beta", "warmup_steps")}
            self.optimizer = OptimizerWrapperVGS(self.inner, **options)
        self.means = Means()
        self._task: tuple[int, Tensor, Tensor] | None = None
        controls = {"lr_scale": Setting(1.0, "factor of the learning rate", low=0)}
        if "sigma" in METHODS[config.method].space:
            controls["sigma"] = control(config, "sigma")
        constants = {"stream": config.stream, "method": config.name}
        super().__init__(
            config,
            label=f"{config.stream}, {config.name}",
            total=config.num_tasks * config.task_examples,
            parts={"model": self.model, "optimizer": self.optimizer, "means": self.means},
            generators={"noise": noise},
            controls=Controls(controls),
            constants={**constants, "normalization": config.normalization, "seed": config.seed},
            data_hash=stream.hash,
        )

    def set_hyperparameters(self) -> None:
        applied = self.controls.applied
        for group in self.inner.param_groups:
            group["lr"] = self.config.lr * applied["lr_scale"]
            if "sigma" in applied:
                group["sigma"] = applied["sigma"]

    def draw_batch(self) -> tuple[Tensor, Tensor]:
        number, at = divmod(self.done, self.config.task_examples)
        if self._task is None or self._task[0] != number:
            images, labels = self.stream.task(number)
            self._task = number, images.to(self.device, self.dtype), labels.to(self.device)
        rows = slice(at, at + self.config.batch_size)
        return self._task[1][rows], self._task[2][rows]

    def compute_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        self._batch, self._logits = batch, self.model(batch[0]).float()
        self._losses = F.cross_entropy(self._logits, batch[1], reduction="none")
        return self._losses.mean()

    def update(self, loss: Tensor) -> bool:
        loss.backward()
        if self.config.gradient_factor != 1:
            multiply_(collect(self._parameters), self.config.gradient_factor)
        if self.microbatch % self.config.measure_every:
            return self._step()
        norms, factor = tensor_norms(collect(self._parameters)), 1.0
        if isinstance(self.optimizer, OptimizerWrapperVGS):
            factor = self.optimizer.scaler.get_scaling_factor()
        stepped = self._step()
        with torch.no_grad():
            logits = self.model(self._batch[0]).float()
            after = F.cross_entropy(logits, self._batch[1], reduction="none")
        plasticity = measures.plasticity(self._losses.detach(), after).mean()
        self.means.add("plasticity", plasticity.item())
        self.means.add("factor", factor)
        ratio = measures.noise_to_signal(self.inner, list((norms * factor).unbind()))
        if ratio is not None:
            self.means.add("noise_to_signal", ratio)
        return stepped

    def _step(self) -> bool:
        stepped = self.optimizer.step() is not False
        if self.optimizer is self.inner:  # a wrapper clears gradients itself
            self.optimizer.zero_grad()
        return stepped

    def amount(self, batch: tuple[Tensor, Tensor]) -> int:
        return self.config.batch_size

    def measure(self, batch: tuple[Tensor, Tensor], stepped: bool) -> dict[str, Any]:
        num_correct = int((self._logits.argmax(1) == batch[1]).sum())
        self.means.add("online_accuracy", num_correct / self.config.batch_size)
        task = (self.done - 1) // self.config.task_examples + 1
        return {"task": task, "num_correct": num_correct}

    def is_evaluation_due(self) -> bool:
        return self.done % self.config.task_examples == 0

    def evaluate(self) -> dict[str, Any]:
        if self._task is None:
            raise RuntimeError("evaluate: no task has begun; train on a batch first")
        probe = self._task[1][: self.config.probe_examples]
        hidden = measures.hidden_activations(self.model, probe)
        return {
            **{name: self.means.take(name) for name in self.ONLINE},
            "dead_share": measures.dead_share(hidden),
            "weight_norm": measures.weight_norm(self.model),
            "effective_rank": measures.effective_rank(hidden[-1]),
        }

    @property
    def tasks(self) -> pd.DataFrame:
        """One row per finished task: the constants, ``task``, ``examples``, and the measures."""
        history = self.history
        rows = history[history["online_accuracy"].notna()] if len(history) else history
        columns = [*self.constants, "task", "examples", *self.evaluated]
        return rows.reindex(columns=columns).reset_index(drop=True)

    def summary(self) -> dict[str, Any]:
        """Return the result numbers so far.

        The base's; ``online_accuracy`` over all finished tasks, over their first and last fifth
        (``first_accuracy``, ``last_accuracy``) and the difference of the two
        (``accuracy_change``); ``plasticity`` and so on: means over tasks of `ONLINE`, and the last
        ones of `NETWORK`; ``num_not_finite`` (losses); `REPORTED` of the config.  None before the
        first task is finished.
        """
        tasks, numbers = self.tasks, dict.fromkeys(self.evaluated)
        part = max(1, len(tasks) // FIFTH)
        accuracy = tasks["online_accuracy"]
        first = last = None
        if len(tasks):
            first, last = float(accuracy[:part].mean()), float(accuracy[-part:].mean())
            for name in self.ONLINE:  # NaN is a task that has diverged
                known = [value for value in self.column(name) if value is not None]
                numbers[name] = sum(known) / len(known) if known else None
            numbers |= {name: self.last(name) for name in self.NETWORK}
        losses = torch.tensor(self._columns.get("loss", []), dtype=torch.float64)
        return {
            **super().summary(),
            **numbers,
            "first_accuracy": first,
            "last_accuracy": last,
            "accuracy_change": None if first is None or last is None else last - first,
            "num_not_finite": int((~losses.isfinite()).sum()),
            **{name: getattr(self.config, name) for name in self.REPORTED},
        }
