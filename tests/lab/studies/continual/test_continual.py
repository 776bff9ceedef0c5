"""Learning a stream of tasks: online accuracy, exact resume, the methods and the measures."""

import math
from functools import cache

import pytest
import torch
from same_runs import assert_same_run, resume, run, weights, with_cuts
from torch.nn import functional as F

from gqc_lab.data.streams import KINDS, TaskStream
from gqc_lab.loop.placement import make_generator
from gqc_lab.loop.settings import read_tuned
from gqc_lab.models.mlp import make_mlp
from gqc_lab.studies import continual
from gqc_lab.studies.continual import settings as continual_config
from gqc_lab.studies.continual import tuning as continual_tuning
from gqc_lab.studies.continual.methods import METHODS
from gqc_lab.studies.continual.settings import TUNED
from gqc_lab.studies.continual.training import PerturbedSGD

NOISY = [name for name, method in METHODS.items() if "sigma" in method.space]
STEPS = 24  # three tasks of eight


def tiny(method="upgd", **overrides):
    values = {"num_tasks": 3, "task_examples": 32, "batch_size": 4, "width": 8, "device": "cpu"}
    values |= {"measure_every": 3, "probe_examples": 16, "vgs_warmup_steps": 4, "vgs_beta": 0.9}
    return continual.config("smoke", method=method, **{**values, **overrides})


ADDED = [
    {},
    {"vgs": True},
    {"adaptive_noise": True},
    {"adaptive_noise": True, "vgs": True},
]
VARIANTS = [
    (m, a)
    for m in METHODS
    for a in ADDED
    if METHODS[m].has_gates or not a.get("adaptive_noise", False)
]


@pytest.mark.parametrize("stream", KINDS)
def test_sgd_is_plain_torch_and_accuracy_is_counted_before_the_step(stream):
    config = tiny("sgd", stream=stream, lr=0.1)
    experiment = run(continual.build(config))
    source = TaskStream(stream, num_tasks=3, task_examples=32)
    model = make_mlp(64, 8, 2, 10, make_generator(0, "weights"))
    plain = torch.optim.SGD(model.parameters(), 0.1)
    losses, correct = [], []
    for images, labels in map(source.task, range(3)):
        for x, y in zip(images.split(4), labels.split(4), strict=True):
            logits = model(x)
            loss = F.cross_entropy(logits, y)
            correct.append(int((logits.argmax(1) == y).sum()))
            losses.append(loss.item())
            plain.zero_grad()
            loss.backward()
            plain.step()
    history = experiment.history
    assert history["loss"].tolist() == pytest.approx(losses, rel=1e-6)  # sums of another order
    assert history["num_correct"].tolist() == correct
    assert history["task"].tolist() == [1] * 8 + [2] * 8 + [3] * 8
    accuracies = [sum(correct[i : i + 8]) / 32 for i in (0, 8, 16)]
    assert experiment.tasks["online_accuracy"].tolist() == accuracies
    summary = experiment.summary()
    assert summary["online_accuracy"] == pytest.approx(sum(correct) / 96)
    assert summary["accuracy_change"] == pytest.approx(accuracies[2] - accuracies[0])
    assert experiment.data_hash == source.hash


CUTS = (1, 7, 8, 13)


@cache  # every cut is compared with the same run
def uncut_and_cuts(config):
    return with_cuts(lambda: continual.build(config), CUTS)


@pytest.mark.parametrize(("method", "added"), VARIANTS)
@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_run_is_the_uncut_run(method, added, cut):
    config = tiny(method, **added)
    uncut, files = uncut_and_cuts(config)
    assert_same_run(resume(continual.build(config), files[cut]), uncut)
    assert len(uncut.history) == STEPS
    if method in NOISY:
        assert uncut.tasks["noise_to_signal"].gt(0).all()
    if added.get("vgs"):
        assert uncut.history["factor"].min() < 0.9  # so that the scaler's state matters


def test_records_keep_their_contract():
    experiment = continual.build(tiny())
    records = list(experiment)
    assert [r["examples"] for r in records] == [4 * t for t in range(1, STEPS + 1)]
    ends = [r["microbatch"] for r in records if r["online_accuracy"] is not None]
    assert ends == [8, 16, 24]
    assert set(continual.Continual.evaluated) <= set(records[0])
    tasks = experiment.tasks
    assert list(tasks.columns[:6]) == [
        *("stream", "method", "normalization", "seed", "task", "examples"),
    ]
    assert tasks["task"].tolist() == [1, 2, 3]
    assert (tasks["factor"] == 1).all()
    assert continual.build(tiny()).tasks.empty
    assert continual.build(tiny()).summary()["online_accuracy"] is None


