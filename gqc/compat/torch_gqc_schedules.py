"""The schedules of :mod:`gqc.compat.torch_gqc`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch.optim import Optimizer

import gqc
from gqc.compat.torch_gqc_wrapper import group_values
from gqc.schedules import THRESHOLD, ParamGroupSchedule, builders
from gqc.schedules.writers import write

#: what 0.8.5 scheduled by scheduling a wrapper's "lr"
_TARGETS = {
    gqc.OptimizerWrapperGNTS: THRESHOLD,
    gqc.OptimizerWrapperSBC: "logical_batch_size",
    gqc.OptimizerWrapperGNR: "target_gradient_norm",
}


def published(builder: Callable[..., ParamGroupSchedule], otherwise: str) -> Any:
    """Return the builder for what a wrapper decides by, or else ``otherwise``.

    A plain optimizer gets that entry: a wrapper that is made of it later keeps it.
    """

    def build(
        optimizer: Optimizer, *args: Any, key: str | None = None, **kwargs: Any
    ) -> ParamGroupSchedule:
        own = [name for kind, name in _TARGETS.items() if isinstance(optimizer, kind)]
        key = key or (*own, otherwise)[0]
        for group in optimizer.param_groups:
            group.setdefault(key, 1.0)
        return builder(optimizer, *args, key=key, **kwargs)

    build.__name__ = build.__qualname__ = builder.__name__
    build.__doc__ = f""":func:`gqc.{builder.__name__}` of what GNTS, SBC and GNR decide by.

    Of any other optimizer: of {otherwise!r}, which its groups get where they have none.
    """
    return build


class SynchronousSchedule(ParamGroupSchedule):
    """A schedule of a tunable that also multiplies other entries of the groups.

    Args:
        optimizer, key, fn: see :class:`~gqc.schedules.ParamGroupSchedule`.
        factors: entry -> function of the step, by which its initial value is multiplied; that is
            kept in the group as ``initial_ENTRY``, as torch keeps ``initial_lr``.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        key: str,
        fn: Callable[[int], float],
        factors: Mapping[str, Callable[[int], float]],
    ) -> None:
        self.factors = factors
        super().__init__(optimizer, key, fn)

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


def scheduled(
    wrapper: Optimizer, lengths: tuple[int, int], key: str, fn: Any, is_conventional: bool
) -> SynchronousSchedule:
    """Return the schedule of ``key``, lr and, unless conventional, weight decay."""
    builders.check_lengths(*lengths)
    annealed = partial(curve, *lengths, 0.0, 1.0, 0.0, 0)
    level = partial(curve, *lengths, 0.0, 1.0, 1.0, 0)
    factors = {"lr": annealed} if is_conventional else {"lr": level, "weight_decay": annealed}
    return SynchronousSchedule(wrapper, key, fn, factors)


def curve(W: int, T: int, first: float, peak: float, end: float, power: float, step: int) -> float:
    """Return the value of a line, then of a quarter cosine (``power`` 0) or a polynomial."""
    if step < W:
        return first + (peak - first) * step / W
    if step >= T:
        return end
    done = (step - W) / (T - W)
    return end + (peak - end) * ((1 - done) ** power if power else math.cos(math.pi / 2 * done))
