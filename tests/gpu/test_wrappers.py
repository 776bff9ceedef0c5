"""Every wrapper on a card: the slow reference's decisions and numbers, and one wait a draw."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from cases import CASES
from gpu.streams import backward, no_cuda, parameters, waits
from problems import metric, stream, train_slowly
from problems import parameters as reference_parameters
from torch import Tensor

import gqc
from gqc.gradients import count_nonfinite, magnitudes, tensor_norms, total_norm

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
INNER = {
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.05),
    "AdamW(fused)": lambda params: torch.optim.AdamW(params, lr=0.05, fused=True),
    "SGD(fused)": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, fused=True),
}
CAPTURABLE = {  # torch has them on accelerators only
    "AdamW(capturable)": lambda params: torch.optim.AdamW(params, lr=0.05, capturable=True),
    "AdamW(capturable, lr on the card)": lambda params: torch.optim.AdamW(
        params, lr=torch.tensor(0.05, device=params[0].device), capturable=True
    ),
}


def inner_optimizers(*names: str):
    """Parametrize a test by the device and the wrapped optimizer, where the device has it."""
    everywhere = [
        pytest.param(where, make, marks=marks, id=f"{where}-{name}")
        for where, marks in (("cpu", ()), ("cuda", no_cuda))
        for name, make in (INNER | (CAPTURABLE if where == "cuda" else {})).items()
        if name in names or not names
    ]
    return pytest.mark.parametrize(("device", "inner"), everywhere, indirect=["device"])


def feed(wrapper, params: list[Tensor], draws, start: int = 0) -> list[bool]:
    stepped = []
    for i, grads in enumerate(draws, start):
        backward(params, grads)
        stepped.append(wrapper.step(metric=metric(i)))
    return stepped


@every_case
@pytest.mark.parametrize("accumulate", ["grad", "buffer"])
@inner_optimizers()
def test_follows_the_slow_reference(case, accumulate, inner, device):
    """Decisions equal; parameters to the roundings of 60 steps of at most about 0.05.

    Each of them moves a parameter of order 1 with a few roundings of 2^-24: below 1e-5 in all.
    Decisions compare norms that are a few 1e-7 off with numbers that they miss by more than 1e-4.
    """
    draws, ours, theirs = stream(60), parameters(device), reference_parameters(torch.float64)
    keeps_own_sums = case.make(inner(ours)).needs_draw_norm
    options = {} if keeps_own_sums else {"accumulate": accumulate}
    wrapper = case.make(inner(ours), **options)
    is_sgd = inner is INNER["SGD(fused)"]
    optimizer = (INNER["SGD(fused)"] if is_sgd else INNER["AdamW"])(theirs)
    expected = train_slowly(case, optimizer, theirs, draws)
    assert feed(wrapper, ours, draws) == expected
    assert sum(expected) > 5
    largest = max(float(p.detach().abs().max()) for p in theirs)
    for param, slow in zip(ours, theirs, strict=True):
        torch.testing.assert_close(
            param.detach().cpu().double(), slow.detach(), rtol=0, atol=1e-5 * max(1.0, largest)
        )


@pytest.mark.filterwarnings("ignore:This instance was constructed with capturable")  # each copy
@every_case
@inner_optimizers("AdamW(fused)", "AdamW(capturable)")
def test_a_cut_and_resumed_run_is_bitwise_the_uncut(case, inner, device):
    """Through a file whose tensors are read on the CPU, in mid-window, and through a copy."""
    draws = stream(23)
    whole = parameters(device)
    decisions = feed(case.make(inner(whole)), whole, draws)
    first = parameters(device)
    before = case.make(inner(first))
    feed(before, first, draws[:11])
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    resumed = [p.detach().clone().requires_grad_() for p in first]
    after = case.make(inner(resumed))
    after.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
    copied = copy.deepcopy(before)
    twins = [p for group in copied.param_groups for p in group["params"]]
    assert feed(after, resumed, draws[11:], 11) == decisions[11:]
    assert feed(copied, twins, draws[11:], 11) == decisions[11:]
    for a, b, c in zip(whole, resumed, twins, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize("name", ["gnts", "normtest", "gnr_independent"])
@pytest.mark.parametrize("at", [0, 2])
def test_norms_of_parameters_on_two_devices_are_read_together(name, at, device):
    runs = []
    for place in ("cpu", device):
        places = [place if i == at else "cpu" for i in range(3)]
        params = [parameters(torch.device(where))[i] for i, where in enumerate(places)]
        wrapper = CASES[name].make(torch.optim.SGD(params, lr=0.1))
        runs.append((feed(wrapper, params, stream(20)), [p.detach().cpu() for p in params]))
    (expected, theirs), (decisions, ours) = runs
    assert decisions == expected
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("accumulate", ["grad", "buffer"])
def test_a_nan_is_discarded(accumulate, device):
    params, draws = parameters(device), stream(6)
    wrapper = gqc.OptimizerWrapperSBC(INNER["AdamW"](params), 1, 2, accumulate=accumulate)
    draws[2] = [torch.full_like(g, torch.nan) for g in draws[2]]
    with pytest.warns(UserWarning, match="NaN"):
        feed(wrapper, params, draws)
    assert all(bool(p.isfinite().all()) for p in params)
    assert wrapper.statistics()["num_discarded"] == (1 if accumulate == "buffer" else 2)


WAITS = {  # maker, options: waits of a draw, of a step with its last draw
    "gnts": (gqc.OptimizerWrapperGNTS, {"gradient_norm_threshold": 1e-9, "max_draws": 2}, 1, 1),
    "gns": (gqc.OptimizerWrapperGNS, {"max_draws": 2}, 1, 1),
    "normtest": (gqc.OptimizerWrapperNormTest, {"theta": 1e-9, "max_draws": 2}, 1, 1),
    "gnr": (gqc.OptimizerWrapperGNR, {}, 1, 1),
    "gnr independent": (gqc.OptimizerWrapperGNR, {"mode": "independent"}, 1, 1),
    "sbc": (gqc.OptimizerWrapperSBC, {"physical_batch_size": 1, "logical_batch_size": 2}, 1, 1),
    "sbc grad": (
        gqc.OptimizerWrapperSBC,
        {"physical_batch_size": 1, "logical_batch_size": 2, "accumulate": "grad"},
        0,
        1,
    ),
    "replay": (gqc.OptimizerWrapperReplay, {"draws": [2] * 9, "accumulate": "grad"}, 0, 1),
    "mht": (gqc.OptimizerWrapperMHT, {"max_draws": 2}, 2, 2),
    "mht grad": (gqc.OptimizerWrapperMHT, {"max_draws": 2, "accumulate": "grad"}, 1, 2),
    "vgs": (gqc.OptimizerWrapperVGS, {"warmup_steps": 0, "min_draws": 2}, 1, 2),
    "vgs grad, warmup": (
        gqc.OptimizerWrapperVGS,
        {"warmup_steps": 99, "min_draws": 2, "accumulate": "grad"},
        0,
        1,
    ),
}


@pytest.mark.parametrize("name", WAITS)
@inner_optimizers("AdamW(fused)", "AdamW(capturable)")
def test_the_host_waits_once_a_draw(name, inner, device):
    """MHT waits once more for its metric, VGS once more a step after its warmup."""
    kind, options, draw, step = WAITS[name]
    params = parameters(device)
    wrapper = kind(inner(params), **options)
    for i, grads in enumerate(stream(10)):
        backward(params, grads)
        loss = torch.tensor(1.0 + i, device=device)
        with waits(device) as seen:
            stepped = wrapper.step(metric=loss)
        if i > 3:  # state, masks and masters of the first window are made by then
            assert len(seen) == (step if stepped else draw), (i, stepped, seen)


def test_the_count_of_waits_counts(device):
    number = torch.ones(3, device=device)
    with waits(device) as seen:
        number.sum().item()
        number.tolist()
        _ = number.sum() * 2
    assert len(seen) == 2


def test_norms_of_large_tensors(device):
    """Against float64: a tree of at most 64 roundings on a card, a random walk on the CPU."""
    is_card = device.type == "cuda"
    sizes = [2**26, 12_345, 1] if is_card else [2**17, 12_345, 1]
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(n, generator=generator) for n in sizes]
    squares = [float(t.double().square().sum()) for t in tensors]
    here = [t.to(device) for t in tensors]
    error = (64 if is_card else sum(sizes) ** 0.5) * 2.0**-24
    assert total_norm(here).item() == pytest.approx(sum(squares) ** 0.5, rel=error)
    assert tensor_norms(here).tolist() == pytest.approx([s**0.5 for s in squares], rel=error)
    assert magnitudes(here).tolist() == [float(t.abs().max()) for t in tensors]
    half = [t.to(torch.bfloat16) for t in here]
    exact = sum(float(t.double().square().sum()) for t in half) ** 0.5
    assert total_norm(half).dtype == torch.float32
    assert total_norm(half).item() == pytest.approx(exact, rel=error)
    assert count_nonfinite(here) == 0
    here[0][77] = torch.inf
    assert count_nonfinite(here) == 1
