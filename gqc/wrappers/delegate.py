"""An ``Optimizer`` around another: one set of groups and state, saved, copied, hooked as torch's.

``torch.optim.Optimizer`` keeps its groups, state, hooks and pickling in one class, so a wrapper
that must pass for one (schedulers, GradScaler, Accelerate and Lightning check the type) has to
delegate all of them.  What a wrapper does at a step is :mod:`gqc.wrappers.base`.
"""

import copy
import difflib
import inspect
import math
import warnings
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor
from torch.optim import LBFGS, Optimizer

from gqc.checks import check_positive, plain
from gqc.wrappers import options, saved

FORMAT = 2
SCHEDULES = "schedules"  #: entry of a checkpoint, of those that are attached
NOT_COPIED = (
    *("step", "closes_next", "flush", "on_step", "_window", "_opt_called"),
    *("_zero_grad_profile_name", "process_group", "_ranks"),
)


def _of_the_wrapped(name: str) -> Any:
    """An attribute that is the wrapped optimizer's."""
    return property(
        lambda self: getattr(self.optimizer, name),
        lambda self, value: setattr(self.optimizer, name, value),
    )


def _of_all_groups(name: str) -> Any:
    """A tunable as an attribute: the value that decides; set, it is that of all groups."""

    def write(self: Any, value: Any) -> None:
        for group in self.param_groups:
            group[name] = plain(value)

    return property(lambda self: self.tunable(name), write)


