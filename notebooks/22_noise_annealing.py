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
# # Does a norm schedule do more than a learning rate schedule?
#
# GNTS is published with a constant learning rate and a norm threshold that falls. Its batches then
# grow, so the noise of its steps falls, as it does where the learning rate decays or where a batch
# grows on a schedule that looks at no gradient.
#
# **Question.** At equal tokens, each tuned in the same way: is GNTS better than AdamW with a
# learning rate that decays, than a scheduled batch, or than a replay of another run's batches?
#
# A token is a character here (a byte at the `paper` scale).

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %% tags=["evidence", "nbval-ignore-output"]
from gqc_lab import claims

claims.show_evidence("22_noise_annealing")

# %% [markdown]
# ## Run it yourself
#
# The rest of this notebook does the same in seconds at the `smoke` scale: a regression test, not
# evidence. The committed results above are from
#
# ```
# gqc batch run notebooks/batches/22_noise_annealing.yaml --jobs 2
# ```
#
# and from `22_noise_arms`, `22_cosine_arms`, `22_schedule_free`, `22_wide`, `22_ladder`, `22_sizes`
# and `22_thresholds`.
#
# An arm is a method and the curve of its learning rate; a rung is a size of the model with 5.6
# tokens for each parameter.
#
# At 1M parameters four or five learning rates of each arm were tried on the seed of the tuning,
# which decides nothing: the best end at 1.2281 nat/token for GNTS, 1.2385 for AdamW with a cosine
# and 1.3267 for AdamW at a constant one. The runs of `22_sizes` have fresh seeds.
#
# All arms share a weight decay and a half-life of AdamW's second moment. Where these are tuned too
# (the *wide* arms, twice the settings), GNTS at a constant learning rate ends at 1.5439 nat/token
# on that seed, AdamW at a constant one at 1.6288 and with a cosine at 1.5431; of the arms that
# share them the best end at 1.5675, 1.6683 and 1.5625. The runs of `22_wide` have fresh seeds.

# %% tags=["parameters"]
# settings: gqc_lab.studies.pretraining.PretrainingConfig
scale = "smoke"  # seconds, minutes, a GPU
rung: str | None = None  # size of the model: 0.04M, 0.16M, 0.4M or 1M; None: the scale's
arms = ["adamw, cosine", "adamw, constant", "gnts, constant", "sbc, constant", "replay, constant"]
seed = 0  # of the weights and of the order of the text
tokens: int | None = None  # training budget, None: the rung's
device = "auto"
dtype = "float32"

# %%
from gqc_lab import figures, runs
from gqc_lab.studies.pretraining import annealing, equal_tokens

# %% tags=["nbval-ignore-output"]
place = {"seed": seed, "device": device, "dtype": dtype}
place |= {} if tokens is None else {"tokens": tokens}
rung = rung or annealing.OF_SCALE[scale]
compared = {rung: annealing.comparison(arms, rung, **place)}
history, results, data_hash = equal_tokens.run_all(compared)

# %% tags=["nbval-ignore-output"]
figures.claims.comparison_losses(history)

# %%
parallel = {f"turns_{n}": n for n in (1, 4, 16)}
for column, n in parallel.items():
    taken = [annealing.turns(history[history["method"] == arm], n) for arm in results["method"]]
    results[column] = taken
shown = {"val_loss": 2, "steps": 0, "mean_logical_batch_examples": 1, "num_forced": 0}
results.set_index("method")[[*shown, *parallel]].round(shown)

# %% [markdown]
# `turns_16`: length of the run, in microbatches one after another, if up to 16 are computed at
# once.
#
# **Limits.** One text, models of up to 0.4M parameters, settings tuned on one other seed. A
# learning rate that decays ends at a tenth of its peak. Torch's defaults beat the tuned constant
# learning rate, whose space holds the half-life of the second moment fixed.

# %%
saved = runs.save(history, results, data_hash=data_hash)
