"""The driver: bar, sinks, and checkpoints that survive interrupts and damage."""

import copy
import errno
import os
import signal
import threading
from dataclasses import dataclass

import pytest
import torch

from gqc_lab import track as exported
from gqc_lab.loop.checkpoints import checkpoint_path, load_checkpoint, save_checkpoint
from gqc_lab.loop.experiment import Experiment
from gqc_lab.loop.placement import make_generator
from gqc_lab.loop.track import track


@pytest.fixture(autouse=True)
def interrupts_raise():
    """As at a terminal; a shell lets what it starts in the background ignore them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@dataclass(frozen=True)
class WalkConfig:
    seed: int = 0
    total: int = 30


class Walk(Experiment):
    """Plain SGD on a random walk's loss."""

    def __init__(self, config):
        self.model = torch.nn.Linear(2, 1, bias=False)
        torch.nn.init.ones_(self.model.weight)
        super().__init__(
            config,
            label="a walk/1",
            total=config.total * 10,
            parts={
                "model": self.model,
                "optimizer": torch.optim.SGD(self.model.parameters(), lr=0.1),
            },
            generators={"data": make_generator(config.seed, "data")},
            constants={"seed": config.seed},
        )

    def draw_batch(self):
        return torch.randn(4, 2, generator=self.generators["data"])

    def compute_loss(self, batch):
        return self.model(batch).square().mean()

    def update(self, loss):
        self.parts["optimizer"].zero_grad()
        return super().update(loss)

    def amount(self, batch):
        return 10

    def measure(self, batch, stepped):
        return {"num_draws": 1, "note": "text"}

    evaluated = ("val_loss",)

    def is_evaluation_due(self):
        return self.microbatch % 10 == 0

    def evaluate(self):
        return {"val_loss": 0.5}


@pytest.fixture(autouse=True)
def no_run_dir(monkeypatch):
    monkeypatch.delenv("GQC_RUN_DIR", raising=False)


def weights(experiment):
    return experiment.model.weight.tolist()


def uncut():
    experiment = Walk(WalkConfig())
    list(experiment)
    return experiment


def test_the_package_exports_it():
    assert exported is track


def test_yields_what_the_experiment_yields(capsys):
    experiment = Walk(WalkConfig())
    records = list(track(experiment))
    assert [r["microbatch"] for r in records] == list(range(1, 31))
    assert weights(experiment) == weights(uncut())
    out, err = capsys.readouterr()
    assert out == ""  # a notebook's regression test compares standard output
    assert "a walk/1: 100%" in err
    assert "300/300" in err
    assert "val=0.500" in err
    assert "draws=1" in err


def test_without_a_bar_it_is_silent(capsys):
    list(track(Walk(WalkConfig()), has_bar=False))
    assert capsys.readouterr() == ("", "")


def test_a_logger_gets_the_numbers_of_each_record():
    seen = []
    records = list(track(Walk(WalkConfig()), to=seen.append, has_bar=False))
    assert {type(value) for numbers in seen for value in numbers.values()} <= {int, float}
    assert [numbers["loss"] for numbers in seen] == [record["loss"] for record in records]
    assert [n for n in seen if "val_loss" in n] == [seen[9], seen[19], seen[29]]
    assert not {"note", "stepped", "changes"} & seen[0].keys()


def test_tensorboard_gets_the_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    def write(numbers):
        for name, value in numbers.items():
            writer.add_scalar(name, value, numbers["microbatch"])

    experiment, writer = Walk(WalkConfig()), SummaryWriter(tmp_path)
    list(track(experiment, to=write, has_bar=False))
    writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert "note" not in events.Tags()["scalars"]
    losses = [(e.step, e.value) for e in events.Scalars("loss")]
    history = experiment.history
    assert [step for step, _ in losses] == history["microbatch"].tolist()
    # TensorBoard keeps float32
    assert (
        torch.tensor([v for _, v in losses]).tolist()
        == torch.tensor(history["loss"]).float().tolist()
    )
    assert [e.step for e in events.Scalars("val_loss")] == [10, 20, 30]


@pytest.mark.parametrize("to", ["tensorboard:x", ""])
def test_an_unknown_sink(to):
    with pytest.raises(ValueError, match=rf"to='{to}': expected a callable such as wandb.log"):
        track(Walk(WalkConfig()), to=to)


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_bad_interval(seconds):
    with pytest.raises(ValueError, match="every_seconds"):
        track(Walk(WalkConfig()), every_seconds=seconds)


