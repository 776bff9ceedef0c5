"""Two optimizers joined are the same as two stepped by hand, also when saved, loaded and copied."""

import copy
import io
import pickle

import pytest
import torch
from torch.optim import SGD, AdamW

import gqc
from gqc import JoinedOptimizer


def make_generator(seed: int, name: str) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * seed + len(name))


def parameters():
    generator = make_generator(0, "parameters")
    return [torch.randn(n, 3, generator=generator, requires_grad=True) for n in (4, 2, 5)]


def make(p):
    """SGD of one group, AdamW of two."""
    groups = [{"params": [p[1]], "weight_decay": 0.5}, {"params": [p[2]], "lr": 0.2}]
    return [SGD([p[0]], lr=0.1, momentum=0.9), AdamW(groups, lr=0.1, fused=True)]


def train(p, optimizers, steps, start=0):
    for t in range(start, start + steps):
        generator = make_generator(t, "gradients")
        for tensor in p:
            tensor.grad = torch.randn(tensor.shape, generator=generator)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= 0.9
            optimizer.step()


def assert_equal(p, q):
    assert all(torch.equal(a, b) for a, b in zip(p, q, strict=True))


@pytest.fixture
def plain():
    p = parameters()
    train(p, make(p), 12)
    return p


def test_it_is_bitwise_the_optimizers_stepped_one_by_one(plain):
    p = parameters()
    train(p, [JoinedOptimizer(make(p))], 12)
    assert_equal(p, plain)


def test_optimizers_may_have_stepped_before_they_are_joined(plain):
    p = parameters()
    parts = make(p)
    train(p, parts, 5)
    train(p, [JoinedOptimizer(parts)], 7, start=5)
    assert_equal(p, plain)


def test_a_saved_one_goes_on_bitwise(plain):
    p = parameters()
    first = JoinedOptimizer(make(p))
    train(p, [first], 5)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    q = [t.detach().clone().requires_grad_() for t in p]
    second = JoinedOptimizer(make(q))
    second.load_state_dict(torch.load(file, weights_only=True))
    train(q, [second], 7, start=5)
    assert_equal(q, plain)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_goes_on_bitwise_and_leaves_the_original(plain, copied):
    p = parameters()
    first = JoinedOptimizer(make(p))
    train(p, [first], 5)
    before = [t.detach().clone() for t in p]
    second = copied(first)
    q = [t for group in second.param_groups for t in group["params"]]
    train(q, [second], 7, start=5)
    assert_equal(q, plain)
    assert_equal(p, before)


def test_parameters_without_a_gradient_stay():
    p = parameters()
    optimizer = JoinedOptimizer(make(p))
    p[0].grad = p[2].grad = None
    p[1].grad = torch.ones_like(p[1])
    optimizer.step()
    fresh = parameters()
    assert [torch.equal(a, b) for a, b in zip(p, fresh, strict=True)] == [True, False, True]


def test_a_closure_is_called_once_with_gradients():
    p = parameters()
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        for tensor in p:
            tensor.grad = torch.ones_like(tensor)
        return 1.5

    assert JoinedOptimizer(make(p)).step(closure) == 1.5
    assert calls == [True]


def test_what_belongs_to_none_or_to_two_is_refused():
    p = parameters()
    with pytest.raises(ValueError, match="empty"):
        JoinedOptimizer([])
    with pytest.raises(TypeError, match=r"int given: expected a torch\.optim\.Optimizer"):
        JoinedOptimizer([3])
    with pytest.raises(TypeError, match="LBFGS cannot be wrapped"):
        JoinedOptimizer([torch.optim.LBFGS(p[:1])])
    with pytest.raises(ValueError, match="more than one parameter group"):
        JoinedOptimizer([SGD(p[:2], lr=0.1), SGD(p[1:], lr=0.1)])
    optimizer = JoinedOptimizer(make(p))
    with pytest.raises(RuntimeError, match="further group for SGD, AdamW"):
        optimizer.add_param_group({"params": [torch.zeros(2, requires_grad=True)]})
    assert len(optimizer.param_groups) == 3


