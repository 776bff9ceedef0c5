"""The pretraining experiment: its methods, its records, its config, resume."""

import copy
import math
from dataclasses import replace
from functools import cache

import pandas as pd
import pytest
import torch
from same_runs import resume, run, with_cuts
from torch.nn import functional as F

from gqc.scalers import VarianceGradientScaler
from gqc.scalers.settings import ESTIMATORS
from gqc_lab.data.text import draw_batch, load_text_data
from gqc_lab.loop.placement import make_generator
from gqc_lab.loop.scaler_controls import NAMES
from gqc_lab.studies import pretraining
from gqc_lab.studies.pretraining.settings import SCALES, TUNED

TEXT = "the quick brown fox jumps over the lazy dog; " * 60
METHODS = {
    "adamw": {"accumulation": 3},
    "gnts": {"start_norm": 0.9, "end_norm": 0.7, "norm_warmup": 0.05, "max_draws": 6},
    "gnts relative": {"start_norm": 1.5, "end_norm": 0.6, "norm_warmup": 0.0, "max_draws": 6},
    "gns": {"noise_tolerance": 3.0, "max_draws": 6},
    "normtest": {"theta": 2.0, "max_draws": 6},
    "mht": {"error_tolerance": 0.2, "max_draws": 6},
    "gnr": {"target_gradient_norm": 0.5, "min_draws": 2},
    "sbc": {"final_accumulation": 5},
    "replay": {"draws": (1, 4, 2) * 9},
    "vgs": {"accumulation": 2, "vgs_warmup_steps": 5, "vgs_beta": 0.9},
    "schedule-free": {"accumulation": 2},
}
SCALED = {"vgs_alpha": 0.2, "vgs_warmup_steps": 3, "vgs_beta": 0.9}  # inside any method


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "fox.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def tiny(corpus):
    """A config of 48 microbatches of 2 x 8 characters."""

    def make(method, **overrides):
        sizes = {
            "width": 8,
            "context": 8,
            "microbatch_size": 2,
            "tokens": 48 * 16,
            "evaluation_tokens": 160,
            "evaluation_sequences": 5,
            "lr": 0.01,
            "device": "cpu",
            "corpus": corpus,
        }
        values = {**sizes, **METHODS[method], **overrides}
        return pretraining.config("smoke", method=method, **values)

    return make


@pytest.fixture(scope="module")
def finished(tiny):
    """The run of a method to its end, to be read only."""
    return cache(lambda method: run(pretraining.build(tiny(method))))


CUTS = (1, 2, 16, 23, 24, 47)


@pytest.fixture(scope="module")
def uncut_and_cuts(tiny):
    """An uncut run, and its state at each of `CUTS`: all of them are compared with the same run."""

    def train(method, **added):
        return with_cuts(lambda: pretraining.build(tiny(method, **added)), CUTS)

    return cache(train)


def assert_same_run(a, b):
    left, right = (e.history.drop(columns=["seconds", "method"]) for e in (a, b))
    pd.testing.assert_frame_equal(left, right, check_exact=True)
    for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True):
        assert torch.equal(p, q)


def slow_adamw(config):
    """Plain torch, nothing of the kit but data and initial weights: losses, lrs, weights."""
    data = load_text_data(config.corpus)
    model = pretraining.build(config).model
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.99), fused=True)
    generator = make_generator(config.seed, "data")
    losses, lrs = [], []
    total = config.tokens // 16
    warmup = round(config.lr_warmup * total)
    for t in range(1, total + 1):
        share = (t - warmup) / (total - warmup)
        cosine = 0.1 + 0.9 * (1 + math.cos(math.pi * share)) / 2
        lr = config.lr * (t / warmup if t < warmup else cosine)
        inputs, targets = draw_batch(data.train, 2, 8, generator)
        loss = F.cross_entropy(model(inputs).reshape(16, -1), targets.reshape(16))
        (loss / config.accumulation).backward()
        if t % config.accumulation == 0:
            for group in adamw.param_groups:
                group["lr"] = lr
            adamw.step()
            adamw.zero_grad()
        losses.append(loss.item())
        lrs.append(lr)
    return losses, lrs, model


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_control_is_plain_adamw_with_accumulation(tiny, accumulation):
    config = tiny("adamw", accumulation=accumulation)
    experiment = run(pretraining.build(config))
    losses, lrs, model = slow_adamw(config)
    history = experiment.history
    assert history["stepped"].tolist() == [t % accumulation == 0 for t in range(1, 49)]
    # Differences: 1/k before or after the sum, the order of factors of the lr; 48 steps of Adam,
    # which divides small gradients by their own size, make float32's 6e-8 into at most 1e-4.
    assert history["lr"].tolist() == pytest.approx(lrs, rel=1e-12)
    assert history["loss"].tolist() == pytest.approx(losses, rel=1e-4)
    for p, q in zip(experiment.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)


