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
# # How do I put GNTS into my own training loop?
#
# Below is a loop such as nanoGPT's. Lines that end with `# changed` are all that differ from plain
# AdamW: the optimizer is wrapped, a schedule moves the norm threshold, and clipping moves into the
# wrapper. The wrapper takes each microbatch as one *draw*, and steps when the norm of the mean of
# its draws is at or below the threshold.

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %%
import torch
from torch.nn import functional as F

from gqc import OptimizerWrapperGNTS
from gqc import get_norm_threshold_cosine_annealing_with_warmup as norm_schedule
from gqc.integrations import attach
from gqc_lab.data.text import draw_batch, load_text_data
from gqc_lab.models.gpt import GPTConfig, make_gpt

text, stream = load_text_data(), torch.Generator().manual_seed(1)
sizes = GPTConfig(vocabulary=text.vocabulary, context=32, width=32, depth=2, heads=2)
model = make_gpt(sizes, torch.Generator().manual_seed(0))

# %% [markdown]
# ## The loop

# %% tags=["plain-loop"]
MICROBATCHES = 400
log = []
adamw = torch.optim.AdamW(model.parameters(), lr=3e-3)
optimizer = OptimizerWrapperGNTS(adamw, clip_norm=1.0, on_step=log.append)  # changed
attach(norm_schedule(optimizer, 40, MICROBATCHES, start_norm=0.8, end_norm=0.7))  # changed
for _ in range(MICROBATCHES):
    inputs, targets = draw_batch(text.train, 8, 32, stream)
    loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    loss.backward()
    # torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # changed: clip_norm= does it
    optimizer.step()
    optimizer.zero_grad()
flushed = optimizer.flush()

# %% [markdown]
# - `optimizer.step()` is called for every microbatch and returns whether it stepped. Drop a loop
#   that accumulated gradients by hand; `zero_grad()` may stay or go.
# - `attach()` lets the wrapper step the schedule after each draw and save it in its own
#   `state_dict()`. Without it, call `schedule.step()` after each `optimizer.step()`.
# - `flush()` steps with the draws that are left at the end.
#
# ## What it did

# %%
for entry in log[::len(log) // 6]:
    print(
        f"microbatch {entry['batches']:4}: step {entry['steps']:4} from {entry['num_draws']:2} "
        f"draws, norm {entry['grad_norm']:.2f} at threshold {entry['gradient_norm_threshold']:.2f}"
    )
print(f"{MICROBATCHES} microbatches made {len(log)} steps; last loss {loss.item():.1f} nat")

# %% [markdown]
# Windows that run to `max_draws` all the time mean that the threshold is too low:
# `statistics()["threshold_unreachable"]` says so. If nearly every window has one draw, it is too
# high.
#
# ## Log it
#
# `on_step=` is called after each step with a flat dict of numbers. Each logger takes it in a line:
#
# | logger | `on_step=` |
# |---|---|
# | Weights & Biases | `wandb.log` |
# | trackio | `trackio.log` |
# | MLflow | `lambda n: mlflow.log_metrics(n, step=n["batches"])` |
# | TensorBoard | `lambda n: [writer.add_scalar(k, v, n["batches"]) for k, v in n.items()]` |
#
# ## Stop and resume
#
# One `state_dict` holds the optimizer, the draws of the open window and the attached schedules. A
# run that is resumed from it continues bit for bit, in the middle of a window too, if the wrapper
# is made with the same options, which the file does not hold.

# %%
saved = optimizer.state_dict()
inside = torch.optim.AdamW(model.parameters(), lr=3e-3)
resumed = OptimizerWrapperGNTS(inside, clip_norm=1.0, on_step=log.append)
attach(schedule := norm_schedule(resumed, 40, MICROBATCHES, start_norm=0.8, end_norm=0.7))
resumed.load_state_dict(saved)
print(f"the schedule continues at microbatch {schedule.last_step}")

# %% [markdown]
# **Next.** [What counts microbatches, and where to clip](clipping_and_schedules.ipynb), and
# [whether it helps you](does_it_help.ipynb).