def test_a_mean_over_tasks_is_not_that_of_the_tasks_before_it_diverged():
    experiment = run(continual.build(tiny()), until=16)
    before = experiment.summary()
    assert before["plasticity"] == pytest.approx(experiment.tasks["plasticity"].mean())
    with torch.no_grad():
        next(experiment.model.parameters()).fill_(math.nan)
    after = run(experiment).summary()
    assert after["num_not_finite"] == 8
    assert experiment.tasks["plasticity"].notna().sum() == 2
    assert math.isnan(after["plasticity"])


@pytest.mark.parametrize("method", ["sgd", "upgd", "adamw"])
def test_plasticity_is_of_the_same_examples_before_and_after_the_step(method):
    experiment = continual.build(tiny(method, measure_every=1, task_examples=4))
    images, labels = experiment.draw_batch()
    before = F.cross_entropy(experiment.model(images), labels, reduction="none")
    record = next(experiment)
    after = F.cross_entropy(experiment.model(images), labels, reduction="none")
    by_hand = [
        max(1 - a / max(b, 1e-8), 0) for a, b in zip(after.tolist(), before.tolist(), strict=True)
    ]
    assert record["plasticity"] == pytest.approx(sum(by_hand) / 4, rel=1e-5)
    assert record["plasticity"] > 0


def test_measures_of_the_network_by_hand():
    experiment = run(continual.build(tiny(probe_examples=5)))
    images = experiment.stream.task(2)[0][:5]
    model, last = experiment.model, experiment.tasks.iloc[-1]
    first = torch.relu(images @ model[0].weight.T + model[0].bias)
    second = torch.relu(first @ model[2].weight.T + model[2].bias)
    units = torch.cat([first, second], 1)
    assert last["dead_share"] == (units.sum(0) == 0).double().mean().item()
    assert last["weight_norm"] == pytest.approx(weights(experiment).norm().item(), rel=1e-6)
    s = torch.linalg.svdvals(second.detach().double())
    p = [v for v in (s / s.sum()).tolist() if v > 0]
    assert last["effective_rank"] == pytest.approx(math.exp(-sum(v * math.log(v) for v in p)))


@pytest.mark.parametrize("method", NOISY)
def test_noise_to_signal_is_relative_to_what_the_noise_is_added_to(method):
    options = {"measure_every": 1, "task_examples": 4, "sigma": 0.05, "weight_decay": 0.0}
    experiment = continual.build(tiny(method, **options))
    images, labels = experiment.draw_batch()
    loss = F.cross_entropy(experiment.model(images), labels)
    grads = torch.autograd.grad(loss, list(experiment.model.parameters()))
    g = torch.cat([grad.flatten() for grad in grads])
    # Adam's first direction is the sign of the gradient, but for eps.
    direction = g / (g.abs() + 1e-8) if method in ("adaptive_upgd", "upgdw") else g
    expected = 0.05 * g.numel() ** 0.5 / direction.norm().item()
    assert next(experiment)["noise_to_signal"] == pytest.approx(expected, rel=1e-4)


def test_adaptive_noise_keeps_its_ratio_where_vgs_scales_gradients():
    sizes = {"num_tasks": 10, "sigma": 0.5}
    fixed, adaptive = (
        run(continual.build(tiny(adaptive_noise=a, vgs=True, **sizes))).tasks for a in (False, True)
    )
    assert (adaptive["factor"] < 0.9).any()
    assert adaptive["noise_to_signal"].tolist() == pytest.approx([0.5] * 10, rel=1e-5)
    assert fixed["noise_to_signal"].max() > 2 * fixed["noise_to_signal"].min()


@pytest.mark.parametrize("method", ["upgd", "adaptive_upgd"])
def test_a_gradient_factor_moves_the_ratio_of_adams_variants_only_with_adaptive_noise(method):
    """A fixed deviation beside Adam's direction, and an adaptive one beside a gradient, keep it."""

    def ratio(adaptive_noise, factor):
        options = {"adaptive_noise": adaptive_noise, "gradient_factor": factor, "sigma": 0.5}
        experiment = continual.build(tiny(method, measure_every=1, task_examples=4, **options))
        return next(experiment)["noise_to_signal"]

    changes = [ratio(adaptive, 0.125) / ratio(adaptive, 1.0) for adaptive in (False, True)]
    expected = [8.0, 1.0] if method == "upgd" else [1.0, 0.125]
    assert changes == pytest.approx(expected, rel=1e-3)


