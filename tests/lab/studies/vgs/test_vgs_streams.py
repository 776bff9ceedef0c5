"""Streams have the ratio that they state, and measuring them says which estimator finds it."""

import math
from itertools import islice

import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from gqc_lab.data.images import load_image_data
from gqc_lab.loop.placement import make_generator
from gqc_lab.models.mlp import make_mlp
from gqc_lab.studies.vgs import streams as vgs_streams
from gqc_lab.studies.vgs.streams import VERSIONS, judge, measure

PER_EXAMPLE = torch.randn(50, 16, generator=torch.Generator().manual_seed(3)) + 0.5


@pytest.mark.parametrize(
    "stream",
    [
        vgs_streams.heterogeneous(64),
        vgs_streams.uniform(64, 1.0, 0.5),
        vgs_streams.uniform(64, -2.0, 4.0),
        vgs_streams.iid(64, 0.5),
        vgs_streams.iid(64, 3.0, has_equal_means=True),
        vgs_streams.minibatches(PER_EXAMPLE, 4),
        vgs_streams.correlated(64, 2.0, 0.5),
        vgs_streams.heavy_tailed(64, 1.0, 8),
    ],
    ids=lambda s: s.name,
)
def test_a_stream_has_the_ratio_that_it_states(stream):
    sample = torch.stack(list(islice(stream.gradients(0), 8000))).double()
    assert sample.shape == (8000, stream.numel)
    ratio = sample.var(0).sum() / sample.mean(0).square().sum()
    # Standard error of a variance ratio from 8000 draws in one direction: sqrt(2 / 8000) = 1.6 %,
    # and 2 R sqrt(1 / 8000 / R) = 2.2 % sqrt(R) of a mean; four of them.
    assert ratio.item() == pytest.approx(stream.truth, rel=0.1, abs=1e-12)


def test_the_published_stream_has_no_mean_and_one_value():
    stream = vgs_streams.smoking_gun(8)
    sample = torch.stack(list(islice(stream.gradients(0), 8000)))
    assert stream.truth == math.inf
    assert (sample == sample[:, :1]).all()
    assert sample.std().item() == pytest.approx(2, rel=4 / math.sqrt(2 * 8000))
    assert abs(sample[:, 0].mean().item()) < 4 * 2 / math.sqrt(8000)


def test_noise_has_the_correlation_and_the_tails_that_it_states():
    noise = torch.stack(list(islice(vgs_streams.correlated(64, 1.0, 0.8).gradients(0), 4000)))
    noise = noise - noise.mean(0)
    lagged = (noise[1:] * noise[:-1]).mean() / noise.square().mean()
    assert lagged.item() == pytest.approx(0.8, abs=0.01)  # of 256,000 numbers
    tails = torch.stack(list(islice(vgs_streams.heavy_tailed(64, 1.0, 8).gradients(0), 8000)))
    powers = (tails - tails.mean(0)).square().mean(1)
    # The power of a draw is 6 over a chi-square of 8 degrees; the second moment is (8-2) / (8-4).
    assert powers.square().mean().item() == pytest.approx(6 / 4 * (1 + 2 / 64), rel=0.15)


def test_noise_without_a_mean_is_unresolved_or_at_the_ceiling():
    frame = measure([vgs_streams.iid(512, math.inf)], 200)
    ours = frame[frame["estimator"].isin(["elementwise", "sketch"])]
    assert (ours["truth"] == math.inf).all()
    assert judge(ours).all()


def test_a_rotating_mean_keeps_its_power_and_comes_back():
    stream = vgs_streams.rotating(64, 0.0, 8)
    sample = torch.stack(list(islice(stream.gradients(0), 9)))
    torch.testing.assert_close(sample.square().mean(1), torch.ones(9))
    torch.testing.assert_close(sample[8], sample[0], atol=1e-6, rtol=0)  # float32 of cos(2 pi)
    torch.testing.assert_close(sample[4], -sample[0], atol=1e-6, rtol=0)
    assert abs(sample[0] @ sample[2]) / 64 < 1e-6


