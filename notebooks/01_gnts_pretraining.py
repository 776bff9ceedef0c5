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
# # Does a gradient norm threshold help pretraining?
#
# GNTS draws microbatches until the norm of their mean gradient falls below a threshold, and only
# then lets AdamW step. Noise in the gradient adds to its norm, so the threshold asks for as many
# draws as the noise requires.
#
# **Question.** From the same weights, on the same text in the same order, with the same number of
# tokens: is the held-out loss of a small GPT lower with GNTS than with tuned AdamW?
#
# A token is a character here (a byte at the `paper` scale), and losses are in nat/token.

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %% tags=["evidence", "nbval-ignore-output"]
from gqc_lab import claims

claims.show_evidence("01_gnts_pretraining")

# %% [markdown]
# ## Run it yourself
#
# The rest of this notebook compares GNTS and AdamW, both with a learning rate that decays, in
# seconds at the `smoke` scale: a regression test, not evidence. The answer and its figure are from
# the first of these batches, the table from the second:
#
# ```
# gqc batch run notebooks/batches/22_noise_annealing.yaml --jobs 2
# gqc batch run notebooks/batches/01_gnts_pretraining.yaml --jobs 2
# ```

# %% tags=["parameters"]
# settings: gqc_lab.studies.pretraining.PretrainingConfig
scale = "smoke"  # seconds, a minute, GPUs
methods = ["adamw", "gnts"]
seed = 0  # of the weights and of the order of the text
tokens: int | None = None  # training budget, None: the scale's
lr: float | None = None  # peak learning rate, None: tuned for the scale and method
corpus: str | None = None  # kjv, hf:NAME or the path of a text; None: the scale's
device = "auto"
dtype = "float32"

# %%
from math import exp

import pandas as pd

from gqc_lab import figures, runs, track
from gqc_lab.studies import pretraining

# %% [markdown]
# ## Train
#
# One experiment per method: an iterator that yields one record per microbatch. `track` adds a
# progress bar.

# %% tags=["nbval-ignore-output"]
chosen = {"seed": seed, "tokens": tokens, "lr": lr, "corpus": corpus}
chosen |= {"device": device, "dtype": dtype}
experiments = [
    pretraining.build(pretraining.config(scale, method=method, **chosen)) for method in methods
]
for experiment in experiments:
    for _ in track(experiment):
        pass
history = pd.concat([experiment.history for experiment in experiments], ignore_index=True)

# %% [markdown]
# ## Held-out loss at equal tokens

# %% tags=["nbval-ignore-output"]
figures.loss_against(history)

# %% [markdown]
# ## Gradient norms and thresholds
#
# The norm of the mean gradient is at most the threshold at every step except those that `max_draws`
# forced (crosses). The threshold starts high, so that training can get going, and then comes down.

# %% tags=["nbval-ignore-output"]
figures.norm_against_threshold(history)

# %% [markdown]
# The number of draws this takes is a batch size, in microbatches, chosen by the gradients.

# %% tags=["nbval-ignore-output"]
figures.draws_per_step(history)

# %% [markdown]
# ## What this run says

# %%
results = pd.DataFrame([experiment.summary() for experiment in experiments])
shown = ["val_loss", "perplexity", "steps", "mean_logical_batch_examples", "num_forced"]
results.set_index("method")[shown].round({"val_loss": 2, "perplexity": 1, shown[3]: 1})

# %%
loss = results.set_index("method")["val_loss"]
for method in loss.index:
    if "adamw" in loss and method != "adamw":
        difference = loss[method] - loss["adamw"]
        print(f"{method} - adamw: {difference:+.2f} nat/token, perplexity x {exp(difference):.2f},")
        print(f"after {results['tokens'].min():,} tokens each, of one seed: no interval")

# %% [markdown]
# **Limits.** One seed is no evidence: seeds differ by more than GNTS and AdamW with a cosine do. At
# equal tokens GNTS makes fewer optimizer steps, and its threshold is one more number to tune, which
# AdamW does not have. To plot runs of your own:
#
# ```python
# figures.loss_against(runs.load("runs", where="notebook = '01_gnts_pretraining'").history)
# ```

# %%
saved = runs.save(history, results, data_hash=experiments[0].data_hash)