def test_a_run_that_ends_without_a_number_reports_none_from_before(tiny, monkeypatch):
    experiment = pretraining.build(tiny("adamw"))
    losses = iter([2.0, 1.0])
    monkeypatch.setattr(experiment, "evaluate", lambda: {"val_loss": next(losses, math.nan)})
    run(experiment)
    assert experiment.history["val_loss"].max() == 2.0
    summary = experiment.summary()
    assert math.isnan(summary["val_loss"])
    assert math.isnan(summary["perplexity"])


def test_validation_loss_is_the_mean_over_evenly_spaced_sequences(finished):
    experiment = finished("gnts")
    tokens = experiment.data.validation
    starts = [i * (len(tokens) - 9) // 4 for i in range(5)]
    losses = []
    with torch.no_grad():
        for s in starts:
            logits = experiment.model(tokens[s : s + 8].long()[None])[0]
            following = tokens[s + 1 : s + 9].tolist()
            losses += [-logits[i].log_softmax(0)[following[i]].item() for i in range(8)]
    reported = experiment.history["val_loss"].iloc[-1]
    assert reported == pytest.approx(sum(losses) / 40, rel=1e-5)  # float32 sums of 40 terms
    summary = experiment.summary()
    assert summary["val_loss"] == reported
    assert summary["perplexity"] == pytest.approx(math.exp(reported))


@pytest.mark.parametrize("method", METHODS)
def test_records_keep_their_contract(tiny, method):
    experiment = pretraining.build(tiny(method))
    records = list(experiment)
    expected = {
        *("microbatch", "tokens", "seconds", "loss", "stepped", "num_draws", "steps", "grad_norm"),
        *("gradient_norm_threshold", "noise_scale", "lr", "examples", "val_loss", "changes"),
    }
    if method == "vgs":
        expected |= {"factor", *experiment.scaler.metrics()}
    assert all(set(r) == expected for r in records)
    assert set(experiment.measured) <= expected
    assert (records[-1]["tokens"], records[-1]["examples"]) == (768, 96)
    at = [r["tokens"] for r in records if r["val_loss"] is not None]
    assert at == [160, 320, 480, 640, 768]
    draws = 0
    for r in records:
        draws += 1
        assert r["num_draws"] == draws
        draws = 0 if r["stepped"] else draws
    assert records[-1]["steps"] == sum(r["stepped"] for r in records)
    history = experiment.history
    assert (history["method"] == method).all()
    summary = experiment.summary()
    closed = history[history["stepped"]]["num_draws"]
    assert summary["mean_logical_batch_examples"] == pytest.approx(2 * closed.mean())
    assert (summary["tokens"], summary["microbatches"]) == (768, 48)


def test_gnts_steps_under_its_threshold_or_at_the_maximum(finished):
    history = finished("gnts").history
    under = history["grad_norm"] <= history["gradient_norm_threshold"]
    assert (history["stepped"] == (under | (history["num_draws"] == 6))).all()
    forced = history["stepped"] & ~under
    assert finished("gnts").summary()["num_forced"] == forced.sum()
    assert history["stepped"].any()
    assert not history["stepped"].all()
    t = history["microbatch"] - 1
    warm = t < 2  # 5 % of 48 microbatches
    expected = (0.9 * 10 - 0.9 * 9 * t / 2).where(
        warm, 0.7 + 0.2 * (1 + (math.pi * (t - 2) / 46).map(math.cos)) / 2
    )
    assert history["gradient_norm_threshold"].tolist() == pytest.approx(expected.tolist())


def test_sbc_grows_as_scheduled(finished):
    history = finished("sbc").history
    asked = (1 + 4 * ((history["microbatch"] - 1) / 48) ** 2).round()  # microbatches
    assert (history["stepped"] == (history["num_draws"] >= asked)).all()
    assert history["stepped"][:16].all()  # it begins with one microbatch, not with two
    assert history.loc[history["stepped"], "num_draws"].max() > 3


def test_a_relative_threshold_follows_the_norms_of_single_microbatches(finished):
    history = finished("gnts relative").history
    total = weight = 0.0
    typical = []
    for row in history.itertuples():
        typical.append(total / weight if weight else math.inf)
        if row.num_draws == 1:
            total, weight = 0.99 * total + row.grad_norm, 0.99 * weight + 1
    cosine = (1 + (math.pi * (history["microbatch"] - 1) / 48).map(math.cos)) / 2
    expected = (0.6 + 0.9 * cosine) * typical
    assert history["gradient_norm_threshold"].tolist() == pytest.approx(expected.tolist())
    under = history["grad_norm"] <= history["gradient_norm_threshold"]
    assert (history["stepped"] == (under | (history["num_draws"] == 6))).all()
    assert history["stepped"].iloc[0]
    assert history["num_draws"].max() > 1


@pytest.mark.parametrize(
    ("curve", "at"),
    [
        ("constant", {1: 0.5, 2: 1.0, 30: 1.0, 48: 1.0}),
        ("constant, then decay", {1: 0.5, 2: 1.0, 38: 1.0, 43: 0.55, 48: 0.1}),
    ],
)
def test_the_learning_rate_may_stay_or_decay_at_the_end(tiny, curve, at):
    history = run(pretraining.build(tiny("adamw", lr_curve=curve))).history
    lrs = history.set_index("microbatch")["lr"]
    assert lrs[list(at)].tolist() == pytest.approx([0.01 * factor for factor in at.values()])


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_second_moment_keeps_its_half_life_in_tokens(tiny, accumulation):
    config = tiny("adamw", accumulation=accumulation, beta2_tokens=1600)
    beta2 = pretraining.build(config).wrapper.param_groups[0]["betas"][1]
    steps = 1600 / (16 * accumulation)
    assert beta2**steps == pytest.approx(0.5)


def test_gns_steps_when_past_windows_ask_for_no_more(finished):
    history = finished("gns").history
    known = history["noise_scale"].shift()  # a record of a step has its window in the estimate
    n = history["num_draws"]
    decided = (known <= 3.0 * n) & (n >= 2)
    assert (history["stepped"] == (decided | (n == 6))).all()
    assert decided.any()
    assert not decided.all()


def test_noise_scale_is_recorded_where_a_wrapper_estimates_it(finished):
    is_known = {m: finished(m).history["noise_scale"].notna() for m in METHODS}
    assert {m for m in METHODS if is_known[m].any()} == {"gnts", "gns", "normtest"}
    assert not is_known["gns"].iloc[0]  # None before the first window


def test_mht_is_given_the_training_loss(finished):
    experiment = finished("mht")
    history = experiment.history
    last = history.index[history["stepped"]][-1]
    mean = history["loss"].iloc[0]
    for loss in history["loss"][1 : last + 1]:
        mean += 0.01 * (loss - mean)
    assert experiment.wrapper.statistics()["running_mean"] == pytest.approx(mean, rel=1e-12)


def test_gnr_hands_adamw_the_target_norm(tiny):
    experiment, norms = pretraining.build(tiny("gnr")), []

    def note(adamw, args, kwargs):
        grads = [p.grad for p in experiment.model.parameters()]
        norms.append(torch.nn.utils.get_total_norm(grads).item())

    experiment.wrapper.optimizer.register_step_pre_hook(note)
    history = run(experiment).history
    assert norms == pytest.approx([0.5] * 24, rel=1e-6)  # float32 norms of a few hundred terms
    assert history["stepped"].tolist() == [False, True] * 24


def test_gnr_can_rescale_each_tensor(tiny):
    losses = [
        run(pretraining.build(tiny("gnr", gnr_mode=mode))).summary()["val_loss"]
        for mode in ("global", "independent")
    ]
    assert losses[0] != losses[1]


@pytest.mark.parametrize(("method", "tunable"), [("gns", "noise_tolerance"), ("normtest", "theta")])
def test_tolerances_go_from_two_draws_to_the_maximum(tiny, method, tunable):
    strict = run(pretraining.build(tiny(method, **{tunable: 1e-6}))).history
    assert set(strict.loc[strict["stepped"], "num_draws"]) == {6}
    loose = run(pretraining.build(tiny(method, **{tunable: 1e6}))).history
    draws = loose.loc[loose["stepped"], "num_draws"]
    assert (draws == 2).mean() > 0.5  # more where the signal is not resolved


@pytest.mark.parametrize(
    ("method", "tunable"),
    [("gns", "noise_tolerance"), ("normtest", "theta"), ("mht", "error_tolerance")],
)
def test_steered_tolerances_apply_at_once_and_replay(tiny, method, tunable):
    steered = run(pretraining.build(tiny(method)), until=12)
    steered.controls[tunable] = 0
    run(steered)
    assert steered.wrapper.statistics()[tunable] == 0
    closed = steered.history[steered.history["stepped"]]
    assert set(closed.loc[closed["microbatch"] > 18, "num_draws"]) == {6}
    assert run(pretraining.build(tiny(method)), until=12).history["stepped"].sum() > 2
    replayed = pretraining.build(tiny(method))
    replayed.replay(steered.changes)
    assert_same_run(run(replayed), steered)


@pytest.mark.parametrize("method", METHODS)
def test_a_scaler_that_only_measures_changes_nothing(tiny, finished, method):
    plain = run(pretraining.build(tiny(method, vgs_alpha=0)))
    assert (plain.history["factor"].dropna() == 1).all()
    if method == "vgs":
        without = run(pretraining.build(replace(tiny(method), method="adamw", vgs_alpha=None)))
    else:
        without = finished(method)
    columns = list(without.history.drop(columns=["seconds", "method"]))
    pd.testing.assert_frame_equal(plain.history[columns], without.history[columns])
    assert plain.history["vgs/normalized_variance"].iloc[-1] > 0
    assert "vgs/normalized_variance" not in without.history


def test_schedule_free_is_judged_by_the_average_of_its_weights(tiny):
    experiment = run(pretraining.build(tiny("schedule-free")))
    inner, reported = experiment.wrapper.optimizer, experiment.history["val_loss"].iloc[-1]
    trained = [p.detach().clone() for p in experiment.model.parameters()]
    assert all(group["train_mode"] for group in inner.param_groups)
    for group in inner.param_groups:
        for p in group["params"]:  # y = (1 - beta1) z + beta1 x, with x the average of z
            p.data = (p.data - (1 - group["betas"][0]) * inner.state[p]["z"]) / group["betas"][0]
    inner.eval = inner.train = lambda: None
    assert experiment.evaluate()["val_loss"] == pytest.approx(reported, rel=1e-5)
    for p, value in zip(experiment.model.parameters(), trained, strict=True):
        p.data = value
    assert experiment.evaluate()["val_loss"] != pytest.approx(reported, rel=1e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_vgs_is_adamw_with_a_scaled_gradient(tiny, estimator):
    """Against a plain loop: the mean gradient of two microbatches, scaled, then a step of AdamW."""
    config = tiny("vgs", vgs_alpha=0.5, vgs_estimator=estimator)
    experiment = run(pretraining.build(config))
    data, model = load_text_data(config.corpus), pretraining.build(config).model
    groups = [
        {"params": [p for p in model.parameters() if (p.ndim > 1) == is_matrix]}
        for is_matrix in (True, False)
    ]
    groups[0]["weight_decay"], groups[1]["weight_decay"] = 0.1, 0.0
    adamw = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.99), fused=True)
    scaler = VarianceGradientScaler(
        groups, alpha=0.5, beta=0.9, warmup_steps=5, estimator=estimator
    )
    generator, losses, factors = make_generator(config.seed, "data"), [], []
    lrs = experiment.history["lr"].tolist()
    for t in range(48):
        inputs, targets = draw_batch(data.train, 2, 8, generator)
        loss = F.cross_entropy(model(inputs).reshape(16, -1), targets.reshape(16))
        (loss / 2).backward()
        losses.append(loss.item())
        if t % 2:
            factors.append(scaler.scale_gradients())
            for group in adamw.param_groups:
                group["lr"] = lrs[t]
            adamw.step()
            scaler.step()
            adamw.zero_grad()
    history = experiment.history
    # As in the test of plain AdamW; the ratio of two estimated moments magnifies rounding.
    assert history["loss"].tolist() == pytest.approx(losses, rel=1e-3)
    found = history.loc[history["stepped"], "factor"].tolist()
    assert found == pytest.approx(factors, rel=2e-2)
    assert found[:5] == [1.0] * 5
    assert min(found) < 0.95
    assert history["factor"].isna().tolist() == (~history["stepped"]).tolist()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cut", [1, 16, 23])
