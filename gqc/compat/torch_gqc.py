"""The names and calls of torch-gqc, for scripts that change their import line only.

``from gqc.compat.torch_gqc import ...`` in place of ``from gradient_quality_control import ...``.
Positional arguments are those of torch-gqc 0.10.4; keywords that only 0.8.5 had are taken too.
Where ``tests/peer/DIFFERENCES.md`` lists a difference, behaviour is that of :mod:`gqc`: a NaN
microbatch is discarded, GNS estimates the noise scale, schedules hold their last value, SBC has no
bound on its draws unless it is given one.  ``statistics()`` has the keys of both releases next to
ours: ``num_draws`` counts the coming draw, as in 0.8.5; ``last_grad_norm`` precedes GNR's scaling.

Source: torch-gqc 0.8.5 and 0.10.4, signatures and values of schedules; the code is ours.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

import gqc
from gqc import NormWarmupScheduler as NormWarmupScheduler
from gqc.compat.torch_gqc_wrapper import AbstractOptimizerWrapper, group_values, target_of
from gqc.schedules import THRESHOLD, ParamGroupSchedule
from gqc.schedules.builders import check_lengths
from gqc.schedules.writers import write
from gqc.wrappers.options import WindowOptions

__version__ = "0.10.4"


def _published(builder: Callable[..., ParamGroupSchedule], otherwise: str) -> Any:
    """Return the builder for what a wrapper decides by, or else ``otherwise``."""

    def build(optimizer: Optimizer, *args: Any, key: str | None = None, **kwargs: Any) -> Any:
        key = key or target_of(optimizer) or otherwise
        # A plain optimizer gets the entry, and a wrapper that is made of it later keeps it.
        for group in () if isinstance(optimizer, gqc.OptimizerWrapper) else optimizer.param_groups:
            group.setdefault(key, 1.0)
        return builder(optimizer, *args, key=key, **kwargs)

    build.__name__ = build.__qualname__ = builder.__name__
    build.__doc__ = f""":func:`gqc.{builder.__name__}` of what GNTS, SBC and GNR decide by.

    Of any other optimizer: of {otherwise!r}, which groups of a plain one get where they have none.
    """
    return build


get_norm_threshold_cosine_annealing_with_warmup = _published(
    gqc.get_norm_threshold_cosine_annealing_with_warmup, THRESHOLD
)
get_direct_cosine_annealing_with_warmup = _published(
    gqc.get_direct_cosine_annealing_with_warmup, "lr"
)
get_curved_batch_schedule = _published(gqc.get_curved_batch_schedule, "logical_batch_size")
get_quadratic_batch_schedule = _published(gqc.get_quadratic_batch_schedule, "logical_batch_size")


class OptimizerWrapperGNTS(AbstractOptimizerWrapper, gqc.OptimizerWrapperGNTS):
    """:class:`gqc.OptimizerWrapperGNTS` with the arguments of torch-gqc; the threshold is 1.0."""

    def __init__(
        self,
        optimizer: Optimizer,
        max_batch_draws: int | None = 64,
        distributed_mode: str | None = None,
        **options: Unpack[WindowOptions],
    ) -> None:
        super().__init__(optimizer, max_batch_draws, distributed_mode, **options)


class OptimizerWrapperSBC(AbstractOptimizerWrapper, gqc.OptimizerWrapperSBC):
    """:class:`gqc.OptimizerWrapperSBC` that steps at each draw until a size is scheduled."""

    def __init__(
        self,
        optimizer: Optimizer,
        physical_batch_size: int,
        max_batch_draws: int | None = None,
        distributed_mode: str | None = None,
        **options: Unpack[WindowOptions],
    ) -> None:
        sizes = {"physical_batch_size": physical_batch_size, "logical_batch_size": 1.0}
        super().__init__(optimizer, max_batch_draws, distributed_mode, **sizes, **options)


class OptimizerWrapperGNR(AbstractOptimizerWrapper, gqc.OptimizerWrapperGNR):
    """:class:`gqc.OptimizerWrapperGNR`; ``mode`` (of 0.8.5) is a keyword."""

    def __init__(
        self,
        optimizer: Optimizer,
        distributed_mode: str | None = None,
        *,
        mode: str = "global",
        **options: Unpack[WindowOptions],
    ) -> None:
        if distributed_mode in ("global", "independent"):
            raise TypeError(
                f"OptimizerWrapperGNR(optimizer, {distributed_mode!r}): the second argument is "
                f"distributed_mode since 0.10; pass mode={distributed_mode!r}"
            )
        super().__init__(optimizer, 64, distributed_mode, mode=mode, **options)


class OptimizerWrapperGNS(AbstractOptimizerWrapper, gqc.OptimizerWrapperGNS):
    """:class:`gqc.OptimizerWrapperGNS`; the second argument means two things, so is a keyword.

    Args:
        noise_multiplier: the name of 0.8.5 for ``noise_tolerance``.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *ambiguous: Any,
        max_batch_draws: int | None = 64,
        distributed_mode: str | None = None,
        noise_multiplier: float = 1.0,
        **options: Unpack[WindowOptions],
    ) -> None:
        if ambiguous:
            raise TypeError(
                f"OptimizerWrapperGNS(optimizer, {ambiguous[0]!r}): the second argument was "
                "noise_multiplier in 0.8.5 and is max_batch_draws in 0.10.4; pass it by name"
            )
        own = {"noise_tolerance": noise_multiplier}
        super().__init__(optimizer, max_batch_draws, distributed_mode, **own, **options)


