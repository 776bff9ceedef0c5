"""Learning Burgers' equation: phases, records, clipping, curricula, exact resume, measures."""

import itertools
import math
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from same_runs import resume, run, with_cuts
from torch.nn import functional as F

from gqc.curricula import compute_inverse_loss_curriculum_weight
from gqc_lab.data.burgers import make_burgers_data
from gqc_lab.loop.placement import make_generator
from gqc_lab.models.operator import make_operator
from gqc_lab.studies import operator_learning
from gqc_lab.studies.operator_learning import measures as operator_measures
from gqc_lab.studies.operator_learning import settings as operator_learning_config
from gqc_lab.studies.operator_learning.settings import METHODS
from gqc_lab.studies.operator_learning.training import OperatorLearning

FRAMES, POINTS = 21, 32


@cache
def data():
    """Waves that travel: enough to learn from, made in no time."""
    generator = make_generator(0, "test data")
    phase = torch.rand(7, 1, 1, generator=generator)
    t, x = torch.arange(FRAMES) * 0.02, torch.arange(POINTS) / POINTS
    fields = torch.sin(2 * math.pi * (x - t[:, None] + phase)) + 0.3
    return make_burgers_data(fields[:5], fields[5:], x, t, 0.01)


def tiny(method="fixed", **overrides):
    values = {"tokens": 8, "latent_dim": 4, "hidden": 8, "heads": 2, "neighbors": 8, "stride": 4}
    values |= {"epochs": 4, "pretraining_epochs": 2, "batch_size": 5, "test_steps": 3}
    values |= {"inverse_loss_warmup_epochs": 1, "lr_warmup": 2, "device": "cpu"}
    return operator_learning.config("smoke", method, **{**values, **overrides})


def make(method="fixed", **overrides):
    return OperatorLearning(tiny(method, **overrides), data())


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def assert_same_run(a, b):
    left, right = (e.history.drop(columns="seconds") for e in (a, b))
    pd.testing.assert_frame_equal(left, right, check_exact=True)
    assert torch.equal(weights(a.model), weights(b.model))
    assert torch.equal(weights(a.average), weights(b.average))


CUTS = (1, 7, 8, 9, 13, 23)


@cache  # every cut is compared with the same run
def uncut_and_cuts(method):
    return with_cuts(lambda: make(method), CUTS)


@pytest.mark.parametrize("method", ["fixed", "exploding"])
@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_run_is_the_uncut_run(method, cut):
    uncut, files = uncut_and_cuts(method)
    assert uncut.microbatch == 24
    assert_same_run(resume(make(method), files[cut]), uncut)


def test_an_epoch_sees_every_example_once_and_the_next_field_is_a_step_later():
    experiment = make(method="baseline", stride=3)
    assert experiment.batches == 30 // 5  # starts 0, 3, .., 15 of 5 trajectories
    fields = data().train
    seen = []
    for batch in range(experiment.batches):
        experiment.microbatch = batch
        now, following = experiment.draw_batch()
        assert following.shape == (5, 1, POINTS)
        for u, v in zip(now, following[:, 0], strict=True):
            (place,) = (fields == u).all(2).nonzero().tolist()
            assert torch.equal(fields[place[0], place[1] + 5], v)
            seen.append(tuple(place))
    assert sorted(seen) == [(i, j) for i in range(5) for j in range(0, 16, 3)]


