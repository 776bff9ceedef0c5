"""Random programs of what a loop may do, against a slow model of what the mean must be.

The model keeps the draws of the open window as lists of numbers in float64; after each step the
parameters must have moved by minus their weighted mean, and by nothing else.
"""

from __future__ import annotations

import copy
import io
import math
import warnings

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import gqc

numbers = st.integers(-8, 8)
weights = st.sampled_from([None, 1, 2, 5])
THRESHOLD = math.sqrt(math.pi)  # the norm of no mean of integers


class Programs(RuleBasedStateMachine):
    """A wrapper, two parameters of one element, and a model.

    SBC draws ``size`` units of weight; GNTS until the norm is small, or there are ``size`` draws.
    """

    @initialize(
        size=st.integers(1, 6),
        accumulate=st.sampled_from(["grad", "buffer"]),
        loss=st.sampled_from(["mean", "sum"]),
        clip=st.sampled_from([None, 2.0]),
        reads_norms=st.booleans(),
    )
    def start(self, size, accumulate, loss, clip, reads_norms):
        self.params = [torch.zeros(1, requires_grad=True) for _ in range(2)]
        self.options = {"accumulate": accumulate, "loss": loss, "clip_norm": clip}
        self.size, self.reads_norms = size, reads_norms
        self.wrapper = self.make(self.params)
        self.is_buffer, self.is_sum, self.clip = accumulate == "buffer", loss == "sum", clip
        self.window: list[tuple[float, list[float]]] = []  # (weight, gradient of each parameter)
        self.is_given = False  # has the window weights that were given?
        self.coming: list[float] | None = None  # what .grad holds beside the window
        self.is_clipped = False  # .grad was changed after the last backward
        self.is_unwatched = False  # a group came behind the wrapper's back since the last draw
        self.expected = [0.0, 0.0]

    def make(self, params):
        groups = [{"params": [p]} for p in params]
        sgd = torch.optim.SGD(groups, lr=1.0)
        if self.reads_norms:
            return gqc.OptimizerWrapperGNTS(sgd, THRESHOLD, max_draws=self.size, **self.options)
        return gqc.OptimizerWrapperSBC(sgd, 1, self.size, **self.options)

    def mean(self) -> tuple[list[float], float]:
        """Return the mean of the window, and its norm."""
        total = sum(w for w, _ in self.window)
        factors = [1.0 if self.is_sum else w for w, _ in self.window]
        sums = [
            sum(f * g[i] for f, (_, g) in zip(factors, self.window, strict=True))
            for i in range(len(self.expected))
        ]
        mean = [value / total for value in sums]
        return mean, math.hypot(*mean)

    def closes(self) -> bool:
        if self.reads_norms:
            return len(self.window) == self.size or self.mean()[1] <= THRESHOLD
        return sum(w for w, _ in self.window) >= self.size

    def close(self) -> None:
        mean, norm = self.mean()
        if self.clip is not None and norm > self.clip:
            mean = [value * self.clip / norm for value in mean]
        self.expected = [x - m for x, m in zip(self.expected, mean, strict=True)]
        self.window = []

    @rule(values=st.lists(numbers, min_size=4, max_size=4))
    def backward(self, values):
        """Another backward before the step adds to the same draw."""
        pairs = [(p, v) for p, v in zip(self.params, values, strict=False) if p.requires_grad]
        if not pairs:
            return
        sum((p * v).sum() for p, v in pairs).backward()
        before = self.coming or [0.0] * len(self.params)
        self.coming = [
            b + (v if p.requires_grad else 0.0)
            for b, p, v in zip(before, self.params, values, strict=False)
        ]
        if self.is_clipped and not self.is_buffer:
            self.reset()  # a changed sum that another backward hides: seen only at the step

    def reset(self) -> None:
        self.wrapper.discard()
        self.window, self.coming, self.is_clipped = [], None, False

    @precondition(lambda self: self.coming is not None and not self.is_unwatched)
    @rule(limit=st.sampled_from([1.0, 3.0]))
    def clip_draw(self, limit):
        for i, p in enumerate(self.params):
            if p.grad is not None:
                p.grad.clamp_(-limit, limit)
                self.coming[i] = min(max(self.coming[i], -limit), limit)
        self.is_clipped = True

    @rule(weight=weights)
    def step(self, weight):
        if self.is_sum and weight is None:
            weight = 1
        own = 1 if weight is None else weight
        is_unequal = any(w != own for w, _ in self.window) and not self.is_sum
        is_mixed = self.reads_norms and bool(self.window) and self.is_given == (weight is None)
        refused = self.coming is None or is_mixed
        refused |= not self.is_buffer and (is_unequal or self.is_clipped)
        if refused:
            with pytest.raises((RuntimeError, ValueError)):
                self.wrapper.step(weight=weight)
            if self.coming is not None:
                self.reset()
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # norms of clipped draws, tested elsewhere
            stepped = self.wrapper.step(weight=weight)
        self.window.append((own, self.coming))
        self.is_given = weight is not None
        self.coming, self.is_clipped, self.is_unwatched = None, False, False
        assert stepped == self.closes()
        if stepped:
            self.close()

    @rule(set_to_none=st.booleans())
    def zero_grad(self, set_to_none):
        if self.window and not self.is_buffer:
            if self.coming is None:
                return  # a warning, tested elsewhere
            with pytest.raises(RuntimeError):  # it is in the sum
                self.wrapper.zero_grad(set_to_none=set_to_none)
            return
        self.wrapper.zero_grad(set_to_none=set_to_none)
        self.coming, self.is_clipped, self.is_unwatched = None, False, False

    @rule()
    def flush(self):
        if self.coming is not None and self.window:
            with pytest.raises(RuntimeError):
                self.wrapper.flush()
            return
        assert self.wrapper.flush() is bool(self.window)
        if self.window:
            self.close()

    @rule()
    def discard(self):
        self.reset()

    @precondition(lambda self: self.coming is None)
    @rule()
    def save_and_load(self):
        file = io.BytesIO()
        torch.save(self.wrapper.state_dict(), file)
        file.seek(0)
        frozen = [not p.requires_grad for p in self.params]
        self.params = [p.detach().clone().requires_grad_() for p in self.params]
        for param, is_frozen in zip(self.params, frozen, strict=True):
            param.requires_grad_(not is_frozen)
        self.wrapper = self.make(self.params)
        self.wrapper.load_state_dict(torch.load(file, weights_only=True))

    @precondition(lambda self: self.coming is None)
    @rule()
    def copy_deeply(self):
        self.params, self.wrapper = copy.deepcopy((self.params, self.wrapper))

    @precondition(lambda self: self.coming is None)
    @rule()
    def copy_shallowly(self):
        if self.window:
            with pytest.raises(RuntimeError):
                copy.copy(self.wrapper)
        else:
            self.wrapper = copy.copy(self.wrapper)

    @rule(index=st.integers(0, 3))
    def freeze_or_thaw(self, index):
        param = self.params[index % len(self.params)]
        param.requires_grad_(not param.requires_grad)

    @precondition(lambda self: len(self.params) < 4)
    @rule(through_wrapper=st.booleans())
    def add_group(self, through_wrapper):
        param = torch.zeros(1, requires_grad=True)
        target = self.wrapper if through_wrapper else self.wrapper.optimizer
        target.add_param_group({"params": [param]})
        self.is_unwatched |= not through_wrapper
        self.params.append(param)
        self.expected.append(0.0)
        self.window = [(w, [*g, 0.0]) for w, g in self.window]
        if self.coming is not None:
            self.coming = [*self.coming, 0.0]

    @invariant()
    def parameters_are_where_the_model_says(self):
        if not hasattr(self, "wrapper"):
            return
        assert self.wrapper.num_draws == len(self.window)
        for param, expected in zip(self.params, self.expected, strict=True):
            # float32 sums of some 50 steps of numbers up to 100
            assert abs(param.item() - expected) <= 1e-4 * (1 + abs(expected))


TestPrograms = Programs.TestCase
TestPrograms.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def run(*steps) -> None:
    """One program that was found once: the names of rules, with their arguments."""
    state = Programs()
    state.start(size=2, accumulate="grad", loss="mean", clip=None, reads_norms=False)
    for name, *arguments in steps:
        getattr(state, name)(*arguments)
        state.parameters_are_where_the_model_says()
    state.teardown()


FROZEN = (("freeze_or_thaw", 0), ("freeze_or_thaw", 1))
BACKWARD = ("backward", [1, 2, 3, 4])


def test_a_discarded_backward_is_not_that_of_a_group_added_behind_the_wrapper():
    run(BACKWARD, ("discard",), ("add_group", False), *FROZEN, BACKWARD, ("step", None))


def test_zeros_left_by_zero_grad_are_no_change_of_the_draw_after_them():
    before = (BACKWARD, *FROZEN, ("zero_grad", False), ("add_group", False))
    run(*before, BACKWARD, ("step", None), ("copy_deeply",))


def test_a_gradient_that_came_before_its_group_was_watched_is_a_draw():
    run(*FROZEN, ("add_group", False), ("step", None), BACKWARD, ("add_group", True), ("step", 2))
