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
# # Does GNTS plateau at a higher loss over many epochs?
#
# Over many epochs of the same data GNTS is claimed to converge to a worse floor than AdamW.
#
# **Question.** On a short text that is read 16 times (4 at the smoke scale): where do training loss
# and held-out loss end?
#
# A token is a character here (a byte at the `paper` scale).

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %% tags=["evidence", "nbval-ignore-output"]
from gqc_lab import claims

claims.show_evidence("16_multi_epoch_floor")

# %% [markdown]
# ## Run it yourself
#
# The rest of this notebook does the same in seconds at the `smoke` scale: a regression test, not
# evidence. The committed results above are from
#
# ```
# gqc batch run notebooks/batches/16_multi_epoch_floor.yaml --jobs 2
# ```

# %% tags=["parameters"]
# settings: gqc_lab.studies.pretraining.PretrainingConfig
scale = "smoke"  # seconds, minutes, a GPU
train_tokens: int | None = None  # at least 65; length of the text, None: the scale's
tokens: int | None = None  # training budget, None: the scale's
seed = 0  # of the weights and of the order of the text
corpus: str | None = None  # kjv, hf:NAME or the path of a text; None: the scale's
device = "auto"
dtype = "float32"

# %%
import pandas as pd

from gqc_lab import figures, runs
from gqc_lab.loop.settings import of_scale
from gqc_lab.studies.pretraining import equal_tokens

# %% [markdown]
# ## Train

# %% tags=["nbval-ignore-output"]
place = {"corpus": corpus, "device": device, "dtype": dtype, "seed": seed}
place |= of_scale(equal_tokens.REPEATED, scale, tokens=tokens, train_tokens=train_tokens)
place |= {"evaluation_tokens": max(place["tokens"] // 16, 1)} if "tokens" in place else {}
compared = {"repeated": equal_tokens.comparison("repeated", scale, **place)}
history, results, data_hash = equal_tokens.run_all(compared)

# %% [markdown]
# ## Training loss and held-out loss
#
# The training loss is that of each microbatch before the step, averaged over stretches of one
# hundredth of the run: late in the run it is the loss on text that the model has read many times.

# %% tags=["nbval-ignore-output"]
stretch = (100 * history["tokens"] / history["tokens"].max()).apply("ceil") / 100
by_stretch = history.assign(tokens=stretch * history["tokens"].max())
keys = ["method", "seed", "tokens"]
training = by_stretch.groupby(keys, sort=False)["loss"].mean().reset_index()
both = [training.assign(comparison="training")]
held_out = history.dropna(subset=["val_loss"]).assign(comparison="held out")
both.append(held_out[["comparison", *keys, "val_loss"]].rename(columns={"val_loss": "loss"}))
figures.claims.comparison_losses(pd.concat(both), "loss").update_yaxes(title="loss [nat/token]")

# %% [markdown]
# ## What this run says
#
# *Training loss at the end* (`final_train_loss`): mean over the last tenth of the run. *Held-out
# loss*: at its end. *Best held-out loss* (`best_val_loss`): the lowest along the way, which is
# where early stopping would have ended.

# %%
shown = {"epochs": 0, "final_train_loss": 2, "val_loss": 2, "best_val_loss": 2, "steps": 0}
table = results.set_index("method")[[*shown, "mean_logical_batch_examples"]]
table.round(shown | {"mean_logical_batch_examples": 1})

# %%
for measure in ("final_train_loss", "best_val_loss"):
    difference = table.loc["gnts", measure] - table.loc["adamw", measure]
    print(f"{measure}: gnts - adamw = {difference:+.2f} nat/token, of one seed: no interval")

# %% [markdown]
# **Limits.** Both methods use the values that were tuned on a text that is read once; the learning
# rate decays to a tenth, so the floor is that of a completed schedule and not of endless training.

# %%
saved = runs.save(history, results, data_hash=data_hash)
