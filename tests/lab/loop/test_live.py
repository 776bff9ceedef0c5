"""`Live` in a loop of one's own: what it finds, applies, records, and resumes bit for bit."""

import copy
import enum
import errno
import io
import math
import random
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from gqc import (
    OptimizerWrapperGNTS,
    OptimizerWrapperSBC,
    OptimizerWrapperVGS,
    VarianceGradientScaler,
    get_linear_schedule,
)
from gqc.integrations import attach
from gqc_lab import Live
from gqc_lab.loop import checkpoints


def make(lr=0.1, make_optimizer=torch.optim.SGD, **fields):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.3), torch.nn.Linear(4, 1))
    return model, make_optimizer(model.parameters(), lr=lr, **fields)


def data():
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(20, 3, generator=generator), torch.ones(20, 1))


def train(live, model, optimizer, epochs=3, schedule=None, loader=None, each=lambda: None):
    loader = loader or DataLoader(data(), batch_size=4, shuffle=True)
    for _ in range(live.epoch, epochs):
        for x, y in live(loader):
            noise = 0.01 * float(np.random.normal())  # noqa: NPY002
            noise += 0.01 * random.random()
            loss = (model(x) - y).square().mean() + noise * model[0].weight.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            live.log(loss=loss)
            each()
        if schedule is not None:
            schedule.step()


def range_of(batches):
    return DataLoader(TensorDataset(*data()[: 4 * batches]), batch_size=4)


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def seed():
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)


def test_every_number_of_the_groups_is_a_control():
    _, optimizer = make(make_optimizer=torch.optim.AdamW)
    wrapped = OptimizerWrapperGNTS(optimizer, gradient_norm_threshold=0.5)
    controls = Live(wrapped, total=30).experiment.controls
    expected = {"lr": 0.1, "betas[0]": 0.9, "betas[1]": 0.999, "weight_decay": 0.01, "eps": 1e-8}
    assert expected.items() <= dict(controls).items()
    assert controls["gradient_norm_threshold"] == controls["start_norm"] == 0.5
    _, optimizer = make(momentum=0.9)
    assert {"momentum": 0.9, "alpha": 0.3}.items() <= dict(
        Live(OptimizerWrapperVGS(optimizer, alpha=0.3)).experiment.controls
    ).items()
    two = Live({"first": make()[1], "second": make(lr=0.2)[1]}).experiment.controls
    assert (two["first.lr"], two["second.lr"]) == (0.1, 0.2)
    with pytest.raises(TypeError, match="expected torch optimizers or an Experiment"):
        Live([make()[0]])


def test_an_edit_is_exact_recorded_and_restored():
    model, optimizer = make()
    live, seen = Live(optimizer, total=15), []
    optimizer.register_step_pre_hook(lambda *_: seen.append(optimizer.param_groups[0]["lr"]))

    def edit():
        if live.experiment.microbatch == 4:
            live.experiment.controls["lr"] = 0.3

    train(live, model, optimizer, each=edit)
    assert seen == [0.1] * 5 + [0.3] * 10
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert live.changes == [{"microbatch": 6, "name": "lr", "value": 0.3}]
    history = live.history
    assert history["lr"].tolist()[5:] == [0.3] * 10
    assert history.loc[history["changes"].notna(), "microbatch"].tolist() == [6]
    assert len(history) == 15
    assert history["loss"].dtype == float
    assert live.state == "finished"


def test_an_edit_of_a_scheduled_value_keeps_its_ratio_and_does_not_compound():
    model, optimizer = make()
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    live, seen = Live(optimizer), []
    optimizer.register_step_pre_hook(lambda *_: seen.append(optimizer.param_groups[0]["lr"]))
    live.replay([{"microbatch": 3, "name": "lr", "value": 0.2}])
    train(live, model, optimizer, schedule=schedule)
    assert seen == [0.1] * 2 + [0.2] * 3 + [0.1] * 5 + [0.05] * 5
    assert optimizer.param_groups[0]["lr"] == 0.1 * 0.5**3
    assert live.history["lr"].tolist() == seen  # what the step was made with


def test_a_rate_that_the_body_writes_is_recorded_as_it_was_stepped_with():
    """As nanoGPT writes it, here in a warmup."""
    model, optimizer = make()
    live, seen = Live(optimizer), []
    optimizer.register_step_pre_hook(lambda *_: seen.append(optimizer.param_groups[0]["lr"]))
    live.replay([{"microbatch": 3, "name": "lr", "value": 0.2}])
    for number in live(range(5)):
        optimizer.param_groups[0]["lr"] = 0.01 * (number + 1)
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    assert seen == pytest.approx([0.01, 0.02, 0.2, 0.2 * 4 / 3, 0.2 * 5 / 3])
    assert live.history["lr"].tolist() == seen


def test_an_edit_that_its_schedule_takes_out_of_range_ends_in_an_error():
    """Adam's beta under OneCycleLR, say, which raises it again."""
    model, optimizer = make(make_optimizer=torch.optim.AdamW, betas=(0.8, 0.999))
    live = Live(optimizer)
    live.replay([{"microbatch": 2, "name": "betas[0]", "value": 0.99}])

    def loop():
        for number in live(range(4)):
            optimizer.param_groups[0]["betas"] = (0.8 + 0.05 * number, 0.999)
            model(torch.ones(1, 3)).sum().backward()
            optimizer.step()

    message = r"betas\[0\] \(edited to 0\.99; .* so set it again\)=1\.04.* below 1"
    with pytest.raises(ValueError, match=message):
        loop()
    assert optimizer.param_groups[0]["betas"][0] == 0.9