def test_nothing_is_saved_unless_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    list(track(Walk(WalkConfig()), has_bar=False))
    assert list(tmp_path.iterdir()) == []


def test_leaving_the_loop_saves_and_the_next_one_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GQC_RUN_DIR", str(tmp_path))
    for record in track(Walk(WalkConfig())):
        if record["microbatch"] == 12:
            break
    resumed = Walk(WalkConfig())
    capsys.readouterr()
    records = list(track(resumed))
    assert "a walk/1: resumed after microbatch 12 from" in capsys.readouterr().err
    assert [r["microbatch"] for r in records] == list(range(13, 31))
    assert len(resumed.history) == 30
    assert weights(resumed) == weights(uncut())


def test_a_finished_run_is_not_repeated(tmp_path):
    file = tmp_path / "x.ckpt"
    list(track(Walk(WalkConfig()), checkpoint=file, has_bar=False))
    again = Walk(WalkConfig())
    assert list(track(again, checkpoint=file, has_bar=False)) == []
    assert len(again.history) == 30


def test_configs_have_files_of_their_own(tmp_path):
    paths = {checkpoint_path(tmp_path, Walk(WalkConfig(seed=s))) for s in (0, 1)}
    assert len(paths) == 2
    assert checkpoint_path(tmp_path, Walk(WalkConfig())) in paths
    assert all(p.parent == tmp_path and p.name.startswith("a-walk-1-") for p in paths)


def test_saves_at_intervals(tmp_path):
    file = tmp_path / "x.ckpt"
    records = track(Walk(WalkConfig()), checkpoint=file, every_seconds=1e-9, has_bar=False)
    for record in records:
        assert torch.load(file, weights_only=True)["microbatch"] == record["microbatch"]


def test_the_checkpoint_of_another_experiment_is_an_error(tmp_path):
    file = tmp_path / "x.ckpt"
    save_checkpoint(Walk(WalkConfig(seed=1)), file)
    before = file.read_bytes()
    with pytest.raises(ValueError, match="its seed is 1, here it is 0"):
        next(track(Walk(WalkConfig()), checkpoint=file, has_bar=False))
    assert file.read_bytes() == before


def bad_files():
    experiment = Walk(WalkConfig())
    next(experiment)
    yield "empty", lambda path: path.write_bytes(b"")
    yield "noise", lambda path: path.write_bytes(os.urandom(2000))

    def cut(path):
        save_checkpoint(experiment, path)
        path.write_bytes(path.read_bytes()[:-700])

    def flip(path):
        save_checkpoint(experiment, path)
        data = path.read_bytes()
        value = experiment.model.weight.detach().numpy().tobytes()
        path.write_bytes(data.replace(value, value[:-1] + bytes([value[-1] ^ 1])))

    yield "truncated", cut
    yield "one bit of a weight flipped", flip
    yield "not a dict", lambda path: torch.save([1, 2], path)
    yield "a pickle with code", lambda path: torch.save({"f": os.getcwd}, path)


@pytest.mark.parametrize(
    ("name", "write"), list(bad_files()), ids=lambda x: x if isinstance(x, str) else ""
)
def test_an_unreadable_checkpoint_is_reported_and_set_aside(tmp_path, capsys, name, write):
    file = tmp_path / "x.ckpt"
    write(file)
    bad = file.read_bytes()
    experiment = Walk(WalkConfig())
    assert load_checkpoint(experiment, file) is False
    assert experiment.microbatch == 0
    assert "not a readable checkpoint" in capsys.readouterr().err
    assert (tmp_path / "x.ckpt.corrupt").read_bytes() == bad
    list(track(experiment, checkpoint=file, has_bar=False))
    assert weights(experiment) == weights(uncut())


def test_a_failing_save_keeps_the_old_file_and_leaves_no_rubbish(tmp_path, monkeypatch):
    file = tmp_path / "x.ckpt"
    experiment = Walk(WalkConfig())
    save_checkpoint(experiment, file)
    before = file.read_bytes()

    def fail(state, target):
        target.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    next(experiment)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(experiment, file)
    assert file.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [file, tmp_path / "x.ckpt.history"]
    monkeypatch.undo()
    assert load_checkpoint(Walk(WalkConfig()), file)


