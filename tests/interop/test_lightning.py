"""Lightning's Trainer with the callback trains as the loop by hand, or says what is wrong."""

import copy
from itertools import pairwise

import pytest
import torch
from interop.loops import batches, model
from torch.nn import functional as F

import gqc

lightning = pytest.importorskip("lightning")
from gqc.integrations.lightning import WrapperCallback  # noqa: E402

NUM = 23  # the last window stays open
THRESHOLD = "gradient_norm_threshold"

# Lightning 2.6 asks torch's pytrees in a way that torch 2.13 deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


def scheduled(net):
    adamw = torch.optim.AdamW(net.parameters(), lr=0.05)
    wrapper = gqc.OptimizerWrapperGNTS(adamw, 1.0, max_draws=4, clip_norm=0.2)
    return wrapper, gqc.get_norm_threshold_cosine_annealing_with_warmup(wrapper, 5, NUM, 0.2, 0.2)


class Module(lightning.LightningModule):
    def __init__(self, is_manual=False):
        super().__init__()
        self.net = model()
        self.automatic_optimization = not is_manual
        self.thresholds = []

    def training_step(self, batch, index):
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        if not self.automatic_optimization:
            self.manual_backward(loss)
            self.optimizers().step()
            self.lr_schedulers().step()
        return loss

    def on_train_batch_start(self, batch, index):
        self.thresholds.append(self.optimizers().param_groups[0][THRESHOLD])

    def configure_optimizers(self):
        wrapper, schedule = scheduled(self.net)
        return [wrapper], [{"scheduler": schedule}]


class Plain(Module):
    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.1)


class Reading(Module):
    """Its wrapper reads a metric, which automatic optimization does not give."""

    def configure_optimizers(self):
        return gqc.OptimizerWrapperMHT(torch.optim.SGD(self.net.parameters(), lr=0.1))


def loader():
    x, y = (torch.cat(parts) for parts in zip(*batches(NUM), strict=True))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)


