"""The probe: right numbers on streams that are known, and a model that is as before."""

from __future__ import annotations

import copy
import dataclasses
import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD

import gqc
from gqc.noise import predicted_draws, probe
from gqc.noise.probing import _lowest_norms
from gqc.schedules import DrawsSchedule


class Known(nn.Module):
    """Gradient = signal + noise of the batch: |G|^2 = 1 and tr Sigma = R, in d dimensions."""

    def __init__(self, d: int = 400) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(d))


def stream(scale: float, d: int = 400, seed: int = 0, memory: float = 0.0):
    generator, noise = torch.Generator().manual_seed(seed), torch.zeros(d)
    while True:
        new = torch.randn(d, generator=generator)
        noise = memory * noise + (1 - memory**2) ** 0.5 * new
        yield (torch.full((d,), d**-0.5) + (scale / d) ** 0.5 * noise).unsqueeze(0)


def dot(model, batch):
    return (model.weight * batch[0]).sum()


def frozen_draws(loss_fn, model, loader, norm, num_windows=60):
    params = [p for p in model.parameters() if p.requires_grad]
    wrapper, windows = gqc.OptimizerWrapperGNTS(SGD(params, lr=0.0), norm), []
    while len(windows) < num_windows:
        loss_fn(model, next(loader)).backward()
        if wrapper.step():
            windows.append(wrapper.last_num_draws)
    return sum(windows) / num_windows


@pytest.mark.parametrize("scale", [2.0, 10.0, 30.0])
def test_known_noise_is_found_and_its_error_is_its_error(scale):
    found = [probe(Known(), dot, stream(scale, seed=seed), draws=64) for seed in range(20)]
    scales = torch.tensor([p.noise_scale for p in found])
    assert float(scales.median()) == pytest.approx(scale, rel=0.1)
    claimed = float(torch.tensor([p.noise_scale_error for p in found]).median())
    assert 0.6 < claimed / float(scales.std()) < 1.6
    assert float(torch.tensor([p.noise_trace for p in found]).mean()) == pytest.approx(
        scale, rel=0.03
    )
    assert all(p.examples == 1 for p in found)
    assert found[0].critical_batch == found[0].noise_scale


@pytest.mark.parametrize("draws", [1.5, 4, 8, 16])
def test_a_norm_for_so_many_draws_gives_them(draws):
    p = probe(Known(), dot, stream(10.0), draws=128)
    assert frozen_draws(dot, Known(), stream(10.0, seed=1), p.norm(draws)) == pytest.approx(
        draws, rel=0.25
    )
    assert predicted_draws(p.signal_sq, p.noise_trace, p.norm(draws)) == pytest.approx(
        draws, rel=0.6
    )


def test_beyond_what_it_can_simulate_it_uses_the_expectation():
    p = probe(Known(), dot, stream(10.0), draws=64)
    assert p.norm(40.0) ** 2 == pytest.approx(p.signal_sq + p.noise_trace / 40)
    with pytest.raises(ValueError, match=r"draws=0\.5: expected a number >= 1"):
        p.norm(0.5)


def few_directions(seed):
    """Noise in two directions, heavy-tailed and below the signal, as that of a small operator."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        noise = torch.zeros(400)
        noise[:2] = torch.randn(2, generator=generator) * torch.rand(1, generator=generator) ** -0.3
        yield (torch.full((400,), 400**-0.5) + 0.3 * noise).unsqueeze(0)


def test_the_error_of_the_draws_is_that_of_other_probes():
    for make, least in ((few_directions, 1.5), (lambda seed: stream(10.0, seed=seed), 0.2)):
        probes = [probe(Known(), dot, make(seed), draws=64) for seed in range(10)]
        low = _lowest_norms(probe(Known(), dot, make(99), draws=400).products, 32, 500)
        given = [1 + float((low[:, :-1] > p.norm(8)).sum() / len(low)) for p in probes]
        error = (sum((n - 8) ** 2 for n in given) / len(given)) ** 0.5
        claimed = sorted(p.draws_error(8) for p in probes[:5])[2]
        assert least < error < 2 * claimed < 6 * error
        assert probes[0].draws_error(16) == float("inf")


def test_the_sum_of_all_pairs_is_exact_where_pairs_are_sketched():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(20_000))

    draws = torch.randn(32, 1, 20_000, generator=torch.Generator().manual_seed(0)) + 0.1
    products = probe(Wide(), dot, draws).products
    exact = draws.squeeze(1).double() @ draws.squeeze(1).double().T
    assert float(products.sum()) == pytest.approx(float(exact.sum()), rel=1e-5)
    assert torch.allclose(products.diagonal(), exact.diagonal())
    assert not torch.allclose(products, exact, rtol=0.01)


def test_the_noise_of_a_float64_model_is_not_lost_in_float32():
    """1e-12 of the signal: a float32 sum of the gradients has an error of 1e-7 of it."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(32, 1, 400, generator=generator, dtype=torch.double)
    p = probe(Known().double(), dot, 1 + 1e-6 * noise)
    assert p.noise_trace == pytest.approx(1e-12 * float(noise.var(0).sum()), rel=1e-3)
    assert p.signal_sq == pytest.approx(400.0)