def test_a_cut_run_with_a_scaler_is_the_uncut_run(tiny, uncut_and_cuts, method, cut):
    uncut, files = uncut_and_cuts(method, **SCALED)
    assert_same_run(resume(pretraining.build(tiny(method, **SCALED)), files[cut]), uncut)
    assert uncut.history["factor"].min() < 0.9  # so that the scaler's state matters


def test_a_method_with_a_scaler_has_a_name_of_its_own(tiny):
    both = pretraining.build(tiny("gnts", vgs_alpha=0.1))
    assert both.label == both.constants["method"] == "gnts + vgs"
    assert pretraining.build(tiny("vgs")).label == "vgs"
    assert pretraining.build(tiny("vgs")).config.vgs_alpha == 0.1
    assert pretraining.build(tiny("gnts")).scaler is None


def test_a_scaler_inside_gnts_is_steered_beside_its_threshold_and_replays(tiny):
    steered = run(pretraining.build(tiny("gnts", **SCALED)), until=20)
    steered.controls.update(start_norm=2.0, end_norm=2.0, alpha=0.0, beta=0.8)
    run(steered)
    late = steered.history.iloc[20:]
    assert (late["gradient_norm_threshold"] == 2.0).all()
    assert (late["factor"].dropna() == 1).all()
    assert steered.history["factor"][:20].min() < 1
    assert steered.scaler.beta == 0.8
    with pytest.raises(ValueError, match="end_norm=3"):
        steered.controls["end_norm"] = 3.0
    with pytest.raises(ValueError, match="beta=1"):
        steered.controls["beta"] = 1
    replayed = pretraining.build(tiny("gnts", **SCALED))
    replayed.replay(steered.changes)
    assert_same_run(run(replayed), steered)


