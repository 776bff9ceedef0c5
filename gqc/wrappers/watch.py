"""Notice what changes ``.grad`` between ``backward`` and ``step``: clipping, noise, decay.

With the sum of a window in ``.grad`` such a change would act on its earlier draws again and again.
"""

import sys
import weakref
from collections.abc import Sequence
from functools import partial
from operator import attrgetter, is_
from sys import getrefcount
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable

from gqc.gradients import HALF, is_apart, is_sharded, shard

CHANGED_DRAW = (
    "gradients were changed in place between backward() and step(), as by clip_grad_norm_: {} "
    "decides by the norms of what that left. To clip what the optimizer steps with pass "
    "clip_norm= to the wrapper (this warning comes once)"
)
NO_GRADIENT = (
    "no parameter has a gradient: call loss.backward() before step(), and no zero_grad() between "
    "the two. Does the model still have these parameters (load_state_dict(assign=True) and "
    "parametrizations replace them)? FSDP2 keeps gradients back under "
    "set_requires_gradient_sync(False)"
)
NO_GRAPH = (
    "an optimizer that differentiates .grad (AdaHessian, SophiaH) needs the graph of "
    'backward(create_graph=True): pass accumulate="grad", since the buffer keeps numbers alone'
)
CLEARED = (
    "zero_grad() after a backward() in an open window: {} draws wait for a step in .grad, which "
    'cannot give this microbatch back. Pass accumulate="buffer", where the call forgets it '
    "alone; discard() drops the window"
)
TORN = (
    "a backward() ended with an error, or was interrupted, and left a part of a gradient in .grad: "
    "zero_grad() forgets it, discard() drops the window too"
)
ADDED = (
    "a step() that was refused, or that of the wrapped optimizer, left its gradient in .grad, and "
    "another backward() has added to it: zero_grad() forgets both, discard() drops the window too"
)
TAKEN = (
    "another wrapper shares parameters with this one and has taken their gradients: give each a "
    "backward() of its own right before its step(), or each parameter to one wrapper"
)
_task = torch._C._current_graph_task_id
_version, _dtype, _cdata = map(attrgetter, ("_version", "dtype", "_cdata"))
is_graph = attrgetter("requires_grad")  # of a gradient
ALONE = max(map(getrefcount, [object()]))  # of what is in one list only


