"""Loops of one's own and trainers without a page: edited and stopped from another thread."""

import threading
import time

import pytest
import torch
from steered_loops import DATA, LOOPS

from gqc_lab.loop.live import Live, steered
from gqc_widgets import live_callback


def find(names: dict) -> Live | None:
    found = names.get("live") or getattr(names.get("callback"), "live", None)
    return found if isinstance(found, Live) else None


def steer(names: dict, control: str) -> None:
    while (live := find(names)) is None or live.experiment.microbatch < 2:
        time.sleep(0.01)
    live.experiment.controls[control] = 0.03
    while not live.changes or live.experiment.microbatch < live.changes[0]["microbatch"] + 1:
        time.sleep(0.01)
    live.stop()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the trainers are not ours
@pytest.mark.parametrize("name", LOOPS)
def test_an_edit_acts_and_stop_ends_the_loop(name):
    code, control = LOOPS[name]
    names: dict = {}
    exec(DATA, names)
    person = threading.Thread(target=steer, args=(names, control))
    person.start()
    exec(code, names)
    person.join()
    live = find(names)
    assert live.state == "stopped"
    ((change),) = live.changes
    assert (change["name"], change["value"]) == (control, 0.03)
    history = live.history
    assert len(history) == live.experiment.microbatch
    at = change["microbatch"] - 1
    # the Trainer's schedule lowers it a little with each step
    assert history[control][at : at + 2].tolist() == pytest.approx([0.03] * 2, rel=1e-4)
    assert history[control][at - 1] != 0.03
    logged = [column for column in history if column.endswith("loss")]
    assert history[logged].notna().any().any()
    assert any(each is live for each in steered.values())


class Net(torch.nn.Module):
    """The loss of a linear model that a trainer calls in its own way."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.losses = torch.nn.Linear(3, 1), []

    def forward(self, x, labels=None):
        loss = (self.net(x) - 1).square().mean()
        self.losses.append(loss.item())
        return {"loss": loss}


def inputs():
    return torch.randn(40, 3, generator=torch.Generator().manual_seed(0))


def fit_lightning(callbacks, val=None, **options):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Net()

        def training_step(self, batch, index):
            return self.model(batch[0])["loss"]

        def validation_step(self, batch, index):
            self.log("val_loss", self.model.net(batch[0]).mean())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    module, quiet = Module(), dict.fromkeys(("logger", "enable_checkpointing"), False)
    quiet |= dict.fromkeys(("enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=2, callbacks=callbacks, **quiet, **options
    )
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs()), 4)
    trainer.fit(module, loader, loader if val else None)
    return module.model, trainer.global_step


@pytest.mark.filterwarnings("ignore")  # those of the trainer are not ours
@pytest.mark.parametrize("num", [1, 4])
def test_lightning_trains_as_without_the_callback_and_its_losses_are_recorded(num):
    plain, steps = fit_lightning([], accumulate_grad_batches=num)
    callback = live_callback("lightning")
    for _ in range(2):  # two trainings, each of a model of its own
        watched, own = fit_lightning([callback], accumulate_grad_batches=num)
        assert (own, len(watched.losses)) == (steps, 20)
        assert torch.equal(watched.net.weight, plain.net.weight)
        assert callback.live.history["loss"].tolist() == pytest.approx(plain.losses)
        assert callback.live.experiment.total == 20


@pytest.mark.filterwarnings("ignore")
def test_lightning_records_a_metric_once_where_it_was_measured():
    callback = live_callback("lightning")
    fit_lightning([callback], val=True, num_sanity_val_steps=0)
    history = callback.live.history
    assert history["microbatch"][history["val_loss"].notna()].tolist() == [10, 20]


@pytest.mark.filterwarnings("ignore")
def test_a_second_training_with_one_callback_is_a_whole_one(tmp_path):
    transformers = pytest.importorskip("transformers")
    callback, rows = live_callback("transformers"), [{"x": x, "labels": 0} for x in inputs()]
    args = transformers.TrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, num_train_epochs=1, report_to="none",
        use_cpu=True, disable_tqdm=True, save_strategy="no", logging_steps=5,
    )  # fmt: skip
    for _ in range(2):
        trainer = transformers.Trainer(Net(), args, train_dataset=rows, callbacks=[callback])
        for _ in range(2):
            assert trainer.train().global_step == len(callback.live.history) == 10


def test_another_model_of_stable_baselines_has_a_live_of_its_own():
    sb3 = pytest.importorskip("stable_baselines3")
    callback = live_callback("stable_baselines3")
    for _ in range(2):
        model = sb3.PPO("MlpPolicy", "CartPole-v1", n_steps=64, n_epochs=1, device="cpu")
        for _ in range(2):
            model.learn(128, callback)
            assert steered[model.policy.optimizer] is callback.live
        assert len(callback.live.history) == 4
