"""What the base promises once for all wrappers, beyond the suite that runs on each."""

from __future__ import annotations

import copy
import io
import math
import warnings

import numpy as np
import pytest
import torch
from problems import SHAPES, backward, global_norm, mean_of, parameters, stream

import gqc
from gqc.scalers import moments

both_windows = pytest.mark.parametrize("accumulate", ["grad", "buffer"])


def test_the_quickstart_runs_as_written_in_three_forms():
    """With start and end norm, without, and with a progress bar; warnings are errors."""
    tqdm = pytest.importorskip("tqdm")
    generator = torch.Generator().manual_seed(0)
    loader = [
        (torch.randn(8, 4, generator=generator), torch.randint(0, 3, (8,), generator=generator))
        for _ in range(60)
    ]
    for form in ("norms", "defaults", "bar"):
        model = torch.nn.Linear(4, 3)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        lr_scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=60)
        optimizer = gqc.OptimizerWrapperGNTS(optimizer)
        norms = {"start_norm": 0.8, "end_norm": 0.2} if form == "norms" else {}
        norm_scheduler = gqc.get_norm_threshold_cosine_annealing_with_warmup(
            optimizer, num_warmup_steps=5, num_training_steps=60, **norms
        )
        pbar = tqdm.tqdm(loader, disable=form != "bar")
        window, closed = 0, []
        for number, (inputs, labels) in enumerate(pbar, start=1):
            stats = optimizer.statistics()
            loss = torch.nn.functional.cross_entropy(model(inputs), labels)
            loss.backward()
            stepped = optimizer.step()
            lr_scheduler.step()
            norm_scheduler.step()
            window += 1
            assert stats["batches"] == number
            assert stats["num_draws"] == window
            if stepped:
                closed.append(stats["num_draws"])
                assert optimizer.statistics()["last_num_draws"] == window
                window = 0
            pbar.set_postfix(optimizer.vital_statistics())
        assert optimizer.statistics()["steps"] == len(closed) > 1
        end = norms.get("end_norm", 0.0)
        assert optimizer.param_groups[0]["gradient_norm_threshold"] == end


def test_isinstance_of_optimizer_and_shares_groups_and_state():
    optimizer = torch.optim.AdamW(parameters(), lr=0.1)
    wrapper = gqc.OptimizerWrapperGNTS(optimizer)
    assert isinstance(wrapper, torch.optim.Optimizer)
    assert wrapper.param_groups is optimizer.param_groups
    assert wrapper.state is optimizer.state
    optimizer.load_state_dict(optimizer.state_dict())  # rebinds both
    assert wrapper.param_groups is optimizer.param_groups
    assert wrapper.state is optimizer.state


def test_wrapping_leaves_an_optimizer_that_has_not_stepped_as_torch_made_it():
    """Extra keys in ``state`` before the first step would break Adam's lazy initialisation."""
    optimizer = torch.optim.Adam(parameters(), lr=0.1)
    gqc.OptimizerWrapperGNTS(optimizer)
    assert not optimizer.state


@pytest.mark.parametrize("copied", [lambda x: x, copy.deepcopy])
def test_a_plain_optimizers_file_loads_into_the_wrapped_one_and_tunables_keep_their_default(copied):
    """As the message of ``wrapper.load_state_dict`` advises."""
    plain = torch.optim.AdamW(parameters(), lr=0.3).state_dict()
    inner = gqc.OptimizerWrapperGNR(torch.optim.AdamW(parameters(), lr=0.1), 3.0)
    wrapper = copied(gqc.OptimizerWrapperGNTS(inner, 7.0))
    schedule = gqc.get_linear_schedule(wrapper, 7.0, 5.0, 2, key="gradient_norm_threshold")
    wrapper.optimizer.optimizer.load_state_dict(plain)
    group = wrapper.param_groups[0]
    assert group["lr"] == 0.3
    assert group["gradient_norm_threshold"] == wrapper.tunable("gradient_norm_threshold") == 7.0
    assert group["target_gradient_norm"] == 3.0
    assert schedule.get_last_value() == [7.0]
    gqc.get_constant_schedule(wrapper, 6.0, key="gradient_norm_threshold")
    assert wrapper.tunable("gradient_norm_threshold") == 6.0