def test_a_twin_is_the_same_run_from_its_beginning(finished):
    experiment = finished("vgs")
    assert_same_run(run(experiment.twin()), experiment)
    other = experiment.twin("elementwise")
    assert other.scaler.estimator == "elementwise"
    assert other.data.train.data_ptr() == experiment.data.train.data_ptr()  # no second copy


def test_replay_of_a_run_on_its_own_data_is_that_run(tiny):
    gnts = run(pretraining.build(tiny("gnts", seed=3)))
    replay = run(pretraining.build(pretraining.replay_config(gnts, data_seed=3)))
    columns = ["loss", "stepped", "num_draws", "lr", "val_loss"]
    pd.testing.assert_frame_equal(replay.history[columns], gnts.history[columns], check_exact=True)


def test_replay_on_other_data_keeps_weights_and_draws(tiny, finished):
    gnts = finished("gnts")
    replay = pretraining.build(pretraining.replay_config(gnts, data_seed=7))
    fresh = pretraining.build(tiny("gnts")).model
    assert torch.equal(replay.model.tokens.weight, fresh.tokens.weight)
    history = run(replay).history
    assert history["num_draws"].tolist() == gnts.history["num_draws"].tolist()
    assert history["loss"].tolist() != gnts.history["loss"].tolist()


