"""Gradients that are no draw, or not of one parameter alone: what a loop without zero_grad() meets.

Each with both places of the sum; parameters move by minus the mean gradient (SGD, lr 1).
"""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch.optim import SGD
from wrappers.habits import Broken

import gqc
from gqc.clipping import clip_grad_norm_total_
from gqc.diagnostics import DrawCorrelation

both_windows = pytest.mark.parametrize("accumulate", ["grad", "buffer"])


def sbc(params, num_draws: float, **options):
    return gqc.OptimizerWrapperSBC(SGD(params, lr=1.0), 1, num_draws, **options)


def draw(wrapper, param, grad: float) -> bool:
    (param * grad).sum().backward()
    return wrapper.step()


def scalar():
    return torch.zeros(1, requires_grad=True)


@both_windows
def test_what_a_loop_without_a_wrapper_has_left_is_no_draw(accumulate):
    """The usual loop, zero_grad() first, leaves its last gradient; so does an abandoned wrapper."""
    x = scalar()
    sgd = SGD([x], lr=1.0)
    (100 * x).sum().backward()
    sgd.step()
    abandoned = gqc.OptimizerWrapperSBC(sgd, 1, 2, accumulate=accumulate)
    draw(abandoned, x, 50.0)
    wrapper = sbc([x], 2, accumulate=accumulate)
    draw(wrapper, x, 1.0), draw(wrapper, x, 3.0)
    assert x.item() == -102.0


@both_windows
@pytest.mark.parametrize("num_draws", [0, 1])
def test_what_came_before_a_checkpoint_was_loaded_is_no_draw(accumulate, num_draws):
    x = scalar()
    wrapper = sbc([x], 2, accumulate=accumulate)
    for _ in range(num_draws):
        draw(wrapper, x, 1.0)
    state = copy.deepcopy(wrapper.state_dict())
    (100 * x).sum().backward()  # of an iteration that failed, say
    wrapper.load_state_dict(state)
    for grad in (1.0, 3.0)[num_draws:]:
        draw(wrapper, x, grad)
    assert (x.item(), wrapper.num_draws) == (-2.0, 0)


@both_windows
def test_loading_the_inner_of_two_wrappers_leaves_the_gradient_of_the_outer(accumulate):
    x = scalar()
    inner = gqc.OptimizerWrapperVGS(SGD([x], lr=1.0))
    wrapper = gqc.OptimizerWrapperSBC(inner, 1, 2, accumulate=accumulate)
    state = copy.deepcopy(inner.state_dict())
    draw(wrapper, x, 1.0)
    inner.load_state_dict(state)
    draw(wrapper, x, 3.0)
    assert x.item() == -2.0


@both_windows
def test_loading_a_plain_checkpoint_drops_the_windows_of_all_wrappers(accumulate):
    x = scalar()
    inner = gqc.OptimizerWrapperGNTS(SGD([x], lr=1.0), 1e-9, max_draws=2)
    outer = gqc.OptimizerWrapperSBC(inner, 1, 2, accumulate=accumulate)
    state = copy.deepcopy(inner.optimizer.state_dict())
    for _ in range(3):
        draw(outer, x, 100.0)
    assert (outer.num_draws, inner.num_draws) == (1, 1)
    inner.optimizer.load_state_dict(state)
    assert (outer.num_draws, inner.num_draws) == (0, 0)
    for grad in (1.0, 1.0, 3.0, 3.0):
        draw(outer, x, grad)
    assert x.item() == -2.0


def test_a_gradient_that_becomes_sparse_in_mid_window_is_named():
    embedding, x = torch.nn.Embedding(3, 2, sparse=True), scalar()
    wrapper = sbc([x, embedding.weight], 3)
    draw(wrapper, x, 1.0)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="sparse=False"):
        wrapper.step()


@both_windows
def test_a_step_of_the_wrapped_optimizer_between_windows_leaves_no_draw(accumulate):
    """Epochs of plain SGD in between end with its gradient in ``.grad``, which has been used."""
    x = scalar()
    wrapper = sbc([x], 2, accumulate=accumulate)
    (100 * x).sum().backward()
    wrapper.optimizer.step()
    (1 * x).sum().backward()
    with pytest.raises(RuntimeError, match=r"of the wrapped optimizer.*zero_grad\(\) forgets both"):
        wrapper.step()
    wrapper.zero_grad()
    draw(wrapper, x, 1.0), draw(wrapper, x, 3.0)
    assert x.item() == -102.0
    (100 * x).sum().backward()
    wrapper.optimizer.step()
    wrapper.optimizer.zero_grad()
    draw(wrapper, x, 1.0), draw(wrapper, x, 3.0)
    assert x.item() == -204.0


