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
# # How do I use GNTS with Accelerate?
#
# Wrap the optimizer before `prepare`, attach the threshold's schedule to it, and let the wrapper
# clip. Nothing else changes: `accumulate`, `save_state` and `load_state` work as before.

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %% tags=["install"]
if find_spec("accelerate") is None:
    raise SystemExit("skipped: this guide needs accelerate; run: %pip install accelerate")

# %%
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from gqc import OptimizerWrapperGNTS
from gqc import get_norm_threshold_cosine_annealing_with_warmup as norm_schedule

from accelerate import Accelerator
from gqc.integrations import attach

pixels, labels = (torch.tensor(a) for a in load_digits(return_X_y=True))
data = torch.utils.data.TensorDataset((pixels / 16).float()[:1500], labels[:1500])
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))

# %% [markdown]
# ## The loop
#
# The schedule is given its warmup and the length of the run in microbatches, then the threshold at
# the start and at the end.

# %% tags=["accelerate"]
accelerator = Accelerator(cpu=True)
loader = torch.utils.data.DataLoader(data, batch_size=8)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
optimizer = OptimizerWrapperGNTS(optimizer, clip_norm=1.0)  # changed
attach(schedule := norm_schedule(optimizer, 40, 2 * len(loader), 0.8, 0.5))  # changed
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
for _ in range(2):
    for inputs, targets in loader:
        with accelerator.accumulate(model):
            loss = F.cross_entropy(model(inputs), targets)
            accelerator.backward(loss)
            # accelerator.clip_grad_norm_(model.parameters(), 1.0)  # changed: clip_norm= does it
            optimizer.step()
            optimizer.zero_grad()

# %%
numbers = optimizer.optimizer.numbers()
print(f"{numbers['batches']} microbatches made {numbers['steps']} steps")
print(f"threshold at the end: {numbers['gradient_norm_threshold']:.2f}")

# %% [markdown]
# An attached schedule advances once per draw at any number of processes, and is saved with its
# wrapper:

# %%
import tempfile

folder = tempfile.mkdtemp()
accelerator.save_state(folder)
schedule.go_to(0)
accelerator.load_state(folder)
print(f"microbatch {schedule.last_step}, threshold {schedule.get_last_value()[0]:.2f}")

# %% [markdown]
# - `gradient_accumulation_steps=k` makes one draw of k microbatches. Leave it at 1 unless draws are
#   too small to fill the device. Accelerate divides the losses of a short last group by k too, and
#   its draw is too small: let k divide the number of batches (`drop_last=True`).
# - You may hand the schedule to `prepare` instead of attaching it; Accelerate then saves it, and
#   you step it after each `optimizer.step()`. A schedule that is neither saved nor attached refuses
#   to start again after `load_state`.
# - fp16 steps through Accelerate's own GradScaler, which the wrapper refuses: use bf16.
