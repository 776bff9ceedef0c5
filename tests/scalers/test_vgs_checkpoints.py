"""Each row of the loading table, from files saved in the format of each published version."""

import copy
import io
import itertools
import warnings
from pathlib import Path

import pytest
import torch
from fixtures.vgs.make import OPTIONS, SHAPES, VERSIONS, gradients, make, run
from vgs_reference import PublishedReference, variances_of

from gqc.scalers import VarianceGradientScaler, VGSMigrationWarning
from gqc.scalers.checkpoints import SCALARS

FIXTURES = Path(__file__).parents[1] / "fixtures" / "vgs"
RIGHT = ["elementwise", "sketch", "differences"]
ALL = [*RIGHT, "spatial", "tensor_spatial", "tensor_mean", "mean_square"]
FILES_4 = ["elementwise", "tensor_mean"]  # whose statistics have not changed since


def load(name):
    return torch.load(FIXTURES / f"{name}.pt", weights_only=True)


def frozen(scaler):
    """A scaler's whole state as text, to the last bit."""
    return repr(plain(scaler.state_dict()))


def plain(value):
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return (value.dtype, value.tolist()) if isinstance(value, torch.Tensor) else value


def other_settings(estimator, **options):
    params = [torch.zeros(shape, requires_grad=True) for shape in SHAPES]
    settings = {"beta": 0.9, "alpha": 0.01, "warmup_steps": 1, **options}
    return params, VarianceGradientScaler(params, estimator=estimator, **settings)


# --- published files -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", VERSIONS)
def test_a_file_goes_on_in_the_estimator_of_its_version(name):
    """Exact but for the last bit, which may change with torch: the file was made once."""
    estimator, _ = VERSIONS[name]
    params, scaler = make(estimator)
    run(scaler, params, 0, 20)
    others, other = other_settings(estimator, min_scaling_factor=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.load_state_dict(load(name))
    assert other.step_count == 20
    for key in ("enabled", "beta", "alpha", "eps", "warmup_steps"):
        assert getattr(other, key) == getattr(scaler, key)
    assert other.metrics() == pytest.approx(scaler.metrics(), rel=1e-5)
    assert run(other, others, 20, 30) == pytest.approx(run(scaler, params, 20, 30), rel=1e-5)


@pytest.mark.parametrize("name", VERSIONS)
def test_a_published_file_is_loaded_to_the_last_bit(name):
    state = load(name)
    _, scaler = other_settings(VERSIONS[name][0])
    scaler.load_state_dict(state)
    assert torch.equal(scaler._estimator.raw, torch.tensor([state[k] for k in SCALARS]))
    for key in ("param_grad_mean_ema", "param_grad_sq_ema"):
        if key in state:
            assert torch.equal(getattr(scaler._estimator, key), state[key])


@pytest.mark.parametrize("name", VERSIONS)
def test_the_numbers_in_a_file_are_those_of_the_formulas(name):
    """So that the files don't merely agree with the code that wrote them.

    Its gradients were scaled by its own factors, which the reference takes over.
    """
    estimator, _ = VERSIONS[name]
    reference = PublishedReference(estimator, beta=OPTIONS["beta"])
    for step in range(20):
        factor = 1.0
        if step >= 8:
            ordered = sorted(reference.variances())
            place = 0.9 * (len(ordered) - 1)
            low = int(place)
            high = min(low + 1, len(ordered) - 1)
            variance = ordered[low] + (place - low) * (ordered[high] - ordered[low])
            factor = max(1 / (1 + 0.2 * min(variance, 50.0)), 0.1)
        reference.update([factor * g for g in gradients(step)])
    state = load(name)
    if estimator == "spatial":
        pairs = [(state["grad_mean_ema"], state["grad_var_ema"])]
    else:
        columns = [state[f"param_grad_{k}_ema"].tolist() for k in ("mean", "sq")]
        pairs = list(zip(*columns, strict=True))
    for pair, expected in zip(pairs, reference.averages, strict=True):
        assert pair == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "estimator"),
    [(n, e) for n, e in itertools.product(VERSIONS, ALL) if e != VERSIONS[n][0]],
)
def test_any_other_estimator_starts_afresh_with_a_warning(name, estimator):
    version = {"2.0-unversioned": "2.0", "2.0.1": "2.0"}.get(name, name)
    params, scaler = other_settings(estimator)
    run(scaler, params, 0, 5)
    with pytest.warns(VGSMigrationWarning, match=f"VGS {version}: it measured") as caught:
        scaler.load_state_dict(load(name))
    message = str(caught[0].message)
    assert caught[0].filename == __file__
    assert all(word in message for word in ("kept", "start again", estimator, "Retrain"))
    assert scaler.step_count == 0
    assert (scaler.beta, scaler.alpha, scaler.warmup_steps) == (0.95, 0.2, 8)
    assert scaler.get_normalized_variance() == 0
    fresh_params, fresh = make(estimator)
    factors = run(scaler, params, 30, 50)
    if estimator != "spatial":  # which goes on from the numbers that are kept for logging
        assert factors == run(fresh, fresh_params, 30, 50)
    assert factors[:8] == [1.0] * 8  # the warmup is one again
    assert min(factors) < 1


