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
# # How do I scale gradients by their variance in my loop?
#
# Variance gradient scaling (VGS) shrinks the gradient by $f = 1/(1 + \alpha V)$, where $V$ is the
# variance of the gradient over time relative to its mean: the noisier, the smaller. One number per
# step for all parameters (or one per tensor, with `granularity="tensor"`).

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %%
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from gqc import OptimizerWrapperVGS, VarianceGradientScaler

pixels, labels = (torch.tensor(a) for a in load_digits(return_X_y=True))
pixels = (pixels / 16).float()

def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))

def losses(model):
    stream = torch.Generator().manual_seed(1)
    for _ in range(300):
        chosen = torch.randint(1500, (8,), generator=stream)
        yield F.cross_entropy(model(pixels[chosen]), labels[chosen])


# %% [markdown]
# ## As a wrapper
#
# One changed line. To clip what is left after scaling, give the wrapper `clip_norm=`.

# %%
model = make_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
optimizer = OptimizerWrapperVGS(optimizer, alpha=0.01, warmup_steps=50, clip_norm=1.0)  # changed
for loss in losses(model):
    loss.backward()
    optimizer.step()
found = optimizer.scaler.metrics()
print(f"V {found['vgs/normalized_variance']:.0f}, factor {found['vgs/scaling_factor']:.2f}")

# %% [markdown]
# Look at V before you trust the factor. Here it stands at its cap, `variance_cap=50`: microbatches
# this small are noisier than that, and VGS is a constant factor, no more than a smaller learning
# rate. Larger microbatches lower V; a higher `beta` resolves ratios up to
# $(1 + \beta)/(1 - \beta)$, if `variance_cap` allows. `vgs/unresolved` is the share of tensors
# whose signal is not resolved.
#
# ## As two calls
#
# Where your loop clips itself, the scaler goes where its source has it: after `backward()`, before
# clipping; and it is told when the optimizer has stepped.

# %%
twin = make_model()
sgd = torch.optim.SGD(twin.parameters(), lr=0.3)
scaler = VarianceGradientScaler(twin.parameters(), alpha=0.01, warmup_steps=50)
for loss in losses(twin):
    sgd.zero_grad()
    loss.backward()
    scaler.scale_gradients()
    torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
    sgd.step()
    scaler.step()
pairs = zip(model.parameters(), twin.parameters(), strict=True)
print("the same weights:", all(torch.allclose(a, b, atol=1e-5) for a, b in pairs))

# %% [markdown]
# - `scaler.alpha = 0.1` acts from the next step on; 0 never scales.
# - Adam divides gradients by their size, so a factor that changes slowly cancels: VGS acts on SGD,
#   and on Adam only while the variance changes. Raise SGD's learning rate to make up for the mean
#   factor before you compare.
# - Save `scaler.state_dict()`; the wrapper saves it in its own.
# - In PPO, see [the guide on reinforcement learning](reinforcement_learning.ipynb).
