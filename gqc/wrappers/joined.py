"""Several optimizers that act as one, each with parameters of its own.

``torch.optim.Muon`` takes matrices only, so the other parameters need another optimizer; a
wrapper, a schedule and a checkpoint want one optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer


class JoinedOptimizer(Optimizer):
    """Step ``optimizers`` one after the other; groups and state are theirs, in order.

    Args:
        optimizers: at least one, of different parameters; not to be stepped or loaded by themselves
            afterwards.
    Raises: ValueError: none, or a parameter that two have.  TypeError: one saves more than these.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = tuple(optimizers)
        for each in self.optimizers:
            if type(each).state_dict is not Optimizer.state_dict:
                lost = f"a joined file would lose what {type(each).__name__} saves beside its state"
                raise TypeError(f"{lost}; where it is a wrapper, wrap the joined optimizer")
        super().__init__([g for o in self.optimizers for g in o.param_groups], {})
        for optimizer in self.optimizers:
            self.state.update(optimizer.state)
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Accept the groups that they came with.

        Raises: RuntimeError: a further one, which would belong to none of them.
        """
        if len(self.param_groups) == sum(len(o.param_groups) for o in self.optimizers):
            names = ", ".join(type(o).__name__ for o in self.optimizers)
            raise RuntimeError(f"a further group for {names}: add it to one before they are joined")
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "optimizers": self.optimizers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also the last thing that torch's ``load_state_dict`` does, with new groups and state."""
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Let each of them step; returns what ``closure``, called once, returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def _share(self) -> None:
        """Give each of them its groups, the very dicts that schedules write to, and the state."""
        groups = iter(self.param_groups)
        for optimizer in self.optimizers:
            optimizer.param_groups = [next(groups) for _ in optimizer.param_groups]
            optimizer.state = self.state