def test_only_the_first_training_tokens_are_read(tiny):
    few = pretraining.build(tiny("adamw", train_tokens=20))
    allowed = {tuple(window) for window in few.data.train[:20].unfold(0, 9, 1).tolist()}
    seen = set()
    for _ in range(40):
        inputs, targets = few.draw_batch()
        seen |= {tuple(row) for row in torch.cat([inputs, targets[:, -1:]], dim=1).tolist()}
    assert seen == allowed
    assert torch.equal(few._held_out[0], pretraining.build(tiny("adamw"))._held_out[0])


def test_noisy_microbatches_have_their_own_targets_in_another_order(tiny):
    clean, noisy = (
        pretraining.build(tiny("gnts", noisy_share=s, microbatch_size=4)) for s in (0.0, 0.3)
    )
    shares = []
    for _ in range(400):
        inputs, targets = clean.draw_batch()
        same, shuffled = noisy.draw_batch()
        assert torch.equal(same, inputs)  # the order of the text does not depend on the noise
        assert torch.equal(shuffled, targets) != noisy._is_noisy
        assert torch.equal(shuffled.flatten().sort()[0], targets.flatten().sort()[0])
        shares.append(noisy._is_noisy)
    assert abs(sum(shares) / 400 - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 400)
    history = run(pretraining.build(tiny("gnts", noisy_share=0.3))).history
    assert history["is_noisy"].dtype == bool
    assert history["is_noisy"].any()
    losses = history[history["microbatch"] > 24].groupby("is_noisy")["loss"].mean()
    assert losses[True] > losses[False]


