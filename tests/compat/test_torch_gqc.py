"""Scripts of torch-gqc run with the import line changed, and get our behaviour or a clear error."""

from __future__ import annotations

import copy
import importlib.metadata
import inspect
import io
import re

import gradient_quality_control as peer
import pytest
import torch
from torch.optim import SGD, AdamW

import gqc
from gqc.compat import torch_gqc

STEPS = {"num_training_steps": 20, "num_warmup_steps": 4}
FACTORIES = {
    "make_gnts_with_cosine_annealing_schedule": {},
    "make_gnts_with_cosine_annealing_schedule_conventional_lr": {"warmup_multiplier": 3},
    "make_sbc_with_polynomial_schedule": {
        "physical_batch_size": 2,
        "initial_batch_size": 4,
        "final_batch_size": 64,
    },
    "make_sbc_with_polynomial_schedule_conventional_lr": {
        "physical_batch_size": 2,
        "initial_batch_size": 4,
        "final_batch_size": 64,
        "polynomial_power": 3.0,
    },
    "make_gnr_with_cosine_annealing_schedule": {"initial_norm": 2.0, "final_norm": 0.5},
    "make_gnr_with_cosine_annealing_schedule_conventional_lr": {
        "initial_norm": 2.0,
        "final_norm": 0.5,
    },
    "make_gns_default": {"tolerance": 2.0},
    "make_gns_with_cosine_annealing_schedule": {"initial_tolerance": 2.0, "final_tolerance": 1.0},
}
every_factory = pytest.mark.parametrize("name", FACTORIES)


def scalar(value: float = 0.0) -> torch.Tensor:
    return torch.tensor([value], requires_grad=True)


def draw(wrapper, param, grad, *args, **kwargs) -> bool:
    (param * grad).sum().backward()
    return wrapper.step(*args, **kwargs)


def two_groups():
    groups = [{"params": [scalar(1.0)]}, {"params": [scalar(1.0)], "lr": 0.5, "weight_decay": 0.3}]
    return AdamW(groups, lr=0.1, weight_decay=0.1)


# The published quickstarts


class Bar(list):
    """What tqdm is in the quickstarts."""

    shown: dict = {}

    def set_postfix(self, values):
        self.shown = values


def run_quickstart(code: str) -> dict:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    batches = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(30)]
    names = {
        "torch": torch,
        "model": model,
        "lr": 1e-2,
        "tqdm": lambda loader, desc: Bar(loader),
        "train_loader": batches,
        "get_train_loader": lambda batch_size: batches,
        "cross_entropy": torch.nn.functional.cross_entropy,
    }
    before = model.weight.detach().clone()
    exec(code, names)
    assert not torch.equal(model.weight, before)
    return names


def published_blocks() -> list[str]:
    """The quickstarts of the installed release, with our import line."""
    # Not its payload, which is empty where the backport importlib_metadata was imported.
    text = importlib.metadata.metadata("torch-gqc")["Description"]
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    ours = [b.replace("gradient_quality_control", "gqc.compat.torch_gqc") for b in blocks]
    return [block for block in ours if "gqc.compat.torch_gqc" in block]


@pytest.mark.parametrize(
    ("index", "first", "last"), [(0, 9.5, 0.95), (1, 100.0, 1.0), (2, 9.5, 0.95)]
)
def test_the_quickstarts_of_0_10_4_run(index, first, last):
    names = run_quickstart(published_blocks()[index])
    threshold = names["optimizer"].param_groups[0]["gradient_norm_threshold"]
    assert threshold == pytest.approx(first + (last - first) * 30 / 500)
    if index == 2:
        assert names["pbar"].shown["steps"] == names["optimizer"].num_steps > 0


@pytest.mark.parametrize("mode", ["replicated", "sharded"])
def test_the_distributed_quickstart_of_0_10_4_runs(mode):
    ddp, fsdp = published_blocks()[3].split("# For FSDP (")
    start = ddp.split("optimizer, schedule =")[0]
    code = ddp if mode == "replicated" else f"{start}#{fsdp}"
    names = {"torch": torch, "model": torch.nn.Linear(4, 3)}
    exec(code, names)
    assert names["optimizer"].distributed_mode == mode