def test_groups_keep_their_ratio_and_what_was_zero_is_set():
    model, _ = make()
    groups = [
        {"params": model[0].parameters(), "lr": 0.1, "weight_decay": 0.0},
        {"params": model[2].parameters(), "lr": 0.4, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups)
    live, seen = Live(optimizer), []
    optimizer.register_step_pre_hook(
        lambda *_: seen.append([(g["lr"], g["weight_decay"]) for g in optimizer.param_groups])
    )
    live.replay([{"microbatch": 2, "name": n, "value": 0.3} for n in ("lr", "weight_decay")])
    train(live, model, optimizer, epochs=1)
    assert seen[0] == [(0.1, 0.0), (0.4, 0.0)]
    (lr, decay), (other_lr, _) = seen[1]
    assert (lr, decay) == (0.3, 0.3)
    assert other_lr == pytest.approx(1.2)


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [({"lr": 1}, "lr", 0.5), ({"lr": 0.1}, "weight_decay", 0.05), ({"lr": 0.1}, "momentum", 0.9)],
)
def test_a_whole_number_becomes_the_fraction_that_it_is_set_to(fields, name, value):
    """SGD's own defaults of momentum and decay are the integer 0."""
    model, optimizer = make(**fields)
    live, seen = Live(optimizer), []
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(o.param_groups[0][name]))
    before = optimizer.param_groups[0][name]
    live.replay([{"microbatch": 2, "name": name, "value": value}])
    train(live, model, optimizer, epochs=1)
    assert seen == live.history[name].tolist() == [before] + [value] * 4
    assert optimizer.param_groups[0][name] == before


def test_a_count_stays_a_whole_number_under_a_schedule():
    model, optimizer = make()
    wrapper = OptimizerWrapperSBC(optimizer, 1, 8)
    live, seen, key = Live(wrapper), [], "logical_batch_size"
    wrapper.register_step_pre_hook(lambda o, *_: seen.append(o.param_groups[0][key]))
    for number in live(range(4)):
        if number == 1:
            wrapper.param_groups[0][key] = 9
            live.experiment.controls[key] = 4
        if number == 3:
            wrapper.param_groups[0][key] = 16  # 4 * 16 / 9 is 7.1
        model(torch.ones(1, 3)).sum().backward()
        wrapper.step()
    assert seen == [8, 9, 4, 7]


@pytest.mark.parametrize("is_attached", [True, False], ids=["attached", "in a hook"])
def test_an_edit_keeps_its_ratio_to_a_schedule_that_a_hook_steps(is_attached):
    model, optimizer = make()
    if is_attached:
        optimizer = OptimizerWrapperSBC(optimizer, 1, 1)
        attach(get_linear_schedule(optimizer, 0.1, 0.02, 4, key="lr"))
        expected = [0.1, 0.08, 0.6, 0.4, 0.2]
    else:
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        optimizer.register_step_post_hook(lambda *_: schedule.step())
        expected = [0.1, 0.05, 0.6, 0.3, 0.15]
    live, seen = Live(optimizer), []
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(o.param_groups[0]["lr"]))
    live.replay([{"microbatch": 3, "name": "lr", "value": 0.6}])
    train(live, model, optimizer, epochs=1)
    assert seen == pytest.approx(expected)
    assert live.history["lr"].tolist() == pytest.approx(expected)


def test_an_edit_also_acts_on_a_flush():
    model, optimizer = make()
    wrapper, seen = OptimizerWrapperSBC(optimizer, 1, 2), []
    live = Live(wrapper)
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(o.param_groups[0]["lr"]))
    live.replay([{"microbatch": 2, "name": "lr", "value": 0.03}])
    for _ in live(range(3)):
        model(torch.ones(1, 3)).sum().backward()
        wrapper.step()
    assert wrapper.flush()
    assert seen == [0.03, 0.03]
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_window_that_is_flushed_between_two_batches_is_recorded():
    model, optimizer = make()
    wrapper = OptimizerWrapperSBC(optimizer, 1, 4)
    live = Live(wrapper)
    for _ in range(2):
        for _ in live(range(6)):
            model(torch.ones(1, 3)).sum().backward()
            wrapper.step()
        assert wrapper.flush()
    rows = live.history[live.history["stepped"]]
    assert rows["microbatch"].tolist() == [4, 6, 10, 12]
    assert rows["num_draws"].tolist() == [4, 2, 4, 2]
    assert wrapper.statistics()["steps"] == 4


def test_a_scaler_that_the_loop_steps_has_a_row_that_stepped_for_each_step():
    model, optimizer = make()
    scaler = VarianceGradientScaler(optimizer.param_groups)
    live = Live(optimizer, state={"model": model, "scaler": scaler})
    for number in live(range(8)):
        model(torch.ones(1, 3)).sum().backward()
        if number % 4 == 3:
            scaler.scale_gradients()
            scaler.step()
            optimizer.step()
            optimizer.zero_grad()
    assert live.history["stepped"].tolist() == [False, False, False, True] * 2