@pytest.mark.parametrize("estimator", ["sketch", "elementwise", "tensor_mean"])
def test_numbers_of_a_1x_file_are_shown_where_they_go_on(estimator):
    _, scaler = make(estimator)
    with pytest.warns(VGSMigrationWarning):
        scaler.load_state_dict(load("1.x"))
    saved, share = load("1.x"), 1 - 0.95**20
    metrics = scaler.metrics()
    assert metrics["vgs/grad_norm_ema"] == pytest.approx(saved["grad_norm_ema"] / share, rel=1e-5)
    for key, name in [
        ("grad_mean_ema", "grad_mean_ema_spatial"),
        ("grad_var_ema", "grad_var_ema_spatial"),
        ("grad_max_ema", "grad_max_ema"),
    ]:
        if estimator == "tensor_mean":
            assert metrics[f"vgs/{name}"] == pytest.approx(saved[key] / share, rel=1e-5)
        else:  # nothing reads them any more
            assert f"vgs/{name}" not in metrics


def test_settings_of_version_32_are_taken_over():
    _, scaler = make("mean_square", min_scaling_factor=0.01, variance_cap=None)
    scaler.load_state_dict({**load("3.2"), "variance_cap": 20.0})
    assert (scaler.min_scaling_factor, scaler.variance_cap) == (0.1, 20.0)
    _, scaler = make("mean_square", min_scaling_factor=0.01, variance_cap=None)
    scaler.load_state_dict(load("3.1"))
    assert (scaler.min_scaling_factor, scaler.variance_cap) == (0.01, None)


def test_a_tensor_that_a_nan_had_ruined_stays_ruined():
    state = load("3.0")
    state["param_grad_mean_ema"][1] = torch.nan
    _, scaler = make("tensor_mean")
    scaler.load_state_dict(state)
    assert variances_of(scaler)[1] == 0
    with pytest.warns(VGSMigrationWarning):
        make("sketch")[1].load_state_dict(state)


# --- the present format --------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", FILES_4)
def test_the_released_file_of_40_goes_on(estimator):
    params, scaler = make(estimator, variance_cap=10.0)
    run(scaler, params, 0, 20)
    others, other = other_settings(estimator)
    other.load_state_dict(load(f"4.0-{estimator}"))
    assert other.variance_cap == 10.0
    assert other.metrics() == pytest.approx(scaler.metrics(), rel=1e-4)
    assert run(other, others, 20, 30) == pytest.approx(run(scaler, params, 20, 30), rel=1e-4)


def test_the_sketch_of_40_starts_again_with_a_warning():
    """Its values are sums over other buckets, which say nothing of those of today."""
    params, scaler = other_settings("sketch")
    run(scaler, params, 0, 5)
    with pytest.warns(VGSMigrationWarning, match=r"VGS 4.0: its sketch overlooked"):
        scaler.load_state_dict(load("4.0-sketch"))
    assert (scaler.beta, scaler.alpha, scaler.warmup_steps) == (0.95, 0.2, 8)
    fresh_params, fresh = make("sketch", variance_cap=10.0)
    assert (scaler.step_count, scaler.get_normalized_variance()) == (0, 0)
    assert run(scaler, params, 20, 40) == run(fresh, fresh_params, 20, 40)


@pytest.mark.parametrize("estimator", ALL)
@pytest.mark.parametrize("cut", [0, 1, 5, 12])
def test_resume_is_exact(estimator, cut):
    options = {"track_spatial": True} if cut == 5 else {}
    params, scaler = make(estimator, **options)
    before = run(scaler, params, 0, cut)
    buffer = io.BytesIO()
    torch.save(scaler.state_dict(), buffer)
    buffer.seek(0)
    after = run(scaler, params, cut, 20)
    others, other = other_settings(estimator)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert run(other, others, cut, 20) == after
    assert frozen(other) == frozen(scaler)
    assert len(before) + len(after) == 20