@both_windows
@pytest.mark.parametrize("kind", ["SBC", "MHT", "Replay", "VGS"])
def test_a_loop_that_skips_batches_too_large_for_memory_counts_no_part_of_them(kind, accumulate):
    """Also where the wrapper decides by no gradient."""
    x, y = scalar(), scalar()
    args = {"SBC": (1, 2), "Replay": ([2],)}.get(kind, ())
    options = {"min_draws": 2} if kind == "VGS" else {}
    make = getattr(gqc, f"OptimizerWrapper{kind}")
    wrapper = make(SGD([x, y], lr=1.0), *args, max_draws=2, accumulate=accumulate, **options)
    draw(wrapper, x, 1.0) if kind != "MHT" else None
    with pytest.raises(MemoryError):
        (Broken.apply(y, MemoryError()) + 100 * x).sum().backward()
    (3 * x).sum().backward()
    with pytest.raises(RuntimeError, match=r"a part of a gradient in .grad: zero_grad\(\)"):
        wrapper.step(metric=1.0)


def added(*params, times: float):
    """A loss whose gradient autograd hands on to all ``params`` as one and the same memory."""
    return sum(param.unsqueeze(0) for param in params).mul(times).sum()


@both_windows
def test_gradients_that_share_memory_are_summed_each_for_itself(accumulate):
    """Torch's own accumulation gives 7 for 4 here."""
    p, q = (torch.zeros(2, 3, requires_grad=True) for _ in range(2))
    added(p, q, times=1.0).backward()
    assert p.grad.data_ptr() == q.grad.data_ptr()
    wrapper = sbc([p, q], 2, accumulate=accumulate)
    for grad in (1.0, 3.0) * 2:
        added(p, q, times=grad).backward()
        wrapper.step()
    assert p.unique().tolist() == q.unique().tolist() == [-4.0]


@both_windows
@pytest.mark.parametrize("kind", ["GNR", "clip_norm"])
def test_gradients_that_share_memory_are_rescaled_once(kind, accumulate):
    p, q = (torch.zeros(2, 3, requires_grad=True) for _ in range(2))
    sgd = SGD([p, q], lr=1.0)
    if kind == "GNR":
        wrapper = gqc.OptimizerWrapperGNR(sgd, 1.0, accumulate=accumulate)
    else:
        wrapper = gqc.OptimizerWrapperSBC(sgd, 1, 1, clip_norm=1.0, accumulate=accumulate)
    added(p, q, times=5.0).backward()
    wrapper.step()
    torch.testing.assert_close(p.detach(), torch.full((2, 3), -(12**-0.5)))
    torch.testing.assert_close(p, q)


def test_scaling_and_clipping_act_once_on_gradients_that_share_memory():
    p, q = (torch.zeros(2, 3, requires_grad=True) for _ in range(2))
    added(p, q, times=5.0).backward()
    clip_grad_norm_total_([p, q], 1.0)
    torch.testing.assert_close(p.grad, torch.full((2, 3), 12**-0.5))
    scaler = gqc.VarianceGradientScaler([p, q], warmup_steps=0, alpha=1.0)
    for grad in (1.0, -1.0, 2.0, -2.0):
        p.grad = q.grad = None
        added(p, q, times=grad).backward()
        factor = scaler.scale_gradients()
        scaler.step()
    assert factor < 0.5
    torch.testing.assert_close(p.grad, torch.full((2, 3), -2 * factor))


@both_windows
def test_gradients_next_to_each_other_in_one_memory_stay_there(accumulate):
    """As ``torch.cat`` and flat buffers leave them; torch counts their changes together."""
    p, q = (torch.zeros(3, requires_grad=True) for _ in range(2))
    wrapper = sbc([p, q], 2, accumulate=accumulate)
    torch.cat([p, q]).mul(torch.arange(6.0)).sum().backward()
    before = p.grad.data_ptr(), q.grad.data_ptr()
    wrapper.step()
    torch.cat([p, q]).mul(torch.arange(6.0)).sum().backward()
    if accumulate == "grad":
        assert (p.grad.data_ptr(), q.grad.data_ptr()) == before
        with pytest.raises(RuntimeError, match='pass accumulate="buffer"'):
            wrapper.step()
        return
    wrapper.step()
    assert torch.cat([p, q]).tolist() == [0.0, -1.0, -2.0, -3.0, -4.0, -5.0]


