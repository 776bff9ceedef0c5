"""The compiled passes over large gradients: the eager ones to rounding, with the same checkpoints.

Large is more than 16384 elements.  The shapes repeat, and with them the graphs: each costs seconds.
"""

import copy
import itertools
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from vgs_reference import feed, normal

from gqc.scalers import VarianceGradientScaler, compiled
from gqc.scalers.compiled_elementwise import CompiledElementwise
from gqc.scalers.sketch import SignSketch
from gqc.wrappers.vgs import OptimizerWrapperVGS

CPU = torch.device("cpu")
SHAPES = ((130, 130), (16411,), (130, 130), (7, 5))  # with remainders, one shape twice, one small
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler on the CPU"),
    # torch 2.13's own import of its compiler uses what it deprecates
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]


def make(estimator, compile, **options):
    params = [torch.zeros(shape, requires_grad=True) for shape in SHAPES]
    scaler = VarianceGradientScaler(
        params, estimator=estimator, compile=compile, warmup_steps=2, **options
    )
    return params, scaler


def steps(num, start=0):
    return [
        [1 + normal(*shape, seed=100 * t + i) for i, shape in enumerate(SHAPES)]
        for t in range(start, start + num)
    ]


def unusual(draws):
    """NaN at step four, one of two equal shapes missing at step five, strides at step six."""
    draws[3][0][5, 5] = torch.nan
    draws[4][2] = None
    draws[5][0] = draws[5][0].t()
    return draws


def give(params, grads):
    for param, grad in zip(params, grads, strict=True):
        param.grad = None if grad is None else grad.clone()


@pytest.mark.parametrize("estimator", ["sketch", "elementwise"])
def test_is_the_eager_one_to_rounding(estimator):
    """Sums of 16900 squares: float32 rounds each by 2^-24, at random; 1e-5 leaves room for all.

    Sketch values are sums of 264 numbers of size 1 and of both signs, of size 16: relative to
    that, 264 * 2^-24 = 1.6e-5 at the worst, twice that in the square.
    """
    (ours, fast), (theirs, eager) = make(estimator, True), make(estimator, False)
    for grads in unusual(steps(8)):
        give(ours, grads), give(theirs, grads)
        factor = fast.scale_gradients()
        assert factor == pytest.approx(eager.scale_gradients(), rel=3e-5)
        fast.step(), eager.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=3e-5, atol=0, equal_nan=True)
    assert factor < 0.95
    assert fast.num_skipped == eager.num_skipped == 1
    mine, other = fast.metrics(), eager.metrics()
    assert mine == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("factor", [1.0, 0.7, 0.0])
def test_sketch_of_a_large_tensor(dtype, factor):
    """Products and quotients round by 2^-24, sums are exact: 2^-22 of the sizes is a bound."""
    gradient = normal(130, 130, seed=1).to(dtype)
    gradient[0] = 0
    expected, scaled = SignSketch([16900], [CPU])([gradient.double()]), gradient.clone()
    values = SignSketch([16900], [CPU], compile=True)([scaled], factor)
    assert (values - expected).abs().max() < 2**-22 * 264 * gradient.abs().max()
    assert torch.equal(scaled, gradient * factor)


def test_factors_and_steps_do_not_compile_again():
    params, scaler = make("sketch", True)
    feed(scaler, params, steps(2))
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert len(set(feed(scaler, params, steps(5, start=2)))) == 5
    scaler.alpha = 0.3
    feed(scaler, params, steps(2, start=7))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before


def test_at_most_one_host_sync_a_step(monkeypatch):
    params, scaler = make("sketch", True)
    count = itertools.count()
    for name in ("item", "tolist", "__bool__", "__float__"):
        original = getattr(torch.Tensor, name)
        counted = lambda self, original=original: (next(count), original(self))[1]  # noqa: E731
        monkeypatch.setattr(torch.Tensor, name, counted)
    feed(scaler, params, steps(2))
    assert next(count) == 0
    feed(scaler, params, steps(3))
    assert next(count) <= 3 + 1