class DelegatingOptimizer(Optimizer):
    """Groups with tunables, state, checkpoints, copies and hooks of a wrapper around an optimizer.

    What a subclass keeps beyond these goes through ``_own_state``, ``_check_own``, ``_restore``.
    """

    optimizer: Optimizer

    #: tunable -> how several groups combine: ``min`` or ``max``, whichever is stricter
    strictest: ClassVar[dict[str, Callable[..., Any]]] = {}
    #: attributes that checkpoints hold too: plain numbers, lists, or what has a ``state_dict``
    kept: ClassVar[tuple[str, ...]] = ()
    _is_loading = False
    attached: tuple[str, ...] = ()  #: keys of the schedules that `gqc.integrations.attach` steps
    #: what a subclass's ``**options`` stand for
    options: ClassVar[type] = options.WindowOptions
    #: signatures beyond those of the class itself that declare them
    sources: ClassVar[tuple[Callable[..., Any], ...]] = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        signature = inspect.signature(cls)
        for name in kwargs.keys() - signature.parameters.keys():
            known = [name for name in signature.parameters if name != "optimizer"]
            near = difflib.get_close_matches(name, known, n=1, cutoff=0)
            raise TypeError(
                f"{cls.__name__} has no argument {name!r}: did you mean {near[0]!r}? It takes "
                f"{', '.join(known)}{options.PUBLISHED}"
            )
        try:
            if args or kwargs:  # a copy is made without
                signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{cls.__name__}{signature}: {error}{options.PUBLISHED}") from None
        return super().__new__(cls)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__signature__ = options.spell_out(cls)  # type: ignore[attr-defined]
        for name in vars(cls).get("strictest", ()):
            setattr(cls, name, _of_all_groups(name))
        if isinstance(inspect.getattr_static(cls, "optimizer", None), property):
            fabric, kind = cls.__bases__  # its imitation, whose `optimizer` is the wrapper itself
            for name in {*dir(kind), *inspect.signature(kind).parameters} - {*vars(fabric)}:
                if not name.startswith("_"):
                    setattr(cls, name, _of_the_wrapped(name))

    def __init__(self, optimizer: Optimizer, tunables: Mapping[str, float]) -> None:
        check_optimizer(optimizer)
        self._kinds = [type(self), *getattr(optimizer, "_kinds", ())]
        if type(self) in self._kinds[1:]:
            raise ValueError(f"{type(self).__name__} around another: wrap once by each kind")
        for name, value in tunables.items():
            check_positive(name, value)
            if name in optimizer.defaults:
                raise ValueError(
                    f"the param groups have a {name!r} already: {type(optimizer).__name__} cannot "
                    "be wrapped twice by the same kind of wrapper"
                )
            for i, group in enumerate(optimizer.param_groups):  # one may have a value of its own
                if name in group:
                    check_positive(f"param_groups[{i}][{name!r}]", group[name])
        self.optimizer = optimizer
        self._warned: list[str] = []
        self.loaded_schedules: dict[str, Any] = {}  #: of `gqc.integrations.attach`, by key
        optimizer.defaults.update({k: plain(v) for k, v in tunables.items()})  # for added groups
        for group in optimizer.param_groups:
            group.update({k: optimizer.defaults[k] for k in tunables if k not in group})
        self._hook_wrapped()
        # Optimizer.__init__ would make a second set of groups; this makes its hook tables only.
        super().__setstate__({})

    def tunable(self, name: str) -> float:
        """The value of ``name`` that decides: the strictest over the groups."""
        default = self.optimizer.defaults[name]  # of one whose loading runs no hooks
        values = [float(group.get(name, default)) for group in self.optimizer.param_groups]
        if not all(value >= 0 for value in values):
            kind = "NaN" if any(map(math.isnan, values)) else "negative"
            raise ValueError(f"{name} is {kind} in one of the groups, which have {values}")
        return float(self.strictest[name](values))

    if not TYPE_CHECKING:  # it would make every misspelt attribute one of type Any

        def __getattr__(self, name: str) -> Any:
            """``train()`` and ``eval()`` of schedule-free optimizers, where there are any."""
            if name in ("train", "eval") and "optimizer" in vars(self):
                return getattr(self.optimizer, name)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    # The wrapped optimizer's load_state_dict rebinds these, so they are looked up each time.
    param_groups: Any = _of_the_wrapped("param_groups")
    state: Any = _of_the_wrapped("state")
    defaults: Any = _of_the_wrapped("defaults")

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's ``state_dict`` and the wrapper's: counters, pending gradient.

        Exact in mid-window.  Loads with ``torch.load(..., weights_only=True)``, and under
        ``torch.distributed`` through ``torch.distributed.checkpoint``, whose
        ``get_optimizer_state_dict`` keeps it too; on any number of ranks, except VGS's statistics
        of shards.

        Warns: UserWarning: with ``reduce_at_step=True`` the draws are this rank's alone.
        """
        is_packed = self._prepare_to_save()
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        state = self.optimizer.state_dict()
        state[saved.WRAPPERS] = [*state.get(saved.WRAPPERS, []), self._own_state()]
        state["param_groups"][0][saved.WRAPPERS] = type(self).__name__  # seen where it is lost
        for hook in self._optimizer_state_dict_post_hooks.values():
            state = hook(self, state) or state
        return saved.pack(state, self._params()) if is_packed else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken, also in mid-window.

        ``min_draws``, ``max_draws`` and the way of accumulating stay those of the constructor.

        Raises: ValueError: the file is a plain optimizer's, another wrapper's, of other parameters
            or of another rank's draws, or it was loaded in part; nothing is changed then.
        """
        state_dict = saved.unpack(state_dict)
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = pre_hook(self, state_dict) or state_dict
        own = self._check_state(state_dict)
        inner = {k: v for k, v in state_dict.items() if k != saved.WRAPPERS}
        if rest := state_dict[saved.WRAPPERS][:-1]:
            inner[saved.WRAPPERS] = rest
        self._is_loading = True
        try:
            self.optimizer.load_state_dict(inner)
        finally:
            self._is_loading = False
        self._restore(own)
        self.loaded_schedules = {**state_dict.get(SCHEDULES, {})}
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def __getstate__(self) -> dict[str, Any]:
        # As in torch, what belongs to the instance is not copied: hooks, and the `step` that
        # schedulers patch.  Parameters are copied without .grad, so the pending gradient is added.
        kept = {k: v for k, v in self.__dict__.items() if k not in NOT_COPIED}
        kept = {k: v for k, v in kept.items() if not k.startswith("_optimizer_")}
        return {**kept, "_saved": self._own_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        own, lost = state.pop("_saved"), state.pop("attached", ())
        super().__setstate__(state)
        if lost:
            self.register_step_pre_hook(partial(saved.warn_of_lost_schedules, lost))
        self._hook_wrapped()
        self._restore(own)

    def __repr__(self) -> str:
        tunables = ", ".join(f"{name}={self.tunable(name):g}" for name in self.strictest)
        return f"{type(self).__name__}({tunables}) of {self.optimizer!r}"

    @property
    def innermost(self) -> Optimizer:
        """The optimizer in the last of the wrappers that are inside one another."""
        inner = self.optimizer
        while isinstance(inner, DelegatingOptimizer):
            inner = inner.optimizer
        return inner

    def _hook_wrapped(self) -> None:
        """Register with the wrapped optimizer, whose hooks are not copied with it."""
        self.optimizer.register_load_state_dict_post_hook(_fill_in_defaults)
        wrapper: Any = weakref.ref(self)  # the optimizer may outlive it

        def tell(name: str) -> Callable[..., None]:
            return lambda *_: None if (alive := wrapper()) is None else getattr(alive, name)()

        self.innermost.register_load_state_dict_pre_hook(_refuse_state_of_wrapper)
        self.innermost.register_load_state_dict_post_hook(tell("_note_load_of_wrapped"))
        self.optimizer.register_step_pre_hook(tell("_refuse_to_step_wrapped"))
        self.optimizer.register_step_post_hook(tell("_note_step_of_wrapped"))

    def _params(self) -> list[Tensor]:
        groups = self.optimizer.param_groups
        if len(groups) == 1:  # the list itself, at every draw
            return groups[0]["params"]
        return [p for group in groups for p in group["params"]]

    def _mark_called(self) -> None:
        """Schedulers of the wrapped optimizers warn when stepped before them: a draw counts."""
        inner: Any = self.optimizer
        inner._opt_called = True
        if isinstance(inner, DelegatingOptimizer):
            inner._mark_called()

    def _warn_once(self, message: str) -> None:
        kind = message[:12]
        if kind not in self._warned:
            self._warned.append(kind)
            warnings.warn(message, stacklevel=5)

    def _check_state(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """This wrapper's part of the file, once the whole file is known to fit."""
        name = type(self).__name__
        if not state_dict.get(saved.WRAPPERS):
            raise ValueError(
                f"state of a plain optimizer given to {name}: load it into the wrapped one with "
                "wrapper.optimizer.load_state_dict(...)"
            )
        own: dict[str, Any] = state_dict[saved.WRAPPERS][-1]
        if own["class"] != name:
            raise ValueError(f"state of {own['class']} given to {name}: expected one of {name}")
        if own["format"] > FORMAT:
            raise ValueError(
                f"state of format {own['format']} for {name}, which reads {FORMAT}: upgrade gqc-kit"
            )
        there = [len(g["params"]) for g in state_dict["param_groups"]]
        here = [len(g["params"]) for g in self.param_groups]
        if there != here:
            raise ValueError(
                f"state of groups with {there} parameters given to groups with {here} parameters"
            )
        self._check_own(own)
        if self._is_by_place(own):
            saved.check_order(state_dict["param_groups"], self.param_groups)
        return own

    def _is_by_place(self, own: dict[str, Any]) -> bool:
        """Does the state hold something of each parameter?"""
        return bool(own.get("pending"))

    def _prepare_to_save(self) -> bool:
        """Is the state one of several ranks, to be packed for their checkpoints?"""
        return False

    def _own_state(self) -> dict[str, Any]:
        """This wrapper's part of a checkpoint: tensors and plain numbers."""
        return {"class": type(self).__name__, "format": FORMAT, "extra": self.extra_state()}

    def _check_own(self, own: dict[str, Any]) -> None:
        """Raises: ValueError: ``own`` is of this class, but does not fit; nothing was changed."""
        for name in self.kept:
            if hasattr(present := getattr(self, name), "load_state_dict"):
                copy.deepcopy(present).load_state_dict(own["extra"][name.lstrip("_")])

    def _restore(self, own: dict[str, Any]) -> None:
        """Take back :meth:`_own_state`, into a new object too."""
        self.load_extra_state(own["extra"])

    def extra_state(self) -> dict[str, Any]:
        """What a subclass keeps beyond all that is saved anyway: tensors, plain numbers.

        By default the attributes in ``kept``, under their names without an underscore.
        """
        values = {name.lstrip("_"): getattr(self, name) for name in self.kept}
        has_own = {k: hasattr(v, "state_dict") for k, v in values.items()}
        return {k: v.state_dict() if has_own[k] else copy.copy(v) for k, v in values.items()}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        """Take back :meth:`extra_state`."""
        for name in self.kept:
            present, saved = getattr(self, name), extra[name.lstrip("_")]
            if hasattr(present, "load_state_dict"):
                present.load_state_dict(saved)
            else:
                setattr(self, name, copy.copy(saved))


def check_optimizer(optimizer: Optimizer) -> None:
    """Raises: TypeError, ValueError: ``optimizer`` cannot be wrapped."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{type(optimizer).__name__} given: expected a torch.optim.Optimizer")
    if isinstance(optimizer, LBFGS):
        raise TypeError(
            "LBFGS cannot be wrapped: its step evaluates the loss many times, and a window of "
            "microbatches has no single loss to evaluate"
        )
    if not hasattr(optimizer, "_optimizer_load_state_dict_post_hooks"):
        raise TypeError(
            f"{type(optimizer).__name__} skips torch.optim.Optimizer.__init__ and lacks its hooks: "
            "wrap the optimizer that it was made of"
        )
    _refuse_state_of_wrapper(optimizer, {"param_groups": optimizer.param_groups})
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if len(set(params)) < len(params):
        raise ValueError(
            f"{len(params)} parameters, of which {len(set(params))} are different ones: expected "
            "each once, since it would be summed and stepped twice"
        )


def _refuse_state_of_wrapper(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Raises: ValueError: ``state``, given to or loaded by a plain optimizer, is a wrapper's."""
    if saved.WRAPPERS in state or saved.WRAPPERS in state["param_groups"][0]:
        raise ValueError(
            f"{type(optimizer).__name__} with the state of a wrapper, whose open window is lost in "
            "it: load it into the wrapper, wrapper.load_state_dict(...), or do without by deleting "
            '"wrappers" from the state, or from param_groups[0] where it was loaded'
        )


def _fill_in_defaults(optimizer: Optimizer) -> None:
    """Give groups that came from a plain optimizer's file the tunables' initial values."""
    for group in optimizer.param_groups:
        group.update({k: v for k, v in optimizer.defaults.items() if k not in group})