def test_clearing_gradients_behind_the_wrappers_back_is_an_error_not_a_loss():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = gqc.OptimizerWrapperSBC(optimizer, 1, 4, accumulate="grad")
    model(torch.ones(1, 3)).sum().backward()
    wrapper.step()
    model.zero_grad()
    model(torch.ones(1, 3)).sum().backward()
    with pytest.raises(RuntimeError, match="discard"):
        wrapper.step()
    wrapper.discard()
    model(torch.ones(1, 3)).sum().backward()
    assert wrapper.step() is False
    model.zero_grad()
    with pytest.raises(RuntimeError, match=r"model\.zero_grad"):
        wrapper.step()


@pytest.mark.parametrize("again", [True, False])
def test_clearing_one_of_several_parameters_is_noticed_too(again):
    x, y = (torch.ones(1, requires_grad=True) for _ in range(2))
    wrapper = gqc.OptimizerWrapperSBC(torch.optim.SGD([x, y], lr=0.1), 1, 2, accumulate="grad")
    backward([x, y], [torch.ones(1)] * 2)
    wrapper.step()
    y.grad = None
    backward([x, y], [torch.ones(1), torch.ones(1) if again else None])
    with pytest.raises(RuntimeError, match="discard"):
        wrapper.step()
    assert wrapper.statistics()["batches"] == 2  # nothing was counted


def test_a_parameter_may_get_its_first_gradient_in_mid_window():
    x, y = (torch.ones(1, requires_grad=True) for _ in range(2))
    wrapper = gqc.OptimizerWrapperSBC(torch.optim.SGD([x, y], lr=1.0), 1, 3)
    for grad in (None, torch.ones(1), torch.ones(1)):
        backward([x, y], [torch.ones(1), grad])
        wrapper.step()
    assert x.item() == 0.0
    assert y.item() == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: setattr(x, "grad", None), "are gone"),
        (lambda x: x.grad.zero_(), "changed in place"),
        (lambda x: backward([x], [torch.ones(1)]), "changed in place"),
    ],
    ids=["cleared", "zeroed", "another backward"],
)
def test_flush_refuses_a_window_that_is_not_as_the_last_draw_left_it(change, message):
    x = torch.ones(1, requires_grad=True)
    wrapper = gqc.OptimizerWrapperSBC(torch.optim.SGD([x], lr=0.1), 1, 4, accumulate="grad")
    backward([x], [torch.ones(1)])
    wrapper.step()
    change(x)
    with pytest.raises(RuntimeError, match=message):
        wrapper.flush()
    assert x.item() == 1.0
    wrapper.discard()
    assert wrapper.flush() is False


def test_a_buffer_does_not_mind_model_zero_grad():
    model, twin = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    wrappers = [
        gqc.OptimizerWrapperSBC(torch.optim.SGD(m.parameters(), lr=0.1), 1, 3, accumulate="buffer")
        for m in (model, twin)
    ]
    for i in range(6):
        for m, wrapper in zip((model, twin), wrappers, strict=True):
            if m is model:
                m.zero_grad()
            m(torch.full((1, 3), float(i))).sum().backward()
            wrapper.step()
    assert torch.equal(model.weight, twin.weight)