@pytest.mark.parametrize("compile", [True, False])
def test_a_checkpoint_of_one_loads_in_the_other(compile):
    params, first = make("sketch", compile)
    feed(first, params, steps(5))
    saved = first.state_dict()
    others, second = make("sketch", not compile)
    second.load_state_dict(saved)
    assert second.compile is not compile
    assert saved["config"] == second.state_dict()["config"]
    ours, theirs = (feed(s, p, steps(3, start=5)) for s, p in ((first, params), (second, others)))
    assert ours == pytest.approx(theirs, rel=3e-5)


def test_copies_go_on_bit_for_bit():
    params, scaler = make("elementwise", True)
    feed(scaler, params, steps(3))
    assert len(pickle.dumps(scaler)) < 4 * 4 * sum(p.numel() for p in params)
    twins = [copy.deepcopy(scaler), pickle.loads(pickle.dumps(scaler))]
    expected = feed(scaler, params, steps(3, start=3))
    for twin in twins:
        assert feed(twin, twin._parameters.tensors, steps(3, start=3)) == expected


def test_views_of_one_buffer():
    """As DDP hands out gradients: what one call writes must not be what another tensor reads."""
    buffer = normal(2 * 16900, seed=3)
    whole, views = buffer.clone(), [b.view(130, 130) for b in buffer.split(16900)]
    values = SignSketch([16900] * 2, [CPU] * 2, compile=True)(views, 0.5)
    expected = SignSketch([16900] * 2, [CPU] * 2)(list(whole.split(16900)))
    torch.testing.assert_close(values, expected, rtol=0, atol=2**-18 * 264)
    assert torch.equal(buffer, whole * 0.5)


def test_the_wrapper_and_the_configuration_take_it():
    params = [torch.zeros(3, requires_grad=True)]
    wrapper = OptimizerWrapperVGS(torch.optim.SGD(params, lr=0.1), compile=True)
    assert wrapper.scaler.compile
    assert VarianceGradientScaler.from_config({"vgs_beta": 0.9}, params, compile=True).compile


@pytest.mark.parametrize(
    "options",
    [{"estimator": "mean_square"}, {"estimator": "elementwise", "granularity": "element"}],
)
def test_what_is_not_compiled_says_so(options):
    with pytest.raises(ValueError, match="compile=True with estimator"):
        VarianceGradientScaler([torch.zeros(2)], compile=True, **options)
    with pytest.raises(ValueError, match="compile=1"):
        VarianceGradientScaler([torch.zeros(2)], compile=1)


def test_no_compiler_is_an_error_at_once(monkeypatch):
    def unsupported(*args, **kwargs):
        raise RuntimeError("torch.compile is not supported on this Python")

    compiled.compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", unsupported)
    with pytest.raises(RuntimeError, match="compile=False works without"):
        VarianceGradientScaler([torch.zeros(2)], compile=True)


def test_a_failing_compiler_is_an_error_at_the_first_gradient(monkeypatch):
    def failing(graph, inputs):
        raise OSError("no C++ compiler")

    original = torch.compile
    compiled.compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", lambda f, **k: original(f, backend=failing, **k))
    [mean] = (estimator := CompiledElementwise([torch.zeros(130, 130)], 0.9)).means
    with pytest.raises(RuntimeError, match="compile=False works without"):
        estimator.update([torch.ones(130, 130)])
    assert not mean.any()
    compiled.compiled.cache_clear()


def test_without_it_torch_does_not_load_its_compiler():
    code = """
        import sys, torch, gqc
        from gqc.scalers import VarianceGradientScaler
        before = "torch._inductor.compile_fx" in sys.modules
        param = torch.zeros(20000, requires_grad=True)
        param.grad = torch.ones(20000)
        scaler = VarianceGradientScaler([param])
        scaler.scale_gradients(), scaler.step()
        assert not before and "torch._inductor.compile_fx" not in sys.modules
    """
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(line.strip() for line in code.splitlines())],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