def test_seeds_and_names_make_the_noise():
    def first(stream, seed):
        return next(stream.gradients(seed))

    stream = vgs_streams.iid(8, 1.0)
    assert torch.equal(first(stream, 0), first(vgs_streams.iid(8, 1.0), 0))
    assert not torch.equal(first(stream, 0), first(stream, 1))
    before = torch.get_rng_state()
    measure([stream], 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("ratio", [0.0, 1.0])
@pytest.mark.parametrize("period", [60, 200])
def test_the_prediction_for_a_drifting_mean(ratio, period):
    beta = 0.9
    stream = vgs_streams.rotating(2048, ratio, period)
    frame = measure([stream], 150, {"e": {"estimator": "elementwise"}}, beta=beta)
    # By explicit weights, in expectation: |sum w mu|^2, and the noise only on the diagonal.
    weights = [beta ** (149 - i) for i in range(150)]
    weights = [w / sum(weights) for w in weights]
    kappa = sum(w**2 for w in weights)
    angles = [2 * math.pi * i / period for i in range(150)]
    x = sum(w * math.cos(a) for w, a in zip(weights, angles, strict=True))
    y = sum(w * math.sin(a) for w, a in zip(weights, angles, strict=True))
    q = x**2 + y**2
    expected = (1 - q + ratio * (1 - kappa)) / (q - kappa)
    predicted = vgs_streams.drift_prediction(ratio, period, beta)
    assert predicted == pytest.approx(expected, rel=1e-5)  # beta^150 = 1e-7 of the past is missing
    # Of 2048 elements: sqrt(2 / 2048 / 19) of the variance, 2 sqrt(kappa R / 2048 / q) of the mean.
    assert frame["variance"].item() == pytest.approx(predicted, rel=0.05)


def test_a_fast_drift_is_not_resolved():
    assert vgs_streams.drift_prediction(1.0, 4, 0.99) == math.inf
    assert vgs_streams.drift_prediction(1.0, 1e9, 0.99) == pytest.approx(1.0, rel=1e-9)


def test_measure_is_a_tidy_frame_of_every_reading():
    streams = [vgs_streams.iid(64, 1.0), vgs_streams.heterogeneous(64)]
    frame = measure(streams, 20, at=[5], seeds=[0, 1])
    assert len(frame) == 2 * 2 * 2 * len(VERSIONS)
    assert list(frame["estimator"].unique()) == list(VERSIONS)
    assert set(frame["step"]) == {5, 20}
    assert frame.loc[frame["step"] == 20, "ceiling"].unique() == pytest.approx(
        [(1.99 * (1 - 0.99**20)) / (0.01 * (1 + 0.99**20))]
    )


def test_each_stream_is_read_right_by_the_right_estimator_only():
    streams = [
        vgs_streams.heterogeneous(512),
        vgs_streams.smoking_gun(512),
        vgs_streams.iid(512, 10.0),
    ]
    frame = measure(streams, 400, beta=0.98)
    found = frame.pivot(index="stream", columns="estimator", values="variance")
    constant, gun, noise = found.reindex([s.name for s in streams]).to_dict("records")
    assert constant["elementwise"] == constant["sketch"] == constant["tensor_mean"] == 0
    assert constant["mean_square"] == pytest.approx(7, rel=1e-4)
    assert gun["tensor_spatial"] < 1e-6
    # One number z in time is resolved where its mean beats kappa: V = 99 / (z^2 - 1) then.
    assert gun["sketch"] > 10
    assert gun["elementwise"] == pytest.approx(gun["sketch"], rel=0.01)  # one direction only
    assert noise["elementwise"] == pytest.approx(10, rel=0.15)  # 2 sqrt(kappa R / 512) = 3 %
    assert noise["sketch"] == pytest.approx(10, rel=1)  # sqrt(2 / 64) = 18 %, one draw of signs
    assert noise["mean_square"] > 100
    assert noise["tensor_spatial"] < 2


@pytest.mark.parametrize(
    ("truth", "variance", "is_unresolved", "is_right"),
    [
        (1.0, 1.35, False, True),
        (1.0, 0.72, False, True),
        (1.0, 1.45, False, False),
        (1.0, 0.6, False, False),
        (0.0, 0.009, False, True),
        (0.0, 0.011, False, False),
        (math.inf, 199.0, True, True),
        (math.inf, 143.0, False, True),
        (math.inf, 100.0, False, False),
    ],
)
def test_a_reading_is_right_near_the_truth(truth, variance, is_unresolved, is_right):
    row = {"truth": truth, "variance": variance, "is_unresolved": is_unresolved, "ceiling": 199.0}
    assert judge(pd.DataFrame([row])).tolist() == [is_right]


def test_a_gradient_in_16_bits_is_read_in_32():
    stream = vgs_streams.iid(512, 1.0)
    full, half = (
        measure([stream], 200, {"e": {"estimator": "elementwise"}}, dtype=dtype)["variance"].item()
        for dtype in ("float32", "bfloat16")
    )
    assert full != half
    assert half == pytest.approx(full, rel=2 * 2**-8)  # rounding noise is 2^-9 of each element


def test_digits_gradients_are_those_of_single_images():
    found = vgs_streams.digits_gradients(width=4, label_noise=0.5, seed=1)
    data = load_image_data(label_noise=0.5, seed=1)
    model = make_mlp(64, 4, 2, 10, make_generator(1, "weights"))
    assert found.shape == (1438, sum(p.numel() for p in model.parameters()))
    for i in (0, 700, 1437):
        loss = F.cross_entropy(model(data.train_images[i : i + 1]), data.train_labels[i : i + 1])
        grads = torch.autograd.grad(loss, list(model.parameters()))
        expected = torch.cat([g.flatten() for g in grads])
        torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-6)