def test_create_graph_adds_out_of_place_and_is_not_mistaken_for_a_cleared_gradient():
    x = torch.ones(3, requires_grad=True)
    wrapper = gqc.OptimizerWrapperSBC(torch.optim.SGD([x], lr=0.1), 1, 3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using backward.. with create_graph")
        for i in range(3):
            (x**2).sum().backward(create_graph=True)
            assert wrapper.step() is (i == 2)
    torch.testing.assert_close(x.detach(), torch.full((3,), 0.8))


def test_step_without_a_gradient_is_an_error():
    wrapper = gqc.OptimizerWrapperGNTS(torch.optim.SGD(parameters(), lr=0.1))
    with pytest.raises(RuntimeError, match=r"loss\.backward"):
        wrapper.step()
    assert wrapper.statistics()["batches"] == 1


def test_sixteen_bit_sums_do_not_stop_growing():
    """A bf16 sum of ones stops at 256; the default for 16-bit parameters sums in float32."""
    x = torch.zeros(4, dtype=torch.bfloat16, requires_grad=True)
    seen = []
    optimizer = torch.optim.SGD([x], lr=0.0)
    optimizer.register_step_pre_hook(lambda *_: seen.append(x.grad.clone()))
    wrapper = gqc.OptimizerWrapperSBC(optimizer, 1, 1024, max_draws=1024)
    for _ in range(1024):
        backward([x], [torch.ones(4)])
        wrapper.step()
    assert torch.equal(seen[0], torch.ones(4, dtype=torch.bfloat16))


@pytest.mark.parametrize("through", ["wrapper", "optimizer"])
@pytest.mark.parametrize("pending", [0, 1])
def test_sixteen_bit_parameters_that_are_added_are_summed_in_float32_too(through, pending):
    """From the next window on where one is open."""
    x, y = torch.zeros(1, requires_grad=True), torch.zeros(1, dtype=torch.bfloat16)
    y.requires_grad_()
    wrapper = gqc.OptimizerWrapperSBC(torch.optim.SGD([x], lr=1.0), 1, 512, max_draws=512)
    for _ in range(pending):
        backward([x], [torch.ones(1)])
        wrapper.step()
    target = wrapper if through == "wrapper" else wrapper.optimizer
    target.add_param_group({"params": [y]})
    if pending:
        wrapper.flush()
    for _ in range(512):
        backward([x, y], [torch.ones(1)] * 2)
        wrapper.step()
    assert y.item() == -1.0  # a bf16 sum of ones stops at 256


def test_strictest_group_decides_and_all_are_reported():
    params = parameters()
    groups = [
        {"params": params[:1], "gradient_norm_threshold": 5.0},
        {"params": params[1:], "gradient_norm_threshold": 2.0},
    ]
    optimizer = torch.optim.SGD(params[:1], lr=0.1)
    wrapper = gqc.OptimizerWrapperGNTS(optimizer, 5.0)
    wrapper.add_param_group(groups[1])
    assert wrapper.tunable("gradient_norm_threshold") == 2.0
    statistics = wrapper.statistics()
    assert statistics["gradient_norm_threshold"] == 2.0
    assert statistics["gradient_norm_threshold/group_0"] == 5.0
    assert statistics["gradient_norm_threshold/group_1"] == 2.0


def test_wrapping_a_wrapper_needs_other_keys():
    params = parameters()
    inner = gqc.OptimizerWrapperSBC(torch.optim.SGD(params, lr=0.1), 1, 2)
    outer = gqc.OptimizerWrapperGNTS(inner, 1e30)
    bare = parameters()
    reference = gqc.OptimizerWrapperSBC(torch.optim.SGD(bare, lr=0.1), 1, 2)
    for grads in stream(10):
        backward(params, grads)
        backward(bare, grads)
        outer.step()
        reference.step()
    assert all(torch.equal(a, b) for a, b in zip(params, bare, strict=True))
    state = outer.state_dict()
    assert [own["class"] for own in state["wrappers"]] == [
        "OptimizerWrapperSBC",
        "OptimizerWrapperGNTS",
    ]
    outer.load_state_dict(state)
    with pytest.raises(ValueError, match="OptimizerWrapperGNTS around another"):
        gqc.OptimizerWrapperGNTS(outer)
    with pytest.raises(ValueError, match="gradient_norm_threshold"):
        type("Own", (gqc.OptimizerWrapperGNTS,), {})(outer)


@pytest.mark.parametrize("is_scaled", [False, True])
def test_steps_of_a_wrapped_wrapper_are_those_that_happened(is_scaled):
    params = parameters()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0) if is_scaled else None
    inner = gqc.OptimizerWrapperSBC(torch.optim.SGD(params, lr=0.1), 1, 3)
    outer = gqc.OptimizerWrapperGNTS(inner, 1e-30, max_draws=2, grad_scaler=scaler)
    seen = []
    for grads in stream(12):
        before = params[0].detach().clone()
        backward(params, [scaler.scale(g) for g in grads] if is_scaled else grads)
        seen.append(outer.step())
        assert seen[-1] is not torch.equal(params[0], before)
    assert seen == [False, False, False, False, False, True] * 2
    for wrapper in (outer, inner):
        assert wrapper.statistics()["steps"] == 2
    assert outer.statistics()["num_forced"] == 2
    assert outer.last_num_draws == 2