@pytest.mark.parametrize("cut", [1, 17, 30])
def test_a_cut_run_with_noise_on_few_tokens_is_the_uncut_run(tiny, cut):
    config = tiny("gns", noisy_share=0.4, train_tokens=100, gns_reactive=True)
    uncut = run(pretraining.build(config))
    state = copy.deepcopy(run(pretraining.build(config), until=cut).state_dict())
    resumed = pretraining.build(config)
    resumed.load_state_dict(state)
    assert_same_run(run(resumed), uncut)


def test_a_reactive_gns_decides_otherwise(tiny):
    assert pretraining.build(tiny("gns", gns_reactive=True)).wrapper.reactive
    assert not pretraining.build(tiny("gns")).wrapper.reactive


def test_recorded_draws_leave_an_open_window_open():
    def frame(stepped, draws):
        return pd.DataFrame({"stepped": stepped, "num_draws": draws})

    assert pretraining.recorded_draws(frame([False, True, True], [1, 2, 1])) == (2, 1)
    assert pretraining.recorded_draws(frame([True, False, False], [1, 1, 2])) == (1, 3)


def test_methods_share_data_weights_and_held_out_text(tiny):
    built = [pretraining.build(tiny(m)) for m in METHODS]
    first = [next(e)["loss"] for e in built]
    assert len(set(first)) == 1
    assert len({e.data_hash for e in built}) == 1
    assert len({e.total for e in built}) == 1


def test_seeds(tiny):
    def losses(**seeds):
        return run(pretraining.build(tiny("adamw", **seeds))).history["loss"].tolist()

    assert losses(seed=1) == losses(seed=1, data_seed=1)
    other_data, other_weights = losses(seed=1, data_seed=2), losses(seed=3, data_seed=1)
    assert len({tuple(losses(seed=1)), tuple(other_data), tuple(other_weights)}) == 3
    a, b = (pretraining.build(tiny("adamw", seed=1, data_seed=d)).model for d in (1, 2))
    assert torch.equal(a.tokens.weight, b.tokens.weight)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_run_is_the_uncut_run(tiny, uncut_and_cuts, method, cut):
    uncut, files = uncut_and_cuts(method)
    assert_same_run(resume(pretraining.build(tiny(method)), files[cut]), uncut)


@pytest.mark.parametrize("method", METHODS)
def test_the_cuts_fall_into_open_windows(finished, method):
    history = finished(method).history
    assert not history["stepped"].iloc[[0, 1, 15, 22, 23, 46]].all()


