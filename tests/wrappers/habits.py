"""What people do in training loops, and what comes of it: the table of docs/wrappers.md, measured.

``python tests/wrappers/habits.py --write`` renews it, ``test_habits_table.py`` holds it to what is
measured.  Each habit is shown on one parameter under SGD with lr 1; "right" means that the
parameter moved by minus the mean gradient.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import gqc
from gqc.clipping import clip_before_step

PAGE = Path(__file__).parents[2] / "docs/wrappers.md"
BEGIN, END = "<!-- begin habits -->\n", "<!-- end habits -->"


@dataclass(frozen=True)
class Habit:
    """A row: ``run`` gets a parameter and a maker of its wrapper, and returns what should be 0."""

    title: str
    run: Callable[[Tensor, Callable[..., Any]], float]
    note: str = ""  #: to "right"
    remedy: str = ""  #: what the error has to name
    note_of_grad: str = ""  #: to "right" there, where it is another


def draw(x: Tensor, wrapper: Any, grad: float, **given: Any) -> None:
    (x * grad).sum().backward()
    wrapper.step(**given)


def clipped(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper = make(4)
    for _ in range(4):
        (10 * x).sum().backward()
        torch.nn.utils.clip_grad_norm_([x], 1.0)
        wrapper.step()
    return round(x.item() + 1.0, 5)


def unequal(x: Tensor, make: Callable[..., Any]) -> float:
    """Mean losses over 7 and over 1 examples whose gradients are 1 and 9."""
    wrapper = make(8)
    draw(x, wrapper, 1.0, weight=7), draw(x, wrapper, 9.0, weight=1)
    return x.item() + 2.0


def unequal_sums(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper = make(8, loss="sum")
    draw(x, wrapper, 7.0, weight=7), draw(x, wrapper, 9.0, weight=1)
    return x.item() + 2.0


def skipped(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper = make(2)
    draw(x, wrapper, 1.0)
    (1e6 * x).sum().backward()
    wrapper.zero_grad()
    draw(x, wrapper, 3.0)
    return x.item() + 2.0


def zeroed(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper = make(2)
    for grad in (1.0, 3.0):
        if x.grad is not None:
            x.grad.zero_()
        draw(x, wrapper, grad)
    return x.item() + 2.0


def not_finite(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper = make(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # says so once
        draw(x, wrapper, 1.0), draw(x, wrapper, float("nan")), draw(x, wrapper, 3.0)
    if wrapper.num_draws:  # the first draw went too
        draw(x, wrapper, 1.0)
    return x.item() + 2.0


def without_backward(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper = make(2)
    draw(x, wrapper, 1.0)
    wrapper.step()
    return x.item() + 1.0


def several_backwards(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper = make(2)
    for _ in range(2):
        (2 * x).sum().backward()
        draw(x, wrapper, 3.0)
    return x.item() + 5.0


def again_after_an_error(x: Tensor, make: Callable[..., Any], *, is_clipped: bool = False) -> float:
    wrapper = make(2)
    for weight in (-1, 1):
        x.sum().backward()
        if is_clipped:
            torch.nn.utils.clip_grad_norm_([x], 10.0)
        try:
            wrapper.step(weight=weight)
        except ValueError:
            continue
    draw(x, wrapper, 3.0, weight=1)
    return x.item() + 2.0


def clips_after_an_error(x: Tensor, make: Callable[..., Any]) -> float:
    return again_after_an_error(x, make, is_clipped=True)


def two_backwards_after_a_step(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper = make(2)
    x.sum().backward()
    wrapper.optimizer.step()
    for _ in range(2):
        (2 * x).sum().backward()
        draw(x, wrapper, 3.0)
    return x.item() + 6.0


class Broken(torch.autograd.Function):
    """``Broken.apply(x, error)`` is x; its backward fails, after that of what was used later."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, error: Exception) -> Tensor:
        ctx.error = error
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        raise ctx.error