@pytest.mark.parametrize("kind", [float, torch.tensor])
@pytest.mark.parametrize("cut", [None, 3])
def test_a_wrapper_inside_another_gets_the_mean_metric_of_each_window(kind, cut):
    """The same decisions as when it is fed the means, also after a resume in mid-window."""
    draws, metrics = stream(24), [1.0 + i % 5 for i in range(24)]

    def stack(params):
        inner = gqc.OptimizerWrapperMHT(torch.optim.SGD(params, lr=0.1), 0.9, 0.5, max_draws=6)
        return gqc.OptimizerWrapperReplay(inner, [2], repeat_last=True)

    alone = gqc.OptimizerWrapperMHT(torch.optim.SGD(parameters(), lr=0.1), 0.9, 0.5, max_draws=6)
    means = [(a + b) / 2 for a, b in zip(metrics[::2], metrics[1::2], strict=True)]
    expected = []
    for grads, mean in zip(draws, means, strict=False):
        backward(alone.param_groups[0]["params"], grads)
        expected += [False, alone.step(metric=mean)]
    params, got = parameters(), []
    outer = stack(params)
    for i, (grads, metric) in enumerate(zip(draws, metrics, strict=True)):
        if i == cut:
            saved = copy.deepcopy(outer.state_dict())
            outer = stack(params)
            outer.load_state_dict(saved)
        backward(params, grads)
        got.append(outer.step(metric=kind(metric)))
    assert got == expected
    assert sum(got) > 2  # max_draws alone would give 2
    assert outer.optimizer.statistics()["num_discarded"] == 0
    assert outer.optimizer.running_mean == pytest.approx(alone.running_mean)


def test_a_draw_without_a_metric_leaves_none_for_the_wrapper_inside():
    params = parameters()
    inner = gqc.OptimizerWrapperMHT(torch.optim.SGD(params, lr=0.1))
    outer = gqc.OptimizerWrapperReplay(inner, [2], repeat_last=True)
    backward(params, stream(1)[0])
    outer.step()
    backward(params, stream(1)[0])
    with pytest.warns(UserWarning, match="without a finite metric"):
        assert outer.step(metric=1.0) is False
    assert inner.statistics()["num_discarded"] == 1


def test_a_constructor_that_fails_leaves_its_argument_as_it_was():
    params = parameters()
    inner = gqc.OptimizerWrapperSBC(torch.optim.SGD(params, lr=0.1), 1, 4, accumulate="grad")
    with pytest.raises(ValueError, match="alpha=-1"):
        gqc.OptimizerWrapperVGS(inner, alpha=-1)
    backward(params, stream(1)[0])
    inner.step()
    assert params[0].grad is not None  # it still sums in .grad
    groups, defaults = [{**g} for g in inner.param_groups], {**inner.defaults}
    with pytest.raises(RuntimeError, match="1 pending draws"):
        gqc.OptimizerWrapperGNTS(inner)
    assert inner.defaults == defaults
    assert [g.keys() for g in inner.param_groups] == [g.keys() for g in groups]
    inner.flush()
    gqc.OptimizerWrapperGNTS(inner)