def test_resume_of_single_elements_is_exact():
    params, scaler = make("elementwise", granularity="element")
    run(scaler, params, 0, 10)
    others, other = make("elementwise", granularity="element")
    other.load_state_dict(scaler.state_dict())
    assert run(other, others, 10, 20) == run(scaler, params, 10, 20)
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(params, others, strict=True))


def test_saved_statistics_do_not_move_with_the_scaler():
    params, scaler = make("elementwise")
    run(scaler, params, 0, 3)
    state = scaler.state_dict()
    kept = copy.deepcopy(state)
    run(scaler, params, 3, 6)
    for key, value in kept["statistics"].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, state["statistics"][key])
    for a, b in zip(kept["statistics"]["means"], state["statistics"]["means"], strict=True):
        assert torch.equal(a, b)


def test_loading_does_not_share_memory_with_the_file():
    params, scaler = make("elementwise")
    run(scaler, params, 0, 3)
    state = scaler.state_dict()
    others, other = make("elementwise")
    other.load_state_dict(state)
    kept = copy.deepcopy(state["statistics"]["means"])
    run(other, others, 3, 6)
    assert all(torch.equal(a, b) for a, b in zip(kept, state["statistics"]["means"], strict=True))


def damaged():
    """State that must be refused, and a part of the message."""
    new, old = load("4.1-sketch"), load("3.0")
    without = {k: v for k, v in old.items() if k != "step_count"}
    statistics = {k: v for k, v in new["statistics"].items() if k != "spread"}
    return {
        "not a dict": ([1, 2], "is a list"),
        "newer": ({**new, "vgs_version": "5.0"}, "'5.0'"),
        "version is no text": ({**new, "vgs_version": 4}, "version 4"),
        "without steps": (without, "lacks .'step_count'"),
        "empty": ({}, "lacks"),
        "negative steps": ({**old, "step_count": -1}, "step_count=-1"),
        "bad beta": ({**old, "beta": 1.5}, "beta=1.5"),
        "no tensor": ({**old, "param_grad_mean_ema": "x"}, "param_grad_mean_ema"),
        "no number": ({**old, "grad_mean_ema": "x"}, "grad_mean_ema='x'"),
        "4.0 without statistics": ({k: new[k] for k in ("vgs_version", "config")}, "lacks"),
        "4.0 with less": ({**new, "statistics": statistics}, "lack .'spread'"),
        "4.0 with text": ({**new, "statistics": {**new["statistics"], "means": 3}}, "damaged"),
        "4.0 with odd averages": (
            {**new, "statistics": {**new["statistics"], "averages": {"raw": 1}}},
            "damaged",
        ),
        "config is no dict": ({**new, "config": 3}, "config"),
        "unknown setting": ({**new, "config": {**new["config"], "gamma": 1}}, "'gamma'"),
        "other estimator": ({**new, "estimator": "elementwise"}, "'elementwise' given to 'sketch'"),
        "other count": ({**new, "shapes": new["shapes"][:2]}, "of 2 parameters .* of 3"),
        "other shape": (
            {**new, "shapes": [[6, 4], [5], [1]]},
            r"first difference: \[5\] and \[4\]",
        ),
        "other sketch": (
            {**new, "config": {**new["config"], "sketch_size": 2}},
            "means.* another model",
        ),
    }


@pytest.mark.parametrize("kind", damaged())
def test_a_bad_file_changes_nothing(kind):
    state, message = damaged()[kind]
    params, scaler = other_settings("sketch")
    run(scaler, params, 0, 5)
    before = frozen(scaler)
    with pytest.raises(ValueError, match=message):
        scaler.load_state_dict(state)
    assert frozen(scaler) == before


@pytest.mark.parametrize("name", ["2.0", "3.0", "3.2"])
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((4,), r"of 3 parameters given to a scaler of 1, .*: \[24\] and \[4\]"),
        ((24, 5, 1), r"first difference: \[4\] and \[5\]"),
    ],
    ids=["fewer", "as many"],
)
def test_tensors_of_another_model_are_refused(name, sizes, message):
    params = [torch.zeros(size, requires_grad=True) for size in sizes]
    scaler = VarianceGradientScaler(params, estimator=VERSIONS[name][0])
    with pytest.raises(ValueError, match=message):
        scaler.load_state_dict(load(name))
    assert scaler.beta == 0.99
    with pytest.warns(UserWarning, match="start again"):  # of which only settings are taken
        VarianceGradientScaler(params).load_state_dict(load(name))
