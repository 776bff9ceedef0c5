r"""The accumulation window: where :math:`A_n=\sum_{i\le n} g_i` is kept until a step.

Two places with the same methods.  :class:`GradWindow` leaves the sum in ``.grad``, where autograd
accumulates anyway: no memory, but a microbatch cannot be looked at alone.  :class:`BufferWindow`
moves each gradient out of ``.grad`` into a float32 buffer: one more gradient in memory, and the
norm of each :math:`g_i` for free, and a bad one can be refused before it is added.

Protocol of a draw: ``stage`` (returns :math:`g_i` alone, or None), ``merge`` (adds it), then
``commit`` or ``refuse``; ``totals`` is :math:`A_n` at any time.
"""

from __future__ import annotations

from operator import is_
from typing import Any

import torch
from torch import Tensor

from gqc.gradients import collect, dense, divide_, local, multiply_

HALF = (torch.float16, torch.bfloat16)
NO_GRADIENT = (
    "no parameter has a gradient: call loss.backward() before step(), and no zero_grad() between "
    "the two"
)


class Draws:
    """What both places share: the draws counted, and what a checkpoint holds of them."""

    def __init__(self) -> None:
        self.num_draws = 0
        self.draw_norms: list[float] = []  # of the draws whose norm was read
        self.metric_sum: Any = 0.0  # for a wrapper inside; None: a draw had no metric
        # By parameter index; None where it has no gradient.  A group added in mid-window appends.
        self._sums: list[Tensor | None] = []

    def sums(self, params: list[Tensor]) -> dict[Tensor, Tensor]:
        """:math:`A_n` by parameter, for those that have one."""
        return {p: s for p, s in zip(params, self._sums, strict=False) if s is not None}

    def add_metric(self, metric: float | Tensor | None) -> None:
        """Add up the metrics of the draws; None once one of them had none."""
        if metric is None or self.metric_sum is None:
            self.metric_sum = None
        else:
            own = metric.detach() if isinstance(metric, Tensor) else metric
            self.metric_sum = self.metric_sum + own  # a new tensor: the caller may reuse its own

    def clear(self, params: list[Tensor]) -> int:
        """Throw all draws away.  Returns how many there were."""
        for param in params:
            param.grad = None
        self._sums, lost, self.num_draws = [], self.num_draws, 0
        return lost

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds; sums are clones of this rank's shards, by parameter index."""
        sums = enumerate(self._sums if self.num_draws else [])
        return {
            "num_draws": self.num_draws,
            "draw_norms": list(self.draw_norms),
            "metric_sum": None if self.metric_sum is None else float(self.metric_sum),
            "pending": {i: _local(s).clone() for i, s in sums if s is not None},
        }

    def load_state(self, params: list[Tensor], own: dict[str, Any]) -> None:
        """Take back :meth:`state`, or what format 1 had of it."""
        self.num_draws = own["num_draws"]
        self.draw_norms = list(own.get("draw_norms", []))
        self.metric_sum = own.get("metric_sum", None if self.num_draws else 0.0)
        if own["pending"]:
            self._load(params, own["pending"])

    def _load(self, params: list[Tensor], sums: dict[int, Tensor]) -> None:
        raise NotImplementedError


class GradWindow(Draws):
    """:math:`A_n` is ``.grad`` itself."""

    is_unchecked = True  # a draw that no decision read may be NaN until the step looks
    zeros = staticmethod(torch.zeros_like)  # the sum of a parameter that never had a gradient
    _version = 0  # of the first tensor of the sum, at the last draw

    def stage(self, params: list[Tensor]) -> list[Tensor] | None:
        """Check that ``.grad`` still holds the earlier draws, and there is a gradient at all.

        Raises: RuntimeError: it was cleared or replaced, and the earlier draws with it; or no
            parameter has one.
        """
        grads = [p.grad for p in params]
        self._check_kept(grads)
        if all(g is None for g in grads):
            raise RuntimeError(NO_GRADIENT)
        self._sums = grads
        return None

    def merge(self) -> None:
        """Autograd has added the draw already."""

    def totals(self, params: list[Tensor]) -> list[Tensor]:
        """The tensors of :math:`A_n`, with the draw in progress."""
        return dense(self._sums)

    def replace(self, params: list[Tensor], sums: dict[Tensor, Tensor]) -> None:
        """Take ``sums`` for :math:`A_n`."""
        for param, total in sums.items():
            param.grad = total
        self._sums = [p.grad for p in params]

    def commit(self, params: list[Tensor]) -> None:
        self._version = self._present_version()

    def check(self, params: list[Tensor]) -> None:
        """Before a step without a draw: ``.grad`` is as the last draw left it.

        Raises: RuntimeError: it was cleared, replaced, or changed in place.
        """
        self._check_kept([p.grad for p in params])
        if self._present_version() != self._version:
            raise RuntimeError(
                ".grad was changed in place since the last draw, by zero_grad(set_to_none=False) "
                "or by a backward() without its step(): discard() drops the window"
            )

    def refuse(self, params: list[Tensor]) -> int:
        """A sum cannot give one draw back: the whole window goes.  Returns the draws lost."""
        return self.clear(params)

    def expose(self, params: list[Tensor]) -> int:
        """The sum with the refused draw is in ``.grad`` already.  Returns the draws it lacks: 0."""
        return 0

    def rescale(self, factor: float) -> None:
        """Nothing is left to rescale after a refusal."""

    def close(self, params: list[Tensor]) -> None:
        """Leave the mean :math:`G_n = A_n / n` in ``.grad``."""
        divide_(dense(self._sums), self.num_draws)
        self._sums = []

    def _load(self, params: list[Tensor], sums: dict[int, Tensor]) -> None:
        for index, value in sums.items():
            param = params[index]
            param.grad = _like(param, value.to(_local(param).dtype))
        self._sums = [p.grad for p in params]
        self.commit(params)

    def _check_kept(self, grads: list[Tensor | None]) -> None:
        if all(map(is_, grads, self._sums)):
            return
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

    def _present_version(self) -> int:
        return next((s._version for s in self._sums if s is not None), 0)


