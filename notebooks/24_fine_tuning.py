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
# # Do settings from pretraining suit fine-tuning?
#
# A norm threshold is a number in the units of the gradient, and gradients of a model that is
# already trained are of another size. So the method's authors expect GNTS to fine-tune badly with
# the threshold that suited pretraining.
#
# **Question.** A small language model is pretrained on the King James text and fine-tuned on the
# help pages of Python. How much higher is the loss with the settings of pretraining than with
# settings that were tuned for the fine-tuning, for GNTS and for AdamW? A token is a byte here.

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %% tags=["evidence", "nbval-ignore-output"]
from gqc_lab import claims

claims.show_evidence("24_fine_tuning")

# %% [markdown]
# ## Run it yourself
#
# The rest of this notebook does the same in seconds at the `smoke` scale: a regression test, not
# evidence. The committed results above are from
#
# ```
# gqc batch run notebooks/batches/24_fine_tuning.yaml --jobs 2
# ```

# %% tags=["parameters"]
# settings: gqc_lab.studies.pretraining.PretrainingConfig
scale = "smoke"  # one of smoke, laptop, paper; seconds, minutes, a GPU
arms = ["gnts, as before", "gnts, retuned", "adamw, as before", "adamw, retuned"]
seed = 0  # of the weights and of the order of both texts
tokens: int | None = None  # of the fine-tuning, None: the scale's
device = "auto"
dtype = "float32"

# %%
from gqc_lab import figures, runs
from gqc_lab.studies.pretraining import equal_tokens, fine_tuning

# %% tags=["nbval-ignore-output"]
place = {"seed": seed, "device": device, "dtype": dtype}
place |= {} if tokens is None else {"tokens": tokens}
compared = {"fine-tuning": {arm: fine_tuning.config(arm, scale, **place) for arm in arms}}
history, results, data_hash = equal_tokens.run_all(compared, fine_tuning.build)

# %% tags=["nbval-ignore-output"]
figures.claims.comparison_losses(history)

# %%
shown = {"lr": 4, "val_loss": 2, "perplexity": 1, "steps": 0, "mean_logical_batch_examples": 1}
results.set_index("method")[list(shown)].round(shown)

# %% [markdown]
# **Limits.** One pair of texts and one size of the model; the fine-tuning is a seventh as long as
# the pretraining. At the smoke scale nothing is tuned, so both arms of a method are the same there.

# %%
saved = runs.save(history, results, data_hash=data_hash)
