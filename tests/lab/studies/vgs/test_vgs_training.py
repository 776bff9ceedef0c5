"""Training with the variance gradient scaler: records, controls, exact resume, the references."""

import io
import math
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from same_runs import assert_same_run, resume, run, weights, with_cuts
from torch.nn import functional as F

from gqc_lab.data.images import load_image_data
from gqc_lab.loop.placement import make_generator
from gqc_lab.models.mlp import make_mlp
from gqc_lab.studies.vgs import training as vgs_training
from gqc_lab.studies.vgs.settings import LR_OF, OPTIMIZERS, TASKS, TUNED

STEPS = 40
AGGREGATES = ("percentile", "mean")


def tiny(task="digits", optimizer="sgd", **overrides):
    values = {"steps": STEPS, "batch_size": 4, "evaluation_steps": 8, "width": 8, "device": "cpu"}
    values |= {"warmup_steps": 5, "beta": 0.9, "task": task, "optimizer": optimizer}
    return vgs_training.config("smoke", **{**values, **overrides})


def make_optimizer(name, parameters, lr):
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr, weight_decay=0.0)
    return torch.optim.SGD(parameters, lr, momentum=0.9 if name == "momentum" else 0.0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_without_scaling_it_is_plain_torch(optimizer):
    config = tiny(optimizer=optimizer, alpha=0)
    experiment = run(vgs_training.build(config))
    data = load_image_data(label_noise=config.label_noise, seed=config.seed)
    model = make_mlp(64, 8, 2, 10, make_generator(config.seed, "weights"))
    plain = make_optimizer(optimizer, model.parameters(), config.lr)
    generator, losses = make_generator(config.seed, "data"), []
    for t in range(1, STEPS + 1):
        rows = torch.randint(len(data.train_images), (4,), generator=generator)
        loss = F.cross_entropy(model(data.train_images[rows]), data.train_labels[rows])
        loss.backward()
        plain.param_groups[0]["lr"] = config.lr * min(1.0, t / config.lr_warmup)
        plain.step()
        plain.zero_grad()
        losses.append(loss.item())
    assert experiment.history["loss"].tolist() == losses
    assert all(map(torch.equal, experiment.model.parameters(), model.parameters()))
    assert (experiment.history["factor"] == 1).all()
    assert experiment.history["vgs/normalized_variance"].iloc[-1] > 0  # it measures all the same


CUTS = (1, 4, 5, 23, 39)


@cache  # every cut is compared with the same run
def uncut_and_cuts(config):
    return with_cuts(lambda: vgs_training.build(config), CUTS)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_run_is_the_uncut_run(task, optimizer, cut):
    config = tiny(task, optimizer)
    uncut, files = uncut_and_cuts(config)
    assert_same_run(resume(vgs_training.build(config), files[cut]), uncut)
    assert uncut.history["factor"].min() < 0.9  # so that the scaler's state matters


def test_records_keep_their_contract():
    experiment = vgs_training.build(tiny(alpha=0.2))
    records = list(experiment)
    assert [r["examples"] for r in records] == [4 * t for t in range(1, STEPS + 1)]
    assert [r["microbatch"] for r in records if r["val_loss"] is not None] == [8, 16, 24, 32, 40]
    assert {k for k in records[0] if k.startswith("vgs/")} >= {
        *("vgs/normalized_variance", "vgs/unresolved", "vgs/scaling_factor", "vgs/step_count"),
        *("vgs/stochastic_var_p10", "vgs/stochastic_var_p90", "vgs/grad_norm_ema"),
    }
    factors = [r["factor"] for r in records]
    assert factors[:5] == [1.0] * 5
    assert factors[5:] == [r["vgs/scaling_factor"] for r in records[4:-1]]  # of what came before
    for before, record in pairwise(records[4:]):
        assert record["factor"] == pytest.approx(
            max(0.1, 1 / (1 + 0.2 * min(50, before["vgs/normalized_variance"]))), rel=1e-6
        )
    for r in records:  # SGD: the step is lr x factor x gradient, in float32
        moved = r["lr"] * r["factor"] * r["grad_norm"]
        assert r["update_norm"] == pytest.approx(moved, rel=1e-3)
    history = experiment.history
    assert list(history.columns[:5]) == ["task", "optimizer", "method", "alpha", "seed"]
    assert (history["method"] == "VGS, alpha 0.2").all()


def test_td_loss_and_value_error_by_hand():
    experiment = vgs_training.build(tiny("values"))
    chain, model = experiment.chain, experiment.model
    states, rewards, following = experiment.draw_batch()
    learnt = model(chain.features).squeeze(1).tolist()
    errors = [
        (learnt[s] - r - 0.9 * learnt[n]) ** 2
        for s, r, n in zip(states.tolist(), rewards.tolist(), following.tolist(), strict=True)
    ]
    loss = experiment.compute_loss((states, rewards, following))
    assert loss.item() == pytest.approx(sum(errors) / 4, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, [model[-1].bias])
    # Semi-gradient: the target stays, so the last bias gets 2 mean(v - target) and not 0.1 of it.
    targets = [
        r + 0.9 * learnt[n] for r, n in zip(rewards.tolist(), following.tolist(), strict=True)
    ]
    mean = sum(learnt[s] - t for s, t in zip(states.tolist(), targets, strict=True)) / 4
    assert gradient.item() == pytest.approx(2 * mean, rel=1e-4)
    p, v = chain.occupancy.tolist(), chain.values.tolist()
    error = sum(w * (a - b) ** 2 for w, a, b in zip(p, learnt, v, strict=True))
    mean_value = sum(w * b for w, b in zip(p, v, strict=True))
    spread = sum(w * (b - mean_value) ** 2 for w, b in zip(p, v, strict=True))
    found = experiment.evaluate()
    assert found["val_loss"] == pytest.approx(error, rel=1e-6)
    assert found["val_error"] == pytest.approx(math.sqrt(error / spread), rel=1e-6)


@pytest.mark.slow
def test_values_are_learnt():
    """TD finds what solves the chain's equations, where there is no reward noise to average."""
    config = tiny("values", "adamw", alpha=0, steps=1500, batch_size=32, lr=3e-3, width=64)
    before = vgs_training.build(config).evaluate()["val_error"]
    after = run(vgs_training.build(config)).summary()["val_error"]
    assert after < 0.3 < before  # a constant would be at 1


def test_evaluation_of_digits_is_on_true_labels():
    experiment = vgs_training.build(tiny(label_noise=1.0))
    logits = experiment.model(experiment.data.test_images)
    wrong = logits.argmax(1) != experiment.data.test_labels
    found = experiment.evaluate()
    assert found["val_error"] == pytest.approx(wrong.float().mean().item())
    chosen = logits.log_softmax(1)[range(359), experiment.data.test_labels]
    assert found["val_loss"] == pytest.approx(-chosen.mean().item(), rel=1e-5)


def test_a_constant_factor_is_a_smaller_lr_for_sgd():
    factor = run(vgs_training.build(tiny(alpha=0, constant_factor=0.25, lr_warmup=0)))
    history = factor.history
    assert history["factor"].tolist() == [1.0] * 5 + [0.25] * 35
    assert (history["method"] == "constant factor").all()
    steered = run(vgs_training.build(tiny(alpha=0, lr_warmup=0)), until=5)
    steered.controls["lr_scale"] = 0.25  # a power of two: exact
    run(steered)
    assert steered.history["loss"].tolist() == history["loss"].tolist()


def test_a_constant_factor_of_all_gradients_is_invisible_to_adam():
    plain, scaled = (
        weights(run(vgs_training.build(tiny(optimizer="adamw", warmup_steps=0, **options))))
        for options in ({"alpha": 0}, {"alpha": 0, "constant_factor": 0.25})
    )
    start = weights(vgs_training.build(tiny()))
    # Adam's eps of 1e-8 against elements of 1e-3 or so.
    assert (plain - scaled).norm() < 1e-3 * (plain - start).norm()


@pytest.mark.parametrize("task", TASKS)
def test_steered_alpha_applies_at_once_and_replays(task):
    steered = run(vgs_training.build(tiny(task)), until=20)
    steered.controls["alpha"] = 0.0
    run(steered)
    assert (steered.history["factor"][20:] == 1).all()
    assert (steered.history["factor"][5:20] < 1).any()
    replayed = vgs_training.build(tiny(task))
    replayed.replay(steered.changes)
    assert_same_run(run(replayed), steered)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alpha", 1.0),
        ("percentile", 0.1),
        ("min_scaling_factor", 0.75),  # exact in float32
        ("variance_cap", 3.0),
        ("warmup_steps", 30),
    ],
)
def test_a_control_of_the_scaler_acts_on_the_next_gradient(name, value):
    plain = run(vgs_training.build(tiny(min_scaling_factor=0.0)))
    experiment = run(vgs_training.build(tiny(min_scaling_factor=0.0)), until=20)
    experiment.controls[name] = value
    run(experiment)
    factors, before = experiment.history["factor"], plain.history["factor"]
    assert factors[:20].tolist() == before[:20].tolist()
    assert factors[20] != before[20]  # the very next one
    assert getattr(experiment.wrapper.scaler, name) == value
    if name == "warmup_steps":
        assert factors[20:30].tolist() == [1.0] * 10
    if name == "min_scaling_factor":
        assert factors[20:].min() == 0.75
    replayed = vgs_training.build(tiny(min_scaling_factor=0.0))
    replayed.replay(experiment.changes)
    assert_same_run(run(replayed), experiment)


