"""Schedules that their wrapper steps and saves, so that no trainer has to know of them."""

from collections.abc import Callable, Iterator
from typing import Any

from torch.optim import Optimizer

from gqc.schedules import ParamGroupSchedule
from gqc.wrappers import OptimizerWrapper, OptimizerWrapperMHT
from gqc.wrappers.delegate import SCHEDULES


def attach(*schedules: ParamGroupSchedule) -> OptimizerWrapper:
    """Let the wrapper step ``schedules`` after each draw, and keep them in its ``state_dict()``.

    A schedule then advances once per ``wrapper.step()`` (once per microbatch, or per accumulated
    microbatch where the trainer accumulates) at any number of processes, and whoever saves and
    loads the optimizer saves and loads its schedules, before or after they are attached.  Calling
    ``schedule.step()`` is an error from here on.  A checkpoint from before keeps the schedules
    where they are.

    Args:
        schedules: of one wrapper, each of another key, none attached yet.  A copy of the wrapper
            has none attached, and says so at its first draw.
    Returns: the wrapper.
    Raises:
        TypeError: not a schedule, or one of an optimizer that is no wrapper.
        ValueError: schedules of different wrappers, two of one key, or one that is attached.
    """
    wrapper = _check(schedules)
    keys: dict[str, ParamGroupSchedule] = {schedule.key: schedule for schedule in schedules}

    def advance(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for schedule in schedules:
            schedule.go_to(schedule.last_step + 1)

    def save(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        own = {key: schedule.state_dict() for key, schedule in keys.items()}
        return {**state, SCHEDULES: {**state.get(SCHEDULES, {}), **own}}

    def load(optimizer: Any) -> None:
        for key in optimizer.loaded_schedules.keys() & keys.keys():
            keys[key].load_state_dict(optimizer.loaded_schedules.pop(key))

    wrapper.register_step_post_hook(advance)
    wrapper.register_state_dict_post_hook(save)
    wrapper.register_load_state_dict_post_hook(load)
    load(wrapper)  # of a file that was loaded before
    for schedule in schedules:
        if schedule._optimizer_was_loaded:  # from a file that had no schedules
            schedule.go_to(schedule.last_step)
        schedule.is_attached = True
    wrapper.attached = (*wrapper.attached, *keys)
    return wrapper


def wrappers_in(*optimizers: Any) -> list[OptimizerWrapper]:
    """Return the wrappers among ``optimizers``, also inside what a trainer put around them.

    Raises: ValueError: there is none.
    """
    found = []
    for optimizer in optimizers:
        while optimizer is not None and not isinstance(optimizer, OptimizerWrapper):
            optimizer = getattr(optimizer, "optimizer", getattr(optimizer, "_optimizer", None))
        found += [optimizer] if optimizer is not None else []
    if not found:
        raise ValueError(
            "the Trainer has no wrapper of gqc: pass optimizers=(wrapper, None) to that of Hugging "
            "Face; in Lightning return it from configure_optimizers()"
        )
    return found


def refuse_clipping(name: str, value: float | None, wrapper: OptimizerWrapper) -> None:
    """Raise ValueError where a trainer would clip each draw, before the wrapper reads it."""
    if value:
        raise ValueError(
            f"{name}={value:g} clips each draw before {type(wrapper).__name__} reads it, not the "
            f"gradient that it steps with: pass {name}=0 to the trainer and clip_norm={value:g} to "
            "the wrapper"
        )


def refuse_metric(trainer: str, wrapper: OptimizerWrapper) -> None:
    """Raise ValueError where no draw would be accepted, since each comes without a metric."""
    is_read = any(isinstance(each, OptimizerWrapperMHT) for each in within(wrapper))
    if is_read and not wrapper._optimizer_step_pre_hooks:  # one may add it to the keywords
        raise ValueError(
            f"{trainer} calls step() without metric=, so OptimizerWrapperMHT would discard each "
            "draw: add it in wrapper.register_step_pre_hook(), or use another wrapper"
        )


def within(wrapper: Any) -> Iterator[OptimizerWrapper]:
    """Yield ``wrapper`` and those in it, the outer ones first."""
    while isinstance(wrapper, OptimizerWrapper):
        yield wrapper
        wrapper = wrapper.optimizer


def finish(wrapper: OptimizerWrapper, flush: bool, warn: Callable[[str], Any]) -> None:
    """Step with the draws that are left at the end, or drop them and warn of it."""
    if wrapper.num_draws and flush:
        wrapper.flush()
    elif wrapper.num_draws:
        warn(f"{wrapper.num_draws} draws at the end were not stepped with")
        wrapper.discard()


def _check(schedules: tuple[ParamGroupSchedule, ...]) -> OptimizerWrapper:
    if not schedules:
        raise TypeError("attach() without a schedule: expected at least one")
    for schedule in schedules:
        if not isinstance(schedule, ParamGroupSchedule):
            raise TypeError(
                f"{type(schedule).__name__} cannot be attached: expected a schedule of gqc; hand "
                "torch's own to your trainer, or step it after each draw"
            )
        if schedule.is_attached:
            raise ValueError(f"the schedule of {schedule.key!r} is attached already")
    wrapper = schedules[0].optimizer
    if not isinstance(wrapper, OptimizerWrapper):
        raise TypeError(f"schedule of a {type(wrapper).__name__}: only wrappers step schedules")
    if any(schedule.optimizer is not wrapper for schedule in schedules):
        raise ValueError("schedules of different wrappers: attach those of each by themselves")
    keys = [*wrapper.attached, *(schedule.key for schedule in schedules)]
    if len({*keys}) < len(keys):
        raise ValueError(f"keys {keys}: two schedules of one key")
    return wrapper
