r"""The draws of a window, counted and weighed, wherever their sum is kept.

Draw i has the weight :math:`w_i` (1, or what ``step(weight=...)`` gives it) over all ranks, and
:math:`W=\sum_i w_i`.  The tensors kept are :math:`A_n / u` with one number u, the *unit*, so that
no pass over them is made for a weight alone: :math:`u = w_i` for mean losses,
:math:`A_n=\sum_i w_i g_i`, and the number of ranks for summed ones, whose average
:math:`\sum_i g_i` is what DDP and FSDP2 leave.  The mean is :math:`G_n = A_n / W`.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import is_
from typing import Any

from torch import Tensor

from gqc.gradients import count_nonfinite, is_sharded, local, settle


@dataclass(frozen=True)
class ClosedWindow:
    """A window that was handed on, as ``wrapper.last_window``: what a record or a logger wants.

    Attributes:
        num_draws: n.
        weight: :math:`W`, of all draws and ranks; n where draws have no weight.
        grad_norm: norm of :math:`G_n` before ``clip_norm``, None where it was not read.
        draw_norms: norm of each :math:`g_i`; empty unless all were read.
        is_forced: was it closed only because n reached ``max_draws``?
        is_clipped: was what the optimizer got clipped to ``clip_norm``?
    """

    num_draws: int
    weight: float
    grad_norm: float | None = None
    draw_norms: tuple[float, ...] = ()
    is_forced: bool = False
    is_clipped: bool = False


class Draws:
    """What both places of the sum share."""

    def __init__(self, params: list[Tensor]) -> None:
        self.params = params
        self._is_sharded = is_sharded(params)
        self.num_draws = 0
        self.weight = 0.0  #: W
        self.last_weight = 0.0  #: of the draw in progress, or the last one
        self.unit = 1.0  #: u
        self.is_weighted = False  #: was any draw given a weight?
        self.is_shared = False  #: were local sums averaged over the ranks, and none added since?
        self.draw_norms: list[float] = []  # of the draws whose norm was read
        self.metric_sum: Any = 0.0  # weighted, for a wrapper inside; None: a draw had no metric
        # By parameter index; None where it has no gradient.  A group added in mid-window appends.
        self._sums: list[Tensor | None] = []
        self.num_deferred = 0  #: draws that FSDP2 has kept, or kept until the last one
        self.is_reduced = True  #: has it given all of them?
        self.was_changed = False  #: was the draw in progress changed after its backward?
        self._before = (0, 0.0, 1.0)

    @property
    def divisor(self) -> float:
        """What makes the mean of the tensors kept: W / u, which is n without weights."""
        return self.weight / self.unit

    def follow(self, params: list[Tensor]) -> None:
        """Take up parameters that were added since the last draw.

        Raises: RuntimeError: others went, or came between them, in mid-window.
        """
        known = len(self.params)
        are_kept = len(params) >= known and all(map(is_, self.params, params))
        if are_kept and len(params) == known:
            return
        if self.num_draws and not are_kept:
            raise RuntimeError(
                "a parameter was removed or replaced while draws wait for a step: flush() or "
                "discard() them before the groups change"
            )
        if len(params) != known:
            self._is_sharded = is_sharded(params)
        self.params = params

    def settled(self, grads: list[Tensor | None], watch: Any) -> list[Tensor | None]:
        """``grads``, which are in ``.grad``, but whole where ranks have parts of their sum."""
        if not self._is_sharded:
            return grads
        settle(self.params)
        if watch is not None:
            watch.note()
        return [param.grad for param in self.params]

    def count(self, weight: float, unit: float, is_weighted: bool) -> None:
        """Take in a draw that is staged."""
        self._before = (self.num_draws, self.weight, self.unit)
        self.num_draws += 1
        self.weight += weight
        self.last_weight, self.unit = weight, unit
        self.is_weighted |= is_weighted
        self.is_shared = False
        self.is_reduced = True

    def check_reduced(self) -> None:
        """Raises: RuntimeError: draws wait in FSDP2 until they are reduced, and cannot be had."""
        if not self.is_reduced:
            raise RuntimeError(
                "draws of this window wait in FSDP2, which has not reduced them: draw with "
                "set_requires_gradient_sync(True) first, or discard() the window"
            )

    def uncount(self) -> None:
        """Forget the draw in progress."""
        self.num_draws, self.weight, self.unit = self._before

    def sums(self) -> dict[Tensor, Tensor]:
        """The tensors of :math:`A_n / u` by parameter, for those that have one."""
        pairs = zip(self.params, self._sums, strict=False)
        return {param: total for param, total in pairs if total is not None}

    def add_metric(self, metric: float | Tensor | None) -> None:
        """Add up the metrics of the draws; None once one of them had none."""
        if metric is None or self.metric_sum is None:
            self.metric_sum = None
        else:
            own = metric.detach() if isinstance(metric, Tensor) else metric
            # A new tensor: the caller may reuse its own.
            self.metric_sum = self.metric_sum + self.last_weight * own

    def clear(self) -> int:
        """Throw all draws away.  Returns how many there were."""
        for param in self.params:
            param.grad = None
        lost = self.num_draws
        self._sums, self.num_draws, self.weight = [], 0, 0.0
        return lost

    def raise_nonfinite(self, microbatch: int) -> None:
        """Raises: FloatingPointError: always; the draw (or the sum with it) is in ``.grad``."""
        if self.expose():
            self.uncount()
        grads = enumerate(p.grad for p in self.params)
        bad = [i for i, g in grads if g is not None and count_nonfinite([g])]
        raise FloatingPointError(
            f"NaN or infinite gradient in microbatch {microbatch}, parameters {bad[:5]}: left in "
            ".grad to look at; discard() drops the window"
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds; sums are clones, by parameter index, sharded as they are."""
        sums = enumerate(self._sums if self.num_draws else [])
        return {
            "num_draws": self.num_draws,
            "weight": self.weight,
            "unit": self.unit,
            "is_weighted": self.is_weighted,
            "draw_norms": list(self.draw_norms),
            "metric_sum": None if self.metric_sum is None else float(self.metric_sum),
            "pending": {i: s.detach().clone() for i, s in sums if s is not None},
        }

    def load_state(self, own: dict[str, Any], default_weight: float) -> None:
        """Take back :meth:`state`, or what format 1, without weights, had of it."""
        self.num_draws = own["num_draws"]
        self.weight = own.get("weight", self.num_draws * default_weight)
        self.unit = own.get("unit", default_weight)
        self.is_weighted = own.get("is_weighted", False)
        self.draw_norms = list(own.get("draw_norms", []))
        self.metric_sum = own.get("metric_sum", None if self.num_draws else 0.0)
        if "weight" not in own and self.metric_sum is not None:
            self.metric_sum *= default_weight
        if own["pending"]:
            self._load(own["pending"])

    def expose(self) -> bool:
        raise NotImplementedError

    def _load(self, sums: dict[int, Tensor]) -> None:
        raise NotImplementedError