def test_a_change_of_beta_starts_the_statistics_and_the_warmup_afresh():
    config = tiny("values", "adamw")
    experiment = run(vgs_training.build(config), until=20)
    experiment.controls["beta"] = 0.8
    run(experiment, until=24)
    file = io.BytesIO()
    torch.save(experiment.state_dict(), file)
    run(experiment)
    history = experiment.history
    assert history["vgs/step_count"][18:22].tolist() == [19, 20, 1, 2]
    assert history["factor"][20:25].tolist() == [1.0] * 5
    assert experiment.wrapper.scaler.beta == 0.8
    # The new statistics are those of a scaler that sees these gradients as its first.
    fresh = vgs_training.build(tiny("values", "adamw", beta=0.8))
    fresh.model.load_state_dict(run(vgs_training.build(config), until=20).model.state_dict())
    fresh.generators["data"].set_state(
        run(vgs_training.build(config), until=20).generators["data"].get_state()
    )
    first = next(fresh)
    assert first["vgs/grad_norm_ema"] == history["vgs/grad_norm_ema"][20]
    file.seek(0)
    resumed = vgs_training.build(config)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert_same_run(run(resumed), experiment)


def test_no_cap_is_a_cap_of_zero():
    experiment = run(vgs_training.build(tiny()), until=20)
    experiment.controls["variance_cap"] = 0
    next(experiment)
    assert experiment.wrapper.scaler.variance_cap is None
    assert vgs_training.build(tiny(variance_cap=None)).controls["variance_cap"] == 0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("alpha", -0.1, "alpha=-0.1"),
        ("alpha", "", "alpha=''"),
        ("beta", 1.0, r"beta=1.0: expected a number above 0 and below 1"),
        ("beta", 0, "beta=0"),
        ("warmup_steps", 1.5, "warmup_steps=1.5: expected an integer of at least 0"),
        ("percentile", 1.1, "percentile=1.1"),
        ("min_scaling_factor", math.nan, "min_scaling_factor=nan"),
        ("variance_cap", -1, "variance_cap=-1"),
        ("estimator", "elementwise", "control='estimator'"),
    ],
)
def test_a_wrong_control_is_refused_and_the_run_goes_on_as_before(name, value, message):
    experiment = run(vgs_training.build(tiny()), until=20)
    with pytest.raises(ValueError, match=message):
        experiment.controls[name] = value
    assert_same_run(run(experiment), run(vgs_training.build(tiny())))