def test_perturbed_sgd_by_hand():
    w = [torch.tensor([1.0, -2.0]), torch.tensor([[3.0]])]
    params = [p.clone().requires_grad_() for p in w]
    for p in params:
        p.grad = 2 * p.detach()
    PerturbedSGD(params, 0.1, 0.5, 0.3, generator=make_generator(0, "test")).step()
    noise = torch.empty(3).normal_(0, 0.3, generator=make_generator(0, "test"))
    for p, before, xi in zip(params, w, noise.split([2, 1]), strict=True):
        expected = before * (1 - 0.1 * 0.5) - 0.1 * (2 * before + xi.view(before.shape))
        torch.testing.assert_close(p.detach(), expected)


def test_perturbed_sgd_without_noise_is_sgd_and_needs_no_gradient_of_all():
    generator = make_generator(0, "test")
    a = torch.randn(4, 3, generator=generator).requires_grad_()
    b = a.detach().clone().requires_grad_()
    unused = torch.ones(2, requires_grad=True)
    ours, plain = PerturbedSGD([a, unused], 0.1, generator=generator), torch.optim.SGD([b], 0.1)
    for _ in range(5):
        for p, optimizer in ((a, ours), (b, plain)):
            optimizer.zero_grad()
            p.square().sum().backward()
            optimizer.step()
    assert torch.equal(a, b)
    assert torch.equal(unused, torch.ones(2))


def test_methods_share_weights_and_stream():
    built = [continual.build(tiny(m)) for m in METHODS]
    assert len({next(e)["loss"] for e in built}) == 1
    assert len({e.data_hash for e in built}) == 1
    other = continual.build(tiny(seed=1))
    assert other.data_hash != built[0].data_hash
    assert next(other)["loss"] != built[0].history["loss"][0]


def test_steering_applies_at_once_and_replays():
    steered = run(continual.build(tiny()), until=10)
    steered.controls.update(sigma=0.0, lr_scale=0.5)
    run(steered)
    assert steered.tasks["noise_to_signal"].iloc[-1] == 0
    replayed = continual.build(tiny())
    replayed.replay(steered.changes)
    assert_same_run(run(replayed), steered)
    assert "sigma" not in continual.build(tiny("sgd")).controls


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_diverges_ends_and_is_counted(method):
    experiment = run(continual.build(tiny(method, lr=1e30)))
    summary = experiment.summary()
    assert len(experiment.tasks) == 3
    assert summary["num_not_finite"] > 0
    assert 0 <= summary["online_accuracy"] < 0.5


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize("method", METHODS)
def test_dtypes(method, dtype):
    experiment = run(continual.build(tiny(method, dtype=dtype)))
    assert math.isfinite(experiment.summary()["weight_norm"])


def test_every_method_of_every_stream_has_tuned_values():
    names = continual_tuning.SPACES
    long = {("label_permuted, long", name) for name in ("sgd", "l2", "adamw", "upgd")}
    assert set(TUNED) == long | {(stream, name) for stream in KINDS for name in names}
    for (_, name), values in TUNED.items():
        assert set(values) == set(names[name])
    assert {continual_tuning.options_of(name)["method"] for name in names} == set(METHODS)
    for name in names:
        assert continual.config(**continual_tuning.options_of(name)).name == name
    assert not set(continual_tuning.SEEDS) & set(continual_tuning.REPORT_SEEDS)


def test_what_was_not_tuned_so_has_the_values_of_the_bare_method():
    both = [continual.config(method="adaptive_upgd", vgs=v) for v in (False, True)]
    assert both[0].lr == both[1].lr == TUNED["input_permuted", "adaptive_upgd"]["lr"]
    assert both[1].name == "adaptive_upgd, VGS"
    assert continual.config(lr=0.7).lr == 0.7


def test_a_long_stream_has_values_of_its_own():
    long = continual.config("long", stream="label_permuted", method="sgd")
    assert long.num_tasks == 300
    assert long.lr == TUNED["label_permuted, long", "sgd"]["lr"]
    assert continual.config("laptop", stream="label_permuted", method="sgd").lr != long.lr
    other = continual.config("long", stream="input_permuted", method="sgd")
    assert other.lr == TUNED["input_permuted", "sgd"]["lr"]


def test_tuning_may_name_the_scale(monkeypatch):
    built = []
    monkeypatch.setattr(continual, "build", lambda config: built.append(config) or 1 / 0)
    for stream, scale in (("label_permuted", "laptop"), ("label_permuted, long", "long")):
        with pytest.raises(ZeroDivisionError):
            continual_tuning.measure(stream, "sgd", {"lr": 0.1}, 100)
        assert (built[-1].stream, built[-1].scale) == ("label_permuted", scale)


