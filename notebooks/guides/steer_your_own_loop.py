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
# # How do I steer my own training loop while it runs?
#
# Three lines in an ordinary loop show it below its cell and let you change it: learning rate,
# weight decay, thresholds, whatever is in the optimizer's param groups. Run this notebook in
# JupyterLab and move a slider. Executed without a person, as here, it shows a picture only.

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[widgets] @ ADDRESS"')

# %%
epochs = 3  # over the digits; 300 leaves time to steer
seed = 0  # of weights and order

# %%
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from gqc_widgets import Live

# %% [markdown]
# ## An ordinary loop

# %%
torch.manual_seed(seed)
images, labels = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(images).float() / 16, torch.tensor(labels))
loader = DataLoader(data, batch_size=32, shuffle=True)
model = torch.nn.Sequential(
    torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(32, 10)
)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, epochs * len(loader))

# %% [markdown]
# ## Steered
#
# `Live` finds the controls; `live(loader)` updates the page between two batches; `log` takes any
# number. `state` is for checkpoints: leave it out if you need none. `control` adds a control.

# %% tags=["nbval-ignore-output"]
state = {"model": model, "schedule": schedule}
live = Live(optimizer, total=epochs * len(loader), state=state, label="digits")
live.control("dropout", 0.1, lambda p: setattr(model[2], "p", p), low=0, high=0.9)
edit = {"microbatch": 61, "name": "lr", "value": 0.01}  # what a hand would do
live.replay([edit])
for _ in range(live.epoch, epochs):
    for x, y in live(loader):
        output = model(x)
        loss = torch.nn.functional.cross_entropy(output, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        live.log(loss=loss, accuracy=(output.argmax(1) == y).float().mean())

# %% [markdown]
# ## What happened
#
# `live.history` has a row for each batch. From the edit on, the rate keeps its ratio to what the
# schedule writes. `live.changes` is what `replay` repeats in another run.

# %%
rows = live.history.set_index("microbatch")[["lr", "changes"]].round(5)
rows.loc[edit["microbatch"] - 2 : edit["microbatch"] + 2].fillna("")

# %%
for change in live.changes:
    print(f"microbatch {change['microbatch']}: {change['name']} = {change['value']}")

# %% [markdown]
# ## After a crash
#
# In a new kernel build the same objects, then call `live.resume()` before the loop: it continues
# from the last automatic checkpoint, with weights, optimizer, schedule, random generators, epoch
# and place in the loader, bit for bit. Loaders with workers are refused, since they read ahead.
# `enumerate(live(loader))` then counts from 0: in mid-epoch count by `live.experiment.microbatch`.
# A loop that accumulates by hand is saved when it steps.
#
# ## Other places
#
# - **VS Code** holds back what you do until the cell has ended. Put the loop in a function under
#   `@live.background`: it trains in a thread.
# - **Trainers**: `gqc_widgets.live_callback("transformers")` (or `"lightning"`,
#   `"stable_baselines3"`) returns a callback.
# - **A gqc wrapper**: its threshold and the settings of VGS are among the controls;
#   `NormScheduleEditor(live)` and `VGSAlphaTuner(live)` edit them.
#
# ## Answer
#
# With `Live(optimizer)`, `for batch in live(loader)` and `live.log(...)`. **Limits.** An edit of a
# scheduled value acts around `optimizer.step()`: code that reads the param groups elsewhere sees
# the schedule's own value.