def check_shapes(params: list[Tensor], sums: dict[int, Tensor]) -> None:
    """Raises: ValueError: pending gradients of a file that are not those of ``params``."""
    for index, value in sums.items():
        param = params[index] if index < len(params) else None
        shapes = [] if param is None else [param.shape, shard(param).shape]
        if value.shape not in shapes:
            here = None if param is None else tuple(shapes[1])
            raise ValueError(
                f"pending gradient of shape {tuple(value.shape)} given to parameter {index} "
                f"of shape {here}"
            )


def shard(tensor: Tensor) -> Tensor:
    """What this rank holds of it."""
    return tensor if type(tensor) is Tensor else local([tensor])[0]


def like(param: Tensor, value: Any) -> Tensor:
    """``value``, whole or this rank's shard, on the device of ``param`` and sharded as it is."""
    here = shard(param)
    if here is param:
        whole = value.full_tensor() if hasattr(value, "full_tensor") else value
        return whole.to(here.device, copy=True)
    from torch.distributed.tensor import DTensor, distribute_tensor

    sharded: Any = param
    mesh, placements = sharded.device_mesh, sharded.placements
    if isinstance(value, DTensor):
        value = value.redistribute(placements=placements).to_local()
    elif value.shape != here.shape:  # a whole one: every rank cuts its part out of it
        whole = value.to(here.device)
        value = distribute_tensor(whole, mesh, placements, src_data_rank=None).to_local()
    return DTensor.from_local(
        value.to(here.device, copy=True),
        mesh,
        placements,
        run_check=False,
        shape=sharded.shape,
        stride=sharded.stride(),
    )
