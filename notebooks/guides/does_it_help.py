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
# # Does GNTS help me?
#
# It does if it beats two simpler things: a better constant batch size, and larger batches at the
# right time. Three arms tell these apart, at the same number of examples:
#
# - **GNTS**, with your threshold;
# - **SBC**, the constant batch whose size is the mean logical batch of GNTS;
# - **Replay**, the recorded batch sizes of a GNTS run with *another* seed, step by step: its
#   schedule without its reaction to this run's gradients.
#
# If GNTS beats SBC but not Replay, a batch schedule is what helped. If it beats neither, keep your
# constant batch.

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %%
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from gqc import OptimizerWrapperGNTS, OptimizerWrapperReplay, OptimizerWrapperSBC

pixels, labels = (torch.tensor(a) for a in load_digits(return_X_y=True))
pixels = (pixels / 16).float()
MICROBATCHES, SEEDS = 500, range(4)


# %% [markdown]
# ## One run
#
# The seed decides the weights and the order of the data, for all arms alike.

# %%
def make_model(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))

def train(seed, make_wrapper):
    net = make_model(seed)
    wrapper = make_wrapper(torch.optim.AdamW(net.parameters(), lr=1e-2))
    draws, chosen = [], torch.randint(1500, (MICROBATCHES, 8))
    for examples in chosen:
        F.cross_entropy(net(pixels[examples]), labels[examples]).backward()
        if wrapper.step():
            draws.append(wrapper.last_num_draws)
    with torch.no_grad():
        return draws, F.cross_entropy(net(pixels[1500:]), labels[1500:]).item()

def gnts(optimizer):
    return OptimizerWrapperGNTS(optimizer, 0.6, max_draws=16)


# %%
from functools import partial

recorded = {seed: train(seed, gnts) for seed in SEEDS}
mean = MICROBATCHES * len(SEEDS) / sum(len(draws) for draws, _ in recorded.values())
losses = {"GNTS": [loss for _, loss in recorded.values()], "SBC": [], "Replay": []}
for seed in SEEDS:
    draws = recorded[(seed + 1) % len(SEEDS)][0]  # of another seed
    arms = {
        "SBC": partial(OptimizerWrapperSBC, physical_batch_size=8, logical_batch_size=8 * mean),
        "Replay": partial(OptimizerWrapperReplay, draws=draws, repeat_last=True),
    }
    for name, make in arms.items():
        losses[name].append(train(seed, make)[1])
print(f"mean logical batch of GNTS: {mean:.1f} draws of 8 examples")

# %% [markdown]
# ## The answer
#
# Differences of the held-out loss within a seed, since all arms share its weights and data, with
# a 95 % interval from Student's t. Above 0 GNTS is worse.

# %%
from scipy import stats

for name in ("SBC", "Replay"):
    pairs = zip(losses["GNTS"], losses[name], strict=True)
    difference = torch.tensor([a - b for a, b in pairs], dtype=torch.float64)
    error = difference.std().item() / len(SEEDS) ** 0.5
    half = stats.t.ppf(0.975, len(SEEDS) - 1) * error
    print(f"GNTS - {name:6}: {difference.mean():+.2f} nat, 95 % interval +- {half:.2f}")

# %% [markdown]
# An interval that holds 0, as both do here, decides nothing: add seeds. Tune the threshold and the
# constant batch with equal effort, or the comparison measures the tuning; test on seeds that were
# not tuned on. Also compare with plain AdamW at *its* best batch size and learning rate. The
# [notebook on norm schedules](../22_noise_annealing.ipynb) does all of this on a language model.
