r"""The accumulation window whose sum is ``.grad`` itself, where autograd accumulates anyway.

No memory, but nobody else may touch it: see :class:`gqc.wrappers.watch.GradientWatch`.
"""

from operator import is_

import torch
from torch import Tensor

from gqc.gradients import HALF, divide_
from gqc.wrappers.watch import GradientWatch, is_graph
from gqc.wrappers.window import Window, grad_dtype

CHANGED = (
    ".grad was changed in place between backward() and step(), as clipping, noise and decay do: it "
    "holds the sum of all draws, and each change would act on the earlier ones again. To clip what "
    'the optimizer steps with pass clip_norm= to the wrapper; else pass accumulate="buffer"'
)
ROUNDED = (
    'accumulate="grad" sums draws in the dtype of .grad, {} of parameter {}: a sum of ones stops '
    'at 256 in bfloat16, at 2048 in float16. Pass accumulate="buffer", which sums in float32, or '
    "set param.grad_dtype = torch.float32"
)
HOOKED = (
    "parameters have hooks of others (register_post_accumulate_grad_hook), which may change .grad, "
    'the sum of all draws, at each backward: remove them, or pass accumulate="buffer"'
)
NO_BACKWARD = (
    ".grad has no gradient of a loss.backward() since the last step(): call it before step(). "
    'Gradients that are made by hand need accumulate="buffer"'
)
UNEQUAL = (
    "weight={!r} after draws of weight {!r}: mean losses cannot be weighed in .grad, where they "
    'are summed. Pass accumulate="buffer", or loss="sum" and sum the losses of tokens'
)


class GradWindow(Window):
    """:math:`A_n / u` is ``.grad`` itself; it has a watch."""

    watch: GradientWatch  # it has one
    is_in_grad = True  # so a draw that no decision read may be NaN until the step looks
    _dtype = staticmethod(grad_dtype)

    def check_unit(self, own: float, unit: float, ranks: float) -> None:
        if self.num_draws and unit != self.unit:
            raise ValueError(UNEQUAL.format(own, self.unit / ranks))

    def _take(self, grads: list[Tensor | None]) -> None:
        watch = self.watch
        if self.was_changed:
            raise RuntimeError(CHANGED)
        if self.num_draws == 0 and watch.has_others():
            raise RuntimeError(HOOKED)
        if not watch.take(self.params):
            raise RuntimeError(NO_BACKWARD)
        self._sums, watch.kept, watch.sums = grads, grads, watch.versions

    def merge(self) -> None:
        """Autograd has added the draw already."""

    commit = _normalise = merge  # all draws of all ranks have one unit here

    def _replace(self, sums: dict[Tensor, Tensor]) -> None:
        for param, total in sums.items():
            param.grad = total
        self._sums = self.watch.kept = [p.grad for p in self.params]
        self.watch.sums = self.watch.versions_of(self._sums)

    def has_new(self) -> bool:
        """Has a gradient come since the last draw, or has another hand changed the sum?"""
        now, known = self.watch.versions_of([p.grad for p in self.params]), self.watch.sums
        return now[: len(known)] != known or any(v is not None for v in now[len(known) :])

    def check(self) -> None:
        """Before a step or a file without a draw: is ``.grad`` as the last draw left it?"""
        self.check_reduced()
        self._are_kept([p.grad for p in self.params])
        if self.has_new():
            raise RuntimeError(
                ".grad was changed in place since the last draw, by clipping, zero_grad() or "
                "a backward() without its step(): discard() drops the window"
            )

    def refuse(self) -> int:
        """A sum cannot give one draw back: the whole window goes.  Returns the draws lost."""
        return self.clear()

    def expose(self) -> bool:
        """The sum with the refused draw is in ``.grad`` already."""
        return False

    def close(self) -> None:
        """Leave the mean :math:`G_n = A_n / W` in ``.grad``."""
        if self.num_draws > 1:
            self._refuse_half(self._sums)
        totals, sums = self.totals(), self._sums
        self._sums = []
        if not any(map(is_graph, totals)):
            divide_(totals, self.divisor)
            return
        with torch.enable_grad():  # its optimizer reads the graph, which a change in place leaves
            for param, total in zip(self.params, sums, strict=True):
                param.grad = None if total is None else total / self.divisor

    def _are_kept(self, grads: list[Tensor | None]) -> bool:
        """And are the earlier draws still there, and not summed in 16 bits?"""
        if not self.num_draws:
            return False
        if self.num_draws == 1:  # and when the window closes, should the dtype change in it
            self._refuse_half(grads)
        if len(grads) == len(self._sums) and all(map(is_, grads, self._sums)):
            return True
        for grad, total in zip(grads, self._sums, strict=False):
            if grad is total or total is None:
                continue
            # create_graph adds out of place, DDP(gradient_as_bucket_view=True) moves into buckets
            if grad is None or not (
                total._is_view() or grad._is_view() or _is_made_of(grad, total)
            ):
                raise RuntimeError(
                    "the gradients accumulated since the last step are gone: .grad was cleared or "
                    "replaced in mid-window (model.zero_grad()?). Remove that call, since the "
                    "wrapper clears gradients itself; call discard() to drop a window on purpose; "
                    'or pass accumulate="buffer"'
                )
        return False

    def _refuse_half(self, grads: list[Tensor | None]) -> None:
        for index, grad in enumerate(grads):
            if grad is not None and grad.dtype in HALF:
                raise RuntimeError(ROUNDED.format(str(grad.dtype)[6:], index))


def _is_made_of(grad: Tensor, total: Tensor) -> bool:
    """Has ``create_graph=True`` added something to ``total``, which comes first in a sum?"""
    node, wanted = grad.grad_fn, total.grad_fn
    while node is not None and node is not wanted:
        node = node.next_functions[0][0] if node.next_functions else None
    return node is not None