def test_each_of_two_wrappers_has_columns_and_statistics_under_its_name():
    models, wrappers = [], {}
    for name, size in (("first", 2), ("second", 4)):
        model, optimizer = make()
        models.append(model)
        wrappers[name] = OptimizerWrapperSBC(optimizer, 1, size)
    live = Live(wrappers)
    for _ in live(range(8)):
        for model, wrapper in zip(models, wrappers.values(), strict=True):
            model(torch.ones(1, 3)).sum().backward()
            wrapper.step()
    history = live.history
    assert history["first.num_draws"].tolist() == [1, 2] * 4
    assert history["second.num_draws"].tolist() == [1, 2, 3, 4] * 2
    assert (history["first.stepped"].sum(), history["second.stepped"].sum()) == (4, 2)
    live.finish()
    assert (live.statistics["first.steps"], live.statistics["second.steps"]) == (4, 2)
    with pytest.raises(ValueError, match=r"log\(second\.stepped\): recorded anyway"):
        live.log(**{"second.stepped": 1})


def test_a_step_that_is_refused_leaves_the_groups_without_the_edit():
    """The body catches the error, and a schedule that multiplies goes on."""
    model, optimizer = make()
    wrapper, seen = OptimizerWrapperSBC(optimizer, 1, 1), []
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(o.param_groups[0]["lr"]))
    former = torch.optim.lr_scheduler.ExponentialLR(wrapper, 0.5)
    live = Live(wrapper)
    later = torch.optim.lr_scheduler.ConstantLR(wrapper, 1.0)  # each patches step() too
    live.replay([{"microbatch": 1, "name": "lr", "value": 0.2}])
    for number in live(range(3)):
        model(torch.ones(1, 3)).sum().backward()
        if number == 1:
            with pytest.raises(ValueError, match="weight=-1"):
                wrapper.step(weight=-1)
            assert optimizer.param_groups[0]["lr"] == 0.05
        wrapper.step()
        former.step(), later.step()
    assert seen == [0.2, 0.1, 0.05]
    assert optimizer.param_groups[0]["lr"] == 0.0125
    assert copy.deepcopy(wrapper).step.__func__ is OptimizerWrapperSBC.step


def test_closes_next_answers_with_the_edit_that_the_step_is_made_with():
    model, optimizer = make()
    wrapper = OptimizerWrapperSBC(optimizer, 1, 4, accumulate="grad")
    live, answers, stepped = Live(wrapper), [], []
    live.replay([{"microbatch": 3, "name": "logical_batch_size", "value": 2}])
    for _ in live(range(8)):
        answers.append(wrapper.closes_next())
        assert wrapper.logical_batch_size == 4
        model(torch.ones(1, 3)).sum().backward()
        stepped.append(wrapper.step())
    assert answers == stepped == [False, False, True, False, True, False, True, False]
    live._retire()
    assert not {"step", "closes_next", "flush"} & set(vars(wrapper))


def test_a_question_about_the_coming_draw_is_no_step():
    model, optimizer = make()
    wrapper = OptimizerWrapperSBC(optimizer, 1, 2, accumulate="grad")
    live = Live(wrapper)
    for number in live(range(3)):
        if wrapper.closes_next() and number == 1:
            break  # left untouched
        model(torch.ones(1, 3)).sum().backward()
        wrapper.step()
    assert len(live.history) == 1


def test_the_optimizer_of_accelerate_is_steered():
    from accelerate import Accelerator

    model, optimizer = make()
    outer, seen = Accelerator(cpu=True).prepare(optimizer), []
    live = Live(outer)
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(o.param_groups[0]["lr"]))
    live.replay([{"microbatch": 2, "name": "lr", "value": 0.03}])
    train(live, model, outer, epochs=1)
    assert seen == [0.1, *[0.03] * 4]


def test_loops_within_one_another_are_refused():
    live = Live(make()[1])
    with pytest.raises(RuntimeError, match="within a batch of live"):
        list(zip(live(range(3)), live(range(3)), strict=True))
    for _ in live(range(2)):
        with pytest.raises(RuntimeError, match="within a batch of live"):
            next(live(range(2)))
        live.log(loss=0.0)
    assert live.history["microbatch"].tolist() == [1, 2]  # what zip had begun was left untouched


def test_a_batch_that_only_accumulated_is_counted_where_the_loop_leaves_it():
    model, optimizer = make()
    live = Live(optimizer)
    for does_train in (True, False):
        for number, _ in enumerate(live(range(10))):
            if does_train or number < 2:
                model(torch.ones(1, 3)).sum().backward()
            if number == 2:
                break
    assert live.history["microbatch"].tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("leaves", ["break", "zip"])
def test_a_batch_that_was_left_before_anything_was_done_is_not_counted(leaves):
    model, optimizer = make()
    live, trained = Live(optimizer, total=12), []
    for _ in range(4):
        trained.append(0)
        batches = (
            live(range(10)) if leaves == "break" else zip(live(range(10)), range(3), strict=False)
        )
        for number, _ in enumerate(batches):
            if number == 3:
                break
            model(torch.ones(1, 3)).sum().backward()
            optimizer.step()
            trained[-1] += 1
    assert trained == [3, 3, 3, 3]
    assert live.history["microbatch"].tolist() == [*range(1, 13)]
    assert live.state == "finished"


def test_a_change_for_a_batch_that_was_left_is_recorded_with_the_next():
    _, optimizer = make()
    live = Live(optimizer, total=4)
    for number, _ in enumerate(live(range(4))):
        if number == 2:
            break
        if number == 1:
            live.experiment.controls.update(lr=0.03)
        optimizer.step()
    for _ in live(range(2)):
        optimizer.step()
    assert live.history["changes"].notna().tolist() == [False, False, True, False]
    assert [change["microbatch"] for change in live.changes] == [3]