class GradientWatch:
    """Knows whether ``.grad`` was changed in place since ``backward`` had ended.

    A hook of each parameter tells that a backward is under way; when it has ended, with what DDP
    and FSDP2 do to gradients at its end, the versions of all gradients are noted: torch counts one
    up at each change in place.  Sums that wait in ``.grad`` are looked at once more when the next
    backward begins, which would hide what has been done to them since.  All on the host.

    It cannot see changes through ``.data`` or numpy, nor those that torch's functions make in
    ``DTensor`` gradients (FSDP2), whose versions torch does not count, nor those of the first draw
    of a group that was added to the wrapped optimizer and not to the wrapper.
    """

    def __init__(self, params: Sequence[Tensor], scaler: Any = None) -> None:
        self.params: Sequence[Tensor] = []
        self._scaler = scaler
        self.scale: tuple[int, Tensor] | None = None  #: of the first backward: its version and it
        self.versions: list[Any] = []  #: of the gradients as the last backward left them
        self.sums: list[Any] = []  #: of sums that wait in ``.grad``, as the last draw left them
        self.kept: list[Any] = []  #: these sums
        self.added: list[Any] = []  #: parameters, gradients, versions, before a backward adds more
        self._left: list[Any] = []  #: hooks that look whether one does, after a refused step
        self.has_arrived = False  #: has a backward ended since :meth:`take` or :meth:`forget`?
        self._running: set[int] = set()  # backwards that have not ended
        self._handles: list[Any] = []
        self._behind: list[int] = []  # the parameters' memory of torch
        self.follow(params)
        self.forget()

    def follow(self, params: Sequence[Tensor]) -> None:
        """Watch these from now on; those that were watched before them are not begun again."""
        # Module.to() may swap what is behind a parameter, and its hooks go.
        is_swapped = not self.has_arrived and [*map(_cdata, self.params)] != self._behind
        if self.is_of(params) and not is_swapped:
            return
        if is_swapped or not all(map(is_, self.params, params)) or len(params) < len(self.params):
            self.remove()
            self.params, self.versions, self._handles = [], [], []
            self.forget()
        watch = weakref.ref(self)  # the parameters outlive the wrapper

        def hook(param: Tensor) -> None:
            if (alive := watch()) is not None and _task() not in alive._running:
                is_compiled = torch.compiler.is_dynamo_compiling()
                (alive._start_untraced if is_compiled else alive._start)(param)

        hook.watch = watch  # type: ignore[attr-defined]
        new, self._is_plain = params[len(self.params) :], not is_sharded(params)
        for param in new:
            if param.is_leaf and (param.is_floating_point() or param.is_complex()):
                is_frozen = not param.requires_grad  # it may thaw later
                param.requires_grad_()
                self._handles.append(param.register_post_accumulate_grad_hook(hook))
                if is_swapped:  # torch knows the hooks, and runs them no more
                    param._post_accumulate_grad_hooks = param._post_accumulate_grad_hooks
                param.requires_grad_(not is_frozen)
        self.versions = [*self.versions, *self.versions_of([p.grad for p in new])]
        self.has_arrived |= any(p.grad is not None for p in new)  # unseen, where it was added late
        self.params, self._behind = params, [*map(_cdata, params)]

    def is_of(self, params: Sequence[Tensor]) -> bool:
        """Are these the parameters watched?"""
        own = self.params
        return params is own or (len(params) == len(own) and all(map(is_, params, own)))

    def take(self, params: Sequence[Tensor]) -> bool:
        """Draw the gradients of ``params``; did a backward make any of them?"""
        self.follow(params)
        has_arrived = self.has_arrived
        self.forget()
        return has_arrived

    def remove(self) -> None:
        """Leave gradients alone from here on."""
        for handle in (*self.__dict__.get("_handles", ()), *self.__dict__.get("_left", ())):
            handle.remove()

    __del__ = remove

    def was_changed(self, grads: Sequence[Tensor | None]) -> bool:
        """Is any of ``grads``, those of the parameters, not as the last backward left it?"""
        if self._running and _task() == -1 and any(grad is not None for grad in grads):
            raise RuntimeError(TORN)
        if self.added and any(p.grad is not g or g._version != v for p, g, v in self.added):
            raise RuntimeError(ADDED)
        known = self.versions
        is_over = self.has_arrived and _task() == -1  # no hook steps
        now = self.versions_of(grads) if is_over else known
        if is_other := now != known and now[: len(known)] != known:
            self._refuse_taken(grads)
        return self._was_changed or is_other

    def versions_of(self, grads: Sequence[Tensor | None]) -> list[Any]:
        """How often each was changed in place, and its shard if it has one; None for None."""
        if not self._is_plain:
            return [None if g is None else (g._version, shard(g)._version) for g in grads]
        try:
            return [*map(_version, grads)]
        except AttributeError:
            return [None if g is None else g._version for g in grads]

    def note(self) -> None:
        """Take the gradients as they are."""
        self.versions = self.versions_of([p.grad for p in self.params])

    def forget(self) -> None:
        """The gradients are drawn, or cleared."""
        self.has_arrived = self._was_changed = False
        self.added, self.scale = [], None
        self._running.clear()
        if self._left:
            self._let_go()

    def leave(self) -> None:
        """Look whether a backward adds to the gradients that a ``step()`` leaves."""
        self._let_go()
        watch = weakref.ref(self)
        for param in self.params:
            if (grad := param.grad) is not None and param.requires_grad:
                look = partial(_look, watch, param, grad, grad._version)
                self._left.append(param.register_hook(look))

    def _let_go(self) -> None:
        while self._left:
            self._left.pop().remove()

    def has_others(self) -> bool:
        """Do the parameters have hooks of others that run at each backward and may change sums?"""
        hooks = (getattr(param, "_post_accumulate_grad_hooks", None) for param in self.params)
        return any(not hasattr(h, "watch") for own in hooks if own for h in own.values())

    def _start(self, first: Tensor) -> None:
        compiled: Any = sys.modules.get("torch._dynamo.compiled_autograd")
        if getattr(compiled, "in_compiled_autograd_region", False):
            return  # it takes no callbacks
        is_alone = self._running and all(p.grad is None for p in self.params if p is not first)
        if is_alone and not getattr(first.grad, "_version", 1):
            self._running.clear()  # what one that broke off has left was cleared
        is_within = bool(self._running)  # another's, whose sums a reentrant checkpoint adds to
        self._running.add(task := _task())
        if self.scale is None and (now := getattr(self._scaler, "_scale", None)) is not None:
            self.scale = now._version, now.clone()
        if self.sums and self._is_plain and not is_within:
            self._was_changed |= self._has_moved(first)
        # Called at the end of this backward, in turn: DDP's and FSDP2's come before the second.
        queue = Variable._execution_engine.queue_callback
        queue(lambda: queue(partial(self._end, task)))

    # torch.compile would look at every module that is loaded, for seconds.
    _start_untraced = torch._disable_dynamo(_start)

    def _end(self, task: int) -> None:
        self._running.discard(task)
        self.has_arrived = True
        self.note()

    def _refuse_taken(self, grads: Sequence[Tensor | None]) -> None:
        """Refuse a draw whose gradients another wrapper has taken."""
        for param, grad, version in zip(self.params, grads, self.versions, strict=False):
            if grad is None and version is not None:
                hooks: Any = getattr(param, "_post_accumulate_grad_hooks", None) or {}
                others = (hook.watch() for hook in hooks.values() if hasattr(hook, "watch"))
                if not all(w in (None, self) or w.has_arrived for w in others):
                    raise RuntimeError(TAKEN)

    def _has_moved(self, first: Tensor) -> bool:
        """Was any sum changed before this backward, which has added to ``first`` alone so far?"""
        known = self.versions if self.has_arrived else self.sums
        kept = [p.grad for p in self.params] if self.has_arrived else self.kept
        for param, old, total in zip(self.params, known, kept, strict=False):
            if old is None:
                continue
            if (grad := param.grad) is None:
                return True
            # DDP moves views, which share their count; another device's thread may be ahead.
            is_view, is_ahead = grad._is_view(), grad.device != first.device
            is_same = grad is total or (is_view and total._is_view()) or grad.requires_grad
            if not (is_same or is_ahead):
                return True
            if grad._version > old + (param is first or is_view or is_ahead):
                return True
        return False