#: as the README of the method has it, with numbers for what it leaves open
QUICKSTART_0_8_5 = """
from gqc.compat.torch_gqc import OptimizerWrapperGNTS, NormWarmupScheduler
from gqc.compat.torch_gqc import get_norm_threshold_cosine_annealing_with_warmup

optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
lr_scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=500)
optimizer = OptimizerWrapperGNTS(optimizer)
norm_scheduler = get_norm_threshold_cosine_annealing_with_warmup(
    optimizer, num_warmup_steps=500, num_training_steps=10_000{norms})
step_batches = []
num_batches_sampled = []
pbar = tqdm(train_loader, desc="Training")
for inputs, labels in pbar:
    stats = optimizer.statistics()
    logits = model(inputs)
    loss = cross_entropy(logits, labels)
    loss.backward()
    stepped = optimizer.step()
    lr_scheduler.step()
    norm_scheduler.step()
    if stepped:
        step_batches.append(stats['batches'])
        num_batches_sampled.append(stats['num_draws'])
    pbar.set_postfix(stats)
"""


@pytest.mark.parametrize(("norms", "first"), [("", 10.0), (", start_norm=0.8, end_norm=0.2", 8.0)])
def test_the_quickstart_of_0_8_5_runs(norms, first):
    names = run_quickstart(QUICKSTART_0_8_5.format(norms=norms))
    assert names["step_batches"] == list(range(1, 31))  # the warmup's thresholds are high
    assert names["num_batches_sampled"] == [1] * 30
    assert names["optimizer"].param_groups[0]["gradient_norm_threshold"] == pytest.approx(
        first * (1 - 0.9 * 30 / 500)
    )
    assert names["pbar"].shown["norm_threshold"] > 0


# Names, signatures, values


def test_every_published_name_is_there():
    assert set(peer.__all__) <= set(dir(torch_gqc))
    for name in (
        "OptimizerWrapperMHT",
        "get_quadratic_batch_schedule",
        "get_curved_batch_schedule",
    ):
        assert hasattr(torch_gqc, name)


