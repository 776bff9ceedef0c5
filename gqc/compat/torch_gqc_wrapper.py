"""What all wrappers of :mod:`gqc.compat.torch_gqc` share, and the base for wrappers of one's own.

A subclass of torch-gqc 0.10.4's ``AbstractOptimizerWrapper`` defines ``step``, which calls
``_batch_received`` first and ``_take_optimizer_step`` when it decides to step; in between ``.grad``
is the sum of ``num_draws`` gradients.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from gqc.checks import one_of
from gqc.schedules import THRESHOLD
from gqc.wrappers import OptimizerWrapper
from gqc.wrappers.report import closed

#: statistics() of torch-gqc -> ours
_RENAMED = {
    "num_steps": "steps",
    "last_mean_grad_norm": "last_grad_norm",
    "last_step_num_draws": "last_num_draws",
    "norm_threshold": "gradient_norm_threshold",
    "target_norm": "target_gradient_norm",
    "target_logical_batch_size": "logical_batch_size",
    "noise_multiplier": "noise_tolerance",
    "estimated_gns": "noise_scale",
    "running_avg_metric": "running_mean",
}
#: entry of a file of 0.10.4 -> that of 0.8.5
_LAST = {"last_num_draws": "last_step_num_draws", "last_grad_norm": "last_mean_grad_norm"}
_COUNTERS = ("num_batches", "num_steps", "num_draws", *_LAST)
#: what 0.8.5 scheduled by scheduling a wrapper's "lr"
_AS_LR = (THRESHOLD, "logical_batch_size", "target_gradient_norm")
_LR_IS_LR = (
    "a scheduler of torch that was made of this {0} sets the learning rate, which torch-gqc 0.8.5 "
    "took for {1}: schedule that by its name, gqc.ParamGroupSchedule(wrapper, {1!r}, fn). If the "
    "learning rate is meant, make the scheduler of wrapper.optimizer"
)
_MODES = ("replicated", "sharded")
_COMBINE: dict[str, Callable[..., Any]] = {"mean": statistics.fmean, "max": max, "min": min}
_OLD_CONTRACT = (
    "{} calls _take_batch_step(), as subclasses of torch-gqc 0.8.5 did, where num_draws counted a "
    "microbatch before it was taken in. Call self._batch_received() first in step(), as since 0.10"
)


class AbstractOptimizerWrapper(OptimizerWrapper):
    """Base of wrappers with torch-gqc's names; ranks are found without ``distributed_mode``.

    Args:
        optimizer: any torch optimizer that steps in one call.
        max_draws: draws after which a wrapper steps in any case, >= 1.
        distributed_mode: None, "replicated" or "sharded"; checked, and handed to metrics.
        options: keywords of :class:`gqc.OptimizerWrapper`.
    Attributes: last_optimizer_result: what the closure of the last step returned, None without one.
    Raises: TypeError: a subclass of torch-gqc 0.8.5's contract.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_draws: int | None = 64,
        distributed_mode: str | None = None,
        **options: Any,
    ) -> None:
        if distributed_mode is not None:
            one_of("distributed_mode", distributed_mode, _MODES)
        self.distributed_mode = distributed_mode
        self.last_optimizer_result: Any = None
        self._states: dict[str, Any] = {}
        self._readers: dict[str, tuple[Callable[..., Any], dict[Any, Callable[..., Any]]]] = {}
        if type(self).step is not AbstractOptimizerWrapper.step and not _decides(type(self)):
            # It reads .grad, and would take a refused draw for one with a gradient of zero.
            options = {"accumulate": "grad", "nonfinite": "raise", **options}
        super().__init__(optimizer, max_draws=max_draws, **options)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        code = getattr(cls.step, "__code__", None)
        if "_take_batch_step" in getattr(code, "co_names", ()):
            raise TypeError(_OLD_CONTRACT.format(cls.__name__))

    num_batches = property(lambda self: self._counts["batches"])  #: microbatches so far
    num_steps = property(lambda self: self._counts["steps"])  #: of the wrapped optimizer so far
    parameters = property(lambda self: self._params())  #: all of them
    device = property(lambda self: self._params()[0].device)  #: of the first parameter

    @property
    def valid_schedule_targets(self) -> list[str]:
        """Numbers that all param groups have."""
        groups = self.param_groups
        return [k for k in groups[0] if all(isinstance(g.get(k), (int, float)) for g in groups)]

    @torch._disable_dynamo
    def step(  # type: ignore[override]
        self, closure: Callable[[], Any] | None = None, **given: Any
    ) -> bool:
        """Take in a microbatch: :meth:`gqc.OptimizerWrapper.step`."""
        if not _decides(type(self)):
            raise NotImplementedError(f"{type(self).__name__} has no step(): define it")
        if getattr(self.step, "_wrapped_by_lr_sched", False) and (target := target_of(self)):
            self._warn_once(_LR_IS_LR.format(type(self).__name__, target))
        results = []
        make = (lambda: results.append(closure())) if callable(closure) else closure
        stepped = super().step(make, **given)
        if stepped:
            self.last_optimizer_result = results[-1] if results else None
        return stepped

    step.hooked = True  # type: ignore[attr-defined]

    def statistics(
        self, behavior: str = "verbose", aggregate_behavior: str = "mean"
    ) -> dict[str, Any]:
        """:meth:`gqc.OptimizerWrapper.statistics` and the keys of torch-gqc.

        Args:
            behavior: ``"vital"`` for :meth:`vital_statistics`.
            aggregate_behavior: not used: of several groups the value that decides is reported.
        """
        if one_of("behavior", behavior, ("verbose", "vital")) == "vital":
            return self.vital_statistics(aggregate_behavior)
        values = {**super().statistics(), "num_batches": self.num_batches}
        return values | {old: values[new] for old, new in _RENAMED.items() if new in values}

    def vital_statistics(self, aggregate_behavior: str = "mean") -> dict[str, Any]:
        """The short set, for a progress bar."""
        one_of("aggregate_behavior", aggregate_behavior, tuple(_COMBINE))
        return super().vital_statistics()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken, or that of torch-gqc between two windows.

        torch-gqc saves no draws that wait for a step: they were lost there too.  GNS and MHT begin
        their averages again, which are other ones there.
        """
        inner = state_dict.get("optimizer_states", state_dict.get("optimizer"))
        if inner is None:
            super().load_state_dict(state_dict)
            return
        entries = state_dict.get("wrapper_states", {})
        found = state_dict | {name: entry["value"] for name, entry in entries.items()}
        self.optimizer.load_state_dict(inner)
        for group in self.param_groups:  # where 0.10.4 keeps what its schedules multiply
            for name, space in group.pop("schedule_namespaces", {}).items():
                group[f"initial_{name}"] = space["initial_lr"]
        self._states.update({n: e["value"] for n, e in entries.items() if n not in _COUNTERS})
        self.discard()
        last = {new: found.get(new, found.get(old)) or None for new, old in _LAST.items()}
        self.last_window = closed(last, self.default_weight)
        self.loaded_at = at = int(found["num_batches"]) - (not entries)  # 0.8.5 began at 1
        self._counts.update(batches=at, steps=int(found["num_steps"]))

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), **({"states": self._states} if self._states else {})}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        self._states = dict(extra.get("states", {}))
        super().load_extra_state({k: v for k, v in extra.items() if k != "states"})

    # For subclasses, as torch-gqc 0.10.4 documents them

    def _batch_received(self) -> None:
        if self.is_full():
            raise RuntimeError(f"{self.num_draws} draws are max_draws={self.max_draws}: step first")
        self._draw(None, None)
        self._mark_called()

    def _take_optimizer_step(self) -> None:
        if self.num_draws == 0:
            raise RuntimeError("no draws to step with: call _batch_received() first")
        self._tell(self._close(forced=self.is_full()))

    def _set_state(self, name: str, value: Any, flag: str) -> None:
        if one_of("flag", flag, ("vital", "optional", "optimizer")) != "optimizer":
            self._states[name] = value
        elif name in self.defaults or any(name in group for group in self.param_groups):
            raise RuntimeError(f"the param groups have a {name!r} already")
        else:
            self.defaults[name] = value
            for group in self.param_groups:
                group[name] = value

    def _get_state(self, name: str, aggregate_behavior: str | None = None) -> Any:
        value = self._states[name] if name in self._states else group_values(self, name)
        if aggregate_behavior is None or not isinstance(value, list):
            return value
        return _COMBINE[aggregate_behavior](value)

    def _bind_metric(
        self,
        name: str,
        metric_reader: Callable[..., Any],
        replicated_merger: Callable[[Any], Any],
        sharded_merger: Callable[[Any], Any],
        normal_merger: Callable[[Any], Any] = lambda value: value,
    ) -> None:
        mergers = replicated_merger, sharded_merger, normal_merger
        self._readers[name] = metric_reader, dict(zip((*_MODES, None), mergers, strict=True))

    def _get_metric(self, name: str, *args: Any, **kwargs: Any) -> Any:
        reader, mergers = self._readers[name]
        return mergers[self.distributed_mode](reader(*args, **kwargs))


def group_values(optimizer: Optimizer, name: str) -> list[float]:
    """Return an entry of each param group."""
    return [float(group[name]) for group in optimizer.param_groups]


def target_of(optimizer: Optimizer) -> str | None:
    """Return what 0.8.5 scheduled as the wrapper's "lr"; None where that was no other entry."""
    return next((name for name in _AS_LR if name in getattr(optimizer, "strictest", ())), None)


def _decides(kind: type[OptimizerWrapper]) -> bool:
    return kind.should_step is not OptimizerWrapper.should_step