class Interrupting(Walk):
    """Gets an interrupt inside microbatch 12, as from Ctrl-C; `times` of them."""

    times = 1

    def compute_loss(self, batch):
        if self.microbatch == 11:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)
        return super().compute_loss(batch)


Interrupting.__name__ = "Walk"  # the same experiment for a checkpoint


def test_an_interrupt_waits_for_the_microbatch_and_saves(tmp_path):
    file = tmp_path / "x.ckpt"
    experiment = Interrupting(WalkConfig())
    with pytest.raises(KeyboardInterrupt):
        list(track(experiment, checkpoint=file, has_bar=False))
    assert experiment.is_whole
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = Walk(WalkConfig())
    assert load_checkpoint(resumed, file)
    assert resumed.microbatch == 12
    list(track(resumed, has_bar=False))
    assert weights(resumed) == weights(uncut())


def test_a_second_interrupt_stops_at_once_and_keeps_the_last_checkpoint(tmp_path):
    file = tmp_path / "x.ckpt"
    experiment = Interrupting(WalkConfig())
    experiment.times = 2
    with pytest.raises(KeyboardInterrupt):
        list(track(experiment, checkpoint=file, every_seconds=1e-9, has_bar=False))
    assert not experiment.is_whole
    resumed = Walk(WalkConfig())
    assert load_checkpoint(resumed, file)
    assert resumed.microbatch == 11


def test_an_interrupt_in_the_loop_body_saves_when_the_loop_is_gone(tmp_path):
    file = tmp_path / "x.ckpt"
    records = track(Walk(WalkConfig()), checkpoint=file, has_bar=False)
    next(records)
    with pytest.raises(KeyboardInterrupt):
        records.throw(KeyboardInterrupt)
    assert torch.load(file, weights_only=True)["microbatch"] == 1


def test_a_handler_of_somebody_else_is_left_alone():
    seen = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        list(track(Interrupting(WalkConfig()), has_bar=False))
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT]


def test_runs_in_a_thread():
    experiment = Walk(WalkConfig())
    thread = threading.Thread(target=lambda: list(track(experiment, has_bar=False)))
    thread.start()
    thread.join()
    assert weights(experiment) == weights(uncut())


def test_a_share_that_fails_for_a_moment_proves_no_damage(tmp_path, monkeypatch):
    file, experiment = tmp_path / "x.ckpt", Walk(WalkConfig())
    next(experiment)
    save_checkpoint(experiment, file)
    load, failures = torch.load, [1, 2]

    def stale(*arguments, **options):
        if failures:
            failures.pop()
            raise OSError(errno.ESTALE, "Stale file handle")
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", stale)
    again = Walk(WalkConfig())
    assert load_checkpoint(again, file)
    assert again.history.equals(experiment.history)
    failures[:] = range(9)
    with pytest.raises(OSError, match="Stale file handle"):
        load_checkpoint(again, file)
    assert file.exists()


def test_only_what_is_new_is_written(tmp_path):
    file, experiment = tmp_path / "x.ckpt", Walk(WalkConfig())
    beside, sizes = tmp_path / "x.ckpt.history", []
    early = copy.deepcopy(experiment.state_dict())
    for _ in range(3):
        next(experiment)
        save_checkpoint(experiment, file)
        sizes.append(beside.stat().st_size)
    assert sizes[0] < sizes[1] < sizes[2]
    head = beside.read_bytes()[: sizes[1]]
    with open(beside, "ab") as scrap:  # as a save leaves it that was killed
        scrap.write(b'{"loss": [1')
    resumed = Walk(WalkConfig())
    assert load_checkpoint(resumed, file)
    assert resumed.microbatch == 3
    next(resumed)
    next(experiment)
    save_checkpoint(resumed, file)
    assert beside.read_bytes().startswith(head)
    again = Walk(WalkConfig())
    assert load_checkpoint(again, file)
    assert again.column("loss") == experiment.column("loss")
    # An experiment that was set back writes its own history, not the rest of the old one.
    resumed.load_state_dict(early)
    next(resumed)
    save_checkpoint(resumed, file)
    assert load_checkpoint(again, file)
    assert again.column("loss") == experiment.column("loss")[:1]
    next(resumed)
    save_checkpoint(resumed, file)
    beside.write_bytes(beside.read_bytes()[:-3])
    assert load_checkpoint(again, file) is False
    assert (tmp_path / "x.ckpt.corrupt").exists()
