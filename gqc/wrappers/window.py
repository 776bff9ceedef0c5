r"""The accumulation window: the draws that wait for a step, counted, weighed and summed.

Draw i has the weight :math:`w_i` (1, or what ``step(weight=...)`` gives it) over all ranks, and
:math:`W=\sum_i w_i`.  The tensors kept are :math:`A_n / u` with one number u, the *unit*, so that
no pass over them is made for a weight alone: :math:`u = w_i` for mean losses,
:math:`A_n=\sum_i w_i g_i`, and the number of ranks for summed ones, whose average
:math:`\sum_i g_i` is what DDP and FSDP2 leave.  The mean is :math:`G_n = A_n / W`.

:class:`Window` moves each gradient out of ``.grad`` into a float32 buffer: one more gradient
in memory, and each :math:`g_i` can be looked at, clipped or refused alone.  The other place for the
sum is ``.grad`` itself, :mod:`gqc.wrappers.grad_window`.

Protocol of a draw: ``stage`` (returns :math:`g_i` alone, or None), ``count``, ``merge`` (adds it),
then ``commit`` or ``refuse``; ``totals`` is :math:`A_n / u` at any time.
"""

from collections.abc import Callable
from itertools import zip_longest
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor

from gqc.gradients import (
    dense,
    divide_,
    is_sharded,
    local,
    multiply_,
    norm_of_such,
    settle,
    total_norm,
    wide,
)
from gqc.ranks import Ranks
from gqc.wrappers.saved import like
from gqc.wrappers.watch import NO_GRADIENT, GradientWatch, own

_grad = attrgetter("grad")
SAVED = ("num_draws", "weight", "unit", "is_weighted")