def test_steered_thresholds_apply_and_replay(tiny, finished):
    steered = run(pretraining.build(tiny("gnts")), until=20)
    steered.controls.update(start_norm=2.0, end_norm=2.0)
    steered.controls["lr_scale"] = 0.5
    run(steered)
    plain = finished("gnts")
    thresholds = steered.history["gradient_norm_threshold"]
    assert thresholds[:20].tolist() == plain.history["gradient_norm_threshold"][:20].tolist()
    assert (thresholds[20:] == 2.0).all()
    halves = steered.history["lr"][20:] / plain.history["lr"][20:]
    assert halves.tolist() == pytest.approx([0.5] * 28)
    replayed = pretraining.build(tiny("gnts"))
    replayed.replay(steered.changes)
    assert_same_run(run(replayed), steered)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("start_norm", -1),
        ("end_norm", math.nan),
        ("lr_scale", math.inf),
        ("norm_warmup_microbatches", 49),
        ("norm_warmup_microbatches", 1.5),
    ],
)
def test_wrong_controls_keep_the_last_value(tiny, finished, name, value):
    experiment = run(pretraining.build(tiny("gnts")), until=5)
    with pytest.raises(ValueError, match=f"{name}="):
        experiment.controls[name] = value
    assert_same_run(run(experiment), finished("gnts"))


def test_a_tunable_is_a_control_of_its_own_method_only(tiny):
    controls = {
        m: list(pretraining.build(tiny(m)).controls)[1:] for m in METHODS if "gnts" not in m
    }
    assert controls == {
        "adamw": [],
        "gns": ["noise_tolerance"],
        "normtest": ["theta"],
        "mht": ["error_tolerance"],
        "gnr": ["target_gradient_norm"],
        "sbc": [],
        "replay": [],
        "vgs": list(NAMES),
        "schedule-free": [],
    }


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_dtypes(tiny, dtype):
    experiment = run(pretraining.build(tiny("gnts", dtype=dtype)))
    assert {str(p.dtype) for p in experiment.model.parameters()} == {f"torch.{dtype}"}
    assert math.isfinite(experiment.summary()["val_loss"])


def test_summary_before_anything_ran(tiny):
    summary = pretraining.build(tiny("gnts")).summary()
    assert (summary["tokens"], summary["steps"]) == (0, 0)
    for name in ("val_loss", "perplexity", "mean_logical_batch_examples", "tokens_per_second"):
        assert summary[name] is None


def test_a_budget_is_spent_in_whole_microbatches(tiny):
    experiment = run(pretraining.build(tiny("adamw", tokens=16 * 5 + 15)))
    assert (experiment.done, experiment.total, experiment.microbatch) == (80, 80, 5)


