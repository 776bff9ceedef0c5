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
# # Which threshold, batch and bound should I choose?
#
# Ask a probe instead of a grid. It takes some microbatch gradients of your model as it is, changes
# nothing, and says how noisy they are and which settings follow.

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %%
import pandas as pd
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from gqc.noise import probe
from gqc_lab import figures

digits = load_digits()
images = torch.tensor(digits.data / 16, dtype=torch.float32)
labels = torch.tensor(digits.target)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
data = torch.utils.data.TensorDataset(images, labels)
loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


# %% [markdown]
# ## Probe
#
# Give it the loss that training calls `backward` on and the loader that training reads.

# %% tags=["nbval-ignore-output"]
found = probe(model, loss_fn, loader, optimizer, draws=128)
found

# %% [markdown]
# - **noise scale**: microbatches whose mean has as much noise as signal. Far below it a step is
#   mostly noise, far above it more draws buy little. Times the batch size it estimates the
#   **critical batch**, at which a loss costs about twice the fewest tokens: to a factor of two at
#   three losses in [notebook 26](../26_critical_batch.ipynb).
# - **draws**: "NOT independent" means that successive microbatches share noise (packed documents,
#   an unshuffled file). Every estimate of noise is then too small: shuffle first.
# - **for 8 draws**: the settings with which GNTS takes 8 draws a step on average, at the present
#   parameters.
# - **they give**: the mean draws to expect, with their standard error. Four times as many
#   microbatches in the probe halve it. Where the noise scale is far below 8 it is large, since
#   there a slightly higher norm takes far fewer draws.
#
# ## From draws to a norm
#
# A threshold for one draw has to lie above nearly all norms, so it is far above the expected one.
# For many draws the two agree.

# %%
draws = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
expected = [(found.signal_sq + found.noise_trace / n) ** 0.5 for n in draws]
table = pd.DataFrame({"draws": draws, "norm": [found.norm(n) for n in draws], "expected": expected})
figures.noise.norm_by_draws(table, found.signal_sq**0.5)

# %% [markdown]
# Both the signal and the noise fall during training, and not together: a norm that means 8 draws
# now means another number later. So give the schedule in draws. `make_gnts` wraps the optimizer and
# moves the threshold along with the noise that the wrapper measures.
#
# ## Train

# %% tags=["nbval-ignore-output"]
wrapper, schedule = found.make_gnts(optimizer, draws=8)
windows = []
for _ in range(10):
    for batch in loader:
        loss_fn(model, batch).backward()
        if wrapper.step():
            windows.append(wrapper.last_num_draws)
        schedule.step()
half = len(windows) // 2
print(f"draws a step: {sum(windows[:half]) / half:.0f} in the first half of the steps, then "
      f"{sum(windows[half:]) / len(windows[half:]):.0f}")
print(f"accuracy {(model(images).argmax(1) == labels).float().mean():.2f}")

# %% [markdown]
# `draws` may be a function of the microbatch, such as `lambda t: 2 + 6 * t / 2000`. For a schedule
# in norms instead, pass `found.gnts_options(8)` without `max_draws` to
# `gqc.get_norm_threshold_cosine_annealing_with_warmup`; its warmup then begins above the norms of
# your first gradients, so that no early window is a trap.
#
# ## Which controller?
#
# A threshold relative to the norm of the gradient is the norm test. Take `OptimizerWrapperNormTest`
# or `OptimizerWrapperGNS` where the batch should follow the noise scale by itself, GNTS in draws
# where you know what a step may cost, and GNTS in norms where gradients should shrink on your
# schedule.
#
# **Next.** [Does it help me?](does_it_help.ipynb) compares it with controls at equal cost.