@pytest.mark.parametrize("task", TASKS)
def test_a_twin_is_the_same_run_from_its_beginning(task):
    experiment = run(vgs_training.build(tiny(task)))
    assert set(experiment.measured) <= set(experiment.history)
    assert_same_run(run(experiment.twin()), experiment)
    assert experiment.twin("elementwise").wrapper.scaler.estimator == "elementwise"


def test_methods_share_weights_data_and_labels():
    built = [vgs_training.build(tiny(alpha=a, optimizer=o)) for a in (0, 0.5) for o in OPTIMIZERS]
    assert len({next(e)["loss"] for e in built}) == 1
    assert len({e.data_hash for e in built}) == 1
    other = vgs_training.build(tiny(seed=1))
    assert other.data_hash != built[0].data_hash
    assert next(other)["loss"] != built[0].history["loss"][0]


def test_adams_response_by_explicit_sums():
    factors = [1.0] * 7 + [0.2] * 30 + [0.6] * 10
    for t in (1, 7, 8, 20, 47):
        past = factors[:t]
        m = [0.9 ** (2 * (t - 1 - s)) for s in range(t)]
        v = [0.99 ** (t - 1 - s) for s in range(t)]
        mean_m = sum(w * f**2 for w, f in zip(m, past, strict=True)) / sum(m)
        mean_v = sum(w * f**2 for w, f in zip(v, past, strict=True)) / sum(v)
        found = vgs_training.adam_response(factors, 0.9, 0.99)[t - 1]
        assert found == pytest.approx(math.sqrt(mean_m / mean_v))
    assert vgs_training.adam_response([0.3] * 5, 0.9, 0.999) == pytest.approx(np.ones(5))


