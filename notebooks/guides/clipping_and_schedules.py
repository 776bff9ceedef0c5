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
# # Where do I clip, and what counts microbatches?
#
# A wrapper sees every microbatch and steps on some. So each number in a training script counts
# either microbatches or steps, and each change of the gradient acts either on a draw or on the mean
# that is stepped with. The rules, each shown below:
#
# - Clip with `clip_norm=`, not between `backward()` and `step()`.
# - Schedules, of the threshold and of the learning rate, count **microbatches**: step them after
#   every `optimizer.step()`, whether it stepped or not.

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %%
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from gqc import OptimizerWrapperGNTS

pixels, labels = (torch.tensor(a) for a in load_digits(return_X_y=True))
pixels = (pixels / 16).float()
MICROBATCHES = 300

def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))

def microbatches():
    stream = torch.Generator().manual_seed(1)
    for _ in range(MICROBATCHES):
        chosen = torch.randint(1500, (8,), generator=stream)
        yield pixels[chosen], labels[chosen]


# %% [markdown]
# ## An lr schedule that is stepped only on steps
#
# The schedule below falls to 0 over the run. Stepped with every microbatch it gets there. Stepped
# only when the optimizer steps, it ends far above 0, because there are fewer steps.

# %%
def train(only_on_steps):
    model = make_model()
    optimizer = OptimizerWrapperGNTS(torch.optim.AdamW(model.parameters(), lr=1e-2), 1.0)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 - n / MICROBATCHES)
    for inputs, targets in microbatches():
        F.cross_entropy(model(inputs), targets).backward()
        stepped = optimizer.step()
        if stepped or not only_on_steps:
            decay.step()
    return decay.get_last_lr()[0]

for name, only_on_steps in (("every microbatch", False), ("only on steps", True)):
    print(f"stepped {name:16}: lr at the end {train(only_on_steps):.4f}")

# %% [markdown]
# Schedules of gqc notice this habit and warn; torch's own cannot. Warmup lengths, `max_steps` and
# logging intervals of trainers count microbatches too.
#
# ## Clipping a draw and clipping the mean
#
# `clip_grad_norm_` between `backward()` and `step()` shrinks each draw before the wrapper reads it.
# GNTS then sees norms that are at most the bound, and steps too early. It says so once:

# %%
import warnings

def count_steps(bound=None, **options):
    model = make_model()
    optimizer = OptimizerWrapperGNTS(torch.optim.AdamW(model.parameters(), lr=1e-2), 0.7, **options)
    for inputs, targets in microbatches():
        F.cross_entropy(model(inputs), targets).backward()
        if bound is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), bound)
        optimizer.step()
    return optimizer.numbers()["steps"]

print(f"not clipped: {count_steps()} steps")
print(f"clip_norm=0.5: {count_steps(clip_norm=0.5)} steps")
with warnings.catch_warnings(record=True) as told:
    print(f"draws clipped: {count_steps(bound=0.5)} steps, all of them on windows of one draw")
print(told[0].message)

# %% [markdown]
# With `clip_norm=` the decision reads the true norm, and what the optimizer gets is clipped. With
# `accumulate="grad"`, where the sum lies in `.grad`, clipping between the calls is an error: it
# would shrink the earlier draws again at each microbatch.
