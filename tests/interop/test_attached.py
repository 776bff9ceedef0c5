"""A wrapper steps and saves the schedules that are attached to it, and loggers take its numbers."""

import copy
import io
import pickle

import pytest
import torch
from interop.loops import batches, model
from torch.nn import functional as F

import gqc
from gqc.integrations import attach

NUM = 12
THRESHOLD = "gradient_norm_threshold"


def scheduled(net, kind=gqc.OptimizerWrapperGNTS, **options):
    wrapper = kind(torch.optim.AdamW(net.parameters(), lr=0.1), 1.0, **options)
    schedule = gqc.get_norm_threshold_cosine_annealing_with_warmup(wrapper, 4, NUM, 0.3, 0.1)
    return wrapper, schedule


def train(net, wrapper, data, each=lambda: None):
    thresholds = []
    for x, y in data:
        F.cross_entropy(net(x), y).backward()
        wrapper.step()
        each()
        thresholds.append(wrapper.param_groups[0][THRESHOLD])
    return thresholds


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_it_is_the_loop_that_steps_the_schedule_itself():
    by_hand, net = model(), model()
    wrapper, schedule = scheduled(by_hand)
    expected = train(by_hand, wrapper, batches(NUM), schedule.step)
    assert expected == [schedule.value_at(step) for step in range(1, NUM + 1)]
    wrapper, schedule = scheduled(net)
    assert attach(schedule) is wrapper
    assert train(net, wrapper, batches(NUM)) == expected
    assert same(net, by_hand)


@pytest.mark.parametrize("order", ["attach, load", "load, attach"])
def test_the_optimizers_checkpoint_holds_it(order):
    net, twin = model(), model()
    wrapper, schedule = scheduled(net)
    attach(schedule)
    data = [*batches(NUM)]
    train(net, wrapper, data[:5])
    file = io.BytesIO()
    torch.save([net.state_dict(), wrapper.state_dict()], file)
    expected = train(net, wrapper, data[5:])
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    twin.load_state_dict(weights)
    other, again = scheduled(twin)
    for call in order.split(", "):
        attach(again) if call == "attach" else other.load_state_dict(state)
    assert again.last_step == 5
    assert train(twin, other, data[5:]) == expected
    assert same(net, twin)


def test_a_checkpoint_without_schedules_leaves_them():
    wrapper, schedule = scheduled(model())
    state = wrapper.state_dict()
    attach(schedule)
    schedule.go_to(3)
    wrapper.load_state_dict(state)
    assert schedule.last_step == 3


def test_a_step_by_somebody_else_is_refused_but_not_that_of_a_copy():
    _, schedule = scheduled(model())
    attach(schedule)
    with pytest.raises(RuntimeError, match="is attached: its wrapper steps it"):
        schedule.step()
    twin = copy.deepcopy(schedule)
    twin.step()
    assert (schedule.last_step, twin.last_step) == (0, 1)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_says_at_its_first_draw_that_it_has_no_schedule_attached(how):
    net = model()
    wrapper, schedule = scheduled(net)
    attach(schedule)
    train(net, wrapper, batches(3))
    alone, (twin, other, again) = how((net, wrapper)), how((net, wrapper, schedule))
    with pytest.warns(UserWarning, match=f"no schedule of {THRESHOLD} attached .* attach"):
        train(*alone, batches(2))  # once
    attach(again)
    expected = train(net, wrapper, batches(4))
    assert train(twin, other, batches(4)) == expected
    assert other.state_dict()["schedules"] == wrapper.state_dict()["schedules"]


def other_kinds():
    wrapper, schedule = scheduled(model())
    plain = torch.optim.SGD(model().parameters(), lr=0.1)
    attached = scheduled(model())[1]
    attach(attached)
    yield (), TypeError, "without a schedule"
    yield (torch.optim.lr_scheduler.ConstantLR(wrapper),), TypeError, "ConstantLR cannot be"
    yield (gqc.get_constant_schedule(plain, 1.0, key="lr"),), TypeError, "only wrappers"
    yield (attached,), ValueError, "attached already"
    yield (schedule, scheduled(model())[1]), ValueError, "different wrappers"
    yield (schedule, schedule), ValueError, "two schedules of one key"
    another = gqc.get_constant_schedule(attached.optimizer, 1.0, key=THRESHOLD)
    yield (another,), ValueError, "two schedules of one key"
    inner = gqc.get_constant_schedule(wrapper, 1.0, key=THRESHOLD)
    gqc.NormWarmupScheduler(inner, 3)
    yield (inner,), ValueError, "attached already"