def test_correlated_draws_are_found_and_said():
    probes = [probe(Known(), dot, stream(10.0, seed=s), draws=64) for s in range(20)]
    independent = [p.is_independent for p in probes]
    assert sum(independent) >= 19
    p = probe(Known(), dot, stream(10.0, memory=0.7))
    assert p.correlation == pytest.approx(0.7, abs=0.1)
    assert not p.is_independent
    assert "NOT independent" in repr(p)


def test_a_signal_that_is_not_resolved_is_said():
    p = next(
        q
        for s in range(9)
        if (q := probe(Known(), dot, stream(1e6, seed=s), draws=64)).signal_sq <= 0
    )
    assert (p.noise_scale, p.critical_batch, p.physical_batch) == (None, None, None)
    assert "not resolved" in repr(p)
    assert p.norm(40) > 0


def test_the_table_and_the_options():
    p = probe(Known(), dot, stream(10.0), draws=64)
    for part in ("64 microbatches of 1 examples", "noise scale", "critical batch", "max_draws 32"):
        assert part in repr(p)
    options = p.gnts_options(8)
    first = options["start_norm"] * options["warmup_multiplier"]
    assert first >= float(p.products.diagonal().max()) ** 0.5
    max_draws = options.pop("max_draws")
    wrapper = gqc.OptimizerWrapperGNTS(SGD([nn.Parameter(torch.zeros(2))]), max_draws=max_draws)
    gqc.get_norm_threshold_cosine_annealing_with_warmup(wrapper, 10, 100, **options)


# Nothing is changed