def test_what_the_loop_logs_is_what_the_history_has():
    """A name that is measured is refused; one that would only be recorded is the loop's."""
    model, optimizer = make()
    wrapper = OptimizerWrapperGNTS(optimizer, max_draws=1)
    live, schedule = Live(wrapper), torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for number in live(range(3)):
        model(torch.ones(1, 3)).sum().backward()
        wrapper.step()
        schedule.step()
        live.log(lr=float(number))
        for name in ("grad_norm", "microbatch", "seconds", "changes", "stepped"):
            with pytest.raises(ValueError, match=rf"log\({name}\): recorded anyway"):
                live.log(**{name: 1.0})
    assert live.history["lr"].tolist() == [0.0, 1.0, 2.0]
    assert live.history["microbatch"].tolist() == [1, 2, 3]


def test_a_replay_without_a_person_is_the_steered_run():
    runs = []
    for changes in (None, []):
        seed()
        model, optimizer = make()
        live = Live(optimizer, total=15)
        if changes is not None:
            live.replay(runs[0][0].changes)

        def edit(live=live, changes=changes):
            if changes is None and live.experiment.microbatch == 7:
                live.experiment.controls.update(lr=0.3, weight_decay=0.1)

        train(live, model, optimizer, each=edit)
        runs.append((live, weights(model)))
    assert runs[0][0].changes == runs[1][0].changes
    assert len(runs[0][0].changes) == 2
    assert all(map(torch.equal, runs[0][1], runs[1][1]))


def test_a_control_of_ones_own_is_a_line_and_is_checked():
    model, optimizer = make()
    live, seen = Live(optimizer, total=5), []
    live.control("dropout", 0.3, lambda value: setattr(model[1], "p", value), low=0, high=1)
    live.control("mode", "a", choices=("a", "b"))
    with pytest.raises(ValueError, match="dropout=2"):
        live.experiment.controls["dropout"] = 2
    live.replay([{"microbatch": 3, "name": "dropout", "value": 0.7}])
    train(live, model, optimizer, each=lambda: seen.append((live["dropout"], model[1].p)))
    assert seen == [(0.3, 0.3)] * 2 + [(0.7, 0.7)] * 3
    assert live["mode"] == "a"
    with pytest.raises(ValueError, match="that one is taken"):
        live.control("lr", 1.0)


def test_log_copies_what_the_loop_reuses_and_refuses_what_is_no_number():
    _, optimizer = make()
    live, value = Live(optimizer), torch.zeros(())
    for _ in live(range(3)):
        value += 1
        live.log(loss=value, name="x", count=np.int64(2), nothing=None)
        with pytest.raises(TypeError, match=r"log\(loss=.*shape \(2,\)"):
            live.log(loss=torch.zeros(2))
    live.log(val_loss=torch.tensor(7.0))
    assert live.history["loss"].tolist() == [1.0, 2.0, 3.0]
    assert live.history["val_loss"].tolist()[-1] == 7.0
    assert live.history["count"].tolist() == [2, 2, 2]


def test_break_keeps_the_batch_and_stop_ends_every_epoch():
    model, optimizer = make()
    live = Live(optimizer)
    for i in live(range(10)):
        live.log(loss=i)
        if i == 2:
            break
    assert live.history["loss"].tolist() == [0, 1, 2]
    heard = []
    live.listeners.append(lambda live: heard.append(live.state))
    train(live, model, optimizer, epochs=9, each=live.stop)
    assert heard[-1] == "stopped"
    assert (live.experiment.microbatch, live.state) == (4, "stopped")


KINDS = ("whole", "cut")


def sampled(generator):
    sampler = RandomSampler(data(), generator=generator)
    return DataLoader(data(), batch_sampler=BatchSampler(sampler, 4, drop_last=False))


LOADERS = {
    "global": lambda generator: DataLoader(data(), 4, shuffle=True),
    "generator": lambda generator: DataLoader(data(), 4, shuffle=True, generator=generator),
    "batch_sampler": sampled,
}


@pytest.mark.parametrize(
    ("cut", "loader_kind"),
    [
        *((cut, kind) for cut in (1, 5, 7, 12) for kind in ("global", "generator")),
        (7, "batch_sampler"),
    ],
)
def test_a_killed_run_resumes_bit_for_bit(cut, loader_kind, tmp_path):
    """Weights, dropout, numpy, python, shuffling, schedule and an edited rate, in mid-epoch."""
    ends = {}
    for kind in KINDS:
        for attempt in range(1 if kind == "whole" else 2):
            seed() if attempt == 0 else torch.manual_seed(99)
            model, optimizer = make(momentum=0.9)
            seed() if attempt == 0 else random.seed(99)
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            loader = LOADERS[loader_kind](torch.Generator().manual_seed(3))
            state = {"model": model, "schedule": schedule}
            folder = tmp_path / kind
            live = Live(optimizer, total=15, state=state, folder=folder, every_seconds=0)
            assert live.resume() is (attempt == 1)
            if attempt == 0:
                live.replay([{"microbatch": 4, "name": "lr", "value": 0.03}])

            def die(live=live, limit=cut if kind == "cut" and attempt == 0 else None):
                if live.experiment.microbatch + 1 == limit:
                    raise KeyboardInterrupt

            try:
                train(live, model, optimizer, schedule=schedule, loader=loader, each=die)
            except KeyboardInterrupt:
                live._end_of_cell(KeyboardInterrupt())
            ends[kind] = weights(model), live.history.drop(columns="seconds"), torch.rand(2)
    (w, h, r), (w2, h2, r2) = (ends[kind] for kind in KINDS)
    assert all(map(torch.equal, w, w2))
    assert h.equals(h2)
    assert torch.equal(r, r2)