def test_a_comparison_is_every_method_on_every_stream():
    configs = continual.comparison("smoke", KINDS, ["sgd", "upgd"], [3, 4], width=8)
    assert len(set(configs)) == 8
    assert {(c.stream, c.method, c.seed, c.width) for c in configs} == {
        (s, m, seed, 8) for s in KINDS for m in ("sgd", "upgd") for seed in (3, 4)
    }


@pytest.fixture
def short_laptop(monkeypatch):
    sizes = {"num_tasks": 3, "task_examples": 32, "batch_size": 4, "measure_every": 3}
    sizes |= {"probe_examples": 16, "width": 8, "depth": 2}
    monkeypatch.setitem(continual_config.SCALES, "laptop", sizes)


@pytest.mark.usefixtures("short_laptop")
def test_the_tuning_measures_what_a_run_reports():
    values = {"lr": 0.1, "weight_decay": 0.0, "sigma": 0.02}
    numbers = continual_tuning.measure("label_permuted", "upgd, VGS", values, 100)
    config = continual.config(
        "laptop", stream="label_permuted", vgs=True, seed=100, device="cpu", **values
    )
    summary = run(continual.build(config)).summary()
    numbers.pop("seconds")
    assert numbers == {name: summary[name] for name in numbers}


@pytest.mark.usefixtures("short_laptop")
def test_the_tuning_prints_every_trial_and_the_best_are_read_back(monkeypatch, tmp_path, capsys):
    some = {name: continual_tuning.SPACES[name] for name in ("sgd", "upgd, VGS")}
    monkeypatch.setattr(continual_tuning, "SPACES", some)
    monkeypatch.setattr(continual_tuning, "BUDGETS", (3, 2))
    monkeypatch.setattr(continual_tuning, "ROUNDS", 1)
    best = {}
    for stream in KINDS:
        continual_tuning.main(str(tmp_path / "trials"), stream)
        printed = capsys.readouterr()
        kept = tmp_path / "tuned.csv"
        kept.write_text("# what was tried\n" + printed.out.strip())
        assert len((tmp_path / f"trials.{stream}").read_text().splitlines()) == 2 * (3 + 2)
        assert len(kept.read_text().splitlines()) == 2 + 2 * (3 + 2)
        assert f"# at the edge of what was tried on {stream}: " in printed.err
        best |= read_tuned(kept, ("stream", "name"), "online_accuracy", is_larger_better=True)
    assert {key: set(values) for key, values in best.items()} == {
        (stream, name): set(space) for stream in KINDS for name, space in some.items()
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stream": "input"}, "stream='input': expected one of input_permuted, label_permuted"),
        ({"method": "updg"}, "method='updg': did you mean 'upgd'"),
        ({"data": "minst"}, "data='minst': did you mean 'mnist'"),
        ({"normalization": "min"}, "normalization='min'"),
        ({"num_tasks": 0}, "num_tasks=0"),
        ({"depth": 0}, "depth=0"),
        ({"batch_size": 7}, "task_examples=120: expected a multiple of batch_size=7"),
        ({"lr": math.nan}, "lr=nan"),
        ({"sigma": -0.1}, "sigma=-0.1"),
        ({"gradient_factor": 0.0}, "gradient_factor=0.0"),
        ({"sigma": math.inf}, "sigma=inf"),
        ({"method": "sgd", "sigma": 0.1}, "sigma=0.1 with method='sgd'"),
        ({"method": "pgd", "weight_decay": 0.1}, "weight_decay=0.1 with method='pgd'"),
        ({"method": "adamw", "adaptive_noise": True}, "adaptive_noise=True with method='adamw'"),
        ({"beta_utility": 1.0}, "beta_utility=1.0"),
        ({"vgs": True, "vgs_alpha": -1.0}, "alpha=-1.0"),
        ({"sgima": 0.1}, "field='sgima': did you mean 'sigma'"),
    ],
)
def test_bad_values_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        continual.build(continual.config("smoke", device="cpu", **options))


def test_the_global_random_stream_is_not_touched():
    before = torch.get_rng_state()
    for method, added in VARIANTS:
        run(continual.build(tiny(method, **added)), until=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_upgdw_is_adaptive_upgd_where_their_decays_are_equal():
    values = {"lr": 0.01, "weight_decay": 0.1, "sigma": 0.1, "beta_utility": 0.999, "beta2": 0.999}
    a, b = (run(continual.build(tiny(m, **values))) for m in ("adaptive_upgd", "upgdw"))
    assert torch.equal(weights(a), weights(b))
