"""A wrapper in the Trainer of Hugging Face is the loop written by hand, resumed in mid-window."""

import json

import pytest
import torch
from interop.loops import batches, model
from torch.nn import functional as F

import gqc

transformers = pytest.importorskip("transformers")
from gqc.integrations.huggingface import WrapperCallback  # noqa: E402

NUM = 23  # the last window stays open


class Data(torch.utils.data.IterableDataset):
    """Examples in the order of `batches`, which the Trainer does not shuffle."""

    def __iter__(self):
        for x, y in batches(NUM):
            yield from ({"x": a, "labels": b} for a, b in zip(x, y, strict=True))


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = model()

    def forward(self, x, labels):
        return {"loss": F.cross_entropy(self.net(x), labels)}


def scheduled(net, **options):
    adamw = torch.optim.AdamW(net.parameters(), lr=0.05)
    wrapper = gqc.OptimizerWrapperGNTS(adamw, 1.0, max_draws=4, clip_norm=0.2, **options)
    return wrapper, gqc.get_norm_threshold_cosine_annealing_with_warmup(wrapper, 5, NUM, 0.2, 0.1)


def make(folder, wrap=None, callbacks=None, **changed):
    net = Net()
    wrapper, schedule = scheduled(net, **(wrap or {}))
    given = {"max_grad_norm": 0, "lr_scheduler_type": "constant", "save_strategy": "no", **changed}
    args = transformers.TrainingArguments(
        str(folder),
        num_train_epochs=1,
        max_steps=NUM,
        per_device_train_batch_size=8,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **given,
    )
    callback = WrapperCallback(schedule)
    trainer = transformers.Trainer(
        net,
        args,
        train_dataset=Data(),
        optimizers=(wrapper, None),
        callbacks=[callback, *(callbacks or [])],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer, wrapper, schedule


@pytest.fixture(scope="module")
def by_hand():
    """Parameters, numbers of each step, and the threshold after each microbatch."""
    net, taken, thresholds = model(), [], []
    wrapper, schedule = scheduled(net, on_step=taken.append)
    for x, y in batches(NUM):
        F.cross_entropy(net(x), y).backward()
        wrapper.step()
        schedule.step()
        thresholds.append(wrapper.param_groups[0]["gradient_norm_threshold"])
    assert wrapper.num_draws > 0
    wrapper.flush()
    return [*net.parameters()], taken, thresholds


def assert_same(trainer, by_hand):
    ours = [*trainer.model.net.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(ours, by_hand[0], strict=True))


def test_it_is_the_loop_by_hand_and_logs(tmp_path, by_hand):
    trainer, wrapper, _ = make(tmp_path)
    trainer.train()
    assert_same(trainer, by_hand)
    assert wrapper.num_draws == 0
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    for number, entry in enumerate(history, 1):  # of the window, though the schedule has moved on
        closed = [n for n in by_hand[1][:-1] if n["batches"] <= number]  # the flush comes later
        now = {"gradient_norm_threshold": by_hand[2][number - 1]}
        expected = {**(closed[-1] if closed else now), "batches": number}
        assert {key: entry[f"gqc/{key}"] for key in expected} == expected
    assert history[-1]["gqc/steps"] == len(by_hand[1]) - 1  # the flush comes after it


def test_it_resumes_in_mid_window(tmp_path, by_hand):
    make(tmp_path, save_strategy="steps", save_steps=7)[0].train()
    state = torch.load(tmp_path / "checkpoint-7/optimizer.pt", weights_only=True)
    assert len(state["wrappers"][0]["pending"]) > 0
    trainer, _, schedule = make(tmp_path)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    assert schedule.last_step == NUM
    assert_same(trainer, by_hand)
    saved = json.loads((tmp_path / "checkpoint-7/trainer_state.json").read_text())
    assert saved["global_step"] == 7


def test_what_would_be_wrong_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"pass max_grad_norm=0 to the trainer and clip_norm=1 to"):
        make(tmp_path, max_grad_norm=1.0)[0].train()
    with pytest.raises(ValueError, match=r'in a Trainer, which clears .grad.*accumulate="buffer"'):
        make(tmp_path, wrap={"accumulate": "grad"})[0].train()
    trainer, _, _ = make(tmp_path)
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"pass optimizers=\(wrapper, None\)"):
        trainer.train()
    trainer.optimizer = scheduled(trainer.model.net)[0]
    with pytest.raises(ValueError, match=r"schedule of another wrapper.*make the callback again"):
        trainer.train()
    trainer.optimizer = gqc.OptimizerWrapperMHT(torch.optim.SGD(trainer.model.parameters()))
    with pytest.raises(ValueError, match=r"without metric=.*wrapper\.register_step_pre_hook\(\)"):
        trainer.train()


@pytest.mark.parametrize("accumulate", ["grad", "buffer"])
def test_a_trainer_at_its_defaults_says_that_it_clips(tmp_path, accumulate):
    """Without the callback, and with its own max_grad_norm of 1."""
    trainer, _, _ = make(tmp_path, wrap={"accumulate": accumulate}, max_grad_norm=1.0)
    trainer.remove_callback(WrapperCallback)
    if accumulate == "grad":
        with pytest.raises(RuntimeError, match="pass clip_norm= to the wrapper"):
            trainer.train()
    else:
        with pytest.warns(UserWarning, match="clip_norm= to the wrapper"):
            trainer.train()


def test_it_says_what_max_steps_counts(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("gqc.integrations.huggingface.logger.warning", said.append)
    trainer, wrapper, _ = make(tmp_path)
    trainer.callback_handler.callbacks[-1].flush = False
    trainer.train()
    assert said[0].startswith(f"max_steps={NUM} counts microbatches, not optimizer steps")
    assert said[1].endswith("draws at the end were not stepped with")
    assert wrapper.num_draws == 0


@pytest.mark.parametrize(("size", "is_told"), [(8, True), (24, False)])
def test_it_says_how_many_examples_a_draw_has(size, is_told, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("gqc.integrations.huggingface.logger.warning", said.append)
    trainer, _, _ = make(tmp_path, gradient_accumulation_steps=3)
    trainer.remove_callback(WrapperCallback)
    trainer.add_callback(WrapperCallback())
    sgd = torch.optim.SGD(trainer.model.parameters())
    trainer.optimizer = gqc.OptimizerWrapperSBC(sgd, size, 48)
    trainer.train()
    assert any("a draw has 24 examples" in each for each in said) is is_told


def test_an_evaluation_may_come_before_training(tmp_path, by_hand):
    trainer, _, _ = make(tmp_path)
    assert trainer.evaluate([{"x": torch.zeros(6), "labels": torch.tensor(0)}])["eval_loss"] > 0
    trainer.train()
    assert_same(trainer, by_hand)


def test_a_reporter_after_it_gets_its_numbers(tmp_path):
    class Reporter(transformers.TrainerCallback):
        taken = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.taken.append(logs)

    trainer, _, _ = make(tmp_path, callbacks=[Reporter()])
    trainer.train()
    assert "gqc/steps" in Reporter.taken[-2]