class Accumulating:
    """A loop that accumulates four microbatches by hand, over two epochs of twelve."""

    def __init__(self, folder, total=24):
        torch.manual_seed(0)
        self.model = torch.nn.Linear(3, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        state = {"model": self.model}
        self.live = Live(self.optimizer, total, state=state, folder=folder, every_seconds=0)

    def train(self, counts_anew=False, steps_first=False, cut=None):
        live, examples = self.live, torch.randn(24, 3, generator=torch.Generator().manual_seed(1))
        for _ in range(live.epoch, 2):
            loader = DataLoader(TensorDataset(examples), 2, shuffle=True)
            for place, (x,) in enumerate(live(loader)):
                number = place if counts_anew else live.experiment.microbatch
                if steps_first and number % 4 == 0:
                    self.step()
                (self.model(x) - 1).square().mean().backward()
                if not steps_first and number % 4 == 3:
                    self.step()
                if live.experiment.microbatch + 1 == cut:
                    live._end_of_cell(KeyboardInterrupt())
                    return None
        return self.model.weight.detach().clone()

    def step(self):
        self.optimizer.step()
        self.optimizer.zero_grad()


@pytest.mark.parametrize("counts_anew", [True, False])
@pytest.mark.parametrize("cut", [5, 6, 7, 15])
def test_a_loop_that_accumulates_by_hand_resumes_bit_for_bit(cut, counts_anew, tmp_path):
    """Where ``enumerate`` counts from 0 again, too."""
    whole = Accumulating(tmp_path / "whole").train(counts_anew)
    Accumulating(tmp_path / "cut").train(counts_anew, cut=cut)
    resumed = Accumulating(tmp_path / "cut")
    assert resumed.live.resume()
    assert resumed.live.experiment.microbatch == cut // 4 * 4
    assert torch.equal(resumed.train(counts_anew), whole)


@pytest.mark.parametrize("steps_first", [True, False])
@pytest.mark.parametrize("cut", [3, 6, 12, 14])
def test_a_snapshot_holds_the_gradients_that_wait(cut, steps_first, tmp_path):
    """Also one between two epochs, of which none is left out."""
    whole = Accumulating(tmp_path).train(steps_first=steps_first)
    first = Accumulating(tmp_path, total=cut)
    first.train(steps_first=steps_first)
    assert first.live.epoch == cut // 12
    state = first.live.snapshot()
    other = Accumulating(tmp_path)
    other.live.experiment.load_state_dict(state)
    assert torch.equal(other.train(steps_first=steps_first), whole)


@pytest.mark.parametrize("accumulate", ["buffer", "grad"])
@pytest.mark.parametrize("cut", [3, 4, 6])
def test_a_wrapper_whose_draws_are_added_up_by_hand_is_saved_in_mid_window(cut, accumulate):
    def run(total, state=None):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        wrapper = OptimizerWrapperSBC(sgd, 1, 2, accumulate=accumulate)
        live = Live(wrapper, total, state={"model": model})
        if state is not None:
            live.experiment.load_state_dict(state)
        for x in live(data().tensors[0]):
            (model(x) - 1).square().mean().backward()
            if live.experiment.microbatch % 2:
                wrapper.step()
        return model.weight, live

    live = run(cut)[1]
    if accumulate == "grad" and cut == 3:
        with pytest.raises(RuntimeError, match=r"backward\(\) without its step\(\)"):
            live.snapshot()
    else:
        assert torch.equal(run(8, live.snapshot())[0], run(8)[0])


def test_a_reset_loop_draws_the_same_numbers_again():
    model, optimizer = make()
    live, losses = Live(optimizer, state={"model": model}), []
    for _ in range(2):
        train(live, model, optimizer, epochs=1)
        losses.append(live.history["loss"].tolist())
        live.reset()
    assert losses[0] == losses[1]


@pytest.mark.parametrize("is_resumed", [False, True])
def test_an_edit_to_the_value_that_was_shown_last_acts(is_resumed, tmp_path):
    def build():
        model, optimizer = make()
        state = {"model": model, "schedule": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)}
        return model, optimizer, Live(optimizer, state=state, folder=tmp_path), state["schedule"]

    model, optimizer, live, schedule = build()
    train(live, model, optimizer, 1, loader=range_of(3), each=schedule.step)
    live.experiment.controls["lr"] = 0.1  # as the field shows it, while the schedule is at 0.0125
    if is_resumed:
        saved = live.snapshot()
        model, optimizer, live, schedule = build()
        live.experiment.load_state_dict(saved)
    train(live, model, optimizer, 2, loader=range_of(2), each=schedule.step)
    assert live.changes == [{"microbatch": 4, "name": "lr", "value": 0.1}]
    assert live.history["lr"].tolist() == [0.1, 0.05, 0.025, 0.1, 0.05]
    live.experiment.controls["lr"] = 0.025  # what it is already: no change, now or later
    train(live, model, optimizer, 3, loader=range_of(2), each=schedule.step)
    assert live.history["lr"].tolist()[5:] == [0.025, 0.0125]
    assert len(live.changes) == 1


