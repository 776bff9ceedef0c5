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
# # Which wrapper helps at equal tokens?
#
# Every wrapper decides in its own way when AdamW may step (see *Methods*).
#
# **Question.** From the same weights, with the same number of tokens: which of them lowers the
# held-out loss of a small GPT below that of AdamW at its tuned constant batch, if the learning
# rate of all decays by a cosine?

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %% tags=["evidence", "nbval-ignore-output"]
from gqc_lab import claims

claims.show_evidence("02_all_wrappers")

# %% [markdown]
# ## Methods
#
# | method | steps when |
# |---|---|
# | `adamw` | at once, or after a constant number of microbatches: the baseline |
# | `gnts` (gradient norm threshold) | the norm of the mean gradient is below a threshold |
# | `gns` (gradient noise scale) | the batch is as large as earlier noise scales ask for |
# | `normtest` (norm test) | the noise in the mean gradient of this window is small against it |
# | `mht` (metric hypothesis test) | the confidence interval of the mean training loss is narrow |
# | `gnr` (gradient norm rescaler) | as `adamw`, with the gradient rescaled to a fixed norm |
# | `sbc` (scheduled batch controller) | a batch whose size grows on a schedule here is full |
# | `replay` | as often as `gnts` did on another order of the text: no reactivity |
#
# ## Run it yourself
#
# The rest of this notebook does the same in seconds at the `smoke` scale: a regression test, not
# evidence. The committed results above are from
#
# ```
# gqc batch run notebooks/batches/02_all_wrappers.yaml --jobs 2
# ```

# %% tags=["parameters"]
# settings: gqc_lab.studies.pretraining.PretrainingConfig
scale = "smoke"  # seconds, minutes, GPUs
methods: list | None = None  # None: every one that decides when to step
seed = 0  # of the weights and of the order of the text
tokens: int | None = None  # training budget, None: the scale's
lr: float | None = None  # peak learning rate, None: tuned for the scale and method
corpus: str | None = None  # kjv, hf:NAME or the path of a text; None: the scale's
device = "auto"
dtype = "float32"

# %%
import pandas as pd

from gqc_lab import figures, runs, track
from gqc_lab.studies import pretraining

# %% [markdown]
# ## Train
#
# One experiment per method, on the same text in the same order. The replay of `gnts` (which must
# come before it) runs on a different order; otherwise it would repeat the same run.

# %% tags=["nbval-ignore-output"]
methods = methods or pretraining.CONTROLLERS
if "replay" in methods and "gnts" not in methods[: methods.index("replay")]:
    raise ValueError(f"methods={methods}: expected gnts before replay, which repeats its draws")
chosen = {"seed": seed, "tokens": tokens, "lr": lr, "corpus": corpus}
chosen |= {"device": device, "dtype": dtype}
experiments = {}
for method in methods:
    if method == "replay":
        config = pretraining.replay_config(experiments["gnts"], data_seed=seed + 1000)
    else:
        config = pretraining.config(scale, method=method, **chosen)
    experiments[method] = pretraining.build(config)
    for _ in track(experiments[method]):
        pass
history = pd.concat([e.history for e in experiments.values()], ignore_index=True)

# %% [markdown]
# ## Held-out loss at equal tokens

# %% tags=["nbval-ignore-output"]
figures.loss_against(history)

# %% [markdown]
# ## Draws per step
#
# How many microbatches each method averages into a step, over the course of training.

# %% tags=["nbval-ignore-output"]
figures.draws_per_step(history)

# %% [markdown]
# ## Noise scale as each wrapper sees it
#
# Three wrappers estimate the noise scale: how many microbatches it takes for their mean to have as
# much noise as signal. Only `gns` fixes the number of draws before it sees the noise of the window,
# so only its estimate is unbiased (notebook 03 compares it with the true value). `normtest` stops
# when the noise happens to look small, which makes its estimate too low; `gnts` stops when the norm
# does, which makes the signal too small and the estimate too high.

# %% tags=["nbval-ignore-output"]
figures.noise.noise_scale_against(history)

# %% [markdown]
# ## What this run says

# %%
results = pd.DataFrame([experiment.summary() for experiment in experiments.values()])
table = results.set_index("method")
table["minus_adamw"] = table["val_loss"] - table["val_loss"].get("adamw", float("nan"))
size = next(iter(experiments.values())).config.microbatch_size
table["draws_per_step"] = table["mean_logical_batch_examples"] / size  # of closed windows
shown = {"val_loss": 3, "minus_adamw": 3, "draws_per_step": 1, "num_forced": 0}
table[list(shown)].round(shown).sort_values("val_loss", kind="stable")

# %%
if "adamw" in table.index and len(table) > 1:
    best = table["val_loss"].drop(index="adamw").idxmin()
    print(f"Lowest except for the baseline: {best}, after {int(table['tokens'].min()):,} tokens")
    print("each; one seed, so no interval.")

# %% [markdown]
# The settings of each method were chosen from ten runs or more on one seed that the batch does not
# use (recorded in `gqc_lab.studies.pretraining`). gns, normtest and mht did best where they hardly
# draw more than their least, two microbatches per step; stricter settings lost, since tokens spent
# on a better gradient are steps not taken. sbc did best at its slowest growth, from one microbatch
# to two, 1.2 draws per step.
#
# **Limits.** At laptop scale the model has 0.16M parameters. The replay sees a different order of
# the text, so its difference from gnts includes that too.

# %%
data_hash = next(iter(experiments.values())).data_hash
saved = runs.save(history, results, data_hash=data_hash)