@both_windows
def test_a_step_within_its_backward_is_right_or_refused(accumulate):
    """As optimizers that free each gradient at once do it, in a hook."""
    x = scalar()
    wrapper = gqc.OptimizerWrapperGNTS(SGD([x], lr=1.0), 1e9, min_draws=2, accumulate=accumulate)

    def step(_: torch.Tensor) -> None:
        wrapper.step()

    x.register_post_accumulate_grad_hook(step)
    for grad in (1.0, 3.0, 5.0, 7.0):
        if accumulate == "grad":
            with pytest.raises(RuntimeError, match='pass accumulate="buffer"'):
                (grad * x).sum().backward()
            return
        (grad * x).sum().backward()
    assert x.item() == -8.0


@pytest.mark.slow
def test_compiled_autograd_draws_in_a_buffer():
    x = scalar()
    wrapper = gqc.OptimizerWrapperGNTS(SGD([x], lr=1.0), 1e9, min_draws=2)
    for grad in (1.0, 3.0):
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
            (grad * x).sum().backward()
        wrapper.step()
    assert x.item() == -2.0


@both_windows
def test_a_window_that_is_full_between_two_decisions_reads_its_norm(accumulate):
    """Decisions at n = 1 and 4, full at 5: the estimates and the warning need that norm too."""
    x = scalar()
    sgd = SGD([x], lr=0.0)
    wrapper = gqc.OptimizerWrapperGNTS(
        sgd, 1e-3, max_draws=5, decide_every=3, accumulate=accumulate
    )
    with pytest.warns(UserWarning, match="10 windows in a row .* a norm of about 2"):
        stepped = [draw(wrapper, x, 2.0) for _ in range(50)]
    assert stepped == [False, False, False, False, True] * 10
    assert (wrapper.last_window.grad_norm, wrapper.last_window.is_forced) == (2.0, True)
    assert wrapper.statistics()["threshold_unreachable"] is True


def test_noise_is_estimated_in_windows_that_are_full_between_two_decisions():
    x = torch.zeros(20, requires_grad=True)
    wrapper = gqc.OptimizerWrapperGNS(SGD([x], lr=0.0), 1e-3, max_draws=10, decide_every=3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        (x * (1 + torch.randn(20, generator=generator))).sum().backward()
        wrapper.step()
    assert wrapper.last_num_draws == 10
    assert wrapper._noise.num_updates == wrapper.statistics()["steps"] > 29
    assert wrapper.statistics()["noise_scale"] == pytest.approx(1.0, rel=0.15)


@pytest.mark.parametrize("kind", ["scaled", "summed"])
def test_the_correlation_of_draws_is_that_of_their_means_without_loss_scale(kind):
    found = []
    for way in ("plain", kind):
        x = torch.zeros(50, requires_grad=True)
        options = {"scaled": {"grad_scaler": torch.amp.GradScaler("cpu", 4.0, growth_interval=3)}}
        options["summed"] = {"loss": "sum"}
        seen = DrawCorrelation(far=4)
        wrapper = gqc.OptimizerWrapperGNS(
            SGD([x], lr=0.0), correlation=seen, max_draws=4, **options.get(way, {})
        )
        generator = torch.Generator().manual_seed(0)
        for i in range(80):
            loss = (x * (1 + 0.1 * torch.randn(50, generator=generator))).sum()
            weight = (64, 64, 1024, 1024)[i % 4]
            if way == "scaled":
                loss = wrapper.grad_scaler.scale(loss)
            (loss * weight if way == "summed" else loss).backward()
            wrapper.step(weight=weight)
        found.append(seen.correlation())
    assert found[1] == pytest.approx(found[0], abs=1e-3)
    assert abs(found[0]) < 0.2  # 0.7 with the scales in it


@both_windows
def test_numbers_say_nothing_of_a_window_that_is_not_closed(accumulate):
    x = scalar()
    wrapper = sbc([x], 2, accumulate=accumulate)
    assert "num_draws" not in wrapper.numbers()
    draw(wrapper, x, 1.0)
    assert "num_draws" not in wrapper.numbers()
    draw(wrapper, x, 3.0)
    draw(wrapper, x, 3.0)
    assert (wrapper.numbers()["num_draws"], wrapper.numbers()["batches"]) == (2, 3)


def test_a_gradient_that_was_put_there_after_the_wrapper_was_made_is_a_draw():
    x = scalar()
    wrapper = sbc([x], 1)
    x.grad = torch.ones(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert wrapper.step() is True
    assert x.item() == -1.0