@pytest.mark.parametrize(("schedules", "error", "message"), [*other_kinds()])
def test_what_cannot_be_attached_is_named(schedules, error, message):
    with pytest.raises(error, match=message):
        attach(*schedules)


@pytest.mark.parametrize("part", [lambda w: w, lambda w: w.optimizer], ids=["wrapper", "wrapped"])
def test_a_schedule_that_was_not_resumed_with_its_optimizer_is_refused(part):
    net = model()
    wrapper, schedule = scheduled(net)
    data = [*batches(NUM)]
    train(net, wrapper, data[:5], schedule.step)
    other, again = scheduled(model())
    part(other).load_state_dict(part(wrapper).state_dict())
    with pytest.raises(RuntimeError, match=r"not its schedule, which is at step 0 with 3"):
        again.step()
    again.load_state_dict(schedule.state_dict())
    again.step()
    assert again.last_step == 6


def test_a_schedule_may_be_started_again_on_purpose():
    wrapper, schedule = scheduled(model())
    state = wrapper.state_dict()
    schedule.go_to(5)
    wrapper.load_state_dict(state)
    schedule.go_to(0)
    schedule.step()
    assert wrapper.param_groups[0][THRESHOLD] == schedule.value_at(1)


def test_a_schedule_that_is_stepped_only_on_steps_is_told_of_once():
    net = model()
    wrapper, schedule = scheduled(net, min_draws=3)
    for number in range(3):
        train(net, wrapper, batches(3))
        if number == 1:
            with pytest.warns(UserWarning, match="stepped once in 3 microbatches, which it counts"):
                schedule.step()
        else:
            schedule.step()


def test_tensorboard_takes_the_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(tmp_path)

    def log(numbers):
        for key, value in numbers.items():
            writer.add_scalar(f"gqc/{key}", value, int(numbers["batches"]))

    expected = record(log)
    writer.close()
    read = EventAccumulator(str(tmp_path)).Reload()
    for key, value in expected[-1].items():
        last = read.Scalars(f"gqc/{key}")[-1]
        assert (last.step, last.value) == (expected[-1]["batches"], pytest.approx(value))


@pytest.mark.slow  # it starts a service
def test_wandb_takes_the_numbers_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(mode="offline", dir=tmp_path, project="test") as run:
        expected = record(run.log)
        summary = dict(run.summary)
    assert {key: summary[key] for key in expected[-1]} == expected[-1]
    assert [*tmp_path.glob("wandb/offline-run-*/*.wandb")]


# Its store in files is no longer developed; that in a database needs the whole of MLflow.
@pytest.mark.filterwarnings("ignore:.*filesystem tracking backend:FutureWarning")
def test_mlflow_takes_the_numbers(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    with mlflow.start_run() as run:
        expected = record(lambda numbers: mlflow.log_metrics(numbers, step=numbers["batches"]))
    logged = mlflow.get_run(run.info.run_id).data.metrics
    assert logged == pytest.approx(expected[-1])


@pytest.mark.slow  # its threads write to a database
def test_trackio_takes_the_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))  # read when it is imported
    trackio = pytest.importorskip("trackio")
    trackio.init(project="test", name="run", auto_log_cpu=False)
    expected = record(trackio.log)
    trackio.finish()
    logged = trackio.SQLiteStorage.get_logs("test", "run")
    pairs = zip(expected, logged, strict=True)
    assert [{key: row[key] for key in numbers} for numbers, row in pairs] == expected


def record(log):
    """Train with ``on_step=log``; what it got."""
    taken = []

    def on_step(numbers):
        taken.append(dict(numbers))
        log(numbers)

    net = model()
    wrapper, schedule = scheduled(net, max_draws=4, on_step=on_step)
    attach(schedule)
    train(net, wrapper, batches(NUM))
    assert len(taken) > 2
    assert taken[-1]["steps"] == len(taken)
    return taken
