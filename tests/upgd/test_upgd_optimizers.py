"""What any optimizer of this family has to do as a ``torch.optim.Optimizer``."""

from __future__ import annotations

import copy
import io
import math
import pickle
import re

import numpy as np
import pytest
import torch
from problems import backward, parameters, quadratic, stream
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from upgd_reference import NORMALIZATIONS, OPTIMIZERS

import gqc
from gqc.compat import upgd as compat
from gqc.scalers import VarianceGradientScaler
from gqc.upgd import UPGD, UPGDW, AdaptiveUPGD

every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
AVERAGED = {"adaptive_noise": True, "instant_noise_scale": False}


def feed(optimizer, params: list[Tensor], draws) -> None:
    for grads in draws:
        for p, g in zip(params, grads, strict=True):
            p.grad = g.to(p.dtype)
        optimizer.step()


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def through_a_file(state: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def state_of(optimizer) -> list[Tensor]:
    return [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["file", "live", "deepcopy", "pickle"])
@pytest.mark.parametrize("extra", [{}, AVERAGED], ids=["plain", "averaged"])
def test_a_cut_run_goes_on_bit_for_bit(make, dtype, how, extra):
    draws = stream(12)
    whole = parameters(dtype)
    feed(make(whole, lr=0.05, sigma=0.1, **extra), whole, draws)

    params = parameters(dtype)
    first = make(params, lr=0.05, sigma=0.1, **extra)
    feed(first, params, draws[:5])
    if how in ("file", "live"):
        state = first.state_dict() if how == "live" else through_a_file(first.state_dict())
        params = [p.detach().clone().requires_grad_() for p in params]
        generator = torch.Generator().manual_seed(77)
        second = make(params, lr=9.0, generator=generator, **extra)
        second.load_state_dict(state)
        feed(first, first.param_groups[0]["params"], draws[:1])  # must not disturb the second
    else:
        copies = {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}
        second = copies[how](first)
        params = second.param_groups[0]["params"]
    feed(second, params, draws[5:])
    assert equal(params, whole)


@every_optimizer
@pytest.mark.parametrize("wrapper", ["gnts", "sbc", "replay"])
@pytest.mark.parametrize("cut", [4, 5, 6])
def test_a_wrapped_one_goes_on_bit_for_bit(make, wrapper, cut):
    wrap = {
        "gnts": lambda opt: gqc.OptimizerWrapperGNTS(opt, 10.0, max_draws=4),
        "sbc": lambda opt: gqc.OptimizerWrapperSBC(
            opt, physical_batch_size=4, logical_batch_size=12
        ),
        "replay": lambda opt: gqc.OptimizerWrapperReplay(opt, [1, 3, 2], repeat_last=True),
    }[wrapper]

    def draw(optimizer, params, draws) -> None:
        for grads in draws:
            backward(params, grads)
            optimizer.step()

    draws = stream(14)
    whole = parameters()
    plain = wrap(make(whole, lr=0.05, sigma=0.1))
    draw(plain, whole, draws)
    params = parameters()
    first = wrap(make(params, lr=0.05, sigma=0.1))
    draw(first, params, draws[:cut])
    state = through_a_file(first.state_dict())
    params = [p.detach().clone().requires_grad_() for p in params]
    second = wrap(make(params))
    second.load_state_dict(state)
    draw(second, params, draws[cut:])
    assert plain.statistics()["steps"] > 3
    assert equal(params, whole)


@every_optimizer
def test_noise_never_touches_the_global_stream_and_repeats(make):
    def run(generator=None) -> list[Tensor]:
        params = parameters()
        feed(make(params, lr=0.05, sigma=0.1, generator=generator), params, stream(3))
        return params

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = run()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert equal(run(), first)
    seeded = [run(torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)]
    assert equal(seeded[0], seeded[1])
    assert not equal(seeded[0], seeded[2])


class CountSyncs(TorchDispatchMode):
    """Counts reads of a tensor's value by the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.is_nonzero.default,
            torch.ops.aten.equal.default,
        )
        return func(*args, **(kwargs or {}))


@every_optimizer
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("nonfinite", ["raise", "skip", "ignore"])
@pytest.mark.parametrize("extra", [{}, AVERAGED], ids=["plain", "averaged"])
def test_a_step_waits_for_the_host_once_or_never(make, normalization, scope, nonfinite, extra):
    params = parameters()
    optimizer = make(params, normalization=normalization, scope=scope, nonfinite=nonfinite, **extra)
    for grads in stream(3):
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        with CountSyncs() as syncs:
            optimizer.step()
        assert syncs.count == (0 if nonfinite == "ignore" else 1)


@every_optimizer
def test_floats_kept_per_parameter(make):
    params = [torch.randn(1000, requires_grad=True), torch.randn(10, 10, requires_grad=True)]
    optimizer = make(params)
    assert not state_of(optimizer)  # nothing before the first step
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    floats = sum(t.numel() for t in state_of(optimizer))
    assert floats == (1 if make is UPGD else 3) * 1100


@every_optimizer
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", range(3))
def test_one_bad_element_changes_nothing(make, value, where):
    params = parameters()
    optimizer = make(params, lr=0.1, sigma=0.1)
    draws = stream(4)
    feed(optimizer, params, draws[:2])
    before = [p.detach().clone() for p in params]
    saved = copy.deepcopy(optimizer.state_dict())
    bad = [g.clone() for g in draws[2]]
    bad[where].view(-1)[-1] = value
    with pytest.raises(ValueError, match=f"parameter {where} of shape .* nothing was changed"):
        feed(optimizer, params, [bad])
    assert equal(params, before)
    now = optimizer.state_dict()
    assert all(
        torch.equal(torch.as_tensor(now["state"][i][key]), torch.as_tensor(value))
        for i, state in saved["state"].items()
        for key, value in state.items()
    )
    # and the run goes on as if the step had not been: the noise stream has not moved either
    feed(optimizer, params, draws[3:])
    others = parameters()
    feed(make(others, lr=0.1, sigma=0.1), others, [*draws[:2], *draws[3:]])
    assert equal(params, others)


@every_optimizer
def test_bad_steps_may_be_skipped_or_ignored(make):
    draws = stream(3)
    bad = [g * math.nan for g in draws[1]]
    skipping, clean = parameters(), parameters()
    optimizer = make(skipping, lr=0.1, nonfinite="skip")
    feed(optimizer, skipping, [draws[0], bad, draws[2]])
    feed(make(clean, lr=0.1), clean, [draws[0], draws[2]])
    assert optimizer.num_skipped == 1
    assert equal(skipping, clean)
    again = make(parameters(), nonfinite="skip")
    again.load_state_dict(through_a_file(optimizer.state_dict()))
    assert again.num_skipped == 1
    ignoring = parameters()
    feed(make(ignoring, lr=0.1, nonfinite="ignore"), ignoring, [bad])
    assert all(p.isnan().all() for p in ignoring)


@every_optimizer
def test_finite_gradients_whose_norm_overflows_are_taken(make):
    w = torch.ones(4, requires_grad=True)
    w.grad = torch.full((4,), 1e30)
    make([w], lr=1e-32).step()
    assert w.isfinite().all()


@every_optimizer
@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_noise_relative_to_a_norm_that_overflows_is_refused(make, nonfinite):
    w = torch.ones(4, requires_grad=True)
    optimizer = make([w], lr=1e-32, adaptive_noise=True, nonfinite=nonfinite)
    w.grad = torch.full((4,), 1e30)
    if nonfinite == "raise":
        with pytest.raises(ValueError, match=r"parameter 0 .* or one whose norm overflows"):
            optimizer.step()
    else:
        optimizer.step()
        assert optimizer.num_skipped == 1
    assert torch.equal(w, torch.ones(4))
    assert not optimizer.state


@every_optimizer
def test_groups_have_their_own_hyperparameters(make):
    """A group of rate 0 stays; the other moves as if the rates were all its own."""
    grads = stream(5)
    params, alone = parameters(), parameters()
    optimizer = make([{"params": params[:2]}, {"params": params[2:], "lr": 0.0}], lr=0.1, sigma=0.0)
    other = make(alone, lr=0.1, sigma=0.0)
    start = params[2].detach().clone()
    feed(optimizer, params, grads[:1])
    feed(other, alone, grads[:1])
    assert torch.equal(params[2], start)
    assert equal(params[:2], alone[:2])


@every_optimizer
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("protect", [True, False])
def test_odd_models_step(make, normalization, scope, protect):
    """Empty groups and tensors, missing gradients, scalars, several dtypes and layouts at once."""
    params = [
        torch.randn(3, 4, requires_grad=True),
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last).requires_grad_(),
        torch.randn((), dtype=torch.float64, requires_grad=True),
        torch.randn(5, dtype=torch.bfloat16, requires_grad=True),
        torch.randn(0, requires_grad=True),
        torch.randn(4, requires_grad=True),
    ]
    options = {"lr": 0.1, "normalization": normalization, "scope": scope, "protect": protect}
    optimizer = make([{"params": []}, {"params": params[:3]}, {"params": params[3:]}], **options)
    optimizer.step()  # no gradient at all
    before = [p.detach().clone() for p in params]
    for _ in range(3):
        for p in params[:5]:
            p.grad = torch.randn_like(p)
        optimizer.step()
    assert all(p.isfinite().all() for p in params)
    moved = [not torch.equal(p, b) for p, b in zip(params, before, strict=True)]
    assert moved == [True, True, True, True, False, False]
    assert optimizer.state[params[3]]["avg_utility"].dtype == torch.float32


@every_optimizer
def test_16_bit_parameters_step_like_float32_ones_rounded(make):
    """State and arithmetic are float32: the error is that of rounding the weights, not more."""
    half, full = parameters(torch.bfloat16), None
    full = [p.detach().float().requires_grad_() for p in half]
    grads = [[g.bfloat16().float() for g in draw] for draw in stream(1)]
    feed(make(half, lr=0.05, sigma=0.1), half, grads)
    feed(make(full, lr=0.05, sigma=0.1), full, grads)
    assert equal(half, [p.detach().bfloat16() for p in full])


@every_optimizer
def test_a_group_may_be_added_between_steps(make):
    params = parameters()
    optimizer = make(params[:2], lr=0.1)
    draws = stream(3)
    feed(optimizer, params[:2], [d[:2] for d in draws[:1]])
    optimizer.add_param_group({"params": params[2:], "sigma": 0.0})
    feed(optimizer, params, draws[1:])
    assert [group["sigma"] for group in optimizer.param_groups] == [0.001, 0.0]
    with pytest.raises(ValueError, match=r"sigma=-1: expected a finite number >= 0"):
        optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "sigma": -1})
    assert len(optimizer.param_groups) == 2


@every_optimizer
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"lr": -1.0}, r"lr=-1.0: expected a finite number >= 0"),
        ({"lr": math.nan}, r"lr=nan: expected a finite number >= 0"),
        (
            {"lr": torch.tensor(math.nan)},
            r"lr=tensor.*: expected a finite number >= 0, or a tensor",
        ),
        ({"lr": torch.ones(2)}, r"lr=tensor.*: expected a finite number >= 0, or a tensor of one"),
        ({"weight_decay": math.inf}, r"weight_decay=inf: expected a finite number >= 0"),
        ({"sigma": -0.1}, r"sigma=-0.1: expected a finite number >= 0"),
        ({"normalization": "mean"}, r"normalization='mean': expected one of \('minmax', "),
        ({"scope": "layer"}, r"scope='layer': expected one of \('global', 'local'\)"),
        ({"protect": 1}, r"protect=1: expected True or False"),
        ({"step_scale": 0.0}, r"step_scale=0.0: expected a finite number > 0"),
        ({"noise_reference": "max"}, r"noise_reference='max': expected one of"),
        ({"noise_beta": 1.0}, r"noise_beta=1.0: expected a number in \[0, 1\)"),
        ({"min_noise_std": math.nan}, r"min_noise_std=nan: expected a finite number >= 0"),
        ({"nonfinite": "stop"}, r"nonfinite='stop': expected one of"),
        ({"foreach": 1}, r"foreach=1: expected None, True or False"),
    ],
)
def test_bad_hyperparameters_are_refused(make, bad, message):
    with pytest.raises(ValueError, match=message):
        make(parameters(), **bad)


@every_optimizer
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("normalization", "min_max"), ("scope", "locl"), ("noise_reference", "RMS")],
        *[("protect", "no"), ("lr", math.nan), ("weight_decay", None), ("sigma", -1.0)],
    ],
)
def test_a_bad_value_in_a_group_is_refused_at_the_next_step(make, name, value):
    params = parameters()
    optimizer = make(params, lr=0.1)
    feed(optimizer, params, stream(1))
    good, optimizer.param_groups[0][name] = optimizer.param_groups[0][name], value
    before = [p.detach().clone() for p in params]
    for other in (optimizer, copy.deepcopy(optimizer)):
        with pytest.raises(ValueError, match=f"{name}={value!r}: expected "):
            other.step()
    assert equal(params, before)
    optimizer.param_groups[0].update({name: good, "lr": -1e-18})  # as a schedule may end
    optimizer.step()


@every_optimizer
@pytest.mark.parametrize("name", ["amsgrad", "maximize"])
def test_what_these_optimizers_cannot_do_is_refused(make, name):
    params = parameters()
    with pytest.raises(ValueError, match=f"{name}=True: expected False: UPGD has no such variant"):
        make([{"params": params, name: True}])
    make([{"params": params, name: False}])


@every_optimizer
@pytest.mark.parametrize("extra", [{}, AVERAGED], ids=["plain", "averaged"])
def test_a_model_that_is_made_double_in_mid_run_steps_in_float64(make, extra):
    params = parameters()
    optimizer = make(params, lr=0.1, sigma=0.0, **extra)
    feed(optimizer, params, stream(3))
    for param in params:
        param.data, param.grad = param.data.double(), None
    twins = [param.detach().clone().requires_grad_() for param in params]
    other = make(twins, lr=0.1, sigma=0.0, **extra)
    other.load_state_dict(optimizer.state_dict())
    feed(optimizer, params[:1], [grads[:1] for grads in stream(2)])  # a part of them first
    feed(other, twins[:1], [grads[:1] for grads in stream(2)])
    feed(optimizer, params, stream(3)), feed(other, twins, stream(3))
    assert equal(params, twins)
    assert not torch.equal(params[0], params[0].float().double())


@every_optimizer
def test_a_tensor_of_the_lr_is_followed_and_kept(make):
    params, plain = parameters(), parameters()
    lr = torch.tensor(0.05)
    ours, theirs = make(params, lr=lr), make(plain, lr=0.05)
    schedule = gqc.get_linear_schedule(ours, 0.05, 0.0, 10, key="lr")
    for grads in stream(4):
        theirs.param_groups[0]["lr"] = lr.item()
        feed(ours, params, [grads])
        feed(theirs, plain, [grads])
        schedule.step()
    assert ours.param_groups[0]["lr"] is lr
    assert lr.item() == pytest.approx(0.03)
    assert equal(params, plain)
    loaded = make(parameters(), lr=torch.tensor(1.0))
    loaded.load_state_dict(through_a_file(ours.state_dict()))
    assert float(loaded.param_groups[0]["lr"]) == lr.item()


@every_optimizer
def test_numpy_numbers_are_numbers_and_can_be_saved(make):
    optimizer = make(parameters(), lr=np.float32(0.5), sigma=np.int64(0))
    optimizer.add_param_group({"params": parameters(), "weight_decay": np.float64(0.25)})
    groups = through_a_file(optimizer.state_dict())["param_groups"]
    assert [type(groups[i][k]) for i, k in ((0, "lr"), (0, "sigma"))] == [float, int]
    assert (groups[0]["lr"], groups[1]["weight_decay"]) == (0.5, 0.25)


@every_optimizer
def test_a_tensor_of_the_lr_is_checked_at_each_step(make):
    lr = torch.tensor(0.5)
    params = parameters()
    optimizer = make(params, lr=lr, sigma=0.0)
    feed(optimizer, params, stream(1))
    for value in (-5.0, math.nan):
        before = copy.deepcopy([params, state_of(optimizer)])
        lr.fill_(value)
        with pytest.raises(ValueError, match=re.escape(f"{lr=}: expected a finite number >= 0")):
            feed(optimizer, params, stream(1))
        assert all(map(equal, before, [params, state_of(optimizer)]))


@every_optimizer
def test_a_frozen_layer_stays_whatever_is_left_in_its_gradient(make):
    params = parameters()
    optimizer = make(params, lr=0.1, sigma=1.0)
    feed(optimizer, params, stream(2))
    optimizer.zero_grad(set_to_none=False)
    params[0].requires_grad_(False)
    before = copy.deepcopy(params)
    params[0].grad.fill_(math.nan)  # nor is it looked at
    feed(optimizer, params[1:], [grads[1:] for grads in stream(3)])
    assert torch.equal(before[0], params[0])
    assert not torch.equal(before[1], params[1])


def test_the_decay_of_upgdws_utility_is_not_taken_by_another_name():
    params = parameters()
    for call in (
        lambda: UPGDW(params, beta_utility=0.5),
        lambda: UPGDW([{"params": params, "beta_utility": 0.5}]),
        lambda: UPGDW(params[:1]).add_param_group({"params": params[1:], "beta_utility": 0.5}),
    ):
        with pytest.raises(TypeError, match=r"no beta_utility: .* is betas\[1\]"):
            call()


@pytest.mark.parametrize("make", [AdaptiveUPGD, UPGDW, compat.AdaptiveUPGD])
def test_one_decay_of_a_group_leaves_the_other_as_it_was_given(make):
    params = parameters()
    groups = [{"params": params[:1], "beta1": 0.5}, {"params": params[1:2]}]
    optimizer = make(groups, betas=(0.8, 0.95))
    optimizer.add_param_group({"params": params[2:], "beta2": 0.5})
    found = [group["betas"] for group in optimizer.param_groups]
    assert found == [(0.5, 0.95), (0.8, 0.95), (0.8, 0.5)]


def test_upgdw_is_initialised_by_its_parent_and_has_no_decay_of_the_utility(monkeypatch):
    seen = []
    own = AdaptiveUPGD.__init__
    monkeypatch.setattr(AdaptiveUPGD, "__init__", lambda *a, **k: (seen.append(1), own(*a, **k))[1])
    optimizer = UPGDW(parameters(), betas=(0.5, 0.25))
    assert seen == [1]
    assert "beta_utility" not in optimizer.param_groups[0]
    assert optimizer.utility_decay(optimizer.param_groups[0]) == 0.25


def test_bad_decays_are_refused():
    with pytest.raises(ValueError, match=r"beta_utility=1.0: expected a number in \[0, 1\)"):
        UPGD(parameters(), beta_utility=1.0)
    for make in (AdaptiveUPGD, UPGDW):
        with pytest.raises(ValueError, match=r"betas=\(0.9, nan\): expected two numbers"):
            make(parameters(), betas=(0.9, math.nan))
        with pytest.raises(ValueError, match=r"eps=0: expected a finite number > 0"):
            make(parameters(), eps=0)
    with pytest.raises(ValueError, match=r"betas=\(2.0, 0.999\)"):
        AdaptiveUPGD(parameters(), beta1=2.0)
    with pytest.raises(TypeError, match=r"generator is a int: expected a torch.Generator"):
        UPGD(parameters(), generator=3)


@every_optimizer
def test_sparse_complex_and_distributed_parameters_are_refused_untouched(make):
    fine = torch.ones(2, requires_grad=True)
    fine.grad = torch.ones(2)
    table = torch.nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    optimizer = make([fine, table.weight], lr=0.1)
    with pytest.raises(TypeError, match=r"parameter 1 of shape \(4, 2\) has a sparse gradient"):
        optimizer.step()
    grouped = make([{"params": [fine]}, {"params": [table.weight]}], lr=0.1)
    with pytest.raises(TypeError, match="parameter 1 of shape"):  # counted over groups
        grouped.step()
    wave = torch.ones(3, dtype=torch.complex64, requires_grad=True)
    wave.grad = torch.ones_like(wave)
    with pytest.raises(TypeError, match=r"parameter 1 of shape \(3,\) is torch.complex64"):
        make([fine, wave], lr=0.1).step()
    assert torch.equal(fine, torch.ones(2))


def test_a_checkpoint_of_a_device_that_is_not_here_loads_with_a_warning():
    params, again = parameters(), parameters()
    first = UPGD(params, lr=0.05, sigma=0.1)
    feed(first, params, stream(2))
    saved = copy.deepcopy(first.state_dict())
    streams = saved["upgd"]["generators"]["states"]
    streams["xpu:7"] = streams["cpu"].clone()
    second = UPGD(again, lr=9.0)
    with torch.no_grad():
        for a, b in zip(again, params, strict=True):
            a.copy_(b)
    with pytest.warns(UserWarning, match="the stream of noise on xpu:7 was not loaded"):
        second.load_state_dict(saved)
    feed(first, params, stream(2))
    feed(second, again, stream(2))
    assert equal(params, again)


def test_published_names_and_checkpoints_load():
    assert AdaptiveUPGD(parameters(), beta1=0.8).param_groups[0]["betas"] == (0.8, 0.999)
    by_group = AdaptiveUPGD([{"params": parameters(), "beta2": 0.99}])
    assert by_group.param_groups[0]["betas"] == (0.9, 0.99)
    params = parameters()
    norms = [0.5, 0.25, 2.0]
    state = {
        i: {
            "step": 7,
            "avg_utility": torch.full_like(p, 1.0).detach(),
            "first_moment": torch.full_like(p, 2.0).detach(),
            "sec_moment": torch.full_like(p, 3.0).detach(),
            # started from 1, as released: 0.999^7 of it is left
            "grad_norm_ema": 0.999**7 + norms[i] * (1 - 0.999**7),
        }
        for i, p in enumerate(params)
    }
    group = {"lr": 0.01, "weight_decay": 0.0, "beta_utility": 0.99, "sigma": 0.0, "eps": 1e-8}
    group |= {"beta1": 0.7, "beta2": 0.8, "params": [0, 1, 2]}
    optimizer = AdaptiveUPGD(params, normalization="minmax_published", **AVERAGED)
    optimizer.load_state_dict({"state": state, "param_groups": [group]})
    loaded = optimizer.param_groups[0]
    assert loaded["betas"] == (0.7, 0.8)
    assert loaded["lr"] == 0.01
    assert loaded["normalization"] == "minmax_published"
    for p, norm in zip(params, norms, strict=True):
        average = optimizer.state[p]["grad_norm_ema"].item() / (1 - 0.999**7)
        assert average == pytest.approx(norm, rel=1e-4)  # 1 - 0.999^7 leaves float32 2 digits less
        assert torch.equal(optimizer.state[p]["sec_moment"], torch.full_like(p, 3.0))
    feed(optimizer, params, stream(1))
    assert optimizer.state[params[0]]["step"] == 8


@every_optimizer
def test_another_optimizers_file_is_refused_untouched(make):
    params = parameters()
    adamw = torch.optim.AdamW(params)
    feed(adamw, params, stream(1))
    optimizer = make(parameters(), lr=0.123)
    with pytest.raises(
        ValueError, match=rf"parameter 0 lacks .* expected a file of {make.__name__}"
    ):
        optimizer.load_state_dict(adamw.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.123
    assert not optimizer.state


@every_optimizer
def test_a_file_of_a_sister_is_refused_untouched(make):
    for other in {UPGD, AdaptiveUPGD, UPGDW} - {make}:
        params = parameters()
        sister = other(params, lr=0.1)
        feed(sister, params, stream(2))
        optimizer = make(parameters(), lr=0.123)
        with pytest.raises(ValueError, match=rf"parameter 0 .* expected a file of {make.__name__}"):
            optimizer.load_state_dict(sister.state_dict())
        assert (optimizer.param_groups[0]["lr"], len(optimizer.state)) == (0.123, 0)


@every_optimizer
@pytest.mark.parametrize("shape", [(3, 4), (512, 1024)])
def test_state_of_another_shape_is_refused_untouched(make, shape):
    params = [torch.ones(s, requires_grad=True) for s in (shape, shape[::-1])]
    optimizer = make(params, lr=0.1, sigma=0.0)
    feed(optimizer, params, [[torch.ones_like(p) for p in params]])
    other = make(params[::-1], lr=0.123)
    with pytest.raises(ValueError, match=rf"shape of avg_utility of parameter 0=\({shape[0]}, "):
        other.load_state_dict(optimizer.state_dict())
    assert (other.param_groups[0]["lr"], len(other.state)) == (0.123, 0)


@every_optimizer
def test_closures_schedulers_and_amp(make):
    params = parameters()
    optimizer = make(params, lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum(quadratic(p) for p in params)
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > 0
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.05
    other = copy.deepcopy(optimizer)
    twins = other.param_groups[0]["params"]
    optimizer.zero_grad()
    scaler.scale(sum(quadratic(p) for p in params)).backward()
    scaler.step(optimizer)
    for twin in twins:
        twin.grad = None
    sum(quadratic(p) for p in twins).backward()
    other.step()
    assert equal(params, twins)  # 64 is a power of 2: scaling is exact


@every_optimizer
def test_it_minimizes_a_quadratic_and_follows_a_gradient_scaler(make):
    w = torch.full((10,), 2.0, requires_grad=True)
    optimizer = make([w], lr=0.03, sigma=0.01, weight_decay=0.0)
    vgs = VarianceGradientScaler([w], warmup_steps=10)
    for _ in range(600):
        optimizer.zero_grad()
        quadratic(w).backward()
        vgs.scale_gradients()
        optimizer.step()
        vgs.step()
    assert quadratic(w.detach()) < 0.01 * quadratic(torch.full((10,), 2.0))


def test_averaging_of_norms_may_start_in_mid_run():
    """The average then starts from the present norm, whatever the step count."""
    params = parameters()
    optimizer = UPGD(params, lr=0.0)
    feed(optimizer, params, stream(3))
    optimizer.param_groups[0].update(AVERAGED)
    (draw,) = stream(1, seed=5)
    feed(optimizer, params, [draw])
    for p, g in zip(params, draw, strict=True):
        average = optimizer.state[p]["grad_norm_ema"].item() / (1 - 0.999**4)
        assert average == pytest.approx(g.norm().item(), rel=1e-4)  # 1 - 0.999^4 costs 2 digits