def test_a_reset_keeps_what_a_person_set_and_not_what_a_schedule_wrote():
    model, optimizer = make(momentum=0.5)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    live = Live(optimizer, state={"model": model, "schedule": schedule})
    live.experiment.controls["momentum"] = 0.9
    train(live, model, optimizer, epochs=1, each=schedule.step)
    live.reset()
    train(live, model, optimizer, epochs=1, each=schedule.step)
    assert live.changes == [{"microbatch": 1, "name": "momentum", "value": 0.9}]


@pytest.mark.parametrize("back", ["resume", "snapshot", "reset"])
def test_an_edit_that_a_loaded_state_does_not_have_is_shown_no_more(back, tmp_path):
    model, optimizer = make(lr=0.05)
    live = Live(optimizer, 20, state={"model": model}, folder=tmp_path, every_seconds=math.inf)
    beginning = live.snapshot()
    train(live, model, optimizer, epochs=1)
    early = live.snapshot()
    checkpoints.save_checkpoint(live.experiment, live.checkpoint)
    live.experiment.controls["lr"] = 0.9
    train(live, model, optimizer, epochs=2)
    if back == "reset":
        live.experiment.controls["lr"] = 0.05
        live.reset()
    elif back == "resume":
        assert live.resume()
    else:
        live.experiment.load_state_dict(early)
    assert live.experiment.tunables.values()["lr"] == live.experiment.controls["lr"] == 0.05
    train(live, model, optimizer, epochs=3)
    assert set(live.history.get("lr", [0.05])) == {0.05}
    live.experiment.load_state_dict(beginning)
    live.replay([{"microbatch": 3, "name": "lr", "value": 0.2}])
    train(live, model, optimizer, epochs=1)
    assert live.history["lr"].tolist() == [0.05, 0.05, 0.2, 0.2, 0.2]


def test_a_rate_of_numpy_is_saved_and_loaded(tmp_path):
    ends = []
    for attempt in range(2):
        model, optimizer = make(lr=np.float64(0.1))
        live = Live(optimizer, 10, state={"model": model}, folder=tmp_path, every_seconds=0)
        assert live.resume() is (attempt == 1)
        if attempt == 0:
            train(live, model, optimizer, epochs=1)
        ends.append((weights(model), live.history["loss"].tolist()))
    assert all(map(torch.equal, ends[0][0], ends[1][0]))
    assert ends[0][1] == ends[1][1]


def test_a_control_that_cannot_act_ends_before_its_batch():
    live, acted = Live(make()[1]), []

    def act(value):
        if value == 2:
            raise ValueError("not 2")
        acted.append(value)

    live.control("k", 1, act, low=0, high=5)
    live.replay([{"microbatch": 2, "name": "k", "value": 2}])
    with pytest.raises(ValueError, match="not 2"):
        list(live(range(3)))
    live.experiment.controls["k"] = 3
    assert list(live(range(2))) == [0, 1]
    assert (acted, live.history["microbatch"].tolist()) == ([3], [1, 2, 3])


def test_workers_and_stateless_things_are_refused():
    model, optimizer = make()
    live = Live(optimizer, state={"model": model})
    with pytest.raises(ValueError, match="num_workers=2"):
        next(live(DataLoader(data(), num_workers=2)))
    train(live, model, optimizer, epochs=1)
    state = live.snapshot()
    state["loop"] |= {"position": 3, "start": state["loop"]["now"]}
    live.experiment.load_state_dict(state)
    with pytest.raises(ValueError, match="2 batches in the loader: the checkpoint has done 3"):
        next(live([1, 2]))
    with pytest.raises(TypeError, match=r"state\['x'\] is a int"):
        Live(optimizer, state={"x": 3})
    with pytest.raises(RuntimeError, match="resume: expected"):
        Live(optimizer).resume()


def test_in_the_background_it_is_the_same_loop_and_can_be_held():
    seed()
    model, optimizer = make()
    train(Live(optimizer), model, optimizer)
    expected = weights(model)
    seed()
    model, optimizer = make()
    live = Live(optimizer, state={"model": model})
    beginning = copy.deepcopy(live.beginning["parts"])
    begin = threading.Event()

    @live.background
    def loop():
        begin.wait()
        train(live, model, optimizer)

    live.step(3)
    begin.set()
    while live.state != "paused":
        time.sleep(0.001)
    assert live.experiment.microbatch == 3
    snapshot = live.snapshot()
    assert snapshot["microbatch"] == 3
    assert not torch.equal(snapshot["parts"]["model"]["0.weight"], beginning["model"]["0.weight"])
    live.start()
    assert live.wait(600)
    assert live.state == "finished"
    assert all(map(torch.equal, weights(model), expected))
    live.reset()
    assert torch.equal(model.state_dict()["0.weight"], beginning["model"]["0.weight"])


def test_an_exception_in_the_background_is_kept():
    _, optimizer = make()
    live = Live(optimizer)

    @live.background
    def loop():
        for _ in live(range(3)):
            raise LookupError("no such word")

    assert live.wait(600)
    assert live.state == "failed"
    assert "LookupError: no such word" in live.error


