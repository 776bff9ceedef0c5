r"""The accumulation window: where :math:`A_n=\sum_{i\le n} w_i g_i` is kept until a step.

Two places with the same methods.  :class:`BufferWindow` moves each gradient out of ``.grad`` into a
float32 buffer: one more gradient in memory, and each :math:`g_i` can be looked at, clipped or
refused alone, whatever the loop does to ``.grad`` before and after.  :class:`GradWindow` leaves the
sum in ``.grad``, where autograd accumulates anyway: no memory, but nobody else may touch it.

Protocol of a draw: ``stage`` (returns :math:`g_i` alone, or None), ``count``, ``merge`` (adds it),
then ``commit`` or ``refuse``; ``totals`` is :math:`A_n / u` at any time.
"""

from __future__ import annotations

from operator import is_
from typing import Any

import torch
from torch import Tensor

from gqc.gradients import dense, divide_, local, multiply_
from gqc.wrappers.draws import Draws, like, shard
from gqc.wrappers.watch import GradientWatch, versions

HALF = (torch.float16, torch.bfloat16)
NO_GRADIENT = (
    "no parameter has a gradient: call loss.backward() before step(), and no zero_grad() between "
    "the two (FSDP2 keeps gradients back under set_requires_gradient_sync(False))"
)
ROUNDED = (
    'accumulate="grad" sums draws in the dtype of .grad, {} of parameter {}: a sum of ones stops '
    'at 256 in bfloat16, at 2048 in float16. Pass accumulate="buffer", which sums in float32, or '
    "set param.grad_dtype = torch.float32"
)


class GradWindow(Draws):
    """:math:`A_n / u` is ``.grad`` itself."""

    is_unchecked = True  # a draw that no decision read may be NaN until the step looks
    zeros = staticmethod(torch.zeros_like)  # the sum of a parameter that never had a gradient

    def __init__(self, params: list[Tensor]) -> None:
        super().__init__(params)
        self.versions: list[Any] = []  #: of ``.grad`` at the last draw

    def stage(self, watch: GradientWatch | None) -> list[Tensor] | None:
        """Check that ``.grad`` still holds the earlier draws, and there is a gradient at all.

        Raises: RuntimeError: it was cleared or replaced, and the earlier draws with it; or no
            parameter has one.
        """
        grads = [p.grad for p in self.params]
        self._check_kept(grads)
        if all(g is None for g in grads):
            raise RuntimeError(NO_GRADIENT)
        if self.num_draws:
            self._refuse_half(grads)
        self.was_changed = watch is not None and watch.was_changed(grads)
        self._sums = self.settled(grads, watch)
        return None

    def merge(self) -> None:
        """Autograd has added the draw already."""

    def totals(self) -> list[Tensor]:
        """The tensors of :math:`A_n / u`, with the draw in progress."""
        return dense(self._sums)

    def replace(self, sums: dict[Tensor, Tensor]) -> None:
        """Take ``sums`` for :math:`A_n / u`."""
        for param, total in sums.items():
            param.grad = total
        self._sums = [p.grad for p in self.params]
        self.versions = versions(self._sums)

    def normalise(self) -> None:
        """All draws of all ranks have one weight here, hence one unit."""

    def commit(self) -> None:
        """The sum is in place."""

    def has_new(self) -> bool:
        """Has a gradient come since the last draw, or has another hand changed the sum?"""
        now, known = versions(p.grad for p in self.params), self.versions
        return now[: len(known)] != known or any(v is not None for v in now[len(known) :])

    def check(self) -> None:
        """Before a step or a file without a draw: ``.grad`` is as the last draw left it.

        Raises: RuntimeError: it was cleared, replaced, or changed in place.
        """
        self._check_kept([p.grad for p in self.params])
        if self.has_new():
            raise RuntimeError(
                ".grad was changed in place since the last draw, by zero_grad(set_to_none=False) "
                "or by a backward() without its step(): discard() drops the window"
            )

    def refuse(self) -> int:
        """A sum cannot give one draw back: the whole window goes.  Returns the draws lost."""
        return self.clear()

    def expose(self) -> bool:
        """The sum with the refused draw is in ``.grad`` already: it does not lack the draw."""
        return False

    def rescale(self, factor: float) -> None:
        """Nothing is left to rescale after a refusal."""

    def close(self) -> None:
        """Leave the mean :math:`G_n = A_n / W` in ``.grad``."""
        divide_(dense(self._sums), self.divisor)
        self._sums = []

    def _load(self, sums: dict[int, Tensor]) -> None:
        for index, value in sums.items():
            param = self.params[index]
            param.grad = like(param, value.to(shard(param).dtype))
        self._sums = [p.grad for p in self.params]
        self.versions = versions(self._sums)

    def _refuse_half(self, grads: list[Tensor | None]) -> None:
        """Raises: RuntimeError: draws are summed in 16 bits, which equal ones soon stop."""
        for index, grad in enumerate(grads):
            if grad is not None and grad.dtype in HALF:
                raise RuntimeError(ROUNDED.format(str(grad.dtype)[6:], index))

    def _check_kept(self, grads: list[Tensor | None]) -> None:
        if not self.num_draws or all(map(is_, grads, self._sums)):
            return  # a refused first draw leaves its sum here
        for grad, total in zip(grads, self._sums, strict=False):
            if grad is total or total is None:
                continue
            # create_graph adds out of place, and DDP(gradient_as_bucket_view=True) moves buckets
            if grad is None or not (total.requires_grad or total._is_view()):
                raise RuntimeError(
                    "the gradients accumulated since the last step are gone: .grad was cleared or "
                    "replaced in mid-window (model.zero_grad()?). Remove that call, since the "
                    "wrapper clears gradients itself; call discard() to drop a window on purpose; "
                    'or pass accumulate="buffer"'
                )