@pytest.mark.parametrize("name", [n for n in peer.__all__ if n != "__version__"])
def test_positional_arguments_are_those_of_0_10_4(name):
    theirs = inspect.signature(getattr(peer, name)).parameters
    ours = inspect.signature(getattr(torch_gqc, name)).parameters
    assert set(theirs) <= set(ours)
    positional = [n for n, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    if name != "OptimizerWrapperGNS":  # whose second argument was another in 0.8.5
        assert positional == list(theirs)
    for key, parameter in theirs.items():
        differs = key == "max_batch_draws" and "sbc" in name.lower()  # see DIFFERENCES.md
        assert ours[key].default == (None if differs else parameter.default)


@every_factory
# it sets the optimizer's lr before the first step, and torch notices
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
def test_schedules_of_factories_have_the_published_values_up_to_their_end(name):
    makers = getattr(peer, name), getattr(torch_gqc, name)
    (theirs, old), (_, new) = (m(two_groups(), **STEPS, **FACTORIES[name]) for m in makers)
    targets = [n for n in old.schedule_names if n in new.schedule_names]
    assert set(old.schedule_names) - set(targets) <= {"weight_decay"}  # constant
    for _ in range(STEPS["num_training_steps"] + 1):
        for target in targets:
            expected = [group[target] for group in theirs.param_groups]
            assert new.get_last_schedule(target) == pytest.approx(expected, abs=1e-9)
        old.step(), new.step()
    last = {target: new.get_last_schedule(target) for target in targets}
    new.step()
    assert {target: new.get_last_schedule(target) for target in targets} == last


@every_factory
def test_a_factorys_schedule_resumes_from_its_own_state_and_from_the_published_one(name):
    make = getattr(torch_gqc, name)
    (wrapper, schedule), (other, resumed) = (
        make(two_groups(), **STEPS, **FACTORIES[name]) for _ in range(2)
    )
    for _ in range(7):
        schedule.step()
    resumed.load_state_dict(schedule.state_dict())
    assert [*map(str, other.param_groups)] == [*map(str, wrapper.param_groups)]
    published = {schedule.key: {"last_epoch": 7}}
    again = make(two_groups(), **STEPS, **FACTORIES[name])
    again[1].load_state_dict(published)
    assert [*map(str, again[0].param_groups)] == [*map(str, wrapper.param_groups)]


def test_a_group_that_is_added_later_joins_the_schedule():
    wrapper, schedule = torch_gqc.make_gnts_with_cosine_annealing_schedule(two_groups(), **STEPS)
    schedule.step()
    wrapper.add_param_group({"params": [scalar()], "lr": 4.0})
    schedule.step()
    assert [group["lr"] for group in wrapper.param_groups] == pytest.approx([0.05, 0.25, 2.0])


@pytest.mark.parametrize(
    ("name", "args", "key"),
    [
        ("get_norm_threshold_cosine_annealing_with_warmup", (5, 50), "gradient_norm_threshold"),
        ("get_direct_cosine_annealing_with_warmup", (0.3, 0, 50), "lr"),
        ("get_quadratic_batch_schedule", (8, 64, 50), "logical_batch_size"),
        ("get_curved_batch_schedule", (8, 64, 50, 3.0), "logical_batch_size"),
    ],
)
def test_builders_add_their_key_to_a_plain_optimizer(name, args, key):
    inner = SGD([scalar()], lr=0.1)
    schedule = getattr(torch_gqc, name)(inner, *args)
    assert inner.param_groups[0][key] == schedule.value_at(0)
    kinds = {"logical_batch_size": lambda o: torch_gqc.OptimizerWrapperSBC(o, 4)}
    wrapper = kinds.get(key, torch_gqc.OptimizerWrapperGNTS)(inner)
    schedule.step()
    assert wrapper.param_groups[0][key] == schedule.value_at(1)


def test_builders_set_what_the_wrapper_decides_by():
    direct = torch_gqc.get_direct_cosine_annealing_with_warmup
    for wrapper, key in (
        (torch_gqc.OptimizerWrapperSBC(SGD([scalar()]), 4), "logical_batch_size"),
        (torch_gqc.OptimizerWrapperGNR(SGD([scalar()])), "target_gradient_norm"),
        (torch_gqc.OptimizerWrapperGNTS(SGD([scalar()])), "gradient_norm_threshold"),
        (torch_gqc.OptimizerWrapperMHT(SGD([scalar()])), "lr"),
    ):
        direct(wrapper, 8.0, 0, 50)
        assert wrapper.param_groups[0][key] == 8.0
    with pytest.raises(KeyError, match="has no 'gradient_norm_threshold'"):  # nobody would read it
        torch_gqc.get_norm_threshold_cosine_annealing_with_warmup(wrapper, 5, 50)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (torch_gqc.OptimizerWrapperGNTS, "gradient_norm_threshold"),
        (lambda inner: torch_gqc.OptimizerWrapperSBC(inner, 4), "logical_batch_size"),
        (torch_gqc.OptimizerWrapperGNR, "target_gradient_norm"),
    ],
)
def test_a_torch_scheduler_of_the_wrapper_is_told_that_it_sets_the_learning_rate(make, key):
    x = scalar()
    inner = SGD([x], lr=0.5)
    before = torch.optim.lr_scheduler.LambdaLR(inner, lambda step: 1.0)
    wrapper = make(inner)
    after = torch.optim.lr_scheduler.LambdaLR(wrapper.optimizer, lambda step: 1.0)
    draw(wrapper, x, 1.0)
    before.step(), after.step()  # these are meant for the learning rate
    torch.optim.lr_scheduler.LambdaLR(wrapper, lambda step: 5.0)
    with pytest.warns(UserWarning, match=rf"the learning rate, .*0\.8\.5 took for {key}"):
        draw(wrapper, x, 1.0)
    draw(wrapper, x, 1.0)  # once
    assert (wrapper.param_groups[0]["lr"], wrapper.param_groups[0][key]) == (2.5, 1.0)


