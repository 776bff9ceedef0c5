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
# # How do I move a script from torch-gqc?
#
# Change its import line. `gqc.compat.torch_gqc` has the names, arguments and file formats of
# torch-gqc 0.8.5 and 0.10.4; the behaviour is that of `gqc`.

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %%
import torch

# from gradient_quality_control import make_gnts_with_cosine_annealing_schedule
from gqc.compat.torch_gqc import make_gnts_with_cosine_annealing_schedule  # changed

torch.manual_seed(0)
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-2)
optimizer, schedule = make_gnts_with_cosine_annealing_schedule(
    optimizer, 400, 40, initial_threshold=4.0, final_threshold=1.0
)
for _ in range(400):
    inputs = torch.randn(4, 8)
    targets = inputs.sum(1, keepdim=True) + torch.randn(4, 1)
    loss = (model(inputs) - targets).square().mean()
    loss.backward()
    optimizer.step()
    schedule.step()
print(f"{optimizer.num_batches} microbatches, {optimizer.num_steps} steps, "
      f"mean square error {loss.item():.1f}")

# %% [markdown]
# ## What changes by itself
#
# | | torch-gqc | here |
# |---|---|---|
# | a NaN microbatch | reaches the parameters | is discarded and counted |
# | resume in mid-window | loses the draws | is exact |
# | a schedule past its end | extrapolates, below zero | holds its last value |
# | `OptimizerWrapperSBC` | steps after 64 draws at the latest | has no bound unless given one |
# | GNS | variance of scalar norms | the noise scale |
# | `distributed_mode=` | must be given | accepted; ranks are found |
#
# All differences that are measured are in [the whole table](../../tests/peer/DIFFERENCES.md).
#
# ## What is refused, and what to write instead

# %%
from gqc.compat import torch_gqc

for call in (
    lambda: torch_gqc.OptimizerWrapperGNS(torch.optim.SGD(model.parameters()), 2.0),
    lambda: torch_gqc.OptimizerWrapperGNR(torch.optim.SGD(model.parameters()), "independent"),
):
    try:
        call()
    except TypeError as error:
        print(error, end="\n\n")

# %% [markdown]
# A subclass of `AbstractOptimizerWrapper` works as 0.10.4 documents it: `step` calls
# `_batch_received()` first. One that calls `_take_batch_step()`, as in 0.8.5, is refused where it
# is defined. In 0.8.5 the `"lr"` of a wrapper stood for its threshold; here it is the learning
# rate, and a scheduler of torch that is made of the wrapper says so ([what to write
# instead](../../docs/torch_gqc.md)).
#
# ## Files
#
# `load_state_dict` of a wrapper and of its schedule take the files of torch-gqc 0.10.4, and of
# 0.8.5 that of the wrapper: make its schedule again, and call `schedule.go_to(step)`. Draws that
# waited for a step when such a file was saved are not in it.

# %%
inner = torch.optim.AdamW(model.parameters(), lr=5e-2)
of_torch_gqc = {
    "wrapper_states": {n: {"value": v, "flag": "vital"} for n, v in
                       (("num_batches", 128), ("num_steps", 16), ("num_draws", 3))},
    "optimizer_states": inner.state_dict(),
}
wrapper = torch_gqc.OptimizerWrapperGNTS(torch.optim.AdamW(model.parameters()))
wrapper.load_state_dict(of_torch_gqc)
print(wrapper.num_batches, "microbatches,", wrapper.num_steps, "steps")

# %% [markdown]
# **Next.** When the script runs, replace the import by `gqc` itself: [how to put GNTS into your own
# loop](own_loop.ipynb).