@pytest.mark.parametrize("accumulate", ["grad", "buffer"])
def test_forced_steps_are_counted_and_an_unreachable_threshold_is_told(accumulate):
    params = parameters()
    optimizer = torch.optim.SGD(params, lr=0.0)
    wrapper = gqc.OptimizerWrapperGNTS(optimizer, 0.5, max_draws=5, accumulate=accumulate)
    generator = torch.Generator().manual_seed(0)

    def draw(num: int) -> None:
        for _ in range(num):
            backward(params, [1.0 + 0.3 * torch.randn(s, generator=generator) for s in SHAPES])
            wrapper.step()

    draw(49)
    with pytest.warns(
        UserWarning, match=r"10 windows .* about (5|4\.\d+), which no number of draws"
    ):
        draw(1)
    draw(50)
    statistics = wrapper.statistics()
    assert statistics["steps"] == statistics["num_forced"] == 20
    # |G|^2 = 25 elements of 1, tr(Sigma) = 25 * 0.09; 20 windows of 5: standard error below 0.3
    assert statistics["signal_sq"] == pytest.approx(25.0, abs=1.0)
    assert statistics["noise_trace"] == pytest.approx(2.25, abs=1.0)
    assert statistics["threshold_unreachable"] is True


def test_the_threshold_bounds_the_norm_of_every_step_that_was_not_forced():
    params = parameters()
    optimizer = torch.optim.SGD(params, lr=0.01)
    norms = []
    optimizer.register_step_pre_hook(lambda *_: norms.append(global_norm([p.grad for p in params])))
    wrapper = gqc.OptimizerWrapperGNTS(optimizer, 8.0, max_draws=6)
    forced = 0
    for grads in stream(200):
        backward(params, grads)
        if wrapper.step():
            if wrapper.statistics()["num_forced"] > forced:
                forced += 1
            else:
                assert norms[-1] <= 8.0 * (1 + 1e-6)
            assert wrapper.last_grad_norm == pytest.approx(norms[-1], rel=1e-5)
    assert 0 < forced < len(norms)


@pytest.mark.parametrize("kind", [gqc.OptimizerWrapperGNTS, gqc.OptimizerWrapperNormTest])
def test_the_last_window_is_a_record_of_what_was_handed_on(kind):
    """The obvious source for records and loggers: of the closed window, not of the coming draw."""
    params = parameters()
    wrapper = kind(torch.optim.SGD(params, lr=0.0), 1e-9, max_draws=3)
    assert wrapper.last_window is None
    draws = stream(4)
    for grads in draws:
        backward(params, grads)
        wrapper.step()
    last = wrapper.last_window
    assert (last.num_draws, last.is_forced) == (3, True)
    assert last.grad_norm == pytest.approx(global_norm(mean_of(draws[:3])), rel=1e-5)
    again = kind(torch.optim.SGD(params, lr=0.0), 1e-9, max_draws=3)
    again.load_state_dict(wrapper.state_dict())
    assert again.last_window == last
    assert wrapper.statistics()["num_draws"] == 2  # with the microbatch in progress, as ever
    with pytest.raises(AttributeError):
        last.num_draws = 1


def test_an_optimizer_whose_lr_is_none_is_reported_without_it():
    """As that of Adafactor, which finds one of its own."""
    (x,), found = [torch.zeros(1, requires_grad=True)], []
    inner = torch.optim.SGD([{"params": [x], "own": 1}], lr=1.0)
    wrapper = gqc.OptimizerWrapperGNTS(inner, 1e9, on_step=found.append)
    schedule = gqc.get_constant_schedule(wrapper, 2.0, key="gradient_norm_threshold")
    inner.step = lambda: None
    wrapper.param_groups[0]["lr"] = None
    backward([x], [torch.ones(1)])
    assert wrapper.step()
    assert found[0]["steps"] == 1
    assert "lr" not in {**found[0], **wrapper.statistics(), **wrapper.last_window.closed_with}
    assert schedule.get_last_lr() == []


def test_numbers_of_numpy_are_pythons_in_a_checkpoint():
    params = parameters()
    wrapper = gqc.OptimizerWrapperGNTS(torch.optim.SGD(params, lr=0.1), np.float64(3.0))
    assert type(wrapper.param_groups[0]["gradient_norm_threshold"]) is float
    wrapper.gradient_norm_threshold = np.float32(0.5)
    file = io.BytesIO()
    torch.save(wrapper.state_dict(), file)
    file.seek(0)
    group = torch.load(file, weights_only=True)["param_groups"][0]
    assert group["gradient_norm_threshold"] == 0.5


