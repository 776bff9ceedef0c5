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
# # Which claims can be decided without training?
#
# Three published claims and one of this project are about bytes, files and formulas:
#
# - the memory of gradient accumulation is constant in the number of draws;
# - checkpoints of old versions of VGS load with a warning, statistics and warmup restart, and
#   training continues;
# - a slowly changing factor on the gradient, such as that of VGS, is invisible to Adam (ours);
# - in UPGD, min-max normalization handles all-negative, mixed and extreme utilities, whereas
#   normalization by the maximum reverses protection.
#
# **Question.** Do they hold, to the byte, the bit and the rank?

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %% tags=["evidence", "nbval-ignore-output"]
from gqc_lab import claims

claims.show_evidence("20_without_training")

# %% [markdown]
# ## Run it yourself
#
# The rest of this notebook does the same in seconds at the `smoke` scale: a regression test, not
# evidence. The committed results above are from
#
# ```
# gqc batch run notebooks/batches/20_without_training.yaml --jobs 2
# ```

# %% tags=["parameters"]
# settings: gqc_lab.loop.settings.Config
scale = "smoke"  # one of smoke, laptop, paper; seconds, half a minute, minutes
seed = 0  # of data, noise, configurations and utilities
durations: list | None = None  # at least 1; steps in which a factor falls, None: the scale's
draws: list | None = None  # at least 1; of a window, two numbers of 2 or more, None: the scale's
widths: list | None = None  # at least 1; of networks, None: the scale's
num_weights: int | None = None  # at least 2; random utilities of each case, None: the scale's
device = "auto"  # memory and gates are always the CPU's
dtype = "float32"

# %%
import pandas as pd

from gqc_lab import figures, runs
from gqc_lab.loop.settings import of_scale
from gqc_lab.studies.vgs import factor_invariance, migration as vgs_migration
from gqc_lab.studies.continual import upgd_order
from gqc_lab.studies import window_memory

# %% [markdown]
# ## Memory
#
# The largest number of bytes of tensors alive at the same time while a network draws n microbatches
# and steps: weights, data, activations and gradients. The wrappers are compared with plain
# accumulation, and with a list that keeps every gradient until the step.

# %%
chosen = {"draws": draws, "widths": widths, "durations": durations, "num_weights": num_weights}
chosen = of_scale(window_memory.SCALES, scale, **chosen)
draws, widths, durations, num_weights = chosen.values()
memory = window_memory.measure(draws, widths, seed, dtype)
compared = window_memory.compare(memory)

# %% tags=["nbval-ignore-output"]
figures.without_training.peak_memory(memory[memory["width"] == max(widths)])

# %% [markdown]
# `growth`: peak at the most draws over the peak at the fewest, counting from 2. `over_plain`:
# relative to plain accumulation. *More gradients*: difference from it, in sizes of one gradient.

# %%
numbers = ["growth", "over_plain", "more_gradients"]
compared.set_index(["width", "method", "accumulate"])[numbers].round(3)

# %% [markdown]
# ## Checkpoints
#
# A small noisy problem is trained with the estimator of each version and saved in its format; a
# current scaler loads the file and continues.

# %%
migrated = vgs_migration.measure(seed=seed, device=device, dtype=dtype)
shown = [*vgs_migration.PROMISES, "loss_before", "loss_after", "least_factor"]
migrated.set_index("version")[shown].round(2)

# %% [markdown]
# ## A factor under Adam
#
# A noisy quadratic is minimized twice with the same noise, the second time with the gradient
# multiplied by a factor that falls from 1 to 1/6 over a given number of steps. Adam's second
# moments forget over 100 steps here.

# %%
invariance = factor_invariance.measure(durations, seed, device, dtype)
invariance.set_index(["optimizer", "duration"])[["least_ratio", "last_ratio"]].round(2)

# %% tags=["nbval-ignore-output"]
figures.without_training.falling_factor(invariance)

# %% [markdown]
# ## Order of protection
#
# *Kept*: the more useful a weight, the smaller its gate. *Partly*: some gates are equal though
# utilities are not. *Lost*: all gates are equal. *Reversed*: the most useful weight moves most.
# (*None to keep* is for equal utilities, which are in notebook 09.) The published normalizations
# divide utilities with bias correction by bounds without it, which matters at the first step and
# not late in training.

# %%
constructed = upgd_order.constructed_orders()
constructed.pivot(index=["when", "case"], columns="normalization", values="order")

# %% tags=["nbval-ignore-output"]
random = upgd_order.random_orders(num_weights=num_weights, seed=seed, dtype=dtype)
figures.without_training.protection(random)

# %% [markdown]
# ## What this run says

# %%
wrapped = compared[compared["method"].isin(window_memory.WRAPPERS)]
stored = compared[compared["method"] == window_memory.STORED]
large = wrapped[wrapped["width"] == max(widths)].groupby("accumulate")["more_gradients"].max()
print(f"from 2 to {max(draws)} draws the peak grows {wrapped['growth'].max():.3f} times at most,")
print(f"with a list of gradients {stored['growth'].max():.1f} times;")
print(f"above plain accumulation's: {large['grad']:.2f} gradients with the sum in .grad,")
print(f"{large['buffer']:.2f} with a buffer")

# %%
for promise in vgs_migration.PROMISES:
    print(f"{promise:18} {migrated[promise].sum()} of {len(migrated)} versions")

# %%
longest = invariance[invariance["duration"] == max(durations)].set_index("optimizer")
for optimizer, ratio in longest["least_ratio"].items():
    print(f"{optimizer}, a factor that falls in {max(durations)} steps: {ratio:.2f} of the update")

# %%
kept = constructed.groupby(["normalization", "when"], sort=False)["is_kept"].mean()
least = random.groupby(["normalization", "when"], sort=False)["correlation"].min()
asked = [("minmax", "first"), ("minmax", "late")]
asked += [("minmax_published", "late"), ("minmax_published", "first")]
for name, when in asked:
    line = f"{kept[name, when]:4.0%} of the cases kept, least correlation {least[name, when]:5.2f}"
    print(f"{name:17}{when:6}{line}")
negative = random[(random["case"] == "negative") & (random["normalization"] == "max")]
print(f"max, all negative: correlation {negative['correlation'].max():.2f} at most")

# %% [markdown]
# **What to make of it.** A sum does not grow. In `.grad` it costs nothing; a buffer costs one
# gradient, minus what the backward pass holds in any case. On the CPU, gradients of up to 1 MB are
# copied to compute their norm: that is the extra memory of the narrow network. A factor is
# invisible to Adam if it changes little while the second moments forget, and otherwise visible for
# as long as they remember; SGD follows every factor. Min-max is right once its bounds have the bias
# correction of the utilities; as published it is right late in training, and at the first step has
# one gate for all negative utilities.
#
# **Limits.** Bytes are those of tensors: what an operation allocates internally is not counted, nor
# is the one Python number that MHT keeps for each draw. The checkpoint loader is that of this kit,
# and the files are written by its estimators in the published formats. Gates of extreme utilities
# are compared to the last bit of `dtype`: next to a utility of 1e6, float32 hides differences below
# 0.03.

# %%
parts = {
    "memory": memory,
    "compared": compared,
    "migration": migrated,
    "invariance": invariance,
    "constructed": constructed,
    "random": random,
}
results = pd.concat([p.assign(kind=kind) for kind, p in parts.items()], ignore_index=True)
saved = runs.save(None, results)