def test_it_learns(tiny):
    experiment = run(pretraining.build(tiny("adamw", tokens=16 * 600, accumulation=1, width=16)))
    # A unigram model of this text reaches its entropy and no better.
    counts = pd.Series(list(TEXT)).value_counts(normalize=True)
    entropy = -sum(p * math.log(p) for p in counts)
    assert experiment.summary()["val_loss"] < entropy - 0.5


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("method", [m for m in METHODS if m != "replay"])
def test_every_scale_has_a_config_for_every_method(scale, method):
    config = pretraining.config(scale, method=method)
    assert (config.scale, config.method) == (scale, method)
    for name, value in TUNED.get((scale, method), {}).items():
        assert getattr(config, name) == value
    assert pretraining.config(scale, method=method, lr=0.123).lr == 0.123


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"method": "normtst"}, "method='normtst': did you mean 'normtest'"),
        (
            {"method": None},
            "method=None: expected one of adamw, gnts, gnts relative, gns, normtest, mht, gnr, "
            "sbc, replay, vgs",
        ),
        ({"scale": "labtop"}, "scale='labtop': did you mean 'laptop'"),
        ({"learning_rate": 1.0}, "field='learning_rate'"),
        ({"start_nrom": 1.0}, "field='start_nrom': did you mean 'start_norm'"),
        ({"tokens": -5}, "tokens=-5: expected an integer of at least 1"),
        ({"tokens": 1e6 + 0.5}, "tokens=1000000.5: expected an integer"),
        ({"tokens": 100}, "tokens=100: expected at least one microbatch"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": True}, "seed=True"),
        ({"data_seed": 0.5}, "data_seed=0.5"),
        ({"lr": math.nan}, "lr=nan: expected a number above 0"),
        ({"lr": 0}, "lr=0"),
        ({"lr": "1e-3"}, "lr='1e-3'"),
        ({"beta2": 1.0}, "beta2=1.0: expected a number of at least 0 and below 1"),
        ({"lr_warmup": 1.1}, "lr_warmup=1.1: expected a number of at least 0 and at most 1"),
        ({"start_norm": 0.0}, "start_norm=0.0"),
        ({"end_norm": -0.1}, "end_norm=-0.1"),
        ({"min_draws": 9, "max_draws": 8}, "max_draws=8: expected at least min_draws=9"),
        ({"width": 33}, "width=33: expected a multiple of heads=2"),
        ({"noise_tolerance": 0.0}, "noise_tolerance=0.0"),
        ({"theta": math.nan}, "theta=nan"),
        ({"confidence": 1.0}, "confidence=1.0: expected a number above 0 and below 1"),
        ({"error_tolerance": -0.1}, "error_tolerance=-0.1"),
        ({"target_gradient_norm": math.inf}, "target_gradient_norm=inf"),
        ({"gnr_mode": "globl"}, "gnr_mode='globl': did you mean 'global'"),
        ({"dtype": "float16"}, "dtype='float16'"),
        ({"tokenizer": "word"}, "tokenizer='word'"),
        ({"validation_fraction": 0}, "validation_fraction=0"),
        ({"draws": (1,)}, "draws has 1 entries with method='gnts'"),
        ({"method": "replay"}, "draws has 0 entries with method='replay'"),
        ({"method": "replay", "draws": (1, 0)}, "draws: one of them=0"),
        ({"vgs_alpha": -0.1}, "vgs_alpha=-0.1: expected a number of at least 0"),
        ({"vgs_alpha": math.nan}, "vgs_alpha=nan"),
        ({"method": "vgs", "vgs_beta": 1.0}, "vgs_beta=1.0: expected a number above 0 and below 1"),
        ({"train_tokens": 64}, "train_tokens=64: expected an integer of at least 65"),
        ({"noisy_share": 1.5}, "noisy_share=1.5: expected a number of at least 0 and at most 1"),
        ({"vgs_warmup_steps": -1}, "vgs_warmup_steps=-1"),
        ({"vgs_estimator": "skech"}, "vgs_estimator='skech': did you mean 'sketch'"),
    ],
)
def test_a_wrong_config_is_one_clear_line(overrides, message):
    with pytest.raises(ValueError, match=message) as caught:
        pretraining.config(**{"scale": "smoke", **overrides})
    assert "\n" not in str(caught.value)


def test_replace_checks_too():
    with pytest.raises(ValueError, match="lr=-1"):
        replace(pretraining.config("smoke"), lr=-1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"corpus": "no/such/file.txt"}, "corpus='no/such/file.txt': no such file"),
        ({"device": "gpu"}, "device='gpu'"),
        ({"context": 5000, "tokens": 10**6}, "context=5000"),
        ({"evaluation_sequences": 10**6}, "held-out tokens"),
    ],
)
def test_what_only_building_can_tell(tiny, overrides, message):
    with pytest.raises(ValueError, match=message):
        pretraining.build(tiny("gnts", **overrides))


def test_the_checkpoint_of_another_method_is_refused(tiny):
    experiment = pretraining.build(tiny("adamw"))
    with pytest.raises(ValueError, match="its method is 'gnts', here it is 'adamw'"):
        experiment.load_state_dict(pretraining.build(tiny("gnts")).state_dict())


def test_nothing_touches_the_global_random_stream(tiny):
    before = torch.get_rng_state()
    run(pretraining.build(tiny("gnts")))
    assert torch.equal(torch.get_rng_state(), before)