def test_min_draws_waits_and_a_file_with_more_draws_than_max_steps_next():
    params = parameters()
    wrapper = gqc.OptimizerWrapperGNTS(torch.optim.SGD(params, lr=0.1), 1e30, min_draws=3)
    draws = stream(12)
    got = []
    for grads in draws[:6]:
        backward(params, grads)
        got.append(wrapper.step())
    assert got == [False, False, True] * 2
    strict = gqc.OptimizerWrapperGNTS(torch.optim.SGD(params, lr=0.1), 1e-9, max_draws=64)
    for grads in draws[:5]:
        backward(params, grads)
        strict.step()
    smaller = gqc.OptimizerWrapperGNTS(torch.optim.SGD(params, lr=0.1), 1e-9, max_draws=2)
    smaller.load_state_dict(strict.state_dict())
    backward(params, draws[5])
    assert smaller.step() is True
    assert smaller.last_num_draws == 6


@pytest.mark.parametrize(("most", "expected"), [({}, 100), ({"max_draws": 70}, 70)])
def test_sbc_draws_as_many_as_the_batch_asks_for_unless_it_is_given_a_bound(most, expected):
    x = torch.zeros(1, requires_grad=True)
    wrapper = gqc.OptimizerWrapperSBC(torch.optim.SGD([x], lr=0.1), 2, 200, **most)
    for number in range(1, expected + 1):
        backward([x], [torch.ones(1)])
        assert wrapper.step() is (number == expected)
    assert wrapper.statistics()["num_forced"] == len(most)


@pytest.mark.parametrize("kind", [gqc.OptimizerWrapperGNTS, gqc.OptimizerWrapperGNS])
def test_any_wrapper_may_go_without_an_upper_bound(kind):
    x = torch.zeros(1, requires_grad=True)
    wrapper = kind(torch.optim.SGD([x], lr=0.1), 1e-9, max_draws=None)
    for i in range(200):
        backward([x], [torch.tensor([1.0 + i % 2])])
        wrapper.step()
    assert wrapper.statistics()["num_forced"] == 0
    assert wrapper.num_draws > 64


def test_a_norm_that_overflows_is_large_not_bad():
    x = torch.zeros(4, requires_grad=True)
    wrapper = gqc.OptimizerWrapperGNTS(torch.optim.SGD([x], lr=1e-30), 1.0, max_draws=2)
    for i in range(2):
        backward([x], [torch.full((4,), 3e19)])  # its square exceeds float32
        assert wrapper.step() is (i == 1)
    assert wrapper.statistics()["num_discarded"] == 0
    assert wrapper.statistics()["num_forced"] == 1


def test_replay_past_its_end_is_an_error_before_anything_changes():
    params = parameters()
    wrapper = gqc.OptimizerWrapperReplay(torch.optim.SGD(params, lr=0.1), [1, 2])
    draws = stream(4)
    for grads in draws[:3]:
        backward(params, grads)
        wrapper.step()
    backward(params, draws[3])
    with pytest.raises(IndexError, match="repeat_last=True"):
        wrapper.step()
    assert wrapper.num_draws == 0


def test_replay_of_a_recorded_run_is_that_run():
    draws = stream(60)
    first, second = parameters(), parameters()
    wrapper = gqc.OptimizerWrapperGNTS(torch.optim.AdamW(first, lr=0.1), 10.0, max_draws=6)
    record = []
    for grads in draws:
        backward(first, grads)
        if wrapper.step():
            record.append(wrapper.last_num_draws)
    replay = gqc.OptimizerWrapperReplay(torch.optim.AdamW(second, lr=0.1), record)
    for grads in draws[: sum(record)]:
        backward(second, grads)
        replay.step()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    params = parameters()
    wrapper = gqc.OptimizerWrapperGNTS(torch.optim.SGD(params, lr=0.1), 5.0)
    for grads in stream(10):
        backward(params, grads)
        wrapper.step()
    assert torch.equal(before, torch.get_rng_state())


def test_mean_of_is_the_mean():
    window = stream(3)
    torch.testing.assert_close(
        mean_of(window)[0], torch.stack([d[0] for d in window]).mean(0).double()
    )