class OptimizerWrapperMHT(AbstractOptimizerWrapper, gqc.OptimizerWrapperMHT):
    """:class:`gqc.OptimizerWrapperMHT`, whose ``step`` takes the metric first, as in 0.8.5.

    Args:
        update_beta: the name of 0.10.4 for ``ema_alpha``.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        confidence: float = 0.98,
        error_tolerance: float = 0.03,
        ema_alpha: float = 0.01,
        max_batch_draws: int | None = 64,
        *,
        distributed_mode: str | None = None,
        update_beta: float | None = None,
        **options: Unpack[WindowOptions],
    ) -> None:
        alpha = ema_alpha if update_beta is None else update_beta
        own = {"confidence": confidence, "error_tolerance": error_tolerance, "ema_alpha": alpha}
        super().__init__(optimizer, max_batch_draws, distributed_mode, **own, **options)

    @torch._disable_dynamo
    def step(  # type: ignore[override]
        self,
        metric: float | Tensor | None = None,
        closure: Callable[[], Any] | None = None,
        **given: Any,
    ) -> bool:
        """Take in a microbatch and its metric."""
        return super().step(closure, metric=metric, **given)

    step.hooked = True  # type: ignore[attr-defined]


class SynchronousSchedule(ParamGroupSchedule):
    """A schedule of a tunable that also multiplies lr and weight decay.

    Their initial values are kept in the groups as ``initial_ENTRY``, as torch keeps ``initial_lr``.

    Args:
        optimizer, key: see :class:`~gqc.schedules.ParamGroupSchedule`.
        lengths: W and T [microbatches].
        shape: first, peak and last value of ``key``, and the power, see :func:`_curve`.
        is_conventional: anneal the lr too, and leave weight decay alone; else the other way round.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        key: str,
        lengths: tuple[int, int],
        shape: tuple[float, float, float, float],
        is_conventional: bool,
    ) -> None:
        check_lengths(*lengths)
        ends = {"lr": 0.0} if is_conventional else {"lr": 1.0, "weight_decay": 0.0}
        self.factors = {k: partial(_curve, *lengths, 0.0, 1.0, end, 0) for k, end in ends.items()}
        super().__init__(optimizer, key, partial(_curve, *lengths, *shape))

    @property
    def schedule_names(self) -> list[str]:
        """Entries of the groups that are scheduled."""
        return [self.key, *self.factors]

    def get_last_schedule(self, name: str) -> list[float]:
        """Return the present value of an entry in each param group."""
        return group_values(self.optimizer, name)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken, or that of torch-gqc 0.10.4."""
        if "key" not in state_dict and self.key in state_dict:
            state_dict = {"key": self.key, "last_step": state_dict[self.key]["last_epoch"]}
        super().load_state_dict(state_dict)

    def _write(self, step: int) -> None:
        super()._write(step)
        for name, factor in self.factors.items():
            for group in self.optimizer.param_groups:
                if name in group:
                    initial = float(group.setdefault(f"initial_{name}", float(group[name])))
                    write(group, name, initial * factor(step))


# Factories, each with a twin whose lr is annealed too and whose weight decay is not scheduled


def make_gnts_with_cosine_annealing_schedule(
    optimizer: Optimizer,
    num_training_steps: int,
    num_warmup_steps: int,
    initial_threshold: float = 0.95,
    final_threshold: float = 0.25,
    warmup_multiplier: float = 10,
    max_batch_draws: int | None = 64,
    distributed_mode: str | None = None,
    *,
    norm_warmup_target: float | None = None,
    norm_anneal_target: float | None = None,
    initial_warmup_multiplier: float | None = None,
    is_conventional: bool = False,
) -> tuple[OptimizerWrapperGNTS, SynchronousSchedule]:
    """GNTS whose threshold is warmed up from above and annealed as a cosine.

    Args:
        norm_warmup_target, norm_anneal_target, initial_warmup_multiplier: names that the README of
            0.10.4 has for the two thresholds and the multiplier.
        others: as in torch-gqc 0.10.4.
    Returns: the wrapper and the schedule, to be stepped once a microbatch.
    """
    peak = initial_threshold if norm_warmup_target is None else norm_warmup_target
    end = final_threshold if norm_anneal_target is None else norm_anneal_target
    times = warmup_multiplier if initial_warmup_multiplier is None else initial_warmup_multiplier
    wrapper = OptimizerWrapperGNTS(optimizer, max_batch_draws, distributed_mode)
    lengths, shape = (num_warmup_steps, num_training_steps), (peak * times, peak, end, 0)
    return wrapper, SynchronousSchedule(wrapper, THRESHOLD, lengths, shape, is_conventional)


def make_sbc_with_polynomial_schedule(
    optimizer: Optimizer,
    physical_batch_size: int,
    initial_batch_size: int,
    final_batch_size: int,
    num_training_steps: int,
    num_warmup_steps: int,
    polynomial_power: float = 2.0,
    max_batch_draws: int | None = None,
    distributed_mode: str | None = None,
    *,
    is_conventional: bool = False,
) -> tuple[OptimizerWrapperSBC, SynchronousSchedule]:
    """SBC whose batch is warmed up from 0 and then grows as a polynomial."""
    wrapper = OptimizerWrapperSBC(optimizer, physical_batch_size, max_batch_draws, distributed_mode)
    lengths = num_warmup_steps, num_training_steps
    shape = 0.0, initial_batch_size, final_batch_size, polynomial_power
    schedule = SynchronousSchedule(wrapper, "logical_batch_size", lengths, shape, is_conventional)
    return wrapper, schedule


def make_gnr_with_cosine_annealing_schedule(
    optimizer: Optimizer,
    initial_norm: float,
    final_norm: float,
    num_training_steps: int,
    num_warmup_steps: int,
    distributed_mode: str | None = None,
    *,
    is_conventional: bool = False,
) -> tuple[OptimizerWrapperGNR, SynchronousSchedule]:
    """GNR whose target norm is warmed up from 0 and annealed as a cosine."""
    wrapper = OptimizerWrapperGNR(optimizer, distributed_mode)
    lengths, shape = (num_warmup_steps, num_training_steps), (0.0, initial_norm, final_norm, 0)
    schedule = SynchronousSchedule(wrapper, "target_gradient_norm", lengths, shape, is_conventional)
    return wrapper, schedule


def make_gns_with_cosine_annealing_schedule(
    optimizer: Optimizer,
    initial_tolerance: float,
    final_tolerance: float,
    num_training_steps: int,
    num_warmup_steps: int,
    warmup_multiplier: float = 10,
    max_batch_draws: int | None = 64,
    distributed_mode: str | None = None,
) -> tuple[OptimizerWrapperGNS, SynchronousSchedule]:
    """GNS whose tolerance is warmed up from above and annealed, and its lr annealed to zero."""
    wrapper = OptimizerWrapperGNS(
        optimizer, max_batch_draws=max_batch_draws, distributed_mode=distributed_mode
    )
    lengths = num_warmup_steps, num_training_steps
    shape = initial_tolerance * warmup_multiplier, initial_tolerance, final_tolerance, 0
    return wrapper, SynchronousSchedule(wrapper, "noise_tolerance", lengths, shape, True)


def make_gns_default(
    optimizer: Optimizer,
    tolerance: float,
    num_training_steps: int,
    num_warmup_steps: int,
    max_batch_draws: int | None = 64,
    distributed_mode: str | None = None,
) -> tuple[OptimizerWrapperGNS, SynchronousSchedule]:
    """GNS whose tolerance comes down from 20 times its value and stays."""
    lengths = num_training_steps, num_warmup_steps
    return make_gns_with_cosine_annealing_schedule(
        optimizer, tolerance, tolerance, *lengths, 20, max_batch_draws, distributed_mode
    )


def _curve(W: int, T: int, first: float, peak: float, end: float, power: float, step: int) -> float:
    """Return the value of a line, then of a quarter cosine (``power`` 0) or a polynomial."""
    if step < W:
        return first + (peak - first) * step / W
    if step >= T:
        return end
    done = (step - W) / (T - W)
    return end + (peak - end) * ((1 - done) ** power if power else math.cos(math.pi / 2 * done))


make_gnts_with_cosine_annealing_schedule_conventional_lr = partial(
    make_gnts_with_cosine_annealing_schedule, is_conventional=True
)
make_sbc_with_polynomial_schedule_conventional_lr = partial(
    make_sbc_with_polynomial_schedule, is_conventional=True
)
make_gnr_with_cosine_annealing_schedule_conventional_lr = partial(
    make_gnr_with_cosine_annealing_schedule, is_conventional=True
)