def test_the_loop_by_hand():
    """Two batches of pretraining and two of the operator, written out."""
    options = {"pretraining_epochs": 1, "epochs": 1, "stride": 8, "lr_warmup": 0}
    experiment = make("clip only", dtype="float64", **options)
    config, x, train = experiment.config, data().positions.double(), data().train.double()
    model = make_operator(config.sizes, make_generator(config.seed, "weights")).double()
    groups = [list(p.parameters()) for p in (model.encoder, model.approximator, model.decoder)]
    encoder, step, decoder = model.encoder, model.approximator, model.decoder
    average = weights(model)
    for t, record in enumerate(experiment):
        at = t % 2
        if at == 0:  # a new optimizer for each phase
            parts = [{"params": g} for g in groups]
            adamw = torch.optim.AdamW(parts, weight_decay=config.weight_decay)
        order = torch.randperm(10, generator=make_generator(0, f"order {t // 2}"))
        starts = [(i, j) for i in range(5) for j in (0, 8)]
        rows = [starts[i] for i in order[5 * at : 5 * at + 5].tolist()]
        u = torch.stack([train[i, j] for i, j in rows])
        v = torch.stack([train[i, j + 5] for i, j in rows])
        z, w = encoder(u, x).detach(), encoder(v, x).detach()
        inv_enc = F.mse_loss(decoder(encoder(u, x), x), u)
        inv_dec = F.mse_loss(encoder(decoder(z, x), x), z)
        if t < 2:
            loss = inv_enc + 0.1 * inv_dec
        else:
            decoder.requires_grad_(False)
            spectrum = [torch.fft.rfft(f, norm="ortho").abs() for f in (decoder(step(z), x), v)]
            spectral = F.mse_loss(*spectrum)
            decoder.requires_grad_(True)
            loss = F.mse_loss(step(z), w) + 0.05 * spectral + 0.5 * (inv_enc + inv_dec)
        loss.backward()
        assert record["loss"] == pytest.approx(loss.item(), rel=1e-10)
        norms = [torch.nn.utils.clip_grad_norm_(g, 0.3).item() for g in groups]
        found = [record[f"grad_norm/{part}"] for part in operator_learning.PARTS]
        assert found == pytest.approx(norms, rel=1e-9)
        assert record["grad_norm"] == pytest.approx(math.hypot(*norms), rel=1e-9)
        for group, own in zip(adamw.param_groups, (0.1, 1, 0.1), strict=True):
            share = own if t >= 2 else 1
            group["lr"] = share * config.lr * 0.5 * (1 + math.cos(math.pi * at / 2))
        adamw.step()
        adamw.zero_grad()
        now = weights(model)
        average = now if t in (0, 2) else 0.9 * average + 0.1 * now
    assert t == 3
    torch.testing.assert_close(weights(experiment.model), now, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(weights(experiment.average), average, rtol=1e-6, atol=1e-9)


def test_methods_share_data_order_and_pretraining():
    runs = [run(make(method), until=8) for method in ("baseline", "exploding", "weight only")]
    for other in runs[1:]:
        assert torch.equal(weights(runs[0].model), weights(other.model))
        assert other.data_hash == runs[0].data_hash
    assert next(runs[0])["loss/forward"] == next(runs[1])["loss/forward"]


def test_records_keep_their_contract():
    experiment = run(make("fixed"))
    history = experiment.history
    assert list(history.columns[:3]) == ["method", "inverse_weight", "seed"]
    assert history["epoch"].tolist() == [i / 4 - 2 for i in range(24)]
    assert history["nrmse"].notna().tolist() == [i % 4 == 3 and i > 3 for i in range(24)]
    first, rest = history[history["epoch"] < 0], history[history["epoch"] >= 0]
    assert first["loss/forward"].isna().all()
    assert (first["grad_norm/approximator"] == 0).all()
    assert (rest["grad_norm/approximator"] > 0).all()
    for _, r in rest.iterrows():
        expected = compute_inverse_loss_curriculum_weight(r["epoch"], 0.001, 1)
        assert r["weight/inv_enc"] == r["weight/inv_dec"] == pytest.approx(expected)
        names = ("forward", "spectral", "inv_enc", "inv_dec")
        parts = {n: np.nan_to_num(r[f"loss/{n}"]) * r[f"weight/{n}"] for n in names}
        assert r["loss"] == pytest.approx(sum(parts.values()), rel=1e-5)
        for n, part in parts.items():
            assert r[f"share/{n}"] == pytest.approx(part / r["loss"], rel=1e-4)
    assert (rest[rest["epoch"] <= 1]["grad_norm/encoder"] == 0).all()  # only inverse losses teach E
    assert (rest[rest["epoch"] > 1]["grad_norm/encoder"] > 0).all()


def test_the_share_cap_holds_in_every_record():
    free = run(make("exploding", lambda_inv_enc=50.0, lambda_inv_dec=50.0)).history
    rows = free[free["epoch"] >= 0]
    assert rows["share/inv_dec"].min() > 0.05
    capped = run(
        make("exploding", lambda_inv_enc=50.0, lambda_inv_dec=50.0, inverse_loss_max_share=0.05)
    ).history
    rows = capped[capped["epoch"] >= 0]
    assert len(rows) == 16
    for name in ("inv_enc", "inv_dec"):
        assert (rows[f"share/{name}"] <= 0.05 * (1 + 1e-5)).all()
        assert (rows[f"weight/{name}"] < 50).any()


def test_gradients_are_clipped_after_they_are_measured(monkeypatch):
    seen = []
    for method, bound in (("fixed", 0.3), ("exploding", 1.0)):
        experiment = make(method, max_norm=bound / 100)
        step = experiment.optimizer.step

        def watch(step=step, experiment=experiment):
            groups = [g["params"] for g in experiment.optimizer.param_groups]
            grads = [[p.grad for p in g if p.grad is not None] for g in groups]
            seen.append([math.hypot(*(g.norm().item() for g in group)) for group in grads])
            step()

        monkeypatch.setattr(experiment.optimizer, "step", watch)
        history = run(experiment).history
        norms = np.array(seen)
        seen.clear()
        assert (history["grad_norm"] > bound / 100).any()
        whole = norms.max(1) if method == "fixed" else np.linalg.norm(norms, axis=1)
        assert (whole <= bound / 100 * (1 + 1e-5)).all()
        assert whole.max() == pytest.approx(bound / 100, rel=1e-3)


@pytest.mark.parametrize("learns", ["inverse", "all", "none"])
def test_what_the_encoder_learns_from(learns):
    experiment = run(make("baseline", encoder_learns=learns), until=8)
    before = weights(experiment.model.encoder)
    run(experiment, until=12)
    moved = not torch.equal(weights(experiment.model.encoder), before)
    assert moved == (learns == "all")
    exploding = run(make("exploding", encoder_learns=learns), until=8)
    before = weights(exploding.model.encoder)
    run(exploding, until=12)
    assert torch.equal(weights(exploding.model.encoder), before) == (learns == "none")


def test_what_the_decoder_learns_from():
    for learns in ("inverse", "all"):
        experiment = run(make("baseline", decoder_learns=learns), until=8)
        before = weights(experiment.model.decoder)
        run(experiment, until=12)
        moved = not torch.equal(weights(experiment.model.decoder), before)
        assert moved == (learns == "all")


def test_under_adam_the_weight_of_what_a_part_learns_from_alone_is_no_matter():
    """E and D see the inverse losses only: a weight 512 times smaller moves them alike,
    as long as gradients are large against Adam's eps of 1e-8."""
    ends, options = [], {"max_norm": 1e9, "dtype": "float64"}
    for weight in (102.4, 0.2):
        both = {"lambda_inv_enc": weight, "lambda_inv_dec": weight}
        experiment = run(make("exploding", **options, **both))
        ends.append(weights(experiment.model.encoder))
    start = weights(run(make("exploding", **options), until=8).model.encoder)
    assert (ends[0] - ends[1]).norm() < 0.02 * (ends[0] - start).norm()


def test_variants_keep_the_weight_and_change_what_they_say():
    tuned = operator_learning.variant_config("smoke", "lr 0.1", 0.3, lr=1.0, epochs=3)
    assert (tuned.lambda_inv_enc, tuned.lambda_inv_dec) == (0.3, 0.3)
    assert (tuned.lr, tuned.epochs, tuned.pretraining_epochs, tuned.codec_lr) == (0.1, 3, 0, 1)
    for scale in operator_learning_config.SCALES:
        assert operator_learning.variant_config(scale, "as published", 0.5).lr == 1e-3
    for variant in operator_learning.VARIANTS:
        assert not operator_learning.variant_config("smoke", variant, 0.3).has_curriculum
    with pytest.raises(ValueError, match=r"variant='lr 1': did you mean 'lr 0\.1'"):
        operator_learning.variant_config("smoke", "lr 1", 0.3)


def test_a_lost_run_is_known_by_its_record():
    experiment = make("baseline", pretraining_epochs=0)
    assert not operator_learning.is_lost(next(experiment))
    with torch.no_grad():
        experiment.model.approximator.out.bias.fill_(math.inf)
    assert operator_learning.is_lost(next(experiment))


def test_a_rollout_loss_is_of_decoded_states():
    experiment = make("baseline", lambda_rollout=0.5, rollout_steps=2, pretraining_epochs=0)
    u, following = experiment.draw_batch()
    assert following.shape == (5, 2, POINTS)
    expected = F.mse_loss(experiment.model(u, data().positions, 2), following)
    record = next(experiment)
    assert record["loss/rollout"] == pytest.approx(expected.item(), rel=1e-5)
    assert record["weight/rollout"] == 0.5


def test_controls_act_at_once_and_replay():
    steered = run(make("exploding"), until=16)
    steered.controls.update(inverse_scale=0.0, lr_scale=0.5)
    run(steered)
    assert (steered.history["weight/inv_enc"][16:] == 0).all()
    replayed = make("exploding")
    replayed.replay(steered.changes)
    assert_same_run(run(replayed), steered)


def test_it_learns_what_travels():
    """Waves that move by a tenth of the period: not moving them is far worse."""
    experiment = run(make("fixed", epochs=25, pretraining_epochs=25, lr=1e-2, ema_decay=0.9))
    summary = experiment.summary()
    assert summary["persistence_nrmse"] == pytest.approx(
        math.sqrt((2 * math.sin(math.pi * 0.1)) ** 2 / 2 / (0.5 + 0.09)), rel=1e-3
    )
    assert summary["nrmse"] < 0.5 * summary["persistence_nrmse"]
    assert summary["times_better_than_persistence"] == pytest.approx(
        summary["persistence_nrmse"] / summary["nrmse"]
    )
    truth, predicted = experiment.predict(1)
    assert truth.shape == predicted.shape == (4, POINTS)
    np.testing.assert_array_equal(truth, data().test[1, :16:5].double().numpy())
    np.testing.assert_array_equal(predicted[0], truth[0])


class Shifted:
    """A perfect codec, and a step that adds 0.1 to every field."""

    encoder = decoder = staticmethod(lambda fields, positions: fields)
    approximator = staticmethod(lambda latents: latents + 0.1)

    def __call__(self, fields, positions, steps):
        return torch.stack([fields + 0.1 * (k + 1) for k in range(steps)], 1)


def test_measures_by_hand():
    fields = torch.ones(2, 21, 8) + torch.arange(21)[None, :, None] / 50  # + 0.1 a step of 5
    exact = operator_measures.measure_operator(Shifted(), fields, torch.arange(8) / 8, 5, 4)
    assert exact["nrmse"] == pytest.approx(0, abs=1e-6)
    assert exact["rollout_nrmse"] == pytest.approx(0, abs=1e-6)
    assert exact["conservation_gap"] == pytest.approx((0.1 + 0.2 + 0.3 + 0.4) / 4, rel=1e-5)
    assert exact["val_inv_enc"] == exact["val_inv_dec"] == exact["reconstruction_nrmse"] == 0
    still = torch.ones(2, 21, 8) * torch.tensor([1.0, 3.0])[:, None, None]
    found = operator_measures.measure_operator(Shifted(), still, torch.arange(8) / 8, 5, 4)
    assert found["nrmse"] == pytest.approx(math.sqrt(0.01 / 5), rel=1e-4)
    assert found["val_forward"] == pytest.approx(0.01, rel=1e-4)
    assert operator_measures.persistence(still, 5) == 0


def test_epochs_and_summary_by_hand():
    history = run(make("exploding")).history
    frame = operator_measures.by_epoch(history)
    assert frame["epoch"].tolist() == [-2, -1, 0, 1, 2, 3]
    rows = history[(history["epoch"] >= 2) & (history["epoch"] < 3)]
    row = frame[frame["epoch"] == 2].iloc[0]
    assert row["loss"] == pytest.approx(rows["loss"].mean())
    assert row["grad_norm"] == rows["grad_norm"].max()
    inverse = 0.5 * (rows["loss/inv_enc"] + rows["loss/inv_dec"]).mean()
    shares = rows["share/inv_enc"].astype(float) + rows["share/inv_dec"].astype(float)
    assert row["inverse_share"] == pytest.approx(shares.max())
    assert row["weighted"] == pytest.approx(inverse / rows["loss/forward"].mean())
    end = rows.iloc[-1]
    ratio = (end["val_inv_enc"] + end["val_inv_dec"]) / end["val_forward"]
    assert row["unweighted"] == pytest.approx(ratio)
    history.loc[history["epoch"] == 3.25, "grad_norm"] = math.inf
    history.loc[history["epoch"] >= 3, "loss"] = 1e6
    summary = operator_measures.summarize_run(history)
    assert summary["num_not_finite"] == 1
    assert summary["max_grad_norm"] is None
    assert summary["epochs"] == 4
    assert summary["epochs_not_falling"] >= 1
    held_out = frame[frame["epoch"] >= 0]["val_forward"].tolist()
    rises = sum(later >= before for before, later in itertools.pairwise(held_out))
    assert summary["val_forward_not_falling"] == rises
    assert summary["nrmse"] == history["nrmse"].iloc[-1]


def test_a_run_that_ends_without_a_number_reports_none_from_before(monkeypatch):
    experiment = make()
    errors = iter([0.5, 0.4])
    evaluate = lambda: dict.fromkeys(experiment.evaluated, next(errors, math.nan))  # noqa: E731
    monkeypatch.setattr(experiment, "evaluate", evaluate)
    summary = run(experiment).summary()
    assert experiment.history["nrmse"].min() == 0.4
    assert all(math.isnan(summary[name]) for name in experiment.evaluated)


def test_published_methods():
    configs = {name: operator_learning.config("laptop", name) for name in METHODS}
    assert configs["baseline"].lambda_inv_enc == 0
    assert (configs["exploding"].lambda_inv_dec, configs["exploding"].clip) == (0.5, "total")
    fixed = configs["fixed"]
    assert (fixed.lambda_inv_enc, fixed.clip, fixed.max_norm) == (0.001, "group", 0.3)
    assert fixed.has_curriculum
    assert (fixed.epochs, fixed.inverse_loss_warmup_epochs) == (35, 15)
    assert fixed.inverse_loss_max_weight == 0.05
    assert configs["diagnostic"].epochs == 5
    plain = {**vars(configs["exploding"]), "method": ""}
    for name, parts in {
        "weight only": {"lambda_inv_enc": 0.001, "lambda_inv_dec": 0.001},
        "clip only": {"clip": "group", "max_norm": 0.3},
        "curriculum only": {"has_curriculum": True},
    }.items():
        assert {**vars(configs[name]), "method": ""} == plain | parts
    paper = operator_learning.config("paper").sizes
    assert (paper.latent_dim, paper.tokens, paper.hidden, paper.blocks) == (16, 32, 96, 3)
    assert paper.heads == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "fix"}, "method='fix': did you mean 'fixed'"),
        ({"clip": "groups"}, "clip='groups': did you mean 'group'"),
        ({"encoder_learns": "never"}, "encoder_learns='never'"),
        ({"max_norm": 0.0}, "max_norm=0.0"),
        ({"lr": math.inf}, "lr=inf"),
        ({"codec_lr": 0.0}, "codec_lr=0.0: expected a number above 0 and at most 1"),
        ({"ema_decay": 1.0}, "ema_decay=1.0"),
        ({"epochs": 0}, "epochs=0"),
        ({"lambda_inv_enc": -1.0}, "lambda_inv_enc=-1.0"),
        ({"hidden": 9}, "hidden=9: expected a multiple of heads=2"),
        ({"lamda_inv_enc": 1.0}, "field='lamda_inv_enc': did you mean 'lambda_inv_enc'"),
        ({"batch_size": 500}, "batch_size=500: expected at most the 20 training examples"),
        ({"test_steps": 5}, "step=5, test_steps=5: the data has 21 frames"),
    ],
)
def test_bad_values_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_dtypes_and_the_global_random_stream():
    before = torch.get_rng_state()
    for dtype in ("float64", "bfloat16"):
        assert math.isfinite(run(make("fixed", dtype=dtype)).summary()["val_forward"])
    assert torch.equal(torch.get_rng_state(), before)
