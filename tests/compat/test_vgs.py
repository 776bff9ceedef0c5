"""What the published test lists of the scaler promise, through the drop-in module."""

from __future__ import annotations

import logging
import math
import warnings
from pathlib import Path

import pytest
import torch
from fixtures.vgs.make import VERSIONS, gradients, make, run

import gqc
from gqc.compat.vgs import VarianceGradientScaler, VGSMigrationWarning

FIXTURES = Path(__file__).parents[1] / "fixtures" / "vgs"
VECTORS = {"param_grad_mean_ema": torch.ones(2) * 0.1, "param_grad_sq_ema": torch.ones(2) * 0.3}
LEGACY = {"grad_mean_ema": 0.01, "grad_var_ema": 0.002}
MESSAGES = (
    *("VGS Checkpoint Migration", "OLD FORMAT DETECTED", "CRITICAL BUG FIXED", "ACTION REQUIRED"),
    *("1 / (1 + alpha * variance_cap)", "estimator='"),
)


def two(**options):
    params = [torch.zeros(4, requires_grad=True), torch.zeros(2, 3, requires_grad=True)]
    return params, VarianceGradientScaler(params, **{"warmup_steps": 2, **options})


def train(scaler, params, steps, spread=1.0, seed=0):
    generator, factors = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        for p in params:
            p.grad = 1 + spread * torch.randn(p.shape, generator=generator)
        factors.append(scaler.scale_gradients())
        scaler.step()
    return factors


# Files that hold what the documents show