class Averaging(nn.Module):
    """A layer that puts a new tensor in the place of its buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x


def state_of(model, generator):
    states = [torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()]  # noqa: NPY002
    modes = [module.training for module in model.modules()]
    grads = [None if p.grad is None else (id(p.grad), p.grad.tolist()) for p in model.parameters()]
    buffers = [b.tolist() for b in model.buffers()]
    values = [p.tolist() for p in model.parameters()]
    return [
        states[0].tolist(),
        *states[1:],
        modes,
        grads,
        buffers,
        values,
        generator.get_state().tolist(),
    ]


@pytest.mark.parametrize("is_sampled", [False, True], ids=["shuffle", "batch_sampler"])
def test_everything_is_afterwards_as_before(is_sampled):
    parts = (nn.BatchNorm1d(8), Averaging(), nn.Dropout(0.5), nn.Linear(8, 1))
    model = nn.Sequential(nn.Linear(6, 8), *parts)
    data = torch.utils.data.TensorDataset(torch.randn(200, 6), torch.randn(200, 1))
    generator = torch.Generator().manual_seed(3)
    if is_sampled:
        sampler = torch.utils.data.RandomSampler(data, generator=generator)
        batches = torch.utils.data.BatchSampler(sampler, 6, drop_last=False)
        loader = torch.utils.data.DataLoader(data, batch_sampler=batches)
    else:
        loader = torch.utils.data.DataLoader(data, 6, shuffle=True, generator=generator)
    wrapper = gqc.OptimizerWrapperSBC(SGD(model.parameters(), lr=0.1), 1, 2, accumulate="grad")

    def loss_fn(model, batch):
        model.train()
        np.random.rand(), random.random()  # noqa: NPY002 (as augmentations do)
        return (model(batch[0]) - batch[1]).square().mean()

    loss_fn(model, next(iter(loader))).backward()
    wrapper.step()
    model[3].eval()
    before = state_of(model, generator)
    p = probe(model, loss_fn, loader, wrapper, draws=20)
    assert state_of(model, generator) == before
    assert (p.examples, len(p.products)) == (6, 20)
    # the last batch of 200 has two examples
    assert len(probe(model, loss_fn, loader, draws=64).products) == 33
    loss_fn(model, next(iter(loader))).backward()  # in mid-window
    assert wrapper.step() is True


def test_it_also_restores_what_an_error_interrupts():
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
    before = copy.deepcopy(model.state_dict())
    batches = [torch.randn(4, 1) for _ in range(20)]
    batches[5][0] = float("nan")
    with pytest.raises(FloatingPointError, match="gradient 6 has the norm nan"):
        probe(model, lambda m, x: m(x).square().mean(), batches)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    "batch",
    [
        lambda x: x.numpy(),
        lambda x: (torch.tensor(7), x),
        lambda x: {"id": 7, "text": ["a"], "x": [x.numpy()]},
    ],
    ids=["array", "after a number", "nested"],
)
def test_examples_are_counted_in_what_has_a_length(batch):
    model, xs = nn.Linear(2, 1), [torch.randn(n, 2) for n in [3] * 20 + [1]]
    found = probe(model, lambda m, i: m(xs[i["i"]]).sum(), [{"i": i} for i in range(20)])
    assert found.examples is None
    pairs = [(batch(x), i) for i, x in enumerate(xs)]
    found = probe(model, lambda m, pair: m(xs[pair[1]]).sum(), pairs)
    assert (found.examples, len(found.products)) == (3, 20)  # the last one is smaller


@dataclasses.dataclass(slots=True)
class Batch:
    x: torch.Tensor
    y: list[torch.Tensor]
    name: str = "a"


class Pinned:
    """A batch as PyTorch's documentation of ``pin_memory`` has it."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x, self.y, self.name, self.model = x, x[:, 0], "a", Known()


@pytest.mark.parametrize("make", [lambda x: Batch(x, [x[:, 0]]), Pinned], ids=["dataclass", "own"])
def test_sizes_of_batches_that_are_objects_are_seen(make):
    """A short batch between the others would count as one of them, with as much noise as it has."""
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(16 if i % 2 == 0 else 1, 50, generator=generator) + 1 for i in range(200)]
    found = probe(Known(50), lambda m, b: (m.weight * b.x).sum(1).mean(), [make(x) for x in xs])
    assert (found.examples, len(found.products)) == (16, 100)
    assert found.noise_trace == pytest.approx(50 / 16, rel=0.1)
    pair = [(make(x), i) for i, x in enumerate(xs)]
    nested = probe(Known(50), lambda m, b: (m.weight * b[0].x).sum(1).mean(), pair)
    assert (nested.examples, len(nested.products)) == (16, 100)


def test_examples_of_several_tensors_are_counted_where_they_agree_and_asked_for_where_not():
    model = nn.Linear(2, 1)

    def loss_fn(m, batch):
        return m(torch.cat([part.reshape(-1, 2) for part in batch])).sum()

    pairs = [(torch.randn(5, 2), torch.randn(5, 2)) for _ in range(16)]
    assert probe(model, loss_fn, pairs).examples == 5
    images = [(*torch.randn(4, 3, 2), torch.zeros(4, 2)) for _ in range(16)]
    with pytest.raises(ValueError, match=r"lengths \[3, 4\] in a batch.*pass examples="):
        probe(model, loss_fn, images)
    assert probe(model, loss_fn, images, examples=lambda batch: len(batch) - 1).examples == 4
    smaller = [*[tuple(torch.randn(4, 3, 2)) for _ in range(16)], tuple(torch.randn(2, 3, 2))]
    found = probe(model, loss_fn, smaller, examples=len)
    assert (found.examples, len(found.products)) == (4, 16)