def _look(watch: Any, param: Tensor, grad: Tensor, version: int, _: Tensor) -> None:
    """Before a backward adds to ``param.grad``: is that still ``grad``, and not cleared?"""
    if (alive := watch()) is None or param.grad is not grad:
        return
    if grad._version == version or bool(grad.any()):  # clipped, say
        alive.added.append((param, grad, grad._version))
    else:
        alive._let_go()


def own(grads: list[Any], is_made: bool) -> list[Any]:
    """Gradients that were taken out of ``.grad``, for keeps and in float32 or wider.

    Each is itself, unless it is cast or may get other values later on: it was made by hand (not
    ``is_made``), or somebody else than this list holds it or its memory, as DDP's buckets do.
    """
    counts = [*map(getrefcount, grads)]  # None's is large
    if is_made and max(counts, default=0) <= ALONE and not is_sharded(grads):
        is_own = not any(map(is_graph, grads)) and is_apart(*grads)
        if is_own and HALF.isdisjoint(map(_dtype, grads)):
            return grads
    kept = [*grads]
    for i, (grad, count) in enumerate(zip(kept, counts, strict=True)):
        if grad is not None and grad.dtype in HALF:
            kept[i] = grad.detach().float()
        elif grad is not None:
            is_alone = is_made and count <= ALONE and not grad.requires_grad
            kept[i] = grad if is_alone and is_apart(grad) else grad.detach().clone()
    return kept
