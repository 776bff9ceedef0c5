"""The norms of a draw, read in one transfer, and what becomes of a draw that is not finite."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from gqc.gradients import count_nonfinite, total_norm
from gqc.wrappers import amp
from gqc.wrappers.windowed import WindowedOptimizer


class CheckedOptimizer(WindowedOptimizer):
    """Draws whose norms are read, and which are refused where they hold NaN or inf."""

    nonfinite: str
    grad_scaler: torch.amp.GradScaler | None
    reduce_at_step: bool
    #: does the decision read the norm of each draw alone?
    needs_draw_norm: ClassVar[bool] = False

    @property
    def batches(self) -> int:
        """Microbatches so far, in all windows; ``statistics()`` counts the coming one too."""
        return self._counts["batches"]

    def accept_gradients(self) -> None:
        """Take this draw's gradients as they are: what changed them since ``backward`` was meant.

        For trainers, some of which measure norms by clipping to infinity.
        """
        if self._watch is not None and not self.holds_running_sum:
            self._watch.note()

    def measure(self, totals: list[Tensor]) -> Tensor:
        """What such a decision reads of :math:`A_n`: its norm, then maybe ``tensor_norms``."""
        return total_norm(totals)

    def _read(self, norms: dict[str, Tensor]) -> None:
        """The draw's one host sync: all the norms that it needs in one transfer, unscaled."""
        self._forget_norms()
        if not norms:
            return
        tensors, window = list(norms.values()), self._window
        values = tensors[0]
        if len(tensors) > 1:
            values = torch.hstack([t.to(values.device) for t in tensors])
        if self.grad_scaler is not None:
            values = amp.unscaled(self.grad_scaler, values)
        read = values.tolist() if values.dim() else [values.item()]
        if "draw_norm" in norms:
            self.draw_norm = read.pop(0) * window.unit / window.last_weight
        if "grad_norm" in norms:
            self.grad_norm, *self.tensor_norms = [norm / window.divisor for norm in read]

    def _accept(self) -> bool:
        """Are the norms just read finite, or too large to square though each element is finite?"""
        if not self._is_checked():
            return True
        norms = [norm for norm in (self.draw_norm, self.grad_norm) if norm is not None]
        return all(map(math.isfinite, norms)) or not count_nonfinite(self._window.totals())

    def _refuse(self, *, overflow: bool) -> None:
        """Drop the draw (its whole window where draws cannot be told apart)."""
        if overflow and self.nonfinite == "raise" and self.grad_scaler is None:
            self._window.raise_nonfinite(self._counts["batches"])
        if overflow and self.grad_scaler is not None:
            amp.back_off(self.grad_scaler, self.optimizer, self._window)
        # With reduce_at_step ranks agree on windows, not on draws.
        window = self._window
        forget = window.clear if self.reduce_at_step or window.num_deferred else window.refuse
        lost = forget()
        self._counts["num_discarded"] += lost
        if overflow and self.grad_scaler is None:
            self._warn_once(
                f"a NaN or infinite gradient in microbatch {self._counts['batches']}: {lost} draws "
                "discarded (counted in num_discarded; this warning comes once)"
            )
        self._forget_norms()
        if self.num_draws == 0:
            self._end_window(stepped=False)

    def _must_check(self) -> bool:
        """Is this the first look at the gradient to be stepped with?"""
        first_look = self.grad_norm is None and self._window.is_unchecked
        return self._is_checked() and (first_look or self.reduce_at_step)

    def _is_checked(self) -> bool:
        return self.nonfinite != "ignore" or self.grad_scaler is not None