class BufferWindow(Draws):
    """:math:`A_n / u` in float32 beside the parameters; ``.grad`` holds the draw in progress."""

    is_unchecked = False  # each draw was looked at before it was added

    def __init__(self, params: list[Tensor]) -> None:
        super().__init__(params)
        self._staged: list[Tensor | None] = []

    def stage(self, watch: GradientWatch | None) -> list[Tensor] | None:
        """Take :math:`g_i` out of ``.grad``; returned alone, before it is added.

        Raises: RuntimeError: no parameter has a gradient.
        """
        grads = [p.grad for p in self.params]
        if not dense(grads):
            raise RuntimeError(NO_GRADIENT)
        self.was_changed = watch is not None and watch.was_changed(grads)
        self._staged = [None if g is None else _take(g) for g in self.settled(grads, watch)]
        for param in self.params:
            param.grad = None
        return [g for g in self._staged if g is not None]

    def merge(self) -> None:
        """Add into the storage of :math:`g_i`, so that refusing it leaves the sum untouched."""
        kept = [*zip(self._staged, self._sums, strict=False)]
        factor = self._before[2] / self.unit
        if pairs := [(g, s) for g, s in kept if g is not None and s is not None]:
            new, old = zip(*pairs, strict=True)
            torch._foreach_add_(local(new), local(old), alpha=factor)
        if factor != 1 and len(pairs) < len(kept):  # what got no gradient, in the new unit
            for i, (g, s) in enumerate(kept):
                self._staged[i] = s * factor if g is None and s is not None else g

    @staticmethod
    def zeros(param: Tensor) -> Tensor:
        """The sum of a parameter that never had a gradient."""
        return torch.zeros_like(param, dtype=_wide(param.dtype))

    def totals(self) -> list[Tensor]:
        """The tensors of :math:`A_n / u`, with the draw in progress."""
        return [t for t in self._merged() if t is not None]

    def replace(self, sums: dict[Tensor, Tensor]) -> None:
        """Take ``sums`` for :math:`A_n / u`."""
        self._sums = [sums.get(p) for p in self.params]

    def normalise(self) -> None:
        """Make the unit 1, before sums of ranks that have different ones are added."""
        multiply_(self.totals(), self.unit)
        self.unit = 1.0

    def commit(self) -> None:
        self._sums = self._merged()
        self._staged = []

    def has_new(self) -> bool:
        """Has a gradient come since the last draw?"""
        return any(p.grad is not None for p in self.params)

    def check(self) -> None:
        """Raises: RuntimeError: a gradient has come that is no draw yet."""
        if self.has_new():
            raise RuntimeError(
                "a backward() came without its step(): call step() first, or zero_grad() to "
                "forget that microbatch"
            )

    def refuse(self) -> int:
        """Forget the staged draw alone.  Returns the draws lost: 1."""
        self._staged = []
        for param in self.params:
            param.grad = None
        self.uncount()
        return 1

    def expose(self) -> bool:
        """Put the staged draw where a GradScaler looks for an overflow: in ``.grad``.

        Or the sum, at a step, when no draw is staged.  Returns: does the sum lack the draw?
        """
        for param, grad in zip(self.params, self._staged or self._sums, strict=False):
            param.grad = None if grad is None else _narrow(grad, param)
        had_draw, self._staged = bool(self._staged), []
        return had_draw

    def rescale(self, factor: float) -> None:
        """Follow a change of the loss scale in mid-window."""
        multiply_([s for s in self._sums if s is not None], factor)

    def close(self) -> None:
        """Leave the mean :math:`G_n = A_n / W` in ``.grad``."""
        divide_([s for s in self._sums if s is not None], self.divisor)
        for param, mean in zip(self.params, self._sums, strict=False):
            if mean is not None:
                param.grad = _narrow(mean, param)
        self._sums = []

    def clear(self) -> int:
        self._staged = []
        return super().clear()

    def _load(self, sums: dict[int, Tensor]) -> None:
        self._sums = [
            like(p, sums[i].to(_wide(shard(p).dtype))) if i in sums else None
            for i, p in enumerate(self.params)
        ]

    def _merged(self) -> list[Tensor | None]:
        if not self._staged:
            return self._sums
        kept = [*self._sums, *[None] * (len(self._staged) - len(self._sums))]
        return [s if g is None else g for g, s in zip(self._staged, kept, strict=True)]


Window = GradWindow | BufferWindow


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in HALF else dtype


def _narrow(total: Tensor, param: Tensor) -> Tensor:
    """In the dtype that torch takes for the gradient of ``param``: its own, unless it was told."""
    return total.to(getattr(param, "grad_dtype", param.dtype) or param.dtype)


def _take(grad: Tensor) -> Tensor:
    """``grad`` for keeps, in float32 or wider: a cast, or the tensor itself unless it is a view.

    A view's storage may be another's: DDP reuses its bucket at the next backward.
    """
    if grad.dtype in HALF:
        return grad.detach().float()
    own = grad if type(grad) is Tensor else shard(grad)
    return grad.detach().clone() if grad.requires_grad or own._is_view() else grad