# Calls


def test_mht_takes_its_metric_first():
    x = scalar(1.0)
    wrapper = torch_gqc.OptimizerWrapperMHT(SGD([x], lr=0.1), max_batch_draws=4)
    assert [draw(wrapper, x, 1.0, m) for m in (1.0, 1.0)] == [False, True]
    assert wrapper.statistics()["running_avg_metric"] == 1.0
    draw(wrapper, x, 1.0, metric=torch.tensor(1.0))
    x.grad = None
    wrapper.step(2.0, lambda: (x * 3.0).sum().backward())
    assert wrapper.num_draws == 2


def test_sbc_steps_at_each_draw_until_a_size_is_scheduled():
    x = scalar()
    wrapper = torch_gqc.OptimizerWrapperSBC(SGD([x], lr=1.0), 32)
    assert draw(wrapper, x, 1.0) is True
    torch_gqc.get_quadratic_batch_schedule(wrapper, 64, 64, 10)
    assert [draw(wrapper, x, 1.0) for _ in range(2)] == [False, True]
    assert torch_gqc.OptimizerWrapperSBC(SGD([x]), 32, 2).max_draws == 2
    assert wrapper.max_draws is None


def test_keywords_of_0_8_5_are_taken_and_ambiguous_positions_are_not():
    wrapper = torch_gqc.OptimizerWrapperGNS(SGD([scalar()]), noise_multiplier=2.0)
    assert wrapper.statistics()["noise_multiplier"] == 2.0
    with pytest.raises(
        TypeError, match=r"noise_multiplier in 0\.8\.5 and is max_batch_draws in 0.10"
    ):
        torch_gqc.OptimizerWrapperGNS(SGD([scalar()]), 2.0)
    assert torch_gqc.OptimizerWrapperGNR(SGD([scalar()]), mode="independent").mode == "independent"
    with pytest.raises(TypeError, match="pass mode='independent'"):
        torch_gqc.OptimizerWrapperGNR(SGD([scalar()]), "independent")
    assert torch_gqc.OptimizerWrapperMHT(SGD([scalar()]), update_beta=0.5).ema_alpha == 0.5
    with pytest.raises(ValueError, match="distributed_mode='ddp': expected one of"):
        torch_gqc.OptimizerWrapperGNTS(SGD([scalar()]), distributed_mode="ddp")


def test_the_result_of_the_last_step_is_kept():
    x = scalar(1.0)
    wrapper = torch_gqc.OptimizerWrapperSBC(SGD([x], lr=1.0), 1)
    torch_gqc.get_quadratic_batch_schedule(wrapper, 2, 2, 10)

    def closure(factor):
        loss = (x * factor).sum()
        loss.backward()
        return loss.item()

    assert wrapper.last_optimizer_result is None
    assert wrapper.step(lambda: closure(2.0)) is False
    assert wrapper.last_optimizer_result is None
    assert wrapper.step(lambda: closure(4.0)) is True
    assert wrapper.last_optimizer_result == 4.0
    assert x.item() == 1.0 - 3.0


def test_statistics_have_the_published_keys():
    x = scalar()
    wrapper = torch_gqc.OptimizerWrapperGNTS(SGD([x], lr=1.0), 2)
    for grad in (3.0, 5.0):
        draw(wrapper, x, grad)
    values = wrapper.statistics()
    assert (values["num_batches"], values["batches"], values["num_steps"]) == (2, 3, 1)
    assert (values["last_step_num_draws"], values["last_mean_grad_norm"]) == (2, 4.0)
    assert wrapper.statistics("vital") == wrapper.vital_statistics(aggregate_behavior="max")
    assert isinstance(wrapper, torch_gqc.AbstractOptimizerWrapper)
    assert isinstance(wrapper, gqc.OptimizerWrapperGNTS)
    assert (wrapper.parameters[0] is x, wrapper.device) == (True, x.device)
    assert "gradient_norm_threshold" in wrapper.valid_schedule_targets


