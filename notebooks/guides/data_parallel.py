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
# Wrap the optimizer as on one GPU: all ranks decide alike, because they decide from reduced
# gradients (DDP) or reduced norms (FSDP2). Two things change: what a threshold that was chosen on
# one rank means, and what a draw costs. Below, two ranks show both, on a CPU.

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %%
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from gqc.noise import probe

pixels, labels = (torch.tensor(a) for a in load_digits(return_X_y=True))
pixels = (pixels / 16).float()
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
chosen = torch.randint(1500, (800, 8))  # examples of each microbatch


def loss_fn(model, examples):
    return F.cross_entropy(model(pixels[examples]), labels[examples])


# %% [markdown]
# ## Which threshold?
#
# A draw on $W$ ranks is the mean of $W$ microbatches, with $1/W$ of the noise: its squared norm is
# $|G|^2 + T/W$ on average, where $T = \mathrm{tr}\,\Sigma$ is the noise of one microbatch. A
# threshold $\tau$ for $n$ draws with a single rank becomes
#
# $$\tau_W^2 = |G|^2 + \frac{\tau^2 - |G|^2}{W}$$
#
# for $n$ draws of $W$ microbatches each: $W$ times the logical batch. Keep $\tau$ to keep the
# logical batch; the windows then have $n/W$ draws. Probe before the model is in DDP:

# %%
found = probe(model, loss_fn, chosen, draws=400)
tau = found.norm(6)
tau_2 = (found.signal_sq + (tau**2 - found.signal_sq) / 2) ** 0.5
print(f"threshold for 6 draws: {tau:.3f} with 1 rank, {tau_2:.3f} with 2 ranks")

# %% [markdown]
# ## Two ranks
#
# What each rank runs. The learning rate is 0, so that the noise stays as it was probed.

# %%
SCRIPT = """
import sys
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from gqc import OptimizerWrapperGNTS, OptimizerWrapperSBC

dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
pixels, labels, chosen, taus, weights = torch.load(sys.argv[1])
sent = [0]


def make_model():
    layers = torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
    model = torch.nn.Sequential(*layers)
    model.load_state_dict(weights)
    return model


def send(state, bucket) -> torch.futures.Future[torch.Tensor]:
    sent[0] += bucket.buffer().nbytes
    mean = bucket.buffer() / ranks
    return dist.all_reduce(mean, async_op=True).get_future().then(lambda done: done.value()[0])


def train(name, model, make_wrapper, only_last=False):
    sent[0] = 0
    if isinstance(model, DistributedDataParallel):
        model.register_comm_hook(None, send)  # only to count
    wrapper = make_wrapper(torch.optim.AdamW(model.parameters(), lr=0.0))
    for examples in chosen[rank : 240 : ranks]:
        is_local = only_last and not wrapper.closes_next()
        with model.no_sync() if is_local else nullcontext():
            F.cross_entropy(model(pixels[examples]), labels[examples]).backward()
        wrapper.step()
    steps = wrapper.numbers()["steps"]
    if rank == 0:
        cost = f", {sent[0] / steps / 1000:.0f} kB reduced a step" if sent[0] else ""
        print(f"{name}: {240 / ranks / steps:.1f} draws a step{cost}")


ddp = DistributedDataParallel
for tau in taus:
    gnts = lambda adamw: OptimizerWrapperGNTS(adamw, tau)
    train(f"GNTS at {tau:.3f}", ddp(make_model()), gnts)
sbc = lambda adamw: OptimizerWrapperSBC(adamw, 16, 96, accumulate="grad")
train("SBC, closes_next()", ddp(make_model()), sbc, only_last=True)
mesh = dist.device_mesh.init_device_mesh("cpu", (ranks,))
train(f"GNTS at {tau:.3f}, FSDP2", fully_shard(make_model(), mesh=mesh), gnts)
dist.destroy_process_group()
"""

with tempfile.TemporaryDirectory() as folder:
    script, data = Path(folder, "train.py"), Path(folder, "data.pt")
    script.write_text(SCRIPT)
    torch.save((pixels, labels, chosen, (tau, tau_2), model.state_dict()), data)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc-per-node", "2", script, data]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
print(done.stdout, end="") if done.returncode == 0 else print(done.stderr)

# %% [markdown]
# The first threshold keeps the logical batch of one rank: half as many draws, of two microbatches
# each. The second has the draws of one rank, and twice its logical batch.
#
# ## What is sent
#
# DDP all-reduces at each `backward`, so GNTS sends what plain training with the same microbatches
# sends: one gradient a draw, and 4 bytes for its norm. Where the decision is known
# before (SBC, Replay), `closes_next()` says which draw needs the all-reduce; the others stay local
# in `no_sync()`, with `accumulate="grad"`.
# `OptimizerWrapperGNTS(..., decide_every=4)` decides, and sends, at every fourth draw only.
#
# FSDP2 shards the buffer too: one more gradient, divided by the number of ranks. Norms are reduced
# over the shards, one number a draw. Wrap an optimizer of the sharded parameters, after
# `fully_shard`.
