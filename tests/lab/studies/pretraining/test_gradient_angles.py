"""Angles and norms on the way, against plain loops and against what independent noise predicts."""

import copy
import math

import pandas as pd
import pytest
import torch

from gqc_lab.loop.placement import make_generator
from gqc_lab.studies import pretraining
from gqc_lab.studies.pretraining import gradient_angles

TINY = {"width": 8, "depth": 1, "context": 8, "microbatch_size": 2, "tokens": 40 * 16}
TINY |= {"evaluation_sequences": 2, "device": "cpu", "method": "adamw"}


def config(**overrides):
    return pretraining.config("smoke", **{**TINY, **overrides})


def run_all(run, until=None):
    while run.microbatch != until and next(run, None) is not None:
        pass
    return run


@pytest.mark.parametrize("accumulation", [1, 3])
def test_angles_are_those_of_a_plain_loop(accumulation):
    chosen = config(accumulation=accumulation)
    run, momentum, angles = gradient_angles.build(chosen), None, []

    def note(adamw, args, kwargs):
        nonlocal momentum
        g = torch.cat([p.grad.flatten() for p in run.model.parameters()]).double()
        before, momentum = momentum, g * 0.1 + (0 if momentum is None else 0.9 * momentum)
        pairs = [(g, momentum), (g, before)]
        angles.append([None if b is None else degrees(a, b) for a, b in pairs])

    def degrees(a, b):
        return math.degrees(math.acos(min(1.0, (a @ b / a.norm() / b.norm()).item())))

    run.wrapper.optimizer.register_step_pre_hook(note)
    history = run_all(run).history
    steps = history[history["stepped"]]
    assert len(angles) == len(steps) == 40 // accumulation
    assert history.loc[~history["stepped"], "angle"].isna().all()
    found = steps[["angle", "angle_before"]].astype(float)
    # float32 momenta: a cosine to 1e-6, which near an angle of 0 is 0.1 degrees
    assert found["angle"].tolist() == pytest.approx([a for a, _ in angles], abs=0.1)
    assert found["angle"].iloc[0] == pytest.approx(0, abs=0.1)
    assert math.isnan(found["angle_before"].iloc[0])
    assert found["angle_before"].iloc[1:].tolist() == pytest.approx(
        [b for _, b in angles[1:]], abs=0.1
    )


def test_watching_changes_nothing():
    plain = run_all(pretraining.build(config())).history
    watched = run_all(gradient_angles.build(config())).history
    columns = [c for c in plain if c != "seconds"]
    pd.testing.assert_frame_equal(watched[columns], plain[columns], check_exact=True)


@pytest.mark.parametrize("cut", [1, 17])
def test_a_cut_run_is_the_uncut_run(cut):
    uncut = run_all(gradient_angles.build(config(accumulation=2)))
    state = copy.deepcopy(
        run_all(gradient_angles.build(config(accumulation=2)), until=cut).state_dict()
    )
    resumed = gradient_angles.build(config(accumulation=2))
    resumed.load_state_dict(state)
    left, right = (r.history.drop(columns="seconds") for r in (run_all(resumed), uncut))
    pd.testing.assert_frame_equal(left, right, check_exact=True)


def test_a_probe_leaves_the_run_alone():
    plain = run_all(gradient_angles.build(config(accumulation=2)))
    probed = run_all(gradient_angles.build(config(accumulation=2)), until=7)
    gradient_angles.probe(probed, 8, make_generator(0, "probe"))
    run_all(probed)
    pd.testing.assert_frame_equal(
        probed.history.drop(columns="seconds"),
        plain.history.drop(columns="seconds"),
        check_exact=True,
    )


def test_a_probe_is_what_a_plain_loop_finds():
    run = run_all(gradient_angles.build(config()), until=20)
    found = gradient_angles.probe(run, 16, make_generator(3, "probe"))
    generator, grads = make_generator(3, "probe"), []
    for _ in range(4 + 16):
        starts = torch.randint(len(run.data.train) - 8, (2, 1), generator=generator)
        window = run.data.train[starts + torch.arange(9)].long()
        logits = run.model(window[:, :-1]).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, window[:, 1:].flatten())
        parts = torch.autograd.grad(loss, list(run.model.parameters()))
        grads.append(torch.cat([p.flatten() for p in parts]).double())
    noise, rest = torch.stack(grads[:4]), torch.stack(grads[4:])
    assert found["num_draws"].tolist() == [1, 2, 4, 8, 16]
    rms = rest.square().sum(1).mean().sqrt()
    momentum = torch.cat(
        [run.wrapper.state[p]["exp_avg"].flatten() for p in run.model.parameters()]
    ).double()
    for row in found.itertuples():
        mean = rest[: row.num_draws].mean(0)
        assert row.norm == pytest.approx(mean.norm().item(), rel=1e-4)
        assert row.norm_ratio == pytest.approx((mean.norm() / rms).item(), rel=1e-4)
        assert row.sum_ratio == pytest.approx(row.num_draws * row.norm_ratio)
        similarity = mean @ momentum / mean.norm() / momentum.norm()
        assert math.cos(math.radians(row.angle_to_momentum)) == pytest.approx(
            similarity.item(), abs=1e-4
        )
    trace = noise.var(0).sum().item()
    signal = noise.mean(0).square().sum().item() - trace / 4
    assert found["noise_trace"].iloc[0] == pytest.approx(trace, rel=1e-4)
    assert found["signal_sq"].iloc[0] == pytest.approx(signal, rel=1e-3, abs=1e-4 * trace)
    both = max(signal, 0.0) + trace / found["num_draws"]
    expected = (both / (max(signal, 0.0) + trace)).map(math.sqrt)
    assert found["predicted_ratio"].tolist() == pytest.approx(expected.tolist(), rel=1e-3)


def test_norms_fall_as_independent_noise_predicts():
    run = gradient_angles.build(config(width=16, context=16, microbatch_size=4, tokens=40 * 64))
    found = gradient_angles.probe(run, 256, make_generator(0, "probe"))
    # Both sides are estimates from some dozens of microbatches at the initial weights.
    assert found["norm_ratio"].tolist() == pytest.approx(
        found["predicted_ratio"].tolist(), rel=0.25
    )
    assert found["angle_to_momentum"].isna().all()  # no step yet


def test_numbers():
    run = run_all(gradient_angles.build(config()))
    probed = pd.DataFrame({"num_draws": [1, 4, 1, 4], "norm_ratio": [1, 0.5, 1, 0.4]})
    probed = probed.assign(sum_ratio=probed["num_draws"] * probed["norm_ratio"])
    row = gradient_angles.numbers(run, probed.assign(predicted_ratio=[1, 0.5, 1, 0.8]))
    angles, before = (run.history[c].astype(float) for c in ("angle", "angle_before"))
    assert row["median_angle"] == angles.median()
    assert row["median_angle_before"] == before.median()
    assert row["first_angle"] == angles.iloc[0]
    assert row["share_below_1"] == (angles < 1).mean() > 0
    assert (row["num_draws"], row["largest_cut"]) == (4, 2.5)
