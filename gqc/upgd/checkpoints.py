"""Groups, checkpoints and copies of the UPGD optimizers: all but the arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from gqc.upgd.batches import state_dtype
from gqc.upgd.generators import Generators
from gqc.upgd.settings import SHARED, Rule, checked, rename_betas
from gqc.wrappers.saved import freeze, join_numbers, thaw

NONFINITE = ("raise", "skip", "ignore")


class CheckpointedOptimizer(Optimizer):
    """Checks hyperparameters, and saves, loads and copies noise streams and float32 state.

    Args:
        params: as for any torch optimizer.
        arguments: of the subclass's constructor, hyperparameters among them; groups may override
            each of these, and a checkpoint holds them.
        generator, nonfinite: see :class:`~gqc.upgd.upgd.UPGD`.
    """

    #: names of the tensors that are kept for each parameter, in its shape; utility first
    kept: ClassVar[tuple[str, ...]] = ("avg_utility",)
    #: hyperparameters beyond those that all share
    rules: ClassVar[dict[str, Rule]]

    def __init__(
        self,
        params: Iterable[Any],
        arguments: Mapping[str, Any],
        generator: torch.Generator | None,
        nonfinite: str,
    ) -> None:
        if nonfinite not in NONFINITE:
            raise ValueError(f"nonfinite={nonfinite!r}: expected one of {NONFINITE}")
        defaults = checked(arguments, {**SHARED, **self.rules})
        self.nonfinite = nonfinite
        self.num_skipped = 0  #: steps passed over for NaN or inf
        self._generators = Generators(generator)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; what it does not set has the constructor's value.

        Raises: ValueError: a hyperparameter out of its range; nothing is added then.
        """
        if isinstance(param_group, dict):  # torch refuses anything else
            rename_betas(param_group)
            own = checked({**self.defaults, **param_group}, {**SHARED, **self.rules})
            param_group.update({name: own[name] for name in own.keys() & param_group.keys()})
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return torch's entries and ``"upgd"``: the noise streams and the skipped steps.

        Loads with ``torch.load(..., weights_only=True)``.  With a process group it is also what the
        functions of ``torch.distributed.checkpoint`` take: ``"upgd"`` is in the first group, and
        parameters that have no state yet have one of zeros, as room to load into.
        """
        saved = super().state_dict()
        own = {"generators": self._generators.state_dict(), "num_skipped": self.num_skipped}
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return {**saved, "upgd": {**own, "num_states": len(saved["state"])}}
        entries, groups = {**saved["state"]}, [{**group} for group in saved["param_groups"]]
        for group, packed in zip(self.param_groups, groups, strict=True):
            for param, index in zip(group["params"], packed["params"], strict=True):
                if param.requires_grad and index not in entries:
                    entries[index] = self._empty_state(param, group)
        own["num_states"] = len(entries)
        groups[0]["upgd"] = freeze(own)
        return {**saved, "state": entries, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken; files of the published classes load too.

        The state is copied, and that of 16-bit parameters stays float32, which torch would round.
        Hyperparameters that the file lacks get the constructor's values.

        Raises: ValueError: the file is another optimizer's; nothing is changed then.
        """
        final: dict[str, Any] = {}

        def inspect(_: Optimizer, loaded: dict[str, Any]) -> None:
            self._check_state(loaded)
            final.update(loaded)

        hook = self.register_load_state_dict_pre_hook(inspect)  # runs after the user's hooks
        try:
            super().load_state_dict(_unpacked(state_dict))
        finally:
            hook.remove()
        self._copy_state(final)
        if "upgd" in final:
            self._generators.load_state_dict(final["upgd"]["generators"])
            self.num_skipped = final["upgd"]["num_skipped"]

    def _empty_state(self, param: Tensor, group: Mapping[str, Any]) -> dict[str, Any]:
        """The state of a parameter before its first step."""
        dtype = state_dtype(param)
        state: dict[str, Any] = {"step": 0}
        state.update({key: torch.zeros_like(param, dtype=dtype) for key in self.kept})
        if group["adaptive_noise"] and not group["instant_noise_scale"]:
            state["grad_norm_ema"] = torch.zeros((), dtype=dtype, device=param.device)
        return state

    def _check_state(self, state_dict: dict[str, Any]) -> None:
        expected = state_dict.get("upgd", {}).get("num_states", 0)
        if len(state_dict["state"]) < expected:
            raise ValueError(
                f"the file holds the state of {expected} parameters, and that of "
                f"{len(state_dict['state'])} came with it: torch.distributed.checkpoint loads only "
                "what an object has already. Load within a process group, or load a file of "
                "torch.save"
            )
        for index, state in state_dict["state"].items():
            if missing := {"step", *self.kept} - set(state):
                raise ValueError(
                    f"state of parameter {index} lacks {sorted(missing)}: expected a file of "
                    f"{type(self).__name__}"
                )

    def _copy_state(self, state_dict: dict[str, Any]) -> None:
        """Put copies of what was saved where torch has cast to the dtype of the parameters."""
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        pairs = [(param, group) for group in self.param_groups for param in group["params"]]
        for index, (param, group) in zip(saved, pairs, strict=True):
            if index not in state_dict["state"]:
                continue
            state: dict[str, Any] = dict(state_dict["state"][index])
            state["step"] = int(state["step"])
            average = state.get("grad_norm_ema")
            if isinstance(average, float):
                # The published average starts from 1, of which beta^t is left.
                rest = group["noise_beta"] ** state["step"]
                state["grad_norm_ema"] = torch.tensor(max(average - rest, 0.0))
            for name in {*self.kept, "grad_norm_ema"} & set(state):
                state[name] = state[name].to(param.device, state_dtype(param), copy=True)
            self.state[param] = state

    def __getstate__(self) -> dict[str, Any]:
        # torch copies groups, state and defaults only
        own = ("nonfinite", "num_skipped", "_generators")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # load_state_dict comes here too
        for group in self.param_groups:
            rename_betas(group)
            for name, value in self.defaults.items():
                group.setdefault(name, value)


def _unpacked(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state as it is without a process group."""
    groups = [{**group} for group in state_dict["param_groups"]]
    entries = {index: {**entry} for index, entry in state_dict["state"].items()}
    join_numbers(entries)
    unpacked = {**state_dict, "state": entries, "param_groups": groups}
    if groups and "upgd" in groups[0]:
        unpacked["upgd"] = thaw(groups[0].pop("upgd"))
    return unpacked