def test_what_cannot_be_probed_is_refused():
    model, other = nn.Linear(1, 1), nn.Linear(1, 1)
    with pytest.raises(ValueError, match="3 microbatches of size 1: expected >= 16 alike"):
        probe(model, lambda m, x: m(x).sum(), [torch.ones(1, 1)] * 3)
    with pytest.raises(ValueError, match="all gradients are 0"):
        probe(model, lambda m, x: other(x).sum(), [torch.ones(1, 1)] * 16)
    for loss in (lambda x: (model(x).sum(),) * 2, lambda x: {"loss": model(x).sum()}, model):
        with pytest.raises(TypeError, match=r"loss_fn returned (tuple|dict|shape \(2, 1\)): exp"):
            probe(model, lambda m, x, loss=loss: loss(x), [torch.ones(2, 1)] * 16)
    with torch.inference_mode(), pytest.raises(TypeError, match="one element with a graph"):
        probe(model, lambda m, x: m(x).sum(), [torch.ones(1, 1)] * 16)
    with pytest.raises(ValueError, match="draws=4"):
        probe(model, lambda m, x: m(x).sum(), [], draws=4)
    with pytest.raises(ValueError, match="no parameter needs a gradient"):
        probe(model.requires_grad_(False), lambda m, x: m(x).sum(), [])


# Schedules in draws


def test_a_schedule_in_draws_keeps_them_while_gradients_shrink_tenfold():
    model, loader = Known(), stream(10.0, seed=5)
    p = probe(model, dot, loader)
    wrapper, schedule = p.make_gnts(SGD(model.parameters(), lr=0.0), 8)
    assert wrapper.max_draws == 32
    windows = []
    for step in range(2000):
        (dot(model, next(loader)) * 0.1 ** (step / 2000)).backward()
        if wrapper.step():
            windows.append(wrapper.last_num_draws)
        schedule.step()
    assert sum(windows[-100:]) / 100 == pytest.approx(8, abs=2)
    assert schedule.get_last_value()[0] == pytest.approx(0.1 * p.norm(8), rel=0.2)


@pytest.mark.parametrize("loss", ["mean", "sum"])
def test_a_schedule_in_draws_counts_draws_and_not_their_weights(loss):
    model, loader, tokens = Known(), stream(5.0, seed=7), 1000
    size = tokens if loss == "sum" else 1
    p, optimizer = probe(model, lambda m, x: size * dot(m, x), loader), SGD(model.parameters(), 0.0)
    if loss == "mean":
        wrapper, schedule = p.make_gnts(optimizer, 4)
    else:
        with pytest.raises(ValueError, match=r'loss="sum": .* noise_trace / w\*\*2\)'):
            p.make_gnts(optimizer, 4, loss="sum")
        wrapper = gqc.OptimizerWrapperGNTS(optimizer, loss="sum", max_draws=16)
        schedule = DrawsSchedule(wrapper, 4, p.signal_sq / size**2, p.noise_trace / size**2)
    windows = []
    for _ in range(1200):
        (size * dot(model, next(loader))).backward()
        if wrapper.step(weight=tokens):
            windows.append(wrapper.last_num_draws)
        schedule.step()
    assert sum(windows[-150:]) / 150 == pytest.approx(4, abs=1)


def test_a_schedule_in_draws_that_starts_at_one_leaves_it_again():
    model, loader = Known(), stream(10.0, seed=6)
    p = probe(model, dot, loader)
    wrapper, schedule = p.make_gnts(
        SGD(model.parameters(), lr=0.0), lambda step: 1 if step < 500 else 6
    )
    windows = []
    for step in range(1500):
        (dot(model, next(loader)) * (0.1 if step < 400 else 0.01)).backward()
        if wrapper.step():
            windows.append((step, wrapper.last_num_draws))
        schedule.step()
    assert sum(n for _, n in windows[-50:]) / 50 == pytest.approx(6, abs=2)
    twin = DrawsSchedule(copy.deepcopy(wrapper), schedule.draws, 1.0, 1.0)
    twin.load_state_dict(schedule.state_dict())
    assert twin.get_last_value() == schedule.get_last_value()