# Wrappers of one's own


class EveryOther(torch_gqc.AbstractOptimizerWrapper):
    """As torch-gqc's base documents subclasses."""

    def __init__(self, optimizer, max_draws=64, distributed_mode=None):
        super().__init__(optimizer, max_draws, distributed_mode)
        self._set_state("least", 2.0, "optimizer")
        self._set_state("history", [], "optional")
        self._bind_metric("norm", self.read, lambda x: x, lambda x: -x)

    def read(self):
        grads = [p.grad for p in self.parameters if p.grad is not None]
        return torch.nn.utils.get_total_norm(grads).item() / self.num_draws

    def step(self):
        self._batch_received()
        self._set_state("history", [*self._get_state("history"), self._get_metric("norm")], "vital")
        if self.num_draws >= self._get_state("least", "max") or self.num_draws >= self.max_draws:
            self._take_optimizer_step()
            return True
        return False


def test_a_wrapper_of_ones_own_tells_of_its_steps():
    param = torch.zeros(1, requires_grad=True)
    wrapper, told = EveryOther(torch.optim.SGD([param], lr=1.0)), []
    wrapper.on_step = told.append
    for _ in range(5):
        param.sum().backward()
        wrapper.step()
    assert [numbers["num_draws"] for numbers in told] == [2, 2]


def test_a_wrapper_of_ones_own_steps_with_the_mean_and_resumes_exactly():
    x = scalar()
    wrapper = EveryOther(SGD([x], lr=1.0))
    assert [draw(wrapper, x, g) for g in (1.0, 3.0, 5.0)] == [False, True, False]
    assert x.item() == -2.0
    assert wrapper._get_state("history") == [1.0, 2.0, 5.0]
    assert (wrapper.num_batches, wrapper.num_steps, wrapper.last_grad_norm) == (3, 1, 2.0)
    file = io.BytesIO()
    torch.save(wrapper.state_dict(), file)
    file.seek(0)
    y = scalar(x.item())
    resumed = EveryOther(SGD([y], lr=1.0))
    resumed.load_state_dict(torch.load(file, weights_only=True))
    twin = copy.deepcopy(wrapper)
    for own, param in ((resumed, y), (twin, twin.parameters[0])):
        assert draw(own, param, 7.0) is True
        assert param.item() == -8.0
        assert own._get_state("history")[-1] == 6.0


def test_mistakes_in_a_wrapper_of_ones_own_are_errors():
    x = scalar()
    with pytest.raises(NotImplementedError, match=r"has no step\(\)"):
        torch_gqc.AbstractOptimizerWrapper(SGD([x])).step()
    wrapper = EveryOther(SGD([x], lr=1.0))
    with pytest.raises(RuntimeError, match="_batch_received"):
        wrapper._take_optimizer_step()
    with pytest.raises(RuntimeError, match="have a 'lr' already"):
        wrapper._set_state("lr", 1.0, "optimizer")
    (x * float("nan")).sum().backward()
    wrapper.step()
    with pytest.raises(FloatingPointError):
        draw(wrapper, x, 1.0)
    with pytest.raises(TypeError, match="_batch_received"):

        class Old(torch_gqc.AbstractOptimizerWrapper):
            def step(self):
                self._take_batch_step()


