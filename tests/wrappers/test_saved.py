"""The layout of checkpoints under ``torch.distributed``, which one process can read and write."""

import io

import pytest
import torch
from cases import CASES
from problems import backward, parameters, stream

from gqc.wrappers.saved import is_asked_for_state, make_state, pack, unpack


def adamw(params):
    return torch.optim.AdamW(params, lr=0.05)


def feed(wrapper, params, draws) -> list[bool]:
    stepped = []
    for i, grads in enumerate(draws):
        backward(params, grads)
        stepped.append(wrapper.step(metric=1.0 + 0.1 * (i % 3)))
    return stepped


@pytest.mark.parametrize("cut", [0, 10, 11, 12])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_file_of_several_ranks_continues_in_one_process(case, cut):
    draws, first = stream(30), parameters()
    wrapper = case.make(adamw(first))
    feed(wrapper, first, draws[:cut])
    file = io.BytesIO()
    torch.save(pack(wrapper.state_dict(), first), file)
    file.seek(0)
    second = [p.detach().clone().requires_grad_() for p in first]
    resumed = case.make(adamw(second))
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.statistics() == wrapper.statistics()
    assert feed(resumed, second, draws[cut:]) == feed(wrapper, first, draws[cut:])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_what_was_not_loaded_is_missed():
    params = parameters()
    wrapper = CASES["replay"].make(adamw(params))
    feed(wrapper, params, stream(3))
    assert wrapper.num_draws == 2
    packed = pack(wrapper.state_dict(), params)
    without_sums = {
        i: {k: v for k, v in entry.items() if k != "wrappers"}
        for i, entry in packed["state"].items()
    }
    with pytest.raises(ValueError, match=r"draws of 3 parameters.*get_optimizer_state_dict"):
        unpack({**packed, "state": without_sums})
    only_sums = {i: {"wrappers": e["wrappers"]} for i, e in packed["state"].items()}
    with pytest.raises(ValueError, match=r"state of 3 parameters.*get_optimizer_state_dict"):
        unpack({**packed, "state": only_sums})


def test_a_first_state_leaves_all_else_as_it_was():
    params = parameters()
    before = [p.detach().clone() for p in params]
    optimizer = torch.optim.AdamW(params, lr=0.05, weight_decay=0.5)
    optimizer.register_step_pre_hook(lambda *_: pytest.fail("a hook ran"))
    step = optimizer.step

    def counted() -> None:  # in the groups, as schedule-free optimizers do
        step()
        optimizer.param_groups[0]["k"] += 1

    optimizer.step, optimizer.param_groups[0]["k"] = counted, 0
    make_state(optimizer)
    assert optimizer.param_groups[0]["k"] == 0
    assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True))
    assert [group["lr"] for group in optimizer.param_groups] == [0.05]
    assert all(p.grad is None for p in params)
    assert len(optimizer.state) == 3


def test_only_a_step_of_nothing_asks_for_state():
    params = parameters()
    optimizer = torch.optim.AdamW(params, lr=0.0)
    assert not is_asked_for_state(optimizer)
    for p in params:
        p.grad = torch.zeros_like(p)
    assert is_asked_for_state(optimizer)
    params[1].grad[0] = 1.0
    assert not is_asked_for_state(optimizer)