def test_adams_response_is_what_adam_does_to_independent_gradients():
    factors = np.array([1.0] * 50 + [0.2] * 150)
    parameters = [torch.zeros(20_000, requires_grad=True) for _ in range(2)]
    generator = make_generator(0, "test")
    sizes = [[], []]
    optimizers = [torch.optim.Adam([p], lr=1.0) for p in parameters]
    for factor in factors:
        noise = torch.randn(20_000, generator=generator)
        for p, adam, f, size in zip(parameters, optimizers, (1.0, factor), sizes, strict=True):
            before, p.grad = p.detach().clone(), f * noise
            adam.step()
            size.append((p.detach() - before).norm().item())
    ratio = np.array(sizes[1]) / np.array(sizes[0])
    expected = vgs_training.adam_response(factors, 0.9, 0.999)
    # 20,000 elements: 1 % noise; early on E(m / sqrt v) is not quite the ratio of expectations.
    np.testing.assert_allclose(ratio, expected, rtol=0.03)


def history_of(losses, evaluations):
    count = len(losses)
    frame = pd.DataFrame({"loss": losses, "microbatch": range(1, count + 1)})
    frame["val_loss"] = np.nan
    every = count // len(evaluations)
    frame.loc[every - 1 :: every, "val_loss"] = evaluations
    rest = {"val_error": 0.5, "grad_norm": 2.0, "factor": 0.5, "vgs/unresolved": 0.25}
    return frame.assign(**rest, **{"vgs/normalized_variance": 3.0})


def test_stability_by_hand():
    losses = [1.0] * 60
    losses[30], losses[50] = 3.5, 2.5
    found = vgs_training.stability(history_of(losses, [6.0, 5.0, 2.0, 4.0]), warmup_steps=10)
    assert (found["val_loss"], found["tail_val_loss"]) == (4.0, 4.0)
    assert found["val_loss_sd"] == pytest.approx(math.sqrt(2))
    assert found["loss_sd"] == pytest.approx(np.std(losses[30:], ddof=1))
    assert (found["mean_factor"], found["factor_sd"], found["unresolved"]) == (0.5, 0, 0.25)


def test_summary_counts_steps_at_the_cap():
    experiment = run(vgs_training.build(tiny(variance_cap=60.0)))
    v = experiment.history["vgs/normalized_variance"][5:]
    assert 0 < experiment.summary()["at_cap"] == (v == 60.0).mean() < 1
    uncapped = run(vgs_training.build(tiny(variance_cap=None)))
    assert uncapped.summary()["at_cap"] == 0
    assert "at_cap" not in vgs_training.build(tiny()).summary()


def test_stability_of_a_run_without_evaluations_says_none():
    frame = history_of([1.0] * 20, [1.0]).assign(val_loss=None, val_error=None)
    found = vgs_training.stability(frame.astype({"val_loss": float, "val_error": float}), 50)
    assert found["val_loss"] is None
    assert found["mean_factor"] is None


def test_every_task_and_optimizer_has_a_tuned_lr():
    assert set(LR_OF) == {"control", "vgs", "aggregate"}
    known = {(t, o, of) for t in TASKS for o in OPTIMIZERS for of in ("control", "vgs")}
    of_aggregates = {(t, o, a) for t in TASKS for o in ("sgd", "adamw") for a in AGGREGATES}
    assert set(TUNED) == known | of_aggregates
    for lr_of, lr in {"control": 3e-4, "vgs": 6.67e-4}.items():
        found = vgs_training.config(task="values", optimizer="adamw", lr_of=lr_of)
        assert found.lr == TUNED["values", "adamw", lr_of]["lr"] == lr
    assert vgs_training.config(lr=0.7, lr_of="vgs").lr == 0.7


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_an_aggregate_is_the_scalers_and_has_its_own_tuned_lr(aggregate):
    config = vgs_training.config("laptop", task="values", aggregate=aggregate, lr_of="aggregate")
    assert config.lr == TUNED["values", "sgd", aggregate]["lr"]
    assert vgs_training.build(config).scaler.aggregate == aggregate
    trials = pd.read_csv(Path(vgs_training.__file__).with_name("tuned.csv"), comment="#")
    for _, rows in trials[trials["lr_of"] == aggregate].groupby(["task", "optimizer"]):
        best = rows.loc[rows["loss"].idxmin(), "lr"]
        assert rows["lr"].min() < best < rows["lr"].max()


