"""What a wrapper does where several ranks train the same parameters: compare, reduce, save."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from gqc.gradients import average_over_ranks
from gqc.ranks import (
    ALONE,
    LOOKS,
    Ranks,
    find_ranks,
    is_on,
    refuse_flat_shards,
    refuse_open_no_sync,
    refuse_rounded_sums,
)
from gqc.wrappers import saved
from gqc.wrappers.checked import CheckedOptimizer

LOCAL = (
    "{} would decide or step apart on them, and each rank train another model. They were left "
    "local, by DDP.no_sync() or by parameters that nobody reduces. Leave no_sync() out, at least "
    "where a window is decided on; with a buffer reduce every draw"
)
CAN_REDUCE = ". Or keep no_sync() and pass reduce_at_step=True"
ONE_RANKS_DRAWS = (
    "pending draws of rank {} given to rank {} (of {}): with reduce_at_step=True a rank's sum is "
    "its own until the step. Let every rank save and load its own file, or call "
    "wrapper.reduce_pending() on every rank before one of them saves"
)
SAVED_ALONE = (
    "{} pending draws of this rank alone are in this checkpoint, which no other rank can load: "
    "call wrapper.reduce_pending() on every rank first, or let every rank save its own "
    "(this warning comes once)"
)


class RankedOptimizer(CheckedOptimizer):
    """Draws of ranks that train the same parameters."""

    clip_norm: float | None = None
    process_group: Any = None  # neither of the two is copied or pickled
    _ranks: Ranks | None = None

    def __init__(
        self,
        optimizer: Optimizer,
        tunables: Mapping[str, float],
        accumulate: str,
        process_group: Any,
    ) -> None:
        self.process_group = process_group
        self._looks = LOOKS
        self._has_first_state = False  # made to be loaded into, and never stepped with
        super().__init__(optimizer, tunables, accumulate)

    @property
    def ranks(self) -> Ranks:
        """The ranks that train these parameters; found at the first draw.

        Raises: RuntimeError: they do so in a way that makes decisions or sums wrong.
        """
        if self._ranks is None:
            ranks = find_ranks(self._params(), self.process_group)
            if self.reduce_at_step and not ranks.groups and is_on():
                ranks = Ranks((torch.distributed.group.WORLD,))
            name = type(self).__name__
            is_changed = self.clip_norm is not None or self.changes_gradient
            if self.needs_gradient or self._is_checked() or is_changed:
                can_ignore = not (self.needs_gradient or is_changed)
                remedy = ', or pass nonfinite="ignore"' if can_ignore else ""
                refuse_flat_shards(ranks, name, remedy)
            if self.sums_in_grad and not self.reduce_at_step:
                refuse_rounded_sums(ranks)
            self._looks = 0 if ranks.has_flat_shards else self._looks  # parts differ
            self._ranks = ranks
        return self._ranks

    def reduce_pending(self) -> None:
        """Average the pending draws over the ranks, so that one rank's checkpoint fits them all.

        For ``reduce_at_step=True``; to be called on every rank.  The window goes on, to the same
        mean but for rounding.
        """
        if self.reduce_at_step and self.num_draws:
            self._reduce()
            self._window.is_shared = True

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's ``state_dict`` and the wrapper's: counters, pending gradient.

        Exact in mid-window.  Loads with ``torch.load(..., weights_only=True)``, and under
        ``torch.distributed`` through ``torch.distributed.checkpoint``, whose
        ``get_optimizer_state_dict`` keeps it too; on any number of ranks, but for VGS's
        statistics of shards.

        Warns: UserWarning: with ``reduce_at_step=True`` the draws are this rank's alone.
        """
        if not is_on() or self._is_wrapped:
            return super().state_dict()
        if self._is_local():
            self._warn_once(SAVED_ALONE.format(self.num_draws))
        params, inner = self._params(), self._innermost()
        is_new = not inner.state and self._counts["steps"] == 0
        if is_new and any(hasattr(p, "device_mesh") for p in params):
            self._make_state()
        return saved.pack(super().state_dict(), params)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken, also in mid-window.

        ``min_draws``, ``max_draws`` and the way of accumulating stay those of the constructor.

        Raises: ValueError: the file is a plain optimizer's, another wrapper's, of other parameters
            or of another rank's draws, or it was loaded in part; nothing is changed then.
        """
        super().load_state_dict(saved.unpack(state_dict))

    def _compare(self) -> None:
        """Refuse a gradient that the ranks do not have in common, at the first looks at one."""
        ranks = self.ranks
        if ranks.size == 1 or self._is_wrapped or self.reduce_at_step:
            return
        message = LOCAL.format(type(self).__name__)
        message += "" if self.needs_gradient else CAN_REDUCE
        refuse_open_no_sync(ranks, message)
        if self._looks and self.grad_norm is not None:
            self._looks -= 1
            ranks.refuse_different(self.grad_norm, LOOKS - self._looks, message)

    def _reduce(self) -> None:
        """Average the window's sums over the ranks."""
        window = self._window
        if window.is_weighted and self.loss == "mean":
            window.normalise()
        sums = average_over_ranks(window.params, window.sums(), window.zeros, self.ranks.groups)
        window.replace(sums)

    def _must_check(self) -> bool:
        """Is this the first look at the gradient to be stepped with?"""
        if super()._must_check():
            return True
        is_apart = not (self.reduce_at_step or self._is_wrapped)
        return is_apart and self.grad_norm is None and self._looks > 0 and self.ranks.size > 1

    def _is_local(self) -> bool:
        """Are there pending draws that are this rank's alone?"""
        is_pending = self.reduce_at_step and self.num_draws > 0
        return is_pending and not self._window.is_shared and self.ranks.size > 1

    def _innermost(self) -> Optimizer:
        inner: Any = self.optimizer
        while isinstance(inner, RankedOptimizer):
            inner = inner.optimizer
        return inner

    def _make_state(self) -> None:
        """Make room for the wrapped optimizer's state, to be filled by a checkpoint."""
        saved.make_state(self._innermost())
        self._has_first_state = True

    def _is_asked_for_state(self) -> bool:
        """Was this step a request for state, as ``torch.distributed.checkpoint`` makes it?"""
        if self._ranks is ALONE or not is_on() or self._is_wrapped:
            return False
        if not saved.is_asked_for_state(self._innermost()):
            return False
        self._make_state()
        for param in self._params():
            param.grad = None
        return True

    def _forget_first_state(self) -> None:
        """The first step makes it again, as if nobody had asked for it before."""
        if self._has_first_state:
            self._innermost().state.clear()
            self._has_first_state = False

    def _own_state(self) -> dict[str, Any]:
        own = {**super()._own_state(), "has_first_state": self._has_first_state}
        if self._is_local():
            own["rank"] = [torch.distributed.get_rank(), self.ranks.size]
        return own

    def _check_own(self, own: dict[str, Any]) -> None:
        here = [torch.distributed.get_rank() if is_on() else 0, self.ranks.size]
        if own.get("rank", here) != here:
            raise ValueError(ONE_RANKS_DRAWS.format(own["rank"][0], *here))
        super()._check_own(own)

    def _restore(self, own: dict[str, Any]) -> None:
        self._has_first_state = own.get("has_first_state", False)
        super()._restore(own)
