"""Accelerate, Lightning and torch.compile drive a wrapper as they drive any optimizer."""

from __future__ import annotations

import shutil

import pytest
import torch
from interop.loops import accumulate_by_hand, batches, model
from torch.nn import functional as F

import gqc

NUM, DRAWS = 24, 3


def expected_run():
    """By hand, with the lr schedule that both trainers get."""
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.05)
    rates = iter(0.05 * (1 - step / NUM) for step in range(1, NUM + 1))

    def each():
        optimizer.param_groups[0]["lr"] = next(rates)

    accumulate_by_hand(net, optimizer, batches(NUM), DRAWS, each)
    return net


def wrapped(net):
    inner = torch.optim.AdamW(net.parameters(), lr=0.05)
    wrapper = gqc.OptimizerWrapperSBC(inner, 8, 8 * DRAWS)
    decay = torch.optim.lr_scheduler.LambdaLR(wrapper, lambda step: 1 - step / NUM)
    return wrapper, decay


def assert_close(ours, by_hand):
    """The lr is the schedule's product or ours: rounding of float64, far below float32's."""
    for a, b in zip(ours.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def loader():
    x, y = (torch.cat(parts) for parts in zip(*batches(NUM), strict=True))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)


def test_accelerate():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    net = model()
    wrapper, decay = wrapped(net)
    prepared, optimizer, data, scheduler = accelerator.prepare(net, wrapper, loader(), decay)
    steps = []
    for x, y in data:
        loss = F.cross_entropy(prepared(x), y)
        accelerator.backward(loss)
        optimizer.step()
        scheduler.step()
        steps.append(wrapper.statistics()["steps"])
    assert isinstance(optimizer, accelerate.optimizer.AcceleratedOptimizer)
    assert steps == [number // DRAWS for number in range(1, NUM + 1)]
    assert_close(net, expected_run())
    assert optimizer.state_dict()["wrappers"][0]["class"] == "OptimizerWrapperSBC"


def test_accelerate_saves_and_loads_a_window_that_is_open(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    net = model()
    wrapper, decay = wrapped(net)
    prepared, optimizer, scheduler = accelerator.prepare(net, wrapper, decay)
    for number, (x, y) in enumerate(batches(NUM)):
        if number == 7:  # one draw is pending
            assert wrapper.num_draws == 1
            accelerator.save_state(str(tmp_path))
            wrapper.discard()
            with torch.no_grad():
                for p in net.parameters():
                    p.zero_()
            accelerator.load_state(str(tmp_path))
            assert wrapper.num_draws == 1
        accelerator.backward(F.cross_entropy(prepared(x), y))
        optimizer.step()
        scheduler.step()
    assert_close(net, expected_run())


# Lightning 2.6 asks torch's pytrees in a way that torch 2.13 deprecates.
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
def test_lightning_manual_optimization(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.net = model()
            self.stepped = []

        def training_step(self, batch, index):
            x, y = batch
            self.manual_backward(F.cross_entropy(self.net(x), y))
            self.stepped.append(self.optimizers().step())
            self.lr_schedulers().step()

        def configure_optimizers(self):
            wrapper, decay = wrapped(self.net)
            return [wrapper], [decay]

    module = Module()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, loader())
    assert module.stepped == [number % DRAWS == 0 for number in range(1, NUM + 1)]
    assert_close(module.net, expected_run())


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
def test_what_fabric_returns_is_the_wrapper():
    lightning = pytest.importorskip("lightning")
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    net, twin = model(), model()
    wrapper, by_hand = wrapped(net)[0], wrapped(twin)[0]
    prepared, optimizer = fabric.setup(net, wrapper)
    optimizer.max_draws = by_hand.max_draws = 2
    for x, y in batches(7):
        fabric.backward(F.cross_entropy(prepared(x), y))
        F.cross_entropy(twin(x), y).backward()
        assert optimizer.step() is by_hand.step()
    assert (optimizer.max_draws, optimizer.num_draws) == (wrapper.max_draws, wrapper.num_draws)
    assert optimizer.flush() is by_hand.flush() is True
    assert optimizer.numbers() == wrapper.numbers() == by_hand.numbers()
    assert all(map(torch.equal, net.parameters(), twin.parameters()))


# torch 2.13's own import of its compiler uses what it deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.slow
def test_a_compiled_model():
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on the CPU")
    ours, eager = model(), model()
    compiled = torch.compile(ours)
    wrappers = [
        gqc.OptimizerWrapperGNTS(torch.optim.SGD(net.parameters(), lr=0.1), 1.0, max_draws=5)
        for net in (ours, eager)
    ]
    decisions = ([], [])
    for x, y in batches(30):
        for net, wrapper, got in zip((compiled, eager), wrappers, decisions, strict=True):
            F.cross_entropy(net(x), y).backward()
            got.append(wrapper.step())
    assert decisions[0] == decisions[1]
    assert 6 < sum(decisions[1]) < 30
    # fused kernels round activations of order 1 otherwise, by some 2^-24, 30 times
    for a, b in zip(ours.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