def skips_what_broke_off(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper, y = make(2), torch.zeros(1, requires_grad=True)
    for loss in (x, Broken.apply(y, MemoryError()) + 100 * x, 3 * x):
        try:
            loss.sum().backward()
        except MemoryError:
            continue
        wrapper.step()
    return x.item() + 2.0


def steps_with_what_broke_off(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper, y = make(1), torch.zeros(1, requires_grad=True)
    with contextlib.suppress(MemoryError):
        (Broken.apply(y, MemoryError()) + 100 * x).sum().backward()
    wrapper.step()
    return x.item()


def tries_again(x: Tensor, make: Callable[..., Any]) -> float:
    """After ``model.zero_grad()``."""
    wrapper, y = make(1), torch.zeros(1, requires_grad=True)
    with contextlib.suppress(MemoryError):
        (Broken.apply(y, MemoryError()) + 100 * x).sum().backward()
    x.grad = None
    draw(x, wrapper, 3.0)
    return x.item() + 3.0


def with_graph(x: Tensor, grad: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of torch: a cycle
        ((x + 1).square() * grad / 2).sum().backward(create_graph=True)


class Newton(torch.optim.Optimizer):
    """Divide each gradient by its own derivative."""

    def __init__(self, params: list[Tensor]) -> None:
        super().__init__(params, {"lr": 1.0})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for param in self.param_groups[0]["params"]:
            with torch.enable_grad():
                curvature = torch.autograd.grad(param.grad.sum(), param)[0]
            param.data -= param.grad.detach() / curvature


def second_order(x: Tensor, make: Callable[..., Any]) -> float:
    place = "grad" if make(2).sums_in_grad else "buffer"
    wrapper = gqc.OptimizerWrapperSBC(Newton([x]), 1, 2, accumulate=place)
    for grad in (1.0, 3.0):
        with_graph(x, grad)
        wrapper.step()
    return x.item() + 1.0


def in_another_order(x: Tensor, make: Callable[..., Any]) -> float:
    y, place = torch.zeros(1, requires_grad=True), "grad" if make(2).sums_in_grad else "buffer"
    named = [("x", x), ("y", y)]
    first, second = (
        gqc.OptimizerWrapperSBC(torch.optim.SGD(params, lr=1.0), 1, 2, accumulate=place)
        for params in (named, named[::-1])
    )
    draw(x, first, 1.0)
    second.load_state_dict(first.state_dict())
    draw(x, second, 1.0)
    return x.item() + 1.0


def graph_after_an_error(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper = make(1)
    for weight in (-1, 1):
        with_graph(x, 1.0)
        with contextlib.suppress(ValueError):
            wrapper.step(weight=weight)
    return x.item() + 1.0


def cleared_with_graph(x: Tensor, make: Callable[..., Any]) -> float:
    """By ``model.zero_grad()`` before each ``backward``."""
    wrapper = make(2)
    for grad in (1.0, 3.0):
        x.grad = None
        with_graph(x, grad)
        wrapper.step()
    return x.item() + 2.0


def two_wrappers(x: Tensor, make: Callable[..., Any]) -> float:
    first, y = make(1), torch.zeros(1, requires_grad=True)
    second = gqc.OptimizerWrapperSBC(torch.optim.SGD([x, y], lr=1.0), 1, 1)
    (x + y).sum().backward()
    first.step(), second.step()
    return x.item() + 2.0


def closure(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper, grads = make(1), iter([1.0, 3.0])

    def evaluate() -> Tensor:
        wrapper.zero_grad()
        loss = (x * next(grads)).sum()
        loss.backward()
        return loss

    wrapper.step(evaluate), wrapper.step(evaluate)
    return x.item() + 4.0


def checkpointed(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper = make(2)
    for grad in (1.0, 3.0):
        doubled = checkpoint(torch.add, x, x, use_reentrant=True)
        (checkpoint(torch.mul, doubled, grad, use_reentrant=True) / 2).sum().backward()
        wrapper.step()
    return x.item() + 2.0


def in_inference_mode(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper = make(2)
    for grad in (1.0, 3.0):
        (x * grad).sum().backward()
        with torch.inference_mode():
            wrapper.step()
    return x.item() + 2.0


def copied(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper = make(2)
    draw(x, wrapper, 1.0)
    twin, its = copy.deepcopy((x, wrapper))
    draw(twin, its, 3.0), draw(x, wrapper, 3.0)
    return max(abs(x.item() + 2.0), abs(twin.item() + 2.0))


def attacked(x: Tensor, make: Callable[..., Any]) -> float:
    """The gradient of the inputs is computed first, for adversarial examples."""
    wrapper, inputs = make(2), torch.ones(1, requires_grad=True)
    for grad in (1.0, 3.0):
        (100 * x * inputs).sum().backward(inputs=[inputs])
        draw(x, wrapper, grad)
    return x.item() + 2.0


def frozen_in_mid_window(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper, y = make(2), torch.zeros(1, requires_grad=True)
    draw(x, wrapper, 4.0)
    x.requires_grad_(False)
    wrapper.add_param_group({"params": [y]})
    draw(y, wrapper, 1.0)
    return x.item() + 2.0


def other_parameters(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper, y = make(2), torch.zeros(1, requires_grad=True)
    draw(x, wrapper, 1.0), draw(x, wrapper, 3.0)
    wrapper.param_groups[0]["params"] = [y]
    draw(y, wrapper, 1.0), draw(y, wrapper, 3.0)
    return max(abs(x.item() + 2.0), abs(y.item() + 2.0))


def left_before(x: Tensor, make: Callable[..., Any]) -> float:
    (100 * x).sum().backward()
    wrapper = make(2)
    draw(x, wrapper, 1.0), draw(x, wrapper, 3.0)
    return x.item() + 2.0


def added_late(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper, y = make(2), torch.zeros(1, requires_grad=True)
    (x + 100 * y).sum().backward()  # y is not in the optimizer yet, which clears no others
    wrapper.step()
    wrapper.add_param_group({"params": [y]})
    (3 * x + 4 * y).sum().backward()
    wrapper.step()
    return max(abs(x.item() + 2.0), abs(y.item() + 2.0))


def removed(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper, y = make(2), torch.zeros(1, requires_grad=True)
    wrapper.add_param_group({"params": [y]})
    for grad in (1.0, 3.0, 1.0, 3.0):
        wrapper.param_groups[1]["params"] = [y] if y.item() == 0 else []
        ((x + y) * grad).sum().backward()
        wrapper.step()
    return max(abs(x.item() + 4.0), abs(y.item() + 2.0))


def left_before_loading(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper = make(2)
    state = copy.deepcopy(wrapper.state_dict())
    (100 * x).sum().backward()
    wrapper.load_state_dict(state)
    draw(x, wrapper, 1.0), draw(x, wrapper, 3.0)
    return x.item() + 2.0


def stepped_between(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper = make(2)
    (100 * x).sum().backward()
    wrapper.optimizer.step()
    draw(x, wrapper, 1.0), draw(x, wrapper, 3.0)
    return x.item() + 102.0


def shared(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper, y = make(2), torch.zeros(1, requires_grad=True)
    wrapper.add_param_group({"params": [y]})
    for grad in (1.0, 3.0):
        ((x[None] + y[None]) * grad).sum().backward()
        wrapper.step()
    return x.item() + y.item() + 4.0


def hand_made(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper = make(1)
    x.grad = torch.ones(1)
    wrapper.step()
    return x.item() + 1.0


def reused(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper, own = make(2), torch.zeros(1)
    for grad in (1.0, 3.0):
        x.grad = own.fill_(grad)
        wrapper.step()
    return x.item() + 2.0


def interrupted(x: Tensor, make: Callable[..., Any]) -> float:
    """In the middle of the wrapped optimizer's step; then the loop goes on."""
    wrapper = make(2)

    def fail(*_: Any) -> None:
        handle.remove()
        raise KeyboardInterrupt

    handle = wrapper.optimizer.register_step_pre_hook(fail)
    draw(x, wrapper, 10.0)
    try:
        draw(x, wrapper, 10.0)
    except KeyboardInterrupt:
        draw(x, wrapper, 1.0), draw(x, wrapper, 3.0)
    return x.item() + 2.0


def stepped_apart(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper = make(2)
    draw(x, wrapper, 1.0)
    wrapper.optimizer.step()
    draw(x, wrapper, 3.0)
    return x.item() + 2.0


def to_bfloat16(x: Tensor, make: Callable[..., Any]) -> float:
    x.data = x.data.bfloat16()
    wrapper = make(512)
    for _ in range(512):
        draw(x, wrapper, 1.0)
    return x.item() + 1.0


def compiled(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper = make(2)

    def train(grad: float) -> None:
        draw(x, wrapper, grad)

    step = torch.compile(train, backend="eager")
    step(1.0), step(3.0)
    return x.item() + 2.0


def resumed(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper = make(2)
    draw(x, wrapper, 1.0)
    state = copy.deepcopy(wrapper.state_dict())
    wrapper = make(2)
    wrapper.load_state_dict(state)
    draw(x, wrapper, 3.0)
    return x.item() + 2.0


def loaded_inside(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper = make(2)
    state = wrapper.optimizer.state_dict()
    draw(x, wrapper, 100.0)
    wrapper.optimizer.load_state_dict(state)
    draw(x, wrapper, 1.0)
    draw(x, wrapper, 3.0)
    return x.item() + 2.0


def saved_by_a_wrapper(x: Tensor, make: Callable[..., Any]) -> dict[str, Any]:
    wrapper = make(2)
    draw(x, wrapper, 1.0)
    return copy.deepcopy(wrapper.state_dict())


def loaded_into_the_wrapped(x: Tensor, make: Callable[..., Any]) -> float:
    state, wrapper = saved_by_a_wrapper(x, make), make(2)
    wrapper.optimizer.load_state_dict(state)
    draw(x, wrapper, 3.0)
    return x.item() + 2.0


def loaded_before_wrapping(x: Tensor, make: Callable[..., Any]) -> float:
    sgd = torch.optim.SGD([x], lr=1.0)
    sgd.load_state_dict(saved_by_a_wrapper(x, make))
    draw(x, gqc.OptimizerWrapperSBC(sgd, 1, 2), 3.0)
    return x.item() + 2.0


def saved_in_the_step(x: Tensor, make: Callable[..., Any]) -> float:
    """By a hook of the wrapped optimizer, or a signal's handler."""
    wrapper = make(1)
    wrapper.optimizer.register_step_post_hook(lambda *_: wrapper.state_dict())
    draw(x, wrapper, 1.0)
    return x.item() + 1.0


def wrapped_again(x: Tensor, make: Callable[..., Any]) -> float:
    optimizer: Any = torch.optim.SGD([x], lr=1.0)
    for _ in range(2):
        optimizer = gqc.OptimizerWrapperVGS(optimizer)
    draw(x, optimizer, 1.0)
    return x.item() + 1.0


def scheduled_after_a_load(x: Tensor, make: Callable[..., Any]) -> float:
    """As torch's tutorials order it, and the schedule's own state is forgotten."""
    key, values = "logical_batch_size", (4.0, 1.0, 10)
    wrapper = make(1)
    schedule = gqc.schedules.get_linear_schedule(wrapper, *values, key=key)
    for _ in range(4):
        draw(x, wrapper, 1.0)
        schedule.step()
    resumed = make(1)
    resumed.load_state_dict(copy.deepcopy(wrapper.state_dict()))
    again = gqc.schedules.get_linear_schedule(resumed, *values, key=key)
    draw(x, resumed, 1.0)
    again.step()
    return resumed.tunable(key) - 2.5


def clipped_twice(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper = make(1)
    for bound in (0.5, 2.0):
        clip_before_step(wrapper.optimizer, bound)
    draw(x, wrapper, 10.0)
    return x.item() + 2.0


def misspelt(x: Tensor, make: Callable[..., Any]) -> float:
    return make(2, max_draw=4).num_draws


def replaced(x: Tensor, make: Callable[..., Any]) -> float:
    wrapper = make(2)
    draw(x, wrapper, 1.0)
    wrapper.param_groups[0]["params"][0] = y = torch.zeros(1, requires_grad=True)
    draw(y, wrapper, 3.0)
    return x.item() + 2.0


def scaled_again(x: Tensor, make: Callable[..., Any]) -> float:
    scaler = gqc.VarianceGradientScaler([x])
    for _ in range(2):
        x.sum().backward()
        scaler.scale_gradients()
    return x.grad.item() - 2.0


def frozen(x: Tensor, make: Callable[..., Any]) -> float:
    """A tensor of pure noise reads the largest V there is, until it is frozen."""
    noisy = torch.zeros(1, requires_grad=True)
    scaler = gqc.VarianceGradientScaler([x, noisy], aggregate="max")
    for t in range(40):
        noisy.requires_grad_(t < 20)
        x.grad, noisy.grad = torch.ones(1), torch.ones(1) * (-1) ** t if t < 20 else None
        scaler.scale_gradients()
        scaler.step()
    return scaler.get_normalized_variance()


def misspelt_in_a_group(x: Tensor, make: Callable[..., Any]) -> float:
    optimizer = gqc.UPGD([x], lr=1.0)
    optimizer.param_groups[0]["normalization"] = "min_max"
    x.sum().backward()
    optimizer.step()
    return x.item()


BUFFER, SUM = 'accumulate="buffer"', 'accumulate="grad"'
HABITS = (
    Habit("clip between `backward()` and `step()`", clipped, "clips each draw", "clip_norm="),
    Habit("unequal microbatches, `step(weight=n)`", unequal, remedy='loss="sum"'),
    Habit('the same with summed losses, `loss="sum"`', unequal_sums),
    Habit("`zero_grad()` after `backward()`", skipped, "drops that microbatch", BUFFER),
    Habit("zeroing `.grad` in place before `backward()`", zeroed, "not needed", BUFFER),
    Habit("a NaN or infinite gradient", not_finite, "discarded", "", "drops the window"),
    Habit("`step()` without `backward()`", without_backward, remedy="loss.backward()"),
    Habit("several `backward()` before one `step()`", several_backwards, "one draw, their sum"),
    Habit("`backward()` again after a refused `step()`", again_after_an_error, "", "zero_grad()"),
    Habit("the same, clipped between the two", clips_after_an_error, "", "zero_grad()"),
    Habit("a batch whose `backward()` ran out of memory", skips_what_broke_off, "", "zero_grad()"),
    Habit(
        "`step()` with what such a `backward()` left", steps_with_what_broke_off, "", "zero_grad()"
    ),
    Habit("that batch again after `model.zero_grad()`", tries_again),
    Habit(
        "`backward(create_graph=True)` after a refused `step()`",
        graph_after_an_error,
        remedy="zero_grad()",
    ),
    Habit("`model.zero_grad()` each time, `create_graph=True`", cleared_with_graph, "", BUFFER),
    Habit("AdaHessian and the like, which differentiate `.grad`", second_order, "", SUM),
    Habit("`step(closure)` that clears and goes back", closure),
    Habit("reentrant `torch.utils.checkpoint`", checkpointed),
    Habit("`step()` in `torch.inference_mode()`", in_inference_mode),
    Habit("adversarial examples, `backward(inputs=[images])`", attacked),
    Habit("a gradient from before the wrapper was made", left_before, "no draw"),
    Habit("one from before `add_param_group()`, of an added layer", added_late, "no draw"),
    Habit("a gradient from before a checkpoint was loaded", left_before_loading, "no draw"),
    Habit("two parameters in one sum, `p[None] + q[None]`", shared, "torch alone sums 7 for 4"),
    Habit("`.grad` set by hand", hand_made, remedy=BUFFER),
    Habit("`.grad` set to the same tensor each time", reused, "copied", BUFFER),
    Habit("an error or interrupt in mid-step", interrupted, "the window is dropped"),
    Habit("`step()` of the wrapped optimizer in mid-window", stepped_apart, remedy="flush()"),
    Habit("the same between windows, no `zero_grad()`", stepped_between, "", "zero_grad()"),
    Habit("the same, and two `backward()` next", two_backwards_after_a_step, "", "zero_grad()"),
    Habit("two wrappers, shared parameters, one `backward()`", two_wrappers, "", "its own"),
    Habit("512 draws of a 16-bit parameter", to_bfloat16, "summed in float32", BUFFER),
    Habit("a plain checkpoint loaded inside, in mid-window", loaded_inside, "drops the window"),
    Habit("`torch.compile` around the train step", compiled),
    Habit("save and resume in mid-window", resumed),
    Habit("the same, named parameters in another order", in_another_order, "", "same order"),
    Habit(
        "a wrapper's state loaded into the optimizer inside",
        loaded_into_the_wrapped,
        remedy="wrapper.load_state_dict(...)",
    ),
    Habit(
        "the same into one that is wrapped afterwards",
        loaded_before_wrapping,
        remedy="wrapper.load_state_dict(...)",
    ),
    Habit("a file saved while the wrapped optimizer steps", saved_in_the_step, remedy="on_step="),
    Habit(
        "a schedule made after its wrapper was loaded", scheduled_after_a_load, remedy="load both"
    ),
    Habit(
        "`copy.deepcopy((model, wrapper))` in mid-window", copied, "`attach()` its schedules again"
    ),
    Habit("a layer frozen in mid-window", frozen_in_mid_window, "zero in later draws"),
    Habit("a misspelt option, `max_draw=4`", misspelt, remedy="max_draws"),
    Habit("a cell that wraps the optimizer and runs again", wrapped_again, remedy="wrap once"),
    Habit("the same with `clip_before_step`", clipped_twice, remedy="remove()"),
    Habit("a parameter replaced in mid-window", replaced, remedy="replaced"),
    Habit("the same between windows", other_parameters),
    Habit("a group emptied between windows", removed),
    Habit(
        "VGS: `scale_gradients()` at each `backward()`",
        scaled_again,
        remedy="once per optimizer step",
    ),
    Habit("VGS: a layer is frozen in mid-run", frozen, "counts no more"),
    Habit("UPGD: a misspelt value in `param_groups`", misspelt_in_a_group, remedy="minmax"),
)


def outcome(habit: Habit, accumulate: str) -> str:
    """What a habit leads to, in the words of the table."""
    x = torch.zeros(1, requires_grad=True)

    def make(logical: int, **options: Any) -> Any:
        sgd = torch.optim.SGD([x], lr=1.0)
        return gqc.OptimizerWrapperSBC(sgd, 1, logical, accumulate=accumulate, **options)

    try:
        error = habit.run(x, make)
    except (RuntimeError, TypeError, ValueError) as refusal:
        if habit.remedy and habit.remedy in str(refusal):
            return f"{type(refusal).__name__}: `{habit.remedy}`"
        raise
    if error:
        return f"wrong by {error:g}"
    note = (accumulate == "grad" and habit.note_of_grad) or habit.note
    return f"right: {note}" if note else "right"


def table() -> str:
    lines = ["| habit | in the buffer (default) | in `.grad` |", "|---|---|---|"]
    for habit in HABITS:
        cells = (habit.title, outcome(habit, "buffer"), outcome(habit, "grad"))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def of_page() -> str:
    return PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]


if __name__ == "__main__":
    text = table()
    if sys.argv[1:] == ["--write"]:
        whole = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(whole.replace(BEGIN + of_page(), BEGIN + text), encoding="utf-8")
    sys.stdout.write(text)
