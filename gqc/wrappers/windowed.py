"""What a wrapper keeps between two draws: the open window, counters, a record of the last window.

When a window closes is :mod:`gqc.wrappers.base`, where its sum lies :mod:`gqc.wrappers.window`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from gqc.wrappers.delegate import DelegatingOptimizer
from gqc.wrappers.window import HALF, BufferWindow, GradWindow, Window, check_shapes

COUNTERS = ("batches", "steps", "num_discarded", "num_forced")


@dataclass(frozen=True)
class ClosedWindow:
    """A window that was handed on, as ``wrapper.last_window``: what a record or a logger wants.

    Attributes:
        num_draws: n.
        grad_norm: norm of :math:`G_n`, None where it was not read.
        draw_norms: norm of each :math:`g_i`; empty unless all were read.
        is_forced: was it closed only because n reached ``max_draws``?
    """

    num_draws: int
    grad_norm: float | None = None
    draw_norms: tuple[float, ...] = ()
    is_forced: bool = False


class WindowedOptimizer(DelegatingOptimizer):
    """Draws that wait for a step: counted, reported, saved in mid-window."""

    _is_wrapped = False  # by an outer wrapper

    def __init__(
        self, optimizer: Optimizer, accumulate: str | None, tunables: dict[str, float]
    ) -> None:
        inner = optimizer if isinstance(optimizer, WindowedOptimizer) else None
        if inner is not None and inner.num_draws:
            raise RuntimeError(
                f"{type(inner).__name__} has {inner.num_draws} pending draws: flush() or discard() "
                "them before it is wrapped"
            )
        super().__init__(optimizer, tunables)
        if inner is not None:
            inner.become_inner()
        self.last_window: ClosedWindow | None = None
        self.grad_norm: float | None = None  #: norm of G_n, if this draw read it
        self.draw_norm: float | None = None  #: norm of g_n, if this draw read it
        self.tensor_norms: list[float] = []  #: norm of each tensor of G_n, if this draw read them
        self._counts = dict.fromkeys(COUNTERS, 0)
        self._accumulate = accumulate
        self._window: Window = self._new_window()

    @property
    def num_draws(self) -> int:
        """n, draws in the open window."""
        return self._window.num_draws

    @property
    def last_num_draws(self) -> int | None:
        """n of the last closed window, as torch-gqc has it."""
        return None if self.last_window is None else self.last_window.num_draws

    @property
    def last_grad_norm(self) -> float | None:
        """Norm of the last closed window's :math:`G_n`, None where it was not read."""
        return None if self.last_window is None else self.last_window.grad_norm

    @property
    def holds_running_sum(self) -> bool:
        """Is ``.grad`` the sum of earlier draws, so that changing it would change those again?"""
        return self.num_draws > 0 and isinstance(self._window, GradWindow)

    def become_inner(self) -> None:
        """Leave ``.grad`` to an outer wrapper, which sums its own draws there."""
        self._accumulate = "buffer"
        self._is_wrapped = True
        self._window = self._new_window()

    def statistics(self) -> dict[str, Any]:
        """All there is to log.

        ``batches`` and ``num_draws`` count the microbatch in progress: read before ``step()``, they
        are 1 at the start, and ``num_draws`` is n at the step that closes a window of n.

        - ``batches``, ``steps``: microbatches (with the one in progress), optimizer steps (those of
          the innermost one, where a wrapper is wrapped).
        - ``num_draws``, ``last_num_draws``: n of the open and of the last closed window.
        - ``last_grad_norm``: norm of that window's :math:`G_n`, None where it was not read.
        - ``num_discarded``: microbatches thrown away for NaN or inf.
        - ``num_forced``: steps taken only because n reached ``max_draws``.
        - each tunable: the value that decides; with several groups also ``key/group_i``.
        - ``lr``: of the first group; with several groups also ``lr/group_i``.
        """
        groups = self.param_groups
        values: dict[str, Any] = {
            **self._counts,
            "batches": self._counts["batches"] + 1,
            "num_draws": self.num_draws + 1,
            "last_num_draws": self.last_num_draws,
            "last_grad_norm": self.last_grad_norm,
            **{name: self.tunable(name) for name in self.strictest},
        }
        if groups and "lr" in groups[0]:
            values["lr"] = float(groups[0]["lr"])
        if len(groups) > 1:
            for i, group in enumerate(groups):
                keys = [name for name in (*self.strictest, "lr") if name in group]
                values.update({f"{name}/group_{i}": float(group[name]) for name in keys})
        return values

    def vital_statistics(self) -> dict[str, Any]:
        """The short set for a progress bar: steps, last n, last norm, tunables."""
        return {
            "steps": self._counts["steps"],
            "draws": self.last_num_draws,
            "norm": self.last_grad_norm,
            **{name: self.tunable(name) for name in self.strictest},
        }

    def _new_window(self) -> Window:
        kind, params = self._accumulate, self._params()
        self._num_params = len(params)
        if kind is None:
            kind = "buffer" if any(p.dtype in HALF for p in params) else "grad"
        return BufferWindow() if kind == "buffer" else GradWindow()

    def _forget_norms(self) -> None:
        self.grad_norm = self.draw_norm = None
        self.tensor_norms = []

    def _own_state(self) -> dict[str, Any]:
        last = self.last_window
        return {
            **super()._own_state(),
            **self._window.state(),
            "last_window": None
            if last is None
            else {**vars(last), "draw_norms": [*last.draw_norms]},
            "counts": dict(self._counts),
            "grad_norm": self.grad_norm,
            "draw_norm": self.draw_norm,
            "tensor_norms": list(self.tensor_norms),
        }

    def _check_own(self, own: dict[str, Any]) -> None:
        check_shapes(self._params(), own["pending"])

    def _restore(self, own: dict[str, Any]) -> None:
        if "_window" in vars(self) and self.num_draws:  # a copy has none yet
            self._window.clear(self._params())
        self._window = self._new_window()
        self._window.load_state(self._params(), own)
        self.last_window = _closed(own)
        self._counts.update(own["counts"])
        self.grad_norm, self.draw_norm = own.get("grad_norm"), own.get("draw_norm")
        self.tensor_norms = list(own.get("tensor_norms", []))
        super()._restore(own)


def _closed(own: dict[str, Any]) -> ClosedWindow | None:
    """The last closed window of a file; format 1 had two numbers of it."""
    if "last_window" not in own:
        n, norm = own["last_num_draws"], own["last_grad_norm"]
        return None if n is None else ClosedWindow(n, norm)
    last = own["last_window"]
    return (
        None if last is None else ClosedWindow(**{**last, "draw_norms": tuple(last["draw_norms"])})
    )
