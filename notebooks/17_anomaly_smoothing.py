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
# # Do difficult microbatches trigger more draws, and does that help?
#
# GNTS, GNS and MHT are claimed to smooth out anomalies: a noisy batch makes them draw more.
# Here the targets of some microbatches are shuffled, so it is known which ones are noisy.
#
# A window that draws more contains a noisy microbatch more often for that reason alone. Windows are
# therefore classified by their **first** microbatch: each has exactly one. A *replay* makes the
# same draws on different text with different noise: what it shows cannot be a reaction.
#
# **Question.** How many more draws follow a noisy first microbatch, how do draws correlate with the
# difficulty of the first microbatch, and is the final loss lower than that of the replay?
#
# A token is a character here (a byte at the `paper` scale).

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %% tags=["evidence", "nbval-ignore-output"]
from gqc_lab import claims

claims.show_evidence("17_anomaly_smoothing")

# %% [markdown]
# ## Run it yourself
#
# The rest of this notebook does the same in seconds at the `smoke` scale: a regression test, not
# evidence. The committed results above are from
#
# ```
# gqc batch run notebooks/batches/02_all_wrappers.yaml --jobs 2
# gqc batch run notebooks/batches/17_anomaly_smoothing.yaml --jobs 2
# ```

# %% tags=["parameters"]
# settings: gqc_lab.studies.pretraining.PretrainingConfig
scale = "smoke"  # seconds, minutes, a GPU
wrappers = ["gnts", "gns", "gns, reactive", "mht"]  # names of noisy_batches.METHODS
noisy_share: float | None = None  # above 0, below 1; of the microbatches, None: the scale's
seed = 0  # of the weights, the order of the text and the noise
tokens: int | None = None  # training budget, None: the scale's
corpus: str | None = None  # kjv, hf:NAME or the path of a text; None: the scale's
device = "auto"
dtype = "float32"

# %%
import pandas as pd

from gqc_lab import figures, runs, track
from gqc_lab.loop.settings import of_scale
from gqc_lab.studies.pretraining import noisy_batches
from gqc_lab.studies import pretraining

# %% [markdown]
# ## Train
#
# `gns` sets the length of a window from past windows, `gns, reactive` also from the open one,
# `gnts` from the norm of the mean gradient so far, and `mht` from the losses so far.

# %% tags=["nbval-ignore-output"]
place = {"corpus": corpus, "device": device, "dtype": dtype, "seed": seed}
place |= of_scale(noisy_batches.SCALES, scale, tokens=tokens, noisy_share=noisy_share)
configs = noisy_batches.comparison(scale, **place)
histories, rows = [], []
for label in wrappers:
    run = config = None
    for name in (label, f"{label}, replay"):
        config = pretraining.replay_config(run, data_seed=seed + 1000) if run else configs[label]
        run = pretraining.build(config)
        for _ in track(run, has_bar=False):
            pass
        histories.append(noisy_batches.windows(run.history).assign(method=name))
        rows.append(run.summary() | {"method": name} | noisy_batches.reaction(histories[-1]))
history, results = pd.concat(histories, ignore_index=True), pd.DataFrame(rows)

# %% tags=["nbval-ignore-output"]
measures = {
    "extra_draws": "extra draws\n[microbatches]",
    "correlation": "rank correlation,\nall windows",
    "clean_correlation": "rank correlation,\nclean first",
}
figures.claims.by_method(results, measures, level=0)

# %% [markdown]
# ## What this run says
#
# Draws by whether the first microbatch is noisy, and the difference; by whether *any* microbatch is
# noisy, which says more about length than about reaction (the replay shows it too); and the rank
# correlation between the difficulty of the first microbatch and the draws of the window, over all
# windows and over those whose first microbatch is clean. Difficulty is the loss before learning
# from the microbatch, minus the median over the hundred microbatches around it.

# %%
shown = ["draws_clean_first", "draws_noisy_first", "extra_draws", "draws_without_noisy"]
shown += ["draws_with_noisy", "correlation", "clean_correlation"]
results.set_index("method")[shown].round(2)

# %%
loss = results.set_index("method")["val_loss"]
for method in wrappers:
    difference = loss[method] - loss[f"{method}, replay"]
    print(f"{method}: validation loss {loss[method]:.2f}, over its replay's {difference:+.2f}")
print("nat/token, of one seed: no interval")

# %% [markdown]
# **Limits.** Shuffled targets are one kind of anomaly, and the settings were tuned without noise.
# All wrappers of a seed read one order of the text and all replays another, which does not average
# out over ten seeds: GNS by past windows, which cannot react within one, is below its replay too.

# %%
saved = runs.save(history, results, data_hash=run.data_hash)