def test_another_live_of_the_same_optimizer_takes_over():
    model, optimizer = make()
    first = Live(optimizer)
    first.experiment.tunables.edit({"lr": 5.0})
    second, seen = Live(optimizer), []
    optimizer.register_step_pre_hook(lambda *_: seen.append(optimizer.param_groups[0]["lr"]))
    train(second, model, optimizer, epochs=1)
    assert first.state == "replaced"
    assert set(seen) == {0.1}


def test_one_that_takes_over_reads_nothing_of_a_step_that_is_under_way():
    """There the group holds the edited rate, which is not what a schedule has written."""
    model, optimizer = make()
    first, inside, go_on = Live(optimizer), threading.Event(), threading.Event()
    first.replay([{"microbatch": 1, "name": "lr", "value": 0.3}])
    optimizer.register_step_pre_hook(lambda *_: inside.set() or (go_on.wait() and None))

    @first.background
    def loop():
        train(first, model, optimizer, epochs=1)

    inside.wait()
    replace = first.replace
    first.replace = lambda: (go_on.set(), replace())
    assert Live(optimizer).experiment.controls["lr"] == 0.1
    assert first.state == "replaced"


def test_a_change_of_the_batch_under_way_is_past():
    _, optimizer = make()
    live = Live(optimizer)
    for number in live(range(1, 4)):
        change = {"microbatch": number, "name": "lr", "value": 0.3}
        with pytest.raises(ValueError, match=f"change of microbatch {number}: .* which is done"):
            live.replay([change])


def test_a_reset_from_another_thread_waits_for_the_end_of_the_batch():
    model, optimizer = make()
    live, loaders = Live(optimizer, total=5, state={"model": model}), []
    load = live.experiment.load_state_dict
    live.experiment.load_state_dict = lambda state: (
        loaders.append(threading.current_thread()),
        load(state),
    )
    thread = threading.Thread(target=live.reset)
    for number in live(range(100)):
        if number == 2:
            thread.start()
            while not live._calls:
                time.sleep(0.001)
    thread.join()
    assert loaders == [threading.main_thread()]
    assert (live.experiment.microbatch, number) == (5, 7)


def test_a_drawn_norm_schedule_decides_the_threshold():
    _, optimizer = make()
    wrapped = OptimizerWrapperGNTS(optimizer, gradient_norm_threshold=9.0, max_draws=2)
    live = Live(wrapped, total=8)
    edit = {"norm_curve": "points", "norm_points": [[0, 4.0], [1, 2.0]]}
    live.replay([{"microbatch": 5, "name": n, "value": v} for n, v in edit.items()])
    model = optimizer.param_groups[0]["params"][0]
    for _ in live(range(8)):
        model.sum().backward()
        wrapped.step()
    expected = [9.0] * 4 + [4 - 2 * n / 8 for n in range(4, 8)]
    assert live.history["gradient_norm_threshold"].tolist() == pytest.approx(expected)
    assert {"stepped", "num_draws", "grad_norm"} <= set(live.history)


def test_vgs_settings_act_on_the_wrapper():
    _, optimizer = make()
    wrapped = OptimizerWrapperVGS(optimizer, alpha=0.0, warmup_steps=0)
    live = Live(wrapped)
    live.replay([{"microbatch": 3, "name": "alpha", "value": 2.0}])
    for _ in live(range(6)):
        for p in wrapped.param_groups[0]["params"]:
            p.grad = torch.randn_like(p)
        wrapped.step()
    assert wrapped.scaler.alpha == 2.0
    factors = live.history["factor"].tolist()
    assert factors[:2] == [1.0, 1.0]
    assert factors[-1] < 1.0


def test_an_edit_of_a_vgs_setting_leaves_those_that_the_loop_set():
    model, optimizer = make()
    wrapped = OptimizerWrapperVGS(optimizer, alpha=1.0)
    live = Live(wrapped)
    live.replay([{"microbatch": 4, "name": "percentile", "value": 0.5}])
    for number in live(range(6)):
        if number == 1:
            wrapped.scaler.alpha = 5.0
        if number == 4:
            live.experiment.controls["alpha"] = 1.0  # as its field showed it at first
        model(torch.randn(4, 3)).sum().backward()
        wrapped.step()
        live.log(strength=wrapped.scaler.alpha)
    assert live.history["strength"].tolist() == [1.0, 5.0, 5.0, 5.0, 5.0, 1.0]
    assert wrapped.scaler.percentile == 0.5
    wrapped.scaler.alpha = 3.0
    live.finish()
    assert live.experiment.controls["alpha"] == 3.0


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_training(tmp_path):
    model, optimizer = make()
    (folder := tmp_path / "full").touch()
    live = Live(optimizer, 15, state={"model": model}, folder=folder, every_seconds=0)

    def make_room():
        if live.experiment.microbatch == 10:
            message = f"{live.checkpoint}: not saved after microbatch 10, and tried again later: "
            assert live.error.startswith(message)
            folder.unlink()

    train(live, model, optimizer, each=make_room)
    assert live.state == "finished"
    _, optimizer = make()
    assert Live(optimizer, 15, state={"model": model}, folder=folder).resume()


def test_a_full_disk_does_not_end_the_training(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, content):
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_full(path, mode):
        return Full() if str(path).endswith(".part") else open(path, mode)

    monkeypatch.setattr(checkpoints, "open", open_full, raising=False)
    model, optimizer = make()
    live = Live(optimizer, 15, state={"model": model}, folder=tmp_path, every_seconds=0)
    train(live, model, optimizer)
    assert live.state == "finished"
    assert live.error.endswith("OSError(28, 'No space left on device')")