# Files


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
def test_a_file_of_torch_gqc_0_10_4_loads():
    (theirs, _), (ours, _) = (
        package.make_gnts_with_cosine_annealing_schedule(two_groups(), 20, 4)
        for package in (peer, torch_gqc)
    )
    for _ in range(5):
        for group in theirs.param_groups:
            (group["params"][0] * 0.5).sum().backward()
        theirs.step()
    ours.load_state_dict(theirs.state_dict())
    assert (ours.num_batches, ours.num_steps) == (theirs.num_batches, theirs.num_steps) == (5, 5)
    own, other = (w.optimizer.state_dict()["state"] for w in (ours, theirs))
    assert torch.equal(own[1]["exp_avg"], other[1]["exp_avg"])
    again = torch_gqc.get_norm_threshold_cosine_annealing_with_warmup(ours, 0, 20, 7.0, 1.0)
    with pytest.raises(RuntimeError, match="but not its schedule"):
        again.step()


@pytest.mark.parametrize("order", ["wrapper, schedule", "schedule, wrapper"])
@pytest.mark.parametrize("cut", [2, 7])  # in the warmup and after it
@every_factory
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
@pytest.mark.filterwarnings("ignore:var.*degrees of freedom:UserWarning")  # its GNS
def test_a_run_of_0_10_4_continues_with_its_schedules(name, cut, order):
    pairs = [getattr(p, name)(two_groups(), **STEPS, **FACTORIES[name]) for p in (peer, torch_gqc)]

    def run(wrapper, schedule, steps):
        for _ in range(steps):
            for group in wrapper.param_groups:
                (group["params"][0] * 0.5).sum().backward()
            wrapper.step(), schedule.step()

    run(*pairs[0], cut)
    for part in order.split(", "):
        index = ("wrapper", "schedule").index(part)
        pairs[1][index].load_state_dict(copy.deepcopy(pairs[0][index].state_dict()))
    for _ in range(10):
        for key in ("lr", "weight_decay", pairs[1][1].key):
            theirs, ours = ([group[key] for group in w.param_groups] for w, _ in pairs)
            assert ours == pytest.approx(theirs)
        for pair in pairs:
            run(*pair, 1)


def own_kind(package):
    class Smoothed(package.AbstractOptimizerWrapper):
        def __init__(self, optimizer):
            super().__init__(optimizer, 64)
            self._set_state("running", 0.0, "vital")
            self._set_state("losses", [], "optional")

        def step(self, loss):
            self._batch_received()
            self._set_state("running", 0.5 * self._get_state("running") + 0.5 * loss, "vital")
            self._get_state("losses").append(loss)
            if self.num_draws == 2:
                self._take_optimizer_step()

    return Smoothed


def test_states_of_a_wrapper_of_ones_own_come_from_a_file_of_0_10_4():
    x = scalar()
    theirs, ours = (own_kind(package)(SGD([x], lr=0.1)) for package in (peer, torch_gqc))
    for loss in (8.0, 4.0, 2.0, 1.0):
        draw(theirs, x, 3.0, loss)
    ours.load_state_dict(theirs.state_dict())
    for wrapper in (theirs, ours):
        assert wrapper._get_state("running") == 2.0
        assert wrapper._get_state("losses") == [8.0, 4.0, 2.0, 1.0]
        assert wrapper._get_state("losses", "mean") == 3.75
        assert wrapper._get_state("running", "max") == 2.0
        assert (wrapper.last_num_draws, wrapper.last_grad_norm) == (2, 3.0)


def test_a_file_of_torch_gqc_0_8_5_loads():
    inner = SGD([scalar()], lr=0.3, momentum=0.9)
    state = {"num_batches": 8, "num_steps": 3, "num_draws": 2, "last_optimizer_result": None}
    state |= {"last_step_num_draws": 3, "last_mean_grad_norm": 0.5}
    wrapper = torch_gqc.OptimizerWrapperGNTS(SGD([scalar()], lr=0.1, momentum=0.9))
    wrapper.load_state_dict({**state, "optimizer": inner.state_dict()})
    assert (wrapper.num_batches, wrapper.num_steps, wrapper.num_draws) == (7, 3, 0)
    assert (wrapper.last_num_draws, wrapper.last_grad_norm) == (3, 0.5)
    assert wrapper.param_groups[0]["lr"] == 0.3
    assert wrapper.param_groups[0]["gradient_norm_threshold"] == 1.0