class Window:
    """:math:`A_n / u` in float32 next to the parameters; ``.grad`` holds the draw in progress."""

    is_in_grad = False

    def __init__(self, params: list[Tensor], is_watched: bool, scaler: Any = None) -> None:
        self.params = [*params]
        self.watch = GradientWatch(self.params, scaler) if is_watched else None
        self.was_changed = False  #: was the draw in progress changed after its backward?
        self.open()

    def open(self) -> None:
        """Begin with no draws."""
        if self.watch is not None:
            self.watch.sums = self.watch.kept = []
            self.watch.forget()
        self._is_sharded = is_sharded(self.params)
        #: n, W, u, and was any draw given a weight?
        self.num_draws, self.weight, self.unit, self.is_weighted = self._before = 0, 0.0, 1.0, False
        self.last_weight = 0.0  #: of the draw in progress, or the last one
        self.is_local = False  #: did `closes_next` say that draws may stay this rank's alone?
        self.is_shared = False  #: were local sums averaged over the ranks, and none added since?
        self.metric_sum: Any = 0.0  # weighted, for a wrapper inside; None: a draw had no metric
        self.num_deferred = 0  #: draws that FSDP2 has kept, or kept until the last one
        self.is_reduced = True  #: has it given all of them?
        self.lacks_metric = False  #: was a metric of theirs refused, and so all of them?
        self.scale: Tensor | None = None  #: of the losses of the draws, where a GradScaler has one
        self.scale_count = -1  #: how often that had been updated at the last draw
        # By parameter index; None where it has no gradient.  A group added in mid-window appends.
        self._sums: list[Tensor | None] = []
        self._staged: list[Tensor | None] = []  # a buffer's draw, which turns into the sum with it
        self._are_full = self._were_full = False  # had each parameter a gradient, and before it?
        self._norm: Callable[[list[Tensor]], Tensor] | None = None

    @property
    def divisor(self) -> float:
        """What makes the mean of the tensors kept: W / u, which is n without weights."""
        return self.weight / self.unit

    def follow(self, params: list[Tensor]) -> None:
        """Take up parameters that were added since the last draw; no others may have changed."""
        if self._staged:  # of a draw that an error or an interrupt ended
            self._staged = []
            self.undo()
        are_kept = len(params) >= len(self.params) and all(map(is_, self.params, params))
        if are_kept and len(params) == len(self.params):
            return
        if self.num_draws and not are_kept:
            raise RuntimeError(
                "a parameter was removed or replaced while draws wait for a step: flush() or "
                "discard() them before the groups change"
            )
        self.params, self._is_sharded, self._norm = [*params], is_sharded(params), None
        if self.watch is not None and not are_kept:
            self.watch.follow(self.params)

    def stage(self) -> list[Tensor] | None:
        """Look at ``.grad``; a buffer takes :math:`g_i` out of it and returns it."""
        self._before = (self.num_draws, self.weight, self.unit, self.is_weighted)
        grads, watch = [*map(_grad, self.params)], self.watch
        self.was_changed = watch is not None and watch.was_changed(grads)
        if not self._are_kept(grads) and not dense(grads):
            raise RuntimeError(NO_GRADIENT)
        if self._is_sharded or (self.is_in_grad and self.num_draws == 0):
            grads = settle(self.params)
            if watch is not None:
                watch.note()
        try:
            return self._take(grads)
        except NotImplementedError:  # torch's, where a later draw has sparse gradients
            dense(grads)
            raise

    def count(self, weight: float, unit: float, is_weighted: bool) -> None:
        """Take in a draw that is staged."""
        self.num_draws += 1
        self.weight += weight
        self.last_weight, self.unit = weight, unit
        self.is_weighted |= is_weighted
        self.is_shared, self.is_reduced = False, True

    def defer(self, weight: float, unit: float, is_weighted: bool) -> None:
        """Count a draw whose gradient FSDP2 keeps until it is told to reduce."""
        if self.num_draws and unit != self.unit:
            raise ValueError(
                "unequal weights of mean losses in draws that FSDP2 has not reduced: their sum "
                'cannot be weighed. Pass loss="sum" and sum the losses of tokens'
            )
        self.count(weight, unit, is_weighted)
        self.num_deferred, self.is_reduced = self.num_deferred + 1, False

    def norm(self, tensors: list[Tensor]) -> Tensor:
        """:func:`total_norm`, with a look at what kinds of tensors there are once a window."""
        if len(tensors) < len(self.params):
            return total_norm(tensors)
        self._norm = self._norm or norm_of_such(tensors)
        try:
            return self._norm(tensors)
        except RuntimeError:  # the model has changed its dtype since: another plan, kept as well
            self._norm = norm_of_such(tensors)
            return self._norm(tensors)

    def check_reduced(self) -> None:
        """Raises: RuntimeError: draws wait in FSDP2 until they are reduced, or are handed on."""
        if self.num_draws and self.is_reduced and not self._sums and not self._staged:
            raise RuntimeError(
                "the wrapped optimizer is stepping with the mean of this window, which no file or "
                "copy can hold: save after wrapper.step(), or in on_step= of the outermost wrapper"
            )
        if not self.is_reduced:
            raise RuntimeError(
                "draws of this window wait in FSDP2, which has not reduced them: draw with "
                "set_requires_gradient_sync(True) first, or discard() the window"
            )

    def reduce(self, ranks: Ranks, *, is_mean: bool) -> None:
        """Average sums that are this rank's alone over the ranks."""
        if is_mean and self.is_weighted:
            self._normalise()
        sums = {p: s for p, s in zip(self.params, self._sums, strict=False) if s is not None}
        self._replace(ranks.average(self.params, sums, self._zeros))
        self.is_shared = True

    def totals(self) -> list[Tensor]:
        """The tensors of :math:`A_n / u`, with the draw in progress."""
        return [t for t in self._staged or self._sums if t is not None]

    def undo(self) -> None:
        """Take back the count of the draw in progress."""
        self.num_draws, self.weight, self.unit, self.is_weighted = self._before

    def add_metric(self, metric: float | Tensor | None) -> None:
        """Add up the metrics of the draws; None once one of them had none."""
        if metric is None or self.metric_sum is None:
            self.metric_sum = None
        else:
            value = metric.detach() if isinstance(metric, Tensor) else metric
            # A new tensor: the caller may reuse its own.
            self.metric_sum = self.metric_sum + self.last_weight * value

    def clear(self) -> int:
        """Throw all draws away.  Returns how many there were."""
        for param in self.params:
            param.grad = None
        lost = self.num_draws
        self.open()
        return lost

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds; sums are clones, by parameter index, sharded as they are."""
        own = {key: getattr(self, key) for key in SAVED}
        if self._staged:  # in progress, or ended by an interrupt: no draw yet
            own.update(zip(SAVED, self._before, strict=True))
        sums = enumerate(self._sums if own["num_draws"] else [])
        return {
            **own,
            "scale": None if self.scale is None else float(self.scale),
            "metric_sum": None if self.metric_sum is None else float(self.metric_sum),
            "pending": {i: s.detach().clone() for i, s in sums if s is not None},
        }

    def load_state(self, own: dict[str, Any], default_weight: float) -> None:
        """Take back :meth:`state`, or what format 1, without weights, had of it."""
        n = own["num_draws"]
        first = {"weight": n * default_weight, "unit": default_weight, "is_weighted": False}
        metric = own.get("metric_sum", None if n else 0.0)
        if "weight" not in own and metric is not None:
            metric *= default_weight
        found = {key: (first | own)[key] for key in SAVED}
        vars(self).update(found, metric_sum=metric, is_local="rank" in own)
        scale = own.get("scale")
        self.scale = None if scale is None else torch.tensor(scale)
        if own["pending"]:
            sums = {self.params[i]: total for i, total in own["pending"].items()}
            self._replace({p: like(p, total.to(self._dtype(p))) for p, total in sums.items()})

    # What a sum in .grad does in another way

    def check_unit(self, own: float, unit: float, ranks: float) -> None:
        """Refuse a draw that cannot be added to those of another unit."""

    def _are_kept(self, grads: list[Tensor | None]) -> bool:
        """Are these the tensors that were looked at before?  One look at their kinds will do."""
        return self.num_draws > 0

    def _take(self, grads: list[Tensor | None]) -> list[Tensor] | None:
        is_made = self.watch is None or self.watch.take(self.params)
        for param in self.params:
            param.grad = None
        self._staged = own(grads, is_made)
        if not (present := [g for g in self._staged if g is not None]):
            raise RuntimeError(NO_GRADIENT)
        self._are_full = len(present) == len(grads)
        return present

    def merge(self) -> None:
        """Add into the storage of :math:`g_i`, so that refusing it leaves the sum untouched."""
        if not self._sums:
            return
        new: list[Any] = self._staged
        factor, is_full = self._before[2] / self.unit, self._are_full and self._were_full
        if is_full and len(new) == len(self._sums) and not self._is_sharded:
            torch._foreach_add_(new, self._sums, alpha=factor)  # type: ignore[arg-type]
            return
        old = self._sums + [None] * (len(new) - len(self._sums))
        pairs = [(g, s) for g, s in zip(new, old, strict=True) if g is not None and s is not None]
        if pairs:
            torch._foreach_add_(*(local(part) for part in zip(*pairs, strict=True)), alpha=factor)
        if len(pairs) < len(new):  # what got no gradient is kept, in the new unit
            for i, (g, s) in enumerate(zip(new, old, strict=True)):
                if g is None and s is not None:
                    new[i] = s if factor == 1 else s * factor

    @staticmethod
    def _dtype(param: Tensor) -> torch.dtype:
        """The dtype of the sum that is kept."""
        return wide(grad_dtype(param))

    def _zeros(self, param: Tensor) -> Tensor:
        return torch.zeros_like(param, dtype=self._dtype(param))  # it never had a gradient

    def _replace(self, sums: dict[Tensor, Tensor]) -> None:
        """Take ``sums`` for :math:`A_n / u`."""
        self._sums = [sums.get(p) for p in self.params]

    def _normalise(self) -> None:
        """Make the unit 1, before sums of ranks that have different ones are added."""
        multiply_(self.totals(), self.unit)
        self.unit = 1.0

    def commit(self) -> None:
        """Keep the sum with the draw in progress."""
        self._sums, self._staged, self._were_full = self._staged, [], self._are_full

    def has_new(self) -> bool:
        """Has a gradient come since the last draw?"""
        return any(p.grad is not None for p in self.params)

    def leave(self) -> None:
        """Notice whether a backward adds to what a ``step()``, refused or not ours, leaves."""
        if self.watch is not None and self.has_new():
            self.watch.leave()

    def check(self) -> None:
        """Raises: RuntimeError: a gradient has come that is no draw yet."""
        self.check_reduced()
        if self.has_new():
            raise RuntimeError(
                "a backward() came without its step(): call step(), or zero_grad() to forget it"
            )

    def refuse(self) -> int:
        """Forget the staged draw alone.  Returns the draws lost: 1."""
        self._staged = []
        for param in self.params:
            param.grad = None
        self.undo()
        return 1

    def expose(self) -> bool:
        """Put the staged draw, else the sum, in ``.grad``; does the sum lack the draw?"""
        shown, had_draw = self._staged or self._sums, bool(self._staged)
        if had_draw and self._sums:  # the sum is in it, and alone where there was no gradient
            factor, pairs = self._before[2] / self.unit, zip_longest(shown, self._sums)
            shown = [None if g is s else g if s is None else g - factor * s for g, s in pairs]  # type: ignore[operator]
        self._show(shown)
        self._staged = []
        return had_draw

    def close(self) -> None:
        """Leave the mean :math:`G_n = A_n / W` in ``.grad``."""
        divide_(self.totals(), self.divisor)
        self._show(self._sums)
        self._sums = []

    def _show(self, grads: list[Tensor | None]) -> None:
        """Put ``grads`` in ``.grad``, in the dtype that torch takes there."""
        for p, grad in zip(self.params, grads, strict=False):
            p.grad = None if grad is None else grad.to(grad_dtype(p))


def grad_dtype(param: Tensor) -> torch.dtype:
    """That of ``.grad``: the parameter's, unless ``param.grad_dtype`` is another."""
    return getattr(param, "grad_dtype", None) or param.dtype