class Averages:
    """A part with a state of numpy's."""

    def __init__(self, values):
        self.values = values

    def state_dict(self):
        return {"values": self.values}

    def load_state_dict(self, state):
        self.values = state["values"]


def test_a_state_that_could_not_be_loaded_is_refused_before_it_is_saved(tmp_path):
    model, optimizer = make()
    for wrong, message in ((np.zeros(3), "_reconstruct"), (lambda: 0, "lambda")):
        with pytest.raises(TypeError, match=f"'averages' cannot be loaded .*{message}.*; expected"):
            Live(optimizer, 20, state={"model": model, "averages": Averages(wrong)})
    part = Averages(0.0)
    state = {"model": model, "averages": part}
    live = Live(optimizer, 20, state=state, folder=tmp_path, every_seconds=math.inf)
    checkpoints.save_checkpoint(live.experiment, live.checkpoint)
    before = live.checkpoint.read_bytes()
    part.values = np.zeros(3)  # only later
    with pytest.raises(TypeError, match="'averages' cannot be loaded"):
        checkpoints.save_checkpoint(live.experiment, live.checkpoint)
    assert live.checkpoint.read_bytes() == before
    torch.save({**live.snapshot(), "history": {}}, live.checkpoint)  # as it was saved so far
    with pytest.raises(ValueError, match="intact, but it holds objects"):
        live.resume()
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".ckpt", ".history"]


def test_texts_and_numbers_of_subclasses_are_logged_as_plain_ones(tmp_path):
    class Phase(enum.StrEnum):
        WARMUP = "warmup"

    class Count(enum.IntEnum):
        TWO = 2

    def begin():
        model, optimizer = make()
        state = {"model": model}
        return Live(optimizer, 5, state=state, folder=tmp_path, every_seconds=0), optimizer

    live, optimizer = begin()
    for _ in live(range(5)):
        optimizer.step()
        live.log(a=np.str_("a"), b=Phase.WARMUP, c=Count.TWO, d=np.float64(0.5), e=True, f=None)
    again, _ = begin()
    assert again.resume()
    row = [again.experiment.last(name) for name in "abcdef"]
    assert row == ["a", "warmup", 2, 0.5, True, None]
    assert [type(value) for value in row[:5]] == [str, str, int, float, bool]


LOOP = """
import random, sys, time
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset
from gqc_lab import Live

torch.manual_seed(0)
np.random.seed(0)
random.seed(0)
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.3), torch.nn.Linear(4, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
loader = DataLoader(TensorDataset(torch.randn(80, 3), torch.ones(80, 1)), 4, shuffle=True)
folder, seconds = sys.argv[1], float(sys.argv[2])
live = Live(optimizer, total=60, state={"model": model}, folder=folder, every_seconds=0)
live.resume()
print("ready", flush=True)
for epoch in range(live.epoch, 3):
    for x, y in live(loader):
        x = x + 0.1 * np.random.normal() + 0.1 * random.random()
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        live.log(loss=loss)
        time.sleep(seconds)
print(live.history["loss"].tolist(), [p.tolist() for p in model.parameters()])
"""


def run_loop(folder, seconds):
    command = [sys.executable, "-c", LOOP, str(folder), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_process_that_was_killed_at_any_moment_is_resumed_bit_for_bit(tmp_path):
    whole, _ = run_loop(tmp_path / "whole", 0).communicate()
    for moment in range(2):
        killed = run_loop(tmp_path / "cut", 0.02)
        assert killed.stdout.readline() == "ready\n"
        known = {p.stat().st_mtime_ns for p in (tmp_path / "cut").glob("*.ckpt")}
        while not {p.stat().st_mtime_ns for p in (tmp_path / "cut").glob("*.ckpt")} - known:
            time.sleep(0.01)
        time.sleep(0.05 * moment)
        killed.kill()
        killed.communicate()
    resumed, _ = run_loop(tmp_path / "cut", 0).communicate()
    assert resumed == whole
    assert len(whole) > 1000


def test_loops_that_train_something_else_have_files_of_their_own(tmp_path, capsys):
    """Two notebooks in one folder, and one whose rate was edited since."""

    def begin(lr, width=3):
        model = torch.nn.Linear(width, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr)
        return Live(optimizer, 20, state={"model": model}, folder=tmp_path, every_seconds=0)

    first = begin(0.1)
    for _ in first(range(8)):
        first.experiment.parts["optimizer"].step()
    assert not begin(0.001).resume()
    assert not begin(0.1, width=4).resume()
    again = begin(0.1)
    assert again.resume()
    assert again.experiment.microbatch >= 7
    said = f"loop: resumed after microbatch {again.experiment.microbatch} from {again.checkpoint}"
    assert capsys.readouterr().err.splitlines() == [said]
    with pytest.raises(ValueError, match=r"its numbers is .*0\.1.* here it is .*0\.001"):
        begin(0.001).experiment.load_state_dict(again.experiment.state_dict())


@pytest.mark.parametrize(
    ("value", "kind"), [(np.float64(0.5), float), (np.int64(3), int), (torch.tensor(0.5), float)]
)
def test_a_control_of_ones_own_may_start_with_a_number_of_another_library(value, kind):
    _, optimizer = make()
    live = Live(optimizer, 10)
    live.control("mine", value)
    live.experiment.controls["mine"] = 2
    assert type(live.experiment.controls["mine"]) is kind