@pytest.mark.parametrize("accumulate", ["grad", "buffer"])
def test_a_wrapper_decides_once_for_all_of_them(accumulate):
    """By the norm over the parameters of both; each steps with its part of the mean."""
    p, q = parameters(), parameters()
    wrapper = gqc.OptimizerWrapperGNTS(
        JoinedOptimizer(make(p)), 4.0, max_draws=6, accumulate=accumulate
    )
    bare, lengths, window = make(q), [], []
    for t in range(40):
        window.append([torch.randn(x.shape, generator=make_generator(t, "draw")) for x in p])
        torch.autograd.backward(p, window[-1])
        stepped = wrapper.step()
        mean = [sum(parts) / len(window) for parts in zip(*window, strict=True)]
        norm = torch.cat([m.flatten() for m in mean]).norm()
        assert stepped is (bool(norm <= 4.0) or len(window) == 6)
        if stepped:
            for tensor, grad in zip(q, mean, strict=True):
                tensor.grad = grad
            for optimizer in bare:
                optimizer.step()
            lengths.append(len(window))
            window = []
    assert len(set(lengths)) > 1
    for a, b in zip(p, q, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


class Quantized(SGD):
    """Momentum in bytes, as 8-bit optimizers have it, which torch's own loading makes floats."""

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            assert state.setdefault("bytes", torch.full((2,), 7, dtype=torch.uint8)).sum() == 14
            assert state["bytes"].dtype == torch.uint8

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state["bytes"] = state["bytes"].to(torch.uint8)


@pytest.mark.parametrize("wrap", [lambda o: o, lambda o: gqc.OptimizerWrapperSBC(o, 1, 1)])
def test_each_member_loads_its_part_in_its_own_way(wrap):
    def make_both():
        p = parameters()
        return p, JoinedOptimizer([SGD(p[:1], lr=0.1, momentum=0.9), Quantized(p[1:], lr=0.1)])

    p, joined = make_both()
    train(p, [joined], 2)
    state = copy.deepcopy(wrap(joined).state_dict())
    q, other = make_both()
    schedule = gqc.schedules.get_linear_schedule(other.optimizers[0], 0.3, 0.1, 9, key="lr")
    wrap(other).load_state_dict(state)
    assert [group["lr"] for group in other.param_groups] == [0.1 * 0.9 * 0.9] * 2
    with pytest.raises(RuntimeError, match="load both"):
        schedule.step()
    for param, (a, b) in zip(q, zip(p, p, strict=True), strict=True):
        param.data.copy_(a)
        assert other.state[param].keys() == joined.state[b].keys()
    train(p, [joined], 3, start=2)
    train(q, [other], 3, start=2)
    assert_equal(p, q)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=r"groups of \[1\] parameters: expected \[1, 2\]"):
        other.load_state_dict(SGD(p[:1], lr=9.0).state_dict())
    assert other.state_dict()["param_groups"] == before["param_groups"]


def test_a_member_that_saves_more_by_a_hook_is_refused():
    p = parameters()
    member = SGD(p[:1], lr=0.1)
    member.register_state_dict_post_hook(lambda optimizer, state: {**state, "mine": 1})
    with pytest.raises(TypeError, match="would lose what SGD saves beside its state"):
        JoinedOptimizer([member, SGD(p[1:], lr=0.1)])


class CountsForAll(SGD):
    """Keeps its number of steps once for all parameters, as MADGRAD does, from the first one on."""

    def step(self, closure=None):
        self.state["k"] = self.state.get("k", 0) + 1
        super().step(closure)


def test_two_that_keep_something_for_all_their_parameters_are_refused_not_mixed():
    p = parameters()
    alone = gqc.JoinedOptimizer([CountsForAll([p[0]], lr=0.1), SGD([p[1]], lr=0.1)])
    two = gqc.JoinedOptimizer([CountsForAll([p[0]], lr=0.1), CountsForAll([p[1]], lr=0.1)])
    for tensor in p:
        tensor.grad = torch.ones_like(tensor)
    for _ in range(2):
        alone.step()
    assert alone.state["k"] == 2
    with pytest.raises(TypeError, match=r"two CountsForAll, each with \['k'\] .*join one"):
        two.step()
