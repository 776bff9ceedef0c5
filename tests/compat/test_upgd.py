"""Constructor keywords, group keys and behaviour that published users of UPGD rely on."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import gqc
from gqc.compat.upgd import UPGD, UPGDW, AdaptiveUPGD


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 4, generator=generator).requires_grad_() for _ in range(2)]


def train(optimizer, params, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def test_the_groups_hold_beta1_and_beta2_which_decide():
    params, twins = parameters(), parameters()
    published = AdaptiveUPGD(params, 0.1, 0.0, 0.9, 0.0, 0.5, 0.6, 1e-6)
    ours = gqc.AdaptiveUPGD(twins, 0.1, 0.0, 0.9, 0.0, betas=(0.5, 0.6), eps=1e-6)
    group = published.param_groups[0]
    assert (group["beta1"], group["beta2"], group["beta_utility"]) == (0.5, 0.6, 0.9)
    train(published, params, 3), train(ours, twins, 3)
    assert all(map(torch.equal, params, twins))
    group["beta1"] = 0.1
    ours.param_groups[0]["betas"] = (0.1, 0.6)
    train(published, params, 3, 2), train(ours, twins, 3, 2)
    assert all(map(torch.equal, params, twins))
    assert set(published.state[params[0]]) >= {"step", "avg_utility", "first_moment", "sec_moment"}


def test_its_files_copies_and_new_groups_hold_them_too():
    params = parameters()
    optimizer = AdaptiveUPGD(params, beta1=0.5)
    train(optimizer, params, 2)
    for other in (copy.deepcopy(optimizer), AdaptiveUPGD(parameters())):
        other.load_state_dict(optimizer.state_dict())
        assert other.param_groups[0]["beta1"] == 0.5
        other.add_param_group({"params": [torch.zeros(2, requires_grad=True)], "beta1": 0.25})
        assert [group["beta1"] for group in other.param_groups] == [0.5, 0.25]
        assert [group["betas"] for group in other.param_groups] == [(0.5, 0.999), (0.25, 0.999)]
    gqc.AdaptiveUPGD(params).load_state_dict(optimizer.state_dict())


def test_a_scheduler_that_changes_betas_is_followed():
    params, twins = parameters(), parameters()
    optimizers = AdaptiveUPGD(params, 0.1, 0.0, sigma=0.0), gqc.AdaptiveUPGD(twins, 0.1, 0.0)
    optimizers[1].param_groups[0]["sigma"] = 0.0
    cycle = torch.optim.lr_scheduler.OneCycleLR
    schedules = [cycle(optimizer, max_lr=0.1, total_steps=9) for optimizer in optimizers]
    for step in range(5):
        train(optimizers[0], params, 1, step), train(optimizers[1], twins, 1, step)
        assert all(map(torch.equal, params, twins))
        group = optimizers[0].param_groups[0]
        assert group["beta1"] == group["betas"][0] == optimizers[1].param_groups[0]["betas"][0]
        for schedule in schedules:
            schedule.step()
    assert group["beta1"] != 0.9


@pytest.mark.parametrize("name", ["betas", "beta1"])
def test_decays_that_were_set_are_kept_by_files_copies_and_new_groups(name):
    params = parameters()
    optimizer = AdaptiveUPGD(params, sigma=0.0)
    train(optimizer, params, 1)
    loaded = AdaptiveUPGD(parameters())
    loaded.load_state_dict(optimizer.state_dict())
    for own in (optimizer, loaded):  # set before and after a load, and no step since
        own.param_groups[0] |= (
            {"betas": (0.5, 0.9)} if name == "betas" else {"beta1": 0.5, "beta2": 0.9}
        )
    others = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    others.append(AdaptiveUPGD(parameters()))
    others[-1].load_state_dict(optimizer.state_dict())
    optimizer.add_param_group({"params": [torch.zeros(2, requires_grad=True)]})
    for own in (optimizer, loaded, *others):
        train(own, own.param_groups[0]["params"], 1)
        group = own.param_groups[0]
        assert (group["beta1"], group["beta2"], group["betas"]) == (0.5, 0.9, (0.5, 0.9))


@pytest.mark.parametrize("cut", range(5))
def test_a_cycle_of_betas_that_is_cut_continues_bit_for_bit(cut):
    def make(seed):
        params = parameters(seed)
        optimizer = AdaptiveUPGD(params, sigma=0.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=9)
        return params, optimizer, schedule

    (params, optimizer, schedule), (others, resumed, again) = make(0), make(1)
    for step in range(5):
        if step == cut:
            resumed.load_state_dict(optimizer.state_dict())
            again.load_state_dict(schedule.state_dict())
            with torch.no_grad():
                for other, param in zip(others, params, strict=True):
                    other.copy_(param)
        train(optimizer, params, 1, step), schedule.step()
        if step >= cut:
            train(resumed, others, 1, step), again.step()
    assert all(map(torch.equal, params, others))
    assert resumed.param_groups[0]["betas"] == optimizer.param_groups[0]["betas"] != (0.9, 0.999)


def test_its_hooks_run_once_a_step_whatever_was_made_before():
    gqc.AdaptiveUPGD(parameters())
    params, calls = parameters(), []
    optimizer = AdaptiveUPGD(params)
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    train(optimizer, params, 1)
    assert calls == ["before", "after"]


def test_upgdw_takes_amsgrad_where_it_is_off():
    params, twins = parameters(), parameters()
    optimizer = UPGDW(params, lr=0.1, sigma=0.0, amsgrad=False)
    train(optimizer, params, 3), train(gqc.UPGDW(twins, lr=0.1, sigma=0.0), twins, 3)
    assert all(map(torch.equal, params, twins))
    assert optimizer.param_groups[0]["amsgrad"] is False
    copy.deepcopy(optimizer).load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="amsgrad=True: expected False: UPGDW keeps no maximum"):
        UPGDW(params, amsgrad=True)


# The published list of the normalization


def gates_of(optimizer, params):
    """The gate of each weight: how much of a step of ones passes."""
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    return torch.cat([(b - p.detach()).flatten() for b, p in zip(before, params, strict=True)])


def with_utilities(values, normalization="minmax"):
    """UPGD of weights that have these utilities, and step by their gates."""
    param = torch.zeros(len(values), requires_grad=True)
    options = {"lr": 1.0, "weight_decay": 0.0, "sigma": 0.0, "beta_utility": 0.5}
    optimizer = UPGD([param], **options, normalization=normalization)
    param.grad = torch.zeros_like(param)
    optimizer.step()
    optimizer.state[param]["avg_utility"] = torch.tensor(values)
    return optimizer, [param]


@pytest.mark.parametrize(
    "values",
    [[-3.0, -2.0, -1.0], [1.0, 2.0, 3.0], [-1.0, 0.0, 1.0], [1e-12, 2e-12, 3e-12]],
    ids=["negative", "positive", "mixed", "tiny"],
)
def test_useful_weights_are_protected_whatever_the_sign_and_size(values):
    gates = gates_of(*with_utilities(values))
    assert gates[0] > gates[1] > gates[2]
    assert float(gates.max()) == pytest.approx(1 - 0.2689, abs=1e-3)
    assert float(gates.min()) == pytest.approx(1 - 0.7311, abs=1e-3)


def test_negative_utilities_were_protected_the_wrong_way_round():
    gates = gates_of(*with_utilities([-3.0, -2.0, -1.0], "max"))
    assert gates[0] < gates[1] < gates[2]


@pytest.mark.parametrize("values", [[2.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
def test_equal_utilities_give_half_a_step(values):
    assert torch.allclose(gates_of(*with_utilities(values)), torch.full((3,), 0.5))


def test_gates_are_finite_between_zero_and_one_for_all_normalizations():
    for name in ("max", "max_published", "minmax", "minmax_published"):
        gates = gates_of(*with_utilities([-1e30, 0.0, 1e30], name))
        assert gates.isfinite().all()
        assert float(gates.min()) >= 0
        assert float(gates.max()) <= 1
