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
# # What does a curriculum of loss weights actually bound?
#
# Inverse losses whose weight is too large, too early are claimed to blow up gradients. The
# published remedy is a curriculum: weight 0 for $W$ epochs, a linear ramp over $W$ more, and a cap,
# "never exceed 5 % of total loss".
#
# **Question.** Which shapes are available, when does the cap bind, and does it bound what its
# comment says?

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %% tags=["evidence", "nbval-ignore-output"]
from gqc_lab import claims

claims.show_evidence("14_curricula")

# %% [markdown]
# ## Run it yourself
#
# The rest of this notebook runs in seconds at the `smoke` scale. The committed results above are
# from
#
# ```
# gqc batch run notebooks/batches/14_curricula.yaml --jobs 2
# ```

# %% tags=["parameters"]
# settings: gqc_lab.studies.operator_learning.OperatorLearningConfig
interactive = False  # True: sliders; False: the values below
scale = "smoke"  # seconds, minutes, a GPU
base_weights = [0.5, 0.001]  # at least 0; the published weight that exploded, and the fixed one
warmup_epochs = 15.0  # at least 0; W
max_weight = 0.05  # at least 0; the cap of the weight
max_share = 0.05  # above 0, at most 1; the cap of the share of the total loss
shapes = ["linear", "cosine", "exponential"]  # one of linear, cosine, exponential
epochs = 40  # of the curves below
seed = 0  # of weights and order
device = "auto"
dtype = "float32"

# %%
import numpy as np
import pandas as pd

from gqc import Curriculum, compute_inverse_loss_curriculum_weight
from gqc_lab import figures, runs, track
from gqc_lab.studies import operator_learning

# %% [markdown]
# ## Shapes
#
# Each is 0 until the delay ends, rises over the ramp and then stays constant; the cap cuts it off.

# %%
grid = np.linspace(0, epochs, 8 * epochs + 1)


def curve(name, weight_at):
    return pd.DataFrame({"name": name, "epoch": grid, "weight": [weight_at(e) for e in grid]})


def preview(base=0.5, delay=warmup_epochs, ramp=warmup_epochs, cap=max_weight):
    made = [curve(s, Curriculum(base, delay, ramp, s, cap)) for s in shapes]
    title = f"Weight of a term, base {base:g}, cap {cap:g}"
    return figures.operator.curves(pd.concat(made), "weight", title, "weight")


# %% tags=["nbval-ignore-output"]
if interactive:
    import ipywidgets

    step = {"base": (0.0, 1.0, 0.01), "delay": (0.0, 30.0), "ramp": (0.0, 30.0)}
    ipywidgets.interact(preview, **step, cap=(0.0, 1.0, 0.01))
else:
    preview(cap=1.0).show()

# %% [markdown]
# ## When does the cap bind?
#
# The published curriculum at the epochs where it changes, for both published weights.

# %%
moments = [0, warmup_epochs - 0.001, warmup_epochs, 1.5 * warmup_epochs, 2 * warmup_epochs, 35]
arguments = {"warmup_epochs": warmup_epochs, "max_weight": max_weight}
table = pd.DataFrame(
    {
        f"base {base:g}": [
            compute_inverse_loss_curriculum_weight(e, base, **arguments) for e in moments
        ]
        for base in base_weights
    },
    index=pd.Index(moments, name="epoch"),
)
table.round(5)

# %% [markdown]
# ## Capping the weight or the share
#
# The same training three times with the published curriculum: without a cap, with the published cap
# of the weight, and with a cap of the share that holds in every batch whatever the losses are.

# %% tags=["nbval-ignore-output"]
ways = {
    "no cap": {"inverse_loss_max_weight": 1e6},
    "cap of the weight": {"inverse_loss_max_weight": max_weight},
    "cap of the share": {"inverse_loss_max_weight": 1e6, "inverse_loss_max_share": max_share},
}
place = {"device": device, "dtype": dtype, "seed": seed}
if scale == "laptop":  # fewer epochs, in the same proportions
    place |= {"pretraining_epochs": 6, "epochs": 12, "inverse_loss_warmup_epochs": 4}
parts = []
for name, way in ways.items():
    experiment = operator_learning.build(
        operator_learning.config(scale, "curriculum only", **place, **way)
    )
    for _ in track(experiment, has_bar=False):
        pass
    parts.append(experiment.history.assign(name=name))
history = pd.concat(parts, ignore_index=True)
history = history[history["epoch"] >= 0]
history["share"] = history[["share/inv_enc", "share/inv_dec"]].max(axis=1)

# %% tags=["nbval-ignore-output"]
figures.operator.curves(
    history, "share", "Share of the larger inverse loss", "share of the total", max_share
)

# %% [markdown]
# ## What this run says

# %%
results = history.groupby("name", sort=False).agg(
    largest_share=("share", "max"), largest_weight=("weight/inv_dec", "max")
)
results["above_limit"] = history.groupby("name")["share"].agg(
    lambda share: float((share > max_share * (1 + 1e-5)).mean())
)
results.round(3)

# %%
binds = [b for b in base_weights if b > max_weight]
print(f"the cap of the weight binds at base weights {binds} of {base_weights}")
for name, row in results.iterrows():
    print(f"{name}: up to {row['largest_share']:.0%} of the total")

# %% [markdown]
# **What to make of it.** A cap of the weight bounds the share only as long as the losses keep their
# ratio, and the forward loss falls by orders of magnitude: the same weight is a larger share every
# epoch. At a base weight of 0.001 the cap never binds at all. A run of five epochs never leaves a
# warmup of fifteen, so it cannot test any of this.
#
# **Limits.** One seed here; whether a bounded share helps is the question of notebook 13.

# %%
saved = runs.save(history, results.reset_index(), data_hash=experiment.data_hash)