DOCUMENTED = {
    "1.x": (LEGACY, "spatial"),
    "1.x with steps": ({**LEGACY, "step_count": 500}, "spatial"),
    "1.0": ({**LEGACY, "step_count": 500, "vgs_version": "1.0"}, "spatial"),
    "2.0": ({**VECTORS, **LEGACY, "vgs_version": "2.0"}, "tensor_spatial"),
    "2.0.1": ({**VECTORS, **LEGACY, "vgs_version": "2.0.1", "step_count": 9}, "tensor_spatial"),
    "3.1": ({**VECTORS, "vgs_version": "3.1", "step_count": 500}, "mean_square"),
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_file_of_the_documented_fields_migrates_loudly(name, caplog):
    state, estimator = DOCUMENTED[name]
    params, scaler = two(alpha=0.3)
    train(scaler, params, 5)
    with (
        caplog.at_level(logging.WARNING, "gqc.compat.vgs"),
        pytest.warns(VGSMigrationWarning) as caught,
    ):
        scaler.load_state_dict(state)
    text = " ".join(str(warning.message) for warning in caught)
    for words in MESSAGES:
        assert words in text
        assert words in caplog.text
    assert f"estimator={estimator!r}" in text
    assert (scaler.step_count, scaler.alpha, scaler.get_scaling_factor()) == (0, 0.3, 1.0)
    assert train(scaler, params, 2) == [1.0, 1.0]  # the warmup starts again
    assert not any(key.endswith("spatial") for key in scaler.metrics())


@pytest.mark.parametrize("name", ["1.x with steps", "1.0", "2.0.1", "3.1"])
def test_it_goes_on_in_the_old_estimator_where_its_steps_are_known(name):
    state, estimator = DOCUMENTED[name]
    _, scaler = two(estimator=estimator, beta=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scaler.load_state_dict(state)
    assert scaler._step_count == state["step_count"]
    share = 1 - 0.9 ** state["step_count"]
    if estimator == "spatial":
        assert scaler._grad_var_ema == pytest.approx(0.002)
        expected = 0.002 / share / ((0.01 / share) ** 2 + 1e-8)
    else:
        assert torch.equal(scaler._param_grad_sq_ema, VECTORS["param_grad_sq_ema"])
        first, second = 0.1 / share, 0.3 / share
        top = second if estimator == "tensor_spatial" else second - first**2
        expected = top / (first**2 + 1e-8)
    assert scaler.get_normalized_variance() == pytest.approx(expected, rel=1e-4)
    assert scaler._param_numel.tolist() == [4, 6]


@pytest.mark.parametrize("name", ["1.x", "2.0"])
def test_without_its_steps_it_starts_again_also_there(name):
    state, estimator = DOCUMENTED[name]
    params, scaler = two(estimator=estimator)
    with pytest.warns(VGSMigrationWarning, match="without 'step_count'"):
        scaler.load_state_dict(state)
    others, other = two(estimator=estimator)
    assert train(scaler, params, 20) == train(other, others, 20)


def test_a_damaged_file_is_refused_and_changes_nothing():
    params, scaler = two()
    train(scaler, params, 5)
    before = scaler.metrics()
    for state, message in (
        ({"grad_mean_ema": 1.0}, "lacks .'grad_var_ema'"),
        ({"vgs_version": "2.0", **LEGACY}, "lacks .'param_grad_mean_ema'"),
        ({"vgs_version": "9.0"}, "'9.0'"),
        ([1], "is a list"),
        ({**LEGACY, "step_count": 3, "beta": 2.0}, "beta=2.0"),
    ):
        with pytest.raises(ValueError, match=message):
            scaler.load_state_dict(state)
    assert scaler.metrics() == before


# Its own files: flat, marked, exact, and readable by the version that they are of


@pytest.mark.parametrize("estimator", ["sketch", "mean_square", "tensor_spatial", "spatial"])
def test_its_files_are_flat_and_exact(estimator):
    params, scaler = two(estimator=estimator)
    train(scaler, params, 7)
    state = scaler.state_dict()
    assert {"enabled", "beta", "alpha", "warmup_steps", "step_count", "grad_mean_ema"} <= set(state)
    others, other = two(estimator=estimator, beta=0.5)
    other.load_state_dict(state)
    assert train(other, others, 7, seed=1) == train(scaler, params, 7, seed=1)
    expected = {"mean_square": "3.2", "tensor_spatial": "2.0", "spatial": None}
    assert state.get("vgs_version") == expected.get(estimator, "4.1")
    if estimator == "sketch":
        gqc.VarianceGradientScaler(params).load_state_dict(state)


@pytest.mark.parametrize("name", VERSIONS)
def test_released_files_load_as_in_the_core(name):
    state = torch.load(FIXTURES / f"{name}.pt", weights_only=True)
    params, core = make(VERSIONS[name][0])
    core.load_state_dict(state)
    others = [torch.zeros_like(p, requires_grad=True) for p in params]
    scaler = VarianceGradientScaler(others, estimator=VERSIONS[name][0])
    scaler.load_state_dict(state)
    assert run(scaler, others, 20, 30) == run(core, params, 20, 30)


# Construction before there are parameters


@pytest.mark.parametrize("name", ["set_parameters", "update_parameters"])
def test_parameters_may_come_later_and_a_file_before_them(name):
    params, trained = two()
    train(trained, params, 9)
    for early in (None, []):
        scaler = VarianceGradientScaler(early, warmup_steps=2)
        assert scaler.scale_gradients() == 1.0
        scaler.step()
        assert scaler.step_count == 0
        scaler.load_state_dict(trained.state_dict())
        assert scaler.state_dict()["step_count"] == 9
        others = [torch.zeros_like(p, requires_grad=True) for p in params]
        getattr(scaler, name)(others)
        assert scaler.step_count == 9
        assert scaler.get_scaling_factor() == trained.get_scaling_factor()
        params, trained = two()
        train(trained, params, 9)
    untouched = VarianceGradientScaler(warmup_steps=2)
    getattr(untouched, name)(params)
    others, other = two()
    assert train(untouched, params, 9) == train(other, others, 9)


# Configurations


def test_the_published_file_of_settings_is_read_at_any_depth():
    parameters = [torch.zeros(3, requires_grad=True)]
    published = {
        "model": {
            "learning_rate": 3e-4,
            "variance_gradient_scaling": True,
            "vgs_beta": 0.95,
            "vgs_alpha": 0.2,
            "vgs_warmup_steps": 50,
        },
        "training": {"seed": 1},
    }
    scaler = VarianceGradientScaler.from_config(published, parameters)
    assert (scaler.enabled, scaler.beta, scaler.alpha, scaler.warmup_steps) == (True, 0.95, 0.2, 50)
    published["model"]["variance_gradient_scaling"] = False
    assert not VarianceGradientScaler.from_config(published, parameters).enabled
    both = {**published, "variance_gradient_scaling": True}
    with pytest.raises(ValueError, match="enabled is both False and True in the mapping"):
        VarianceGradientScaler.from_config(both, parameters)
    with pytest.raises(ValueError, match="key='vgs_betta'"):
        VarianceGradientScaler.from_config({"model": {"vgs_betta": 1}}, parameters)
    config = {"model": {"variance_gradient_scaling": "no"}}
    with pytest.raises(ValueError, match="enabled='no'"):
        VarianceGradientScaler.from_config(config, parameters)


# Behaviour


def test_it_is_off_when_disabled_and_in_the_warmup():
    params, scaler = two(enabled=False)
    assert train(scaler, params, 4) == [1.0] * 4
    assert scaler.step_count == 0
    params, scaler = two(warmup_steps=3)
    factors = train(scaler, params, 6, spread=3.0)
    assert factors[:3] == [1.0] * 3
    assert all(factor < 1 for factor in factors[3:])


def test_noisier_gradients_get_smaller_factors_within_the_bounds():
    quiet, noisy = (two(alpha=1.0, beta=0.9) for _ in range(2))
    low, high = train(noisy[1], noisy[0], 60, 2.0)[-1], train(quiet[1], quiet[0], 60, 0.1)[-1]
    assert 0.1 <= low < high <= 1.0
    params, scaler = two(alpha=100.0, min_scaling_factor=0.25)
    assert train(scaler, params, 60, 9.0)[-1] == 0.25


@pytest.mark.parametrize("estimator", ["sketch", "mean_square"])
def test_all_gradients_are_multiplied_by_the_factor(estimator):
    params, scaler = two(estimator=estimator)
    train(scaler, params, 10, 2.0)
    before = [torch.full(p.shape, 2.0) for p in params]
    for p, g in zip(params, before, strict=True):
        p.grad = g.clone()
    factor = scaler.scale_gradients()
    assert factor < 1
    for p, g in zip(params, before, strict=True):
        assert torch.allclose(p.grad, g * factor)


def test_statistics_of_the_gradient_are_of_absolute_elements():
    params, scaler = two()
    params[0].grad = torch.tensor([1.0, -3.0, 2.0, 0.0])
    found = scaler.compute_gradient_statistics()
    assert found["num_params"] == 4
    assert found["grad_norm"] == pytest.approx(math.sqrt(14))
    assert (found["grad_mean"], found["grad_max"]) == (1.5, 3.0)


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf, None])
@pytest.mark.parametrize("estimator", ["sketch", "elementwise"])
def test_gradients_that_are_zero_missing_or_not_finite_leave_finite_numbers(bad, estimator):
    params, scaler = two(estimator=estimator)
    train(scaler, params, 5)
    for p in params:
        p.grad = None if bad is None else torch.full(p.shape, bad)
    scaler.scale_gradients()
    scaler.step()
    assert all(map(math.isfinite, scaler.metrics().values()))
    assert all(0.1 <= f <= 1 for f in train(scaler, params, 5))