@both_windows
@pytest.mark.parametrize("how", ["discard", "raise", "scaler"])
def test_a_window_that_is_found_bad_when_ranks_are_averaged_goes_as_a_whole(accumulate, how):
    """With ``reduce_at_step`` the check comes at the step, when no draw is apart any more."""
    x = torch.ones(2, requires_grad=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0) if how == "scaler" else None
    wrapper = gqc.OptimizerWrapperSBC(
        torch.optim.SGD([x], lr=1.0),
        1,
        2,
        reduce_at_step=True,
        accumulate=accumulate,
        nonfinite="raise" if how == "raise" else "discard",
        grad_scaler=scaler,
    )
    backward([x], [torch.ones(2) if scaler is None else scaler.scale(torch.ones(2))])
    assert wrapper.step() is False
    backward([x], [torch.tensor([1.0, math.nan])])
    if how == "raise":
        with pytest.raises(FloatingPointError, match=r"parameters \[0\]"):
            wrapper.step()
        assert x.grad.isnan().any()
        wrapper.discard()
    else:
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            assert wrapper.step() is False
        assert wrapper.statistics()["num_discarded"] == 2
    assert torch.equal(x.detach(), torch.ones(2))
    assert wrapper.num_draws == 0
    if scaler is not None:
        assert scaler.get_scale() == 2.0


SYNCS = {  # kind, options: host syncs of a draw, of a step with its last draw
    "gnts": (gqc.OptimizerWrapperGNTS, {"gradient_norm_threshold": 1e-9, "max_draws": 2}, 1, 1),
    "gnts, grad": (
        gqc.OptimizerWrapperGNTS,
        {"gradient_norm_threshold": 1e-9, "max_draws": 2, "accumulate": "grad"},
        1,
        1,
    ),
    "gns": (gqc.OptimizerWrapperGNS, {"max_draws": 2}, 1, 1),
    "normtest": (gqc.OptimizerWrapperNormTest, {"theta": 1e-9, "max_draws": 2}, 1, 1),
    "gnr": (gqc.OptimizerWrapperGNR, {"mode": "independent"}, 1, 1),
    "sbc": (gqc.OptimizerWrapperSBC, {"physical_batch_size": 1, "logical_batch_size": 2}, 1, 1),
    "sbc, grad": (
        gqc.OptimizerWrapperSBC,
        {"physical_batch_size": 1, "logical_batch_size": 2, "accumulate": "grad"},
        0,
        1,
    ),
    "sbc, clipped": (
        gqc.OptimizerWrapperSBC,
        {"physical_batch_size": 1, "logical_batch_size": 2, "clip_norm": 1.0},
        1,
        2,
    ),
    "mht": (gqc.OptimizerWrapperMHT, {"max_draws": 2}, 2, 2),
    "mht, grad": (gqc.OptimizerWrapperMHT, {"max_draws": 2, "accumulate": "grad"}, 1, 2),
    "vgs": (gqc.OptimizerWrapperVGS, {"warmup_steps": 0, "min_draws": 2}, 1, 2),
    "vgs, grad": (
        gqc.OptimizerWrapperVGS,
        {"warmup_steps": 0, "min_draws": 2, "accumulate": "grad"},
        0,
        2,
    ),
}


@pytest.mark.parametrize("name", SYNCS)
def test_the_host_waits_as_often_as_the_docstrings_say(name, monkeypatch):
    kind, options, draw, step = SYNCS[name]
    waits = []
    for method in ("item", "tolist", "__float__", "__bool__", "__int__"):
        original = getattr(torch.Tensor, method)

        def counted(self, original=original):
            waits.append(self)
            return original(self)

        monkeypatch.setattr(torch.Tensor, method, counted)
    monkeypatch.setattr(moments, "is_on_host", lambda _: False)  # as on a GPU
    params = parameters()
    wrapper = kind(torch.optim.SGD(params, lr=0.1), **options)
    for i, grads in enumerate(stream(8)):
        backward(params, grads)
        loss = torch.tensor(1.0 + i)
        waits.clear()
        stepped = wrapper.step(metric=loss)
        if i > 1:
            assert len(waits) == (step if stepped else draw)
