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
# # How large may a batch be before it wastes tokens?
#
# Far below a critical batch, tokens are worth the same in batches of any size; far above it, a
# larger batch saves hardly a step. McCandlish et al. expect it near the noise scale
# $\mathrm{tr}\,\Sigma / |G|^2$, which grows as the loss falls. Others find that even batches of one
# sequence train well if the second moment of Adam keeps its half-life in tokens.
#
# **Question.** A small GPT is trained by AdamW at a constant learning rate, tuned for each batch,
# to the same losses. How many tokens does each batch take, and is the noise scale that is measured
# there the critical batch? A token is a character here (a byte at the `paper` scale).

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %% tags=["evidence", "nbval-ignore-output"]
from gqc_lab import claims

claims.show_evidence("26_critical_batch")

# %% [markdown]
# ## Run it yourself
#
# The rest of this notebook does the same in seconds at the `smoke` scale: a regression test, not
# evidence. The committed results above are from
#
# ```
# gqc batch run notebooks/batches/26_critical_batch.yaml --jobs 2
# ```

# %% tags=["parameters"]
# settings: gqc_lab.studies.pretraining.PretrainingConfig
scale = "smoke"  # one of smoke, laptop, paper; seconds, minutes, a GPU
batches: list | None = None  # at least 1; sequences of a step, None: the scale's
losses: list | None = None  # above 0; held-out losses to reach, None: the scale's
draws: int | None = None  # at least 16; microbatches of 8 for each noise scale, None: the scale's
seed = 0  # of the weights and of the order of the text
tokens: int | None = None  # most that a run may take, None: the scale's
device = "auto"
dtype = "float32"

# %%
import pandas as pd

from gqc_lab import figures, runs
from gqc_lab.loop.settings import of_scale
from gqc_lab.studies.pretraining import critical_batch

# %% tags=["nbval-ignore-output"]
place = {"seed": seed, "device": device, "dtype": dtype}
chosen = {"batches": batches, "losses": losses, "tokens": tokens, "draws": draws}
chosen = of_scale(critical_batch.SCALES, scale, **chosen)
place["tokens"] = chosen["tokens"]
trained, found = [], []
for batch in chosen["batches"]:
    trained.append(critical_batch.build(critical_batch.config(batch, scale, **place)))
    found.append(critical_batch.train(trained[-1], chosen["losses"], chosen["draws"]))
results = critical_batch.with_critical_batch(pd.concat(found))
history = pd.concat([run.history.dropna(subset=["val_loss"]) for run in trained])

# %% tags=["nbval-ignore-output"]
measures = {"tokens": "tokens to the loss over those\nin batches of the fewest"}
figures.claims.by_method(results, measures, results["method"].iloc[0], series=["loss"])

# %% tags=["nbval-ignore-output"]
columns = ["fewest_tokens", "critical_batch", "noise_scale"]
rounded = {"fewest_tokens": -2, "critical_batch": 0, "noise_scale": 0}
results.groupby("loss", sort=False)[columns].mean().round(rounded).astype(int)

# %% [markdown]
# *Critical batch* and *noise scale* are in sequences, and tokens in the figure relative to the
# smallest batch. The few batches of the smoke scale hardly determine the fit.

# %%
results.groupby("loss", sort=False)["batch"].agg(["count", "min", "max"])

# %% [markdown]
# **Limits.** One small model and one text; a constant learning rate, tuned on one other seed. The
# noise scale is that of the plain gradient, and AdamW divides it by its second moment.

# %%
saved = runs.save(history, results, data_hash=trained[0].data_hash)