def test_the_published_keys_are_logged():
    seen = {}
    params, scaler = two(logger=seen.update, track_spatial=True)
    train(scaler, params, 3)
    names = ("normalized_variance", "scaling_factor", "step_count", "warmup_active")
    names += ("grad_norm_ema", "grad_max_ema", "grad_mean_ema_spatial", "grad_var_ema_spatial")
    names += tuple(f"stochastic_var_{name}" for name in ("p10", "p50", "p90", "mean"))
    assert {f"vgs/{name}" for name in names} <= set(seen)
    assert scaler._grad_mean_ema > 0


def test_each_tensor_has_its_own_variance_and_percentiles_are_over_them():
    params = [torch.zeros(64, requires_grad=True) for _ in range(4)]
    scaler = VarianceGradientScaler(params, beta=0.99, warmup_steps=0, variance_cap=None)
    generator = torch.Generator().manual_seed(0)
    for _ in range(600):
        for spread, p in zip((0.1, 0.1, 0.1, 2.0), params, strict=True):
            p.grad = 1 + spread * torch.randn(64, generator=generator)
        scaler.step()
    metrics = scaler.metrics()
    assert metrics["vgs/stochastic_var_p50"] == pytest.approx(0.01, rel=0.3)
    assert metrics["vgs/stochastic_var_p90"] > 1


def test_the_critical_bug_a_constant_gradient_that_differs_by_place_is_not_noise():
    params = [torch.zeros(100, requires_grad=True)]
    right, wrong = (
        VarianceGradientScaler(params, estimator=name, warmup_steps=0)
        for name in ("sketch", "tensor_spatial")
    )
    for _ in range(30):
        params[0].grad = torch.linspace(0.1, 3, 100)
        right.step(), wrong.step()
    assert right.get_normalized_variance() < 1e-4
    assert wrong.get_normalized_variance() > 0.05  # (1 - beta^30) of 0.3, as published


def test_the_critical_bug_noise_that_all_elements_share_is_found():
    params = [torch.zeros(100, requires_grad=True)]
    right, wrong = (
        VarianceGradientScaler(params, estimator=name, warmup_steps=0)
        for name in ("sketch", "tensor_spatial")
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        params[0].grad = torch.ones(100) * torch.randn((), generator=generator) * 2
        right.step(), wrong.step()
    assert right.get_normalized_variance() > 1
    assert wrong.get_normalized_variance() < 1e-6


def test_reset_and_other_parameters():
    params, scaler = two()
    train(scaler, params, 9)
    scaler.update_parameters(params[:1])
    assert train(scaler, params[:1], 1)[0] < 1  # what stays keeps its statistics
    scaler.reset_statistics()
    assert (scaler.step_count, scaler.get_scaling_factor()) == (0, 1.0)
    assert gradients(0)[0] is not None


def test_upgd_reads_gradients_that_were_scaled():
    """A step with the scaler in front is a step with the scaled gradient."""
    params, scaler = two()
    train(scaler, params, 9, 2.0)
    twins = [torch.zeros_like(p, requires_grad=True) for p in params]
    optimizers = [gqc.UPGD(p, lr=0.1, sigma=0.0) for p in (params, twins)]
    for p, twin in zip(params, twins, strict=True):
        p.grad = torch.ones_like(p)
        twin.grad = torch.ones_like(p) * scaler.get_scaling_factor()
    scaler.scale_gradients()
    for optimizer in optimizers:
        optimizer.step()
    assert all(torch.allclose(p, twin) for p, twin in zip(params, twins, strict=True))
