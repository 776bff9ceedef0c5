r"""A norm threshold that is given in draws."""

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from gqc.checks import expect
from gqc.schedules.writers import THRESHOLD, ParamGroupSchedule

SHARE = 0.2  # of the newest first norm in their average
SLACK = 1.05  # of |G|^2, which may grow while its average follows
PATIENCE = 4  # times the wanted draws, after which a window steps in any case


class DrawsSchedule(ParamGroupSchedule):
    r"""Set GNTS's threshold to what means about so many draws at the present noise.

    :math:`\tau^2 = s\,\frac{1.05+R/n}{1+R}` with s an average of :math:`|g_1|^2` over windows, of
    expectation :math:`|G|^2+T`, and R the wrapper's own noise scale; both move with the model.
    First draws are read whatever the threshold is, so s also follows where every window is one
    draw.  R is known from windows of two draws and more; until then it is the probe's.  Where a
    gradient has grown so fast that no draws bring it down to the average, the threshold is lifted
    at four times the wanted draws; and where R is far below 1, fewer draws are made.

    Args:
        optimizer: an :class:`gqc.OptimizerWrapperGNTS`.
        draws: n, wanted per step, >= 1: a number, or a function of the microbatch, from 0.
        signal_sq, noise_trace: :math:`|G|^2` and T at the start, as of :func:`gqc.noise.probe`.
    Raises: TypeError: the wrapper reads no norms.  ValueError: fewer than one draw, or a wrapper
        with ``min_draws`` above 1.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        draws: Callable[[int], float] | float,
        signal_sq: float,
        noise_trace: float,
    ) -> None:
        if not hasattr(optimizer, "last_window") or THRESHOLD not in optimizer.param_groups[0]:
            raise TypeError(f"optimizer is a {type(optimizer).__name__}: expected GNTS")
        least: int = optimizer.min_draws  # type: ignore[attr-defined]
        only = "1, as the norm of a window's first draw is read; draws= says how many are wanted"
        expect(least <= 1, "min_draws", least, only)
        self.draws, self._counts = draws, _counts(optimizer)
        self._square = max(signal_sq, 0.0) + noise_trace
        self._scale = noise_trace / signal_sq if signal_sq > 0 else math.inf
        super().__init__(optimizer, THRESHOLD, self._threshold)

    def go_to(self, step: int) -> None:
        """Write the value of a step; at the next one also read what the microbatch has shown."""
        if step == self.last_step + 1:
            self._observe(self.optimizer)
        super().go_to(step)

    def _observe(self, wrapper: Any) -> None:
        before, self._counts = self._counts, _counts(wrapper)
        if self._counts["num_discarded"] != before["num_discarded"]:  # it was no draw
            return
        last = wrapper.last_window
        first = wrapper if wrapper.num_draws else last
        norm = first.grad_norm if first is not None and first.num_draws == 1 else None
        if norm is not None and math.isfinite(norm * norm):
            self._square += SHARE * (norm * norm - self._square)
        if last is not None and (scale := wrapper.statistics()["noise_scale"]):
            self._scale = scale * last.num_draws / last.weight  # of a unit of weight, to one draw

    def state_dict(self) -> dict[str, Any]:
        own = {"square": self._square, "scale": self._scale}
        return {**super().state_dict(), **own, **self._counts}

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
        self._square, self._scale = state["square"], state["scale"]
        self._counts = {k: state.get(k, now) for k, now in _counts(self.optimizer).items()}

    def _threshold(self, step: int) -> float:
        n = self.draws(step) if callable(self.draws) else self.draws
        if not n >= 1:
            raise ValueError(f"draws={n!r} at step {step}: expected a number >= 1")
        if self._counts["num_draws"] >= PATIENCE * n - 1:
            return 1e6 * math.sqrt(self._square)
        share = 1 / n if self._scale == math.inf else (SLACK + self._scale / n) / (1 + self._scale)
        return math.sqrt(self._square * share)


def _counts(wrapper: Any) -> dict[str, int]:
    """Draws in the open window, and those that were thrown away so far."""
    num_discarded = wrapper.statistics()["num_discarded"]
    return {"num_draws": wrapper.num_draws, "num_discarded": num_discarded}