def fit(module, folder, *callbacks, checkpoint=None, max_epochs=1, **options):
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=max_epochs,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        **options,
    )
    trainer.fit(module, loader(), ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return trainer


@pytest.fixture(scope="module")
def by_hand():
    """Parameters, and the threshold before each microbatch."""
    net = model()
    wrapper, schedule = scheduled(net)
    thresholds = []
    for x, y in batches(NUM):
        thresholds.append(wrapper.param_groups[0][THRESHOLD])
        F.cross_entropy(net(x), y).backward()
        wrapper.step()
        schedule.step()
    assert wrapper.num_draws > 0
    before = copy.deepcopy([*net.parameters()])
    wrapper.flush()
    return before, [*net.parameters()], thresholds


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("is_manual", [False, True])
def test_it_is_the_loop_by_hand_and_flushes(is_manual, tmp_path, by_hand):
    module = Module(is_manual)
    trainer = fit(module, tmp_path, WrapperCallback())
    assert module.thresholds == by_hand[2]
    assert same(module.net.parameters(), by_hand[1])
    assert trainer.logged_metrics["gqc/batches"] > NUM - 4


class Log(lightning.Callback):
    def __init__(self):
        self.rows = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        metrics = trainer.callback_metrics
        row = [metrics[f"gqc/{key}"].item() for key in ("steps", THRESHOLD)]
        self.rows.append([*row, pl_module.thresholds[-1]])


def test_it_logs_what_a_window_closed_with(tmp_path):
    log = Log()
    fit(Module(), tmp_path, WrapperCallback(), log)
    closed = [now for before, now in pairwise([[0, None, None], *log.rows]) if now[0] > before[0]]
    assert len(closed) > 3
    assert [row[1] for row in closed] == pytest.approx([row[2] for row in closed])
    last = {steps: threshold for steps, threshold, _ in log.rows if steps}
    assert [last[row[0]] for row in closed] == [row[1] for row in closed]  # until the next closes


def test_a_draw_of_several_microbatches_is_their_mean(tmp_path):
    module, net = Module(), model()
    options = {"accumulate_grad_batches": 4}
    fit(module, tmp_path, WrapperCallback(), limit_train_batches=20, **options)
    wrapper, schedule = scheduled(net)
    for number, (x, y) in enumerate(batches(20), 1):
        (F.cross_entropy(net(x), y) / 4).backward()
        if number % 4 == 0:
            wrapper.step()
            schedule.step()
    wrapper.flush()
    assert same(module.net.parameters(), net.parameters())
    with pytest.raises(ValueError, match=r"the last 3 by 4.*limit_train_batches a multiple of 4"):
        fit(Module(), tmp_path, WrapperCallback(), **options)


def test_weight_averaging_does_not_take_the_place_of_a_schedule(tmp_path):
    average = lightning.pytorch.callbacks.StochasticWeightAveraging(0.01)
    with pytest.raises(ValueError, match=r"schedule of 'gradient_norm_threshold'.*attach\(\) it"):
        fit(Module(), tmp_path, WrapperCallback(), average)


def test_open_draws_are_reported_where_they_are_not_flushed(tmp_path, by_hand):
    module = Module()
    with pytest.warns(UserWarning, match="draws at the end were not stepped with"):
        fit(module, tmp_path, WrapperCallback(flush=False))
    assert same(module.net.parameters(), by_hand[0])


class Cut(lightning.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(trainer.default_root_dir + "/cut.ckpt")


def test_it_resumes_in_mid_window(tmp_path):
    uncut, module = Module(), Module()
    fit(uncut, tmp_path, WrapperCallback(), Cut(), max_epochs=2)
    state = torch.load(tmp_path / "cut.ckpt", weights_only=True)
    assert state["optimizer_states"][0]["wrappers"][0]["pending"]
    fit(module, tmp_path, WrapperCallback(), max_epochs=2, checkpoint=str(tmp_path / "cut.ckpt"))
    assert module.thresholds == uncut.thresholds[NUM:]
    assert same(module.net.parameters(), uncut.net.parameters())


def test_what_would_be_wrong_is_refused(tmp_path):
    with pytest.raises(ValueError, match="gradient_clip_val=1 clips each draw"):
        fit(Module(), tmp_path, WrapperCallback(), gradient_clip_val=1.0)
    with pytest.raises(ValueError, match=r"return it from configure_optimizers"):
        fit(Plain(), tmp_path, WrapperCallback())
    with pytest.raises(ValueError, match=r"Lightning calls step\(\) without metric="):
        fit(Reading(), tmp_path, WrapperCallback())


def in_grad(net):
    adamw = torch.optim.AdamW(net.parameters(), lr=0.05)
    wrapper = gqc.OptimizerWrapperGNTS(adamw, 1e-9, max_draws=4, accumulate="grad")
    return wrapper, gqc.get_constant_schedule(wrapper, 1e-9, key=THRESHOLD)


# It clears at every microbatch.
@pytest.mark.filterwarnings("ignore:zero_grad.. was ignored")
def test_without_the_callback_clipping_is_told_of(tmp_path, monkeypatch):
    with pytest.warns(UserWarning, match="pass clip_norm= to the wrapper"):
        fit(Module(is_manual=False), tmp_path, gradient_clip_val=0.1)
    monkeypatch.setitem(globals(), "scheduled", in_grad)
    with pytest.raises(RuntimeError, match="pass clip_norm= to the wrapper"):
        fit(Module(is_manual=False), tmp_path, gradient_clip_val=0.1)


class Skipping(Module):
    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        return None if index == 2 else loss


@pytest.mark.filterwarnings("ignore:zero_grad.. was ignored", "ignore:.*returned `None`")
@pytest.mark.parametrize("make", [scheduled, in_grad])
def test_a_training_step_that_returns_none_is_no_draw(make, tmp_path, monkeypatch):
    """Its closure makes no gradient: that of the draw before would count twice."""
    monkeypatch.setitem(globals(), "scheduled", make)
    module = Skipping()
    before = copy.deepcopy([*module.net.parameters()])
    with pytest.raises(RuntimeError, match=r"loss\.backward\(\)"):
        fit(module, tmp_path)
    assert make is scheduled or same(module.net.parameters(), before)


def test_without_the_callback_a_schedule_of_epochs_is_told_of(tmp_path):
    with pytest.warns(UserWarning, match='in Lightning with "interval": "step"'):
        fit(Module(), tmp_path, limit_train_batches=3, max_epochs=2)
