"""Trainers step and save a schedule of a norm threshold as they do torch's lr schedulers."""

from __future__ import annotations

import pytest
import torch
from interop.loops import batches, model
from torch.nn import functional as F

import gqc
from gqc.schedules import THRESHOLD

NUM = 12


def warmed_up(net):
    """A wrapper and a threshold that falls from 10 to 1 in 4 microbatches, then to 0."""
    wrapper = gqc.OptimizerWrapperGNTS(torch.optim.SGD(net.parameters(), lr=0.1), 1.0)
    return wrapper, gqc.get_norm_threshold_cosine_annealing_with_warmup(wrapper, 4, NUM)


def expected_values():
    _, schedule = warmed_up(model())
    return [schedule.value_at(step) for step in range(1, NUM + 1)]


def test_it_reports_the_learning_rate_not_the_threshold():
    wrapper, schedule = warmed_up(model())
    assert isinstance(schedule, torch.optim.lr_scheduler.LRScheduler)
    assert schedule.get_last_lr() == schedule.get_lr() == schedule.base_lrs == [0.1]
    assert "initial_lr" not in wrapper.param_groups[0]
    schedule.step()
    assert schedule.last_epoch == schedule.last_step == 1


def test_torchs_combined_schedulers_take_it():
    wrapper, schedule = warmed_up(model())
    both = torch.optim.lr_scheduler.ChainedScheduler(
        [schedule, torch.optim.lr_scheduler.ExponentialLR(wrapper, 0.5)], wrapper
    )
    wrapper._opt_called = True  # torch warns of a scheduler that is stepped before any step
    both.step()
    assert wrapper.param_groups[0]["lr"] == 0.05
    assert wrapper.param_groups[0][THRESHOLD] == expected_values()[0]


def test_accelerate_saves_it_and_continues(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    net = model()
    wrapper, schedule = warmed_up(net)
    prepared, optimizer, scheduler = accelerator.prepare(net, wrapper, schedule)
    values = []
    for number, (x, y) in enumerate(batches(NUM)):
        if number == 6:
            accelerator.save_state(str(tmp_path))
            schedule.go_to(0)
            assert wrapper.param_groups[0][THRESHOLD] == 10.0
            accelerator.load_state(str(tmp_path))
            assert wrapper.param_groups[0][THRESHOLD] == values[-1]
        accelerator.backward(F.cross_entropy(prepared(x), y))
        optimizer.step()
        scheduler.step()
        values.append(wrapper.param_groups[0][THRESHOLD])
    assert values == expected_values()


def test_accelerate_steps_it_once_a_microbatch_at_any_world_size(monkeypatch):
    """Prepared schedulers are stepped once per process, since an lr counts global batches."""
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    net = model()
    wrapper, schedule = warmed_up(net)
    prepared, optimizer, scheduler = accelerator.prepare(net, wrapper, schedule)
    monkeypatch.setitem(accelerate.state.AcceleratorState().__dict__, "num_processes", 3)
    values = []
    for x, y in batches(NUM):
        accelerator.backward(F.cross_entropy(prepared(x), y))
        optimizer.step()
        scheduler.step()
        values.append(wrapper.param_groups[0][THRESHOLD])
    assert values == expected_values()


# Lightning 2.6 asks torch's pytrees in a way that torch 2.13 deprecates.
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
# A loader of two workers would help nobody here.
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_lightning_steps_it_and_saves_it(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = model()
            self.values = []

        def training_step(self, batch, index):
            x, y = batch
            return F.cross_entropy(self.net(x), y)

        def optimizer_zero_grad(self, *args):
            """The wrapper clears gradients itself."""

        def on_train_batch_start(self, batch, index):
            self.values.append(self.optimizers().optimizer.param_groups[0][THRESHOLD])

        def configure_optimizers(self):
            wrapper, schedule = warmed_up(self.net)
            return {
                "optimizer": wrapper,
                "lr_scheduler": {"scheduler": schedule, "interval": "step"},
            }

    def fit(max_epochs, checkpoint=None):
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=max_epochs,
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        module = Module()
        x, y = (torch.cat(parts) for parts in zip(*batches(NUM // 2), strict=True))
        data = torch.utils.data.TensorDataset(x, y)
        loader = torch.utils.data.DataLoader(data, batch_size=8)
        trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
        return trainer, module.values

    trainer, first = fit(1)
    trainer.save_checkpoint(tmp_path / "cut.ckpt")
    _, second = fit(2, str(tmp_path / "cut.ckpt"))
    values = [10.0, *expected_values()]
    assert (first, second) == (values[: NUM // 2], values[NUM // 2 : NUM])