def test_the_mean_and_the_percentile_are_told_apart_by_name_and_by_factor():
    percentile, mean = (tiny("values", aggregate=a, variance_cap=None) for a in AGGREGATES)
    assert (percentile.method, mean.method) == ("VGS, alpha 0.1", "VGS of the mean, alpha 0.1")
    factors = [run(vgs_training.build(c)).history["factor"].iloc[-1] for c in (percentile, mean)]
    assert factors[0] != factors[1]


@pytest.mark.parametrize("options", [{"optimizer": "momentum"}, {"aggregate": "max"}])
def test_what_was_not_tuned_is_said(options):
    with pytest.raises(ValueError, match="lr_of='aggregate': nothing was tuned for digits, "):
        vgs_training.config(lr_of="aggregate", **options)


def test_a_comparison_is_every_way_of_every_run_at_one_lr():
    configs = vgs_training.comparison("smoke", TASKS, ["sgd"], [0.1, 0.5], [3, 4], lr_of="vgs")
    assert len(configs) == 2 * 2 * 4
    first = configs[:4]
    names = ["no scaling", "VGS, alpha 0.1", "VGS, alpha 0.5", "constant factor"]
    assert [c.method for c in first] == names
    assert {(c.task, c.seed, c.lr) for c in first} == {("digits", 3, 0.4)}
    assert first[-1].constant_factor == pytest.approx(1 / 6)
    assert len(set(configs)) == len(configs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize("task", TASKS)
def test_dtypes(task, dtype):
    experiment = run(vgs_training.build(tiny(task, dtype=dtype)))
    assert math.isfinite(experiment.summary()["val_loss"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "digit"}, "task='digit': did you mean 'digits'"),
        ({"optimizer": "adam"}, "optimizer='adam': did you mean 'adamw'"),
        ({"lr_of": "vgd"}, "lr_of='vgd': did you mean 'vgs'"),
        ({"steps": 0}, "steps=0"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"lr": math.nan}, "lr=nan"),
        ({"alpha": -1.0}, "alpha=-1.0"),
        ({"beta": 1.0}, "beta=1.0"),
        ({"label_noise": 2.0}, "label_noise=2.0"),
        ({"constant_factor": 0.5, "alpha": 0.1}, "constant_factor=0.5 with alpha=0.1"),
        ({"constant_factor": 0.0, "alpha": 0}, "constant_factor=0.0"),
        ({"alhpa": 0.1}, "field='alhpa': did you mean 'alpha'"),
    ],
)
def test_bad_values_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        vgs_training.build(vgs_training.config("smoke", device="cpu", **options))


def test_the_global_random_stream_is_not_touched():
    before = torch.get_rng_state()
    for task in TASKS:
        run(vgs_training.build(tiny(task)), until=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_that_blew_up_is_counted_and_not_averaged():
    losses = [1.0] * 30 + [math.inf] * 5 + [math.nan] * 5
    found = vgs_training.stability(history_of(losses, [1.0, 2.0, math.inf, math.nan]))
    assert found["num_not_finite"] == 10
    assert found["loss_sd"] == 0
    assert found["val_loss"] is None


def test_a_run_that_ends_without_a_number_reports_none_from_before(monkeypatch):
    experiment = vgs_training.build(tiny())  # evaluated five times
    losses = iter([4.0, 3.0, 2.0, 1.0])
    evaluate = lambda: dict.fromkeys(experiment.evaluated, next(losses, math.nan))  # noqa: E731
    monkeypatch.setattr(experiment, "evaluate", evaluate)
    before = run(experiment, until=STEPS - 1).summary()
    assert (before["val_loss"], before["val_error"], before["tail_val_loss"]) == (1.0, 1.0, 1.0)
    after = run(experiment).summary()
    assert experiment.history["val_loss"].min() == 1.0
    for name in ("val_loss", "val_error", "tail_val_loss", "val_loss_sd"):
        assert after[name] is None
