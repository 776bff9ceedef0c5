"""An ``Optimizer`` around another: one set of groups and state, saved, copied, hooked as torch's.

``torch.optim.Optimizer`` keeps its groups, state, hooks and pickling in one class, so a wrapper
that must pass for one (schedulers, GradScaler, Accelerate and Lightning check the type) has to
delegate all of them.  What a wrapper does at a step is :mod:`gqc.wrappers.base`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import LBFGS, Optimizer

from gqc.wrappers.window import HALF, BufferWindow, GradWindow, Window, check_shapes

FORMAT = 1
COUNTERS = ("batches", "steps", "num_discarded", "num_forced")
NOT_COPIED = ("step", "_window", "_opt_called", "_zero_grad_profile_name")


class DelegatingOptimizer(Optimizer):
    """Everything of a wrapper but its decision: groups, tunables, window, checkpoints, copies."""

    #: tunable -> how several groups combine: ``min`` or ``max``, whichever is stricter
    strictest: ClassVar[dict[str, Callable[..., Any]]] = {}
    _is_wrapped = False  # by an outer wrapper

    def __init__(
        self, optimizer: Optimizer, accumulate: str | None, tunables: dict[str, float]
    ) -> None:
        check_optimizer(optimizer)
        _check_keys(optimizer, tunables)
        if isinstance(optimizer, DelegatingOptimizer):
            optimizer.use_buffer()
        self.optimizer = optimizer
        self.num_draws = 0  #: n, draws in the open window
        self.last_num_draws: int | None = None
        self.last_grad_norm: float | None = None
        self.grad_norm: float | None = None  #: norm of G_n, if this draw read it
        self.draw_norm: float | None = None  #: norm of g_n, if this draw read it
        self.tensor_norms: list[float] = []  #: norm of each tensor of G_n, if this draw read them
        self._metric_sum: Any = 0.0  # over the window, for a wrapper inside; None: one was missing
        self._counts = dict.fromkeys(COUNTERS, 0)
        self._accumulate = accumulate
        self._warned: list[str] = []
        optimizer.defaults.update(tunables)  # so that the wrapped add_param_group fills them in
        for group in optimizer.param_groups:
            group.update({k: v for k, v in tunables.items() if k not in group})
        optimizer.register_load_state_dict_post_hook(_fill_in_defaults)
        # Optimizer.__init__ would make a second set of groups; this makes its hook tables only.
        super().__setstate__({})
        self._window = self._new_window()

    def use_buffer(self) -> None:
        """Leave ``.grad`` to an outer wrapper, which sums its own draws there.

        Raises: RuntimeError: draws are pending; ``flush()`` or ``discard()`` them first.
        """
        if self.num_draws:
            raise RuntimeError(
                f"{type(self).__name__} has {self.num_draws} pending draws: flush() or discard() "
                "them before it is wrapped"
            )
        self._accumulate = "buffer"
        self._is_wrapped = True
        self._window = self._new_window()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Read by ``GradScaler.step(optimizer)``: the place to refuse it.

        It would unscale earlier draws once more at each, and skip an overflow but leave it in the
        sum, after which no step ever happens.

        Raises: RuntimeError: always, but when an outer wrapper passes a closed window on.
        """
        if self._is_wrapped:
            return False
        raise RuntimeError(
            f"GradScaler.step({type(self).__name__}): unscale a window once, when it closes. Pass "
            "grad_scaler=scaler to the wrapper and call wrapper.step() alone, without "
            "scaler.step() and scaler.update()"
        )

    def extra_state(self) -> dict[str, Any]:
        """What a checkpoint holds beyond counters and pending gradient: tensors, plain numbers."""
        return {}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        """Take back :meth:`extra_state`; a key that an older file lacks keeps its default."""

    def tunable(self, name: str) -> float:
        """The value of ``name`` that decides: the strictest over the groups."""
        default = self.defaults[name]  # of an optimizer whose loading runs no hooks
        values = (float(group.get(name, default)) for group in self.param_groups)
        return float(self.strictest[name](values))

    # The wrapped optimizer's load_state_dict rebinds these, so they are looked up each time.
    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.optimizer.param_groups = groups

    @property
    def state(self) -> Any:
        return self.optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self.optimizer.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        return self.optimizer.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.optimizer.defaults = defaults

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer; it gets the tunables' initial values.

        If it is the first with 16-bit parameters, sums are in float32 from the next window on.
        """
        self.optimizer.add_param_group(param_group)

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

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's ``state_dict`` and ``"wrappers"``: counters, pending gradient.

        Exact in mid-window.  Loads with ``torch.load(..., weights_only=True)``.
        """
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        state = self.optimizer.state_dict()
        state["wrappers"] = [*state.get("wrappers", []), self._own_state()]
        for hook in self._optimizer_state_dict_post_hooks.values():
            state = hook(self, state) or state
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken, also in mid-window.

        ``min_draws``, ``max_draws`` and the way of accumulating stay those of the constructor.

        Raises: ValueError: the file is a plain optimizer's, another wrapper's, or of other
            parameters; nothing is changed then.
        """
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = pre_hook(self, state_dict) or state_dict
        own = self._check_state(state_dict)
        inner = {k: v for k, v in state_dict.items() if k != "wrappers"}
        if rest := state_dict["wrappers"][:-1]:
            inner["wrappers"] = rest
        self.optimizer.load_state_dict(inner)
        self._restore(own)
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def __getstate__(self) -> dict[str, Any]:
        # As in torch, what belongs to the instance is not copied: hooks, and the `step` that
        # schedulers patch.  Parameters are copied without .grad, so the pending gradient is added.
        kept = {k: v for k, v in self.__dict__.items() if k not in NOT_COPIED}
        kept = {k: v for k, v in kept.items() if not k.startswith("_optimizer_")}
        return {**kept, "_saved": self._own_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        saved = state.pop("_saved")
        super().__setstate__(state)
        self.optimizer.register_load_state_dict_post_hook(_fill_in_defaults)
        self._window = self._new_window()
        self._restore(saved)

    def __repr__(self) -> str:
        tunables = ", ".join(f"{name}={self.tunable(name):g}" for name in self.strictest)
        return f"{type(self).__name__}({tunables}) of {self.optimizer!r}"

    def _params(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _new_window(self) -> Window:
        kind, params = self._accumulate, self._params()
        self._num_params = len(params)
        if kind is None:
            kind = "buffer" if any(p.dtype in HALF for p in params) else "grad"
        return BufferWindow() if kind == "buffer" else GradWindow()

    def _mark_called(self) -> None:
        """Schedulers of the wrapped optimizers warn when stepped before them: a draw counts."""
        inner: Any = self.optimizer
        while inner is not None:
            inner._opt_called = True
            inner = getattr(inner, "optimizer", None)

    def _warn_once(self, message: str) -> None:
        kind = message[:12]
        if kind not in self._warned:
            self._warned.append(kind)
            warnings.warn(message, stacklevel=4)

    def _own_state(self) -> dict[str, Any]:
        return {
            "class": type(self).__name__,
            "format": FORMAT,
            "num_draws": self.num_draws,
            "last_num_draws": self.last_num_draws,
            "last_grad_norm": self.last_grad_norm,
            "counts": dict(self._counts),
            "pending": self._window.save(self._params()) if self.num_draws else {},
            "grad_norm": self.grad_norm,
            "draw_norm": self.draw_norm,
            "tensor_norms": list(self.tensor_norms),
            "metric_sum": None if self._metric_sum is None else float(self._metric_sum),
            "extra": self.extra_state(),
        }

    def _check_state(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """This wrapper's part of the file, once the whole file is known to fit."""
        name = type(self).__name__
        if not state_dict.get("wrappers"):
            raise ValueError(
                f"state of a plain optimizer given to {name}: load it into the wrapped one with "
                "wrapper.optimizer.load_state_dict(...)"
            )
        own: dict[str, Any] = state_dict["wrappers"][-1]
        if own["class"] != name:
            raise ValueError(f"state of {own['class']} given to {name}: expected one of {name}")
        if own["format"] > FORMAT:
            raise ValueError(
                f"state of format {own['format']} given to {name}: this version reads up to "
                f"{FORMAT}; upgrade gqc-kit"
            )
        saved = [len(g["params"]) for g in state_dict["param_groups"]]
        here = [len(g["params"]) for g in self.param_groups]
        if saved != here:
            raise ValueError(
                f"state of groups with {saved} parameters given to groups with {here} parameters"
            )
        check_shapes(self._params(), own["pending"])
        return own

    def _restore(self, own: dict[str, Any]) -> None:
        if self.num_draws:
            self._window.clear(self._params())
        self._window = self._new_window()
        self.num_draws = own["num_draws"]
        self.last_num_draws = own["last_num_draws"]
        self.last_grad_norm = own["last_grad_norm"]
        self._counts.update(own["counts"])
        self.grad_norm, self.draw_norm = own.get("grad_norm"), own.get("draw_norm")
        self.tensor_norms = list(own.get("tensor_norms", []))
        self._metric_sum = own.get("metric_sum", None if self.num_draws else 0.0)
        if own["pending"]:
            self._window.load(self._params(), own["pending"])
        self.load_extra_state(own["extra"])


def check_optimizer(optimizer: Optimizer) -> None:
    """Raises: TypeError: ``optimizer`` cannot be wrapped."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}: expected a torch.optim.Optimizer"
        )
    if isinstance(optimizer, LBFGS):
        raise TypeError(
            "LBFGS cannot be wrapped: its step evaluates the loss many times, and a window of "
            "microbatches has no single loss to evaluate"
        )


def _fill_in_defaults(optimizer: Optimizer) -> None:
    """Give groups that came from a plain optimizer's file the tunables' initial values."""
    for group in optimizer.param_groups:
        for name, value in optimizer.defaults.items():
            group.setdefault(name, value)


def _check_keys(optimizer: Optimizer, tunables: dict[str, float]) -> None:
    for name in tunables:
        if name in optimizer.defaults or any(name in g for g in optimizer.param_groups):
            raise ValueError(
                f"the param groups have a {name!r} already: {type(optimizer).__name__} cannot be "
                "wrapped twice by the same kind of wrapper"
            )