def test_a_schedule_in_draws_refuses_what_it_cannot_schedule():
    with pytest.raises(TypeError, match="is a SGD: expected GNTS"):
        DrawsSchedule(SGD([nn.Parameter(torch.zeros(1))]), 8, 1.0, 1.0)
    wrapper = gqc.OptimizerWrapperGNTS(SGD([nn.Parameter(torch.zeros(1))]))
    with pytest.raises(ValueError, match=r"draws=0\.5 at step 0"):
        DrawsSchedule(wrapper, 0.5, 1.0, 1.0)
    wrapper = gqc.OptimizerWrapperGNTS(SGD([nn.Parameter(torch.zeros(1))]), min_draws=2)
    with pytest.raises(ValueError, match="min_draws=2: expected 1, as the norm"):
        DrawsSchedule(wrapper, 4, 1.0, 1.0)


def test_a_gradient_that_jumps_is_no_trap():
    x = nn.Parameter(torch.zeros(1))
    wrapper = gqc.OptimizerWrapperGNTS(SGD([x], lr=0.0))
    schedule, lengths = DrawsSchedule(wrapper, 2, 1.0, 1e-6), []
    for step in range(300):
        (x * (1.0 if step < 20 else 9.0)).sum().backward()
        if wrapper.step():
            lengths.append(wrapper.last_num_draws)
        schedule.step()
    assert max(lengths) <= 8
    assert max(lengths[-5:]) <= 2  # the average has followed


@pytest.mark.parametrize("is_wrapper_first", [True, False])
def test_a_lifted_threshold_is_resumed_in_any_order(is_wrapper_first):
    """Cut at every draw of windows that the lift ends, as a gradient has grown 100-fold."""

    def make():
        param = nn.Parameter(torch.zeros(1))
        wrapper = gqc.OptimizerWrapperGNTS(SGD([param], lr=0.0), max_draws=None)
        return param, wrapper, DrawsSchedule(wrapper, 2, 1.0, 1.0)

    def run(cut):
        (param, wrapper, schedule), seen = make(), []
        for t in range(20):
            (100.0 * param.sum()).backward()
            seen.append((wrapper.step(), wrapper.tunable(gqc.schedules.THRESHOLD)))
            schedule.step()
            if t == cut:
                files = [wrapper.state_dict(), schedule.state_dict()]
                param, wrapper, schedule = make()
                pairs = [*zip((wrapper, schedule), files, strict=True)]
                for one, file in pairs if is_wrapper_first else reversed(pairs):
                    one.load_state_dict(file)
        return seen

    uncut = run(None)
    assert next(t for t, (stepped, _) in enumerate(uncut) if stepped) == 7
    assert all(run(cut) == uncut for cut in range(20))


@pytest.mark.filterwarnings("ignore:.*this warning comes once:UserWarning")
@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("cut", [None, 9, 10])
def test_a_discarded_draw_tells_a_schedule_in_draws_nothing(draws, cut):
    """First draws too: the thresholds are those of a run without these microbatches."""

    def make():
        param = nn.Parameter(torch.zeros(1))
        wrapper = gqc.OptimizerWrapperGNTS(SGD([param], lr=0.0), max_draws=8)
        return param, wrapper, DrawsSchedule(wrapper, draws, 1.0, 1.0)

    def run(stream, cut=None):
        (param, wrapper, schedule), seen = make(), []
        for step, size in enumerate(stream):
            (size * param.sum()).backward()
            wrapper.step()
            schedule.step()
            if not math.isnan(size):
                seen.append((wrapper.num_draws, wrapper.tunable(gqc.schedules.THRESHOLD)))
            if step == cut:
                files = wrapper.state_dict(), schedule.state_dict()
                param, wrapper, schedule = make()
                wrapper.load_state_dict(files[0])
                schedule.load_state_dict(files[1])
        return seen

    sizes = torch.linspace(2, 0.5, 30).tolist()
    with_nan = [x for size in sizes for x in (size, math.nan, math.nan)]
    assert len({threshold for _, threshold in run(sizes)}) > 5
    assert run(with_nan, cut) == run(sizes)
