"""Several optimizers that act as one, each with parameters of its own.

``torch.optim.Muon`` takes matrices only, so the other parameters need another optimizer; a
wrapper, a schedule and a checkpoint want one optimizer.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from gqc.wrappers.delegate import check_optimizer


class JoinedOptimizer(Optimizer):
    """Step ``optimizers`` one after the other; groups and state are theirs, in order.

    Args:
        optimizers: at least one, of different parameters; then not to be stepped or loaded alone.
    Raises: ValueError: none, or a parameter that two have.  TypeError: one cannot be wrapped, or
        saves more than these; at the first step: two of one class keep something of all their
        parameters.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = tuple(optimizers)
        for each in self.optimizers:
            check_optimizer(each)
            is_own = type(each).state_dict is not Optimizer.state_dict
            if is_own or each._optimizer_state_dict_post_hooks:
                lost = f"a joined file would lose what {type(each).__name__} saves beside its state"
                raise TypeError(f"{lost}; where it is a wrapper, wrap the joined optimizer")
        super().__init__([g for o in self.optimizers for g in o.param_groups], {})
        self._join()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Accept the groups that they came with.

        Raises: RuntimeError: a further one, which would belong to none of them.
        """
        if len(self.param_groups) == sum(len(o.param_groups) for o in self.optimizers):
            names = ", ".join(type(o).__name__ for o in self.optimizers)
            raise RuntimeError(f"a further group for {names}: add it to one before they are joined")
        super().add_param_group(param_group)

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let each load its part in its own way: 8-bit optimizers keep types that torch casts.

        Raises: ValueError: of other groups; nothing is changed.
        """
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = pre_hook(self, state_dict) or state_dict
        saved = state_dict["param_groups"]
        there, here = ([len(g["params"]) for g in gs] for gs in (saved, self.param_groups))
        if there != here:
            raise ValueError(f"state of groups of {there} parameters: expected {here}")
        groups, ids = iter(saved), {i for group in saved for i in group["params"]}
        for each in self.optimizers:
            own = [next(groups) for _ in each.param_groups]
            others = ids.difference(*(group["params"] for group in own))
            state = {k: v for k, v in state_dict["state"].items() if k not in others}
            each.load_state_dict({"state": state, "param_groups": own})
        self._join()
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "optimizers": self.optimizers}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Let each of them step; returns what ``closure``, called once, returned."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        are_alike = len({type(optimizer) for optimizer in self.optimizers}) < len(self.optimizers)
        for optimizer in self.optimizers:
            optimizer.step()
            if are_alike and (common := [k for k in self.state if not isinstance(k, torch.Tensor)]):
                why = f"two {type(optimizer).__name__}, each with {common} of all its parameters"
                raise TypeError(f"{why}: join one that has several groups")
        return loss

    def _join(self) -> None:
        """Take their groups, the very dicts that schedules write to, and give them one state."""
        self.param_groups = [g for o in self.optimizers for g in o.param_groups]
        self.state = defaultdict(dict)
        for optimizer in self.optimizers:
            self.state.update(optimizer.state)
            optimizer.state = self.state