class BufferWindow(Draws):
    """:math:`A_n` in float32 beside the parameters; ``.grad`` holds one microbatch at a time."""

    is_unchecked = False  # each draw's own norm was read

    def __init__(self) -> None:
        super().__init__()
        self._staged: list[Tensor | None] = []

    def stage(self, params: list[Tensor]) -> list[Tensor] | None:
        """Take :math:`g_i` out of ``.grad``; returned alone, before it is added.

        Raises: RuntimeError: no parameter has a gradient.
        """
        grads = collect(params)
        if not grads:
            raise RuntimeError(NO_GRADIENT)
        if len(grads) == len(params):
            grads = list(map(_take, grads))
            self._staged = [*grads]
        else:
            self._staged = [None if p.grad is None else _take(p.grad) for p in params]
            grads = [g for g in self._staged if g is not None]
        for param in params:
            param.grad = None
        return grads

    def merge(self) -> None:
        """Add into the storage of :math:`g_i`, so that refusing it leaves the sum untouched."""
        pairs = [
            (g, s)
            for g, s in zip(self._staged, self._sums, strict=False)
            if g is not None and s is not None
        ]
        if pairs:
            new, old = zip(*pairs, strict=True)
            torch._foreach_add_(local(new), local(old))

    @staticmethod
    def zeros(param: Tensor) -> Tensor:
        """The sum of a parameter that never had a gradient."""
        return torch.zeros_like(param, dtype=_wide(param.dtype))

    def totals(self, params: list[Tensor]) -> list[Tensor]:
        """The tensors of :math:`A_n`, with the draw in progress."""
        return [t for t in self._merged() if t is not None]

    def replace(self, params: list[Tensor], sums: dict[Tensor, Tensor]) -> None:
        """Take ``sums`` for :math:`A_n`."""
        self._sums = [sums.get(p) for p in params]

    def commit(self, params: list[Tensor]) -> None:
        self._sums = self._merged()
        self._staged = []

    def check(self, params: list[Tensor]) -> None:
        """Nobody else holds the sum."""

    def refuse(self, params: list[Tensor]) -> int:
        """Forget the staged draw alone.  Returns the draws lost: 1."""
        self._staged = []
        for param in params:
            param.grad = None
        self.num_draws -= 1
        return 1

    def expose(self, params: list[Tensor]) -> int:
        """Put the staged draw where a GradScaler looks for an overflow: in ``.grad``.

        Or the sum, at a step, when no draw is staged.  Returns the draws the sum lacks: 1 or 0.
        """
        for param, grad in zip(params, self._staged or self._sums, strict=False):
            param.grad = None if grad is None else grad.to(param.dtype)
        return int(bool(self._staged))

    def rescale(self, factor: float) -> None:
        """Follow a change of the loss scale in mid-window."""
        multiply_([s for s in self._sums if s is not None], factor)

    def close(self, params: list[Tensor]) -> None:
        divide_([s for s in self._sums if s is not None], self.num_draws)
        for param, mean in zip(params, self._sums, strict=False):
            if mean is not None:  # torch refuses a float32 gradient on a bf16 parameter
                param.grad = mean.to(param.dtype)
        self._sums = []

    def clear(self, params: list[Tensor]) -> int:
        self._staged = []
        return super().clear(params)

    def _load(self, params: list[Tensor], sums: dict[int, Tensor]) -> None:
        self._sums = [
            _like(p, sums[i].to(_wide(_local(p).dtype))) if i in sums else None
            for i, p in enumerate(params)
        ]

    def _merged(self) -> list[Tensor | None]:
        if not self._staged:
            return self._sums
        kept = [*self._sums, *[None] * (len(self._staged) - len(self._sums))]
        return [s if g is None else g for g, s in zip(self._staged, kept, strict=True)]


Window = GradWindow | BufferWindow


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in HALF else dtype


def _take(grad: Tensor) -> Tensor:
    """``grad`` for keeps, in float32 or wider: a cast, or the tensor itself unless it is a view.

    A view's storage may be another's: DDP reuses its bucket at the next backward.
    """
    if grad.dtype in HALF:
        return grad.detach().float()
    own = grad if type(grad) is Tensor else _local(grad)
    return grad.detach().clone() if grad.requires_grad or own._is_view() else grad


def _local(tensor: Tensor) -> Tensor:
    return tensor if type(tensor) is Tensor else local([tensor])[0]


def check_shapes(params: list[Tensor], sums: dict[int, Tensor]) -> None:
    for index, value in sums.items():
        here = tuple(_local(params[index]).shape) if index < len(params) else None
        if tuple(value.shape) != here:
            raise ValueError(
                f"pending gradient of shape {tuple(value.shape)} given to parameter {index} "
                f"of shape {here}"
            )


def _like(param: Tensor, value: Tensor) -> Tensor:
    """``value`` on the device of ``param``, and a ``DTensor`` where ``param`` is one."""
    shard = value.to(_local(param).device, copy=True)
    if _local(param) is param:
        return shard
    from torch.distributed.tensor import DTensor

    sharded: Any = param
    return DTensor.from_local(
        shard,
        sharded.device_mesh,
        sharded.placements,
        run_check=False,
        shape=sharded.shape,
        stride=sharded.stride(),
    )
