# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags
#     notebook_metadata_filter: kernelspec,jupytext
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How do I use GNTS on several GPUs?
#
# Wrap the optimizer as on one; the decision is the same on all ranks, because it is made from
# reduced gradients (DDP) or reduced norms (FSDP2). Two things change: a threshold that was chosen
# on one rank, and what a draw costs. The cells below run as one rank; as a script, `torchrun` runs
# them on many.

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %%
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from gqc import OptimizerWrapperGNTS, OptimizerWrapperSBC
from gqc.noise import two_batch

pixels, labels = (torch.tensor(a) for a in load_digits(return_X_y=True))
pixels = (pixels / 16).float()

def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))


# %% [markdown]
# ## Which threshold?
#
# A draw on $W$ ranks is the mean of $W$ microbatches, with $1/W$ of the noise: its squared norm is
# $|G|^2 + T/W$ on average, where $T = \mathrm{tr}\,\Sigma$ is the noise of one microbatch. A
# threshold $\tau$ that means $n$ draws on one rank, $\tau^2 = |G|^2 + T/n$, becomes
#
# $$\tau_W^2 = |G|^2 + \frac{\tau^2 - |G|^2}{W}$$
#
# for $n$ draws of $W$ microbatches each: $W$ times the logical batch. Keep $\tau$ to keep the
# logical batch; the windows then have $n/W$ draws.

# %%
def gradient(chosen, model):
    loss = F.cross_entropy(model(pixels[chosen]), labels[chosen])
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*model.parameters()])])

model, stream = make_model(), torch.Generator().manual_seed(1)
chosen = torch.randint(1500, (800, 8), generator=stream)
draws = torch.stack([gradient(examples, model) for examples in chosen])
small, large = draws.square().sum(1).mean(), draws.mean(0).square().sum()
signal, noise = (x.item() for x in two_batch(small, large, len(draws)))
tau = (signal + noise / 4) ** 0.5  # four draws on one rank
print(f"|G|^2 = {signal:.3f}, T = {noise:.3f}, threshold for 4 draws on 1 rank: {tau:.3f}")
for ranks in (1, 2, 8):
    wanted = (signal + (tau**2 - signal) / ranks) ** 0.5
    means = draws.view(-1, 4 * ranks, draws.shape[1]).mean(1)
    found = means.square().sum(1).mean().sqrt().item()
    print(f"{ranks} ranks: threshold {wanted:.3f}; the mean of 4 draws there has norm {found:.3f}")

# %% [markdown]
# ## DDP, and what it sends
#
# DDP all-reduces at each `backward`, so GNTS sends as much as plain training with the same
# microbatches, one gradient per draw, and 4 bytes for its norms. Where the decision is known before
# (SBC, Replay), `closes_next()` says which draw needs the all-reduce, and the others stay local in
# `no_sync()`.

# %%
import os
import warnings
from contextlib import nullcontext

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

if "RANK" not in os.environ:  # one rank; torchrun sets these itself
    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="localhost", MASTER_PORT="0")
dist.init_process_group("gloo")

warnings.filterwarnings("ignore", ".*communication hook")  # which only counts here

def count_all_reduces(make_wrapper, only_last=False):
    ddp, calls = DistributedDataParallel(make_model()), []
    ddp.register_comm_hook(None, lambda state, bucket: send(calls, bucket))
    wrapper = make_wrapper(torch.optim.AdamW(ddp.parameters(), lr=1e-2))
    for examples in chosen[dist.get_rank() :: dist.get_world_size()][:96]:
        is_local = only_last and not wrapper.closes_next()
        with ddp.no_sync() if is_local else nullcontext():
            F.cross_entropy(ddp(pixels[examples]), labels[examples]).backward()
        wrapper.step()
    return len(calls), wrapper.numbers()["steps"]

def send(calls, bucket) -> torch.futures.Future[torch.Tensor]:
    calls.append(len(bucket.buffer()))
    mean = bucket.buffer() / dist.get_world_size()
    return dist.all_reduce(mean, async_op=True).get_future().then(lambda done: done.value()[0])

def gnts(adamw):
    return OptimizerWrapperGNTS(adamw, tau)

def sbc(adamw):
    return OptimizerWrapperSBC(adamw, 8, 32, accumulate="grad")

for name, make, only_last in (("GNTS", gnts, False), ("SBC", sbc, False), ("SBC", sbc, True)):
    sent, steps = count_all_reduces(make, only_last)
    way = "closes_next()" if only_last else "every draw"
    print(f"{name:4} {way:14}: 96 draws, {steps} steps, {sent} all-reduces")

# %% [markdown]
# `OptimizerWrapperGNTS(..., decide_every=4)` with `accumulate="grad"` and `closes_next()` decides,
# and sends, at every fourth draw only.
#
# ## FSDP2
#
# `fully_shard` the model, then wrap an optimizer of its sharded parameters. The buffer is sharded
# too: one more gradient, divided by the number of ranks. Norms are reduced over the shards, one
# number per draw.

# %%
from torch.distributed.fsdp import fully_shard

mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
sharded = fully_shard(make_model(), mesh=mesh)
wrapper = gnts(torch.optim.AdamW(sharded.parameters(), lr=1e-2))
for examples in chosen[dist.get_rank() :: dist.get_world_size()][:96]:
    F.cross_entropy(sharded(pixels[examples]), labels[examples]).backward()
    wrapper.step()
print(f"FSDP2: 96 draws, {wrapper.numbers()['steps']} steps")
dist.destroy_process_group()

# %% [markdown]
# To run it on two ranks: `torchrun --nproc-per-node 2 data_parallel.py`.
