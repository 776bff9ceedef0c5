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
# # Which weights does UPGD protect?
#
# UPGD multiplies the step of each weight by a gate: small where the weight is useful, large where
# it is not. What counts as useful is decided by a normalization of the utilities:
#
# | | scaled utility | gates in |
# |---|---|---|
# | `minmax` | position between smallest and largest utility | [0.27, 0.73] |
# | `max` | relative to the largest utility (the paper) | (0, 1) |
# | `minmax_published`, `max_published` | as released: bounds without bias correction | the same |
#
# Utilities are running averages that start at 0. As released, they are corrected for that start,
# but the smallest and largest that bound them are not.
#
# **Question.** How do they handle negative, mixed and extreme utilities, do gates saturate in
# training, and does it matter for what is learned?

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %% tags=["evidence", "nbval-ignore-output"]
from gqc_lab import claims

claims.show_evidence("09_upgd_normalisation")

# %% [markdown]
# ## Run it yourself
#
# The rest of this notebook does the same in seconds at the `smoke` scale: a regression test, not
# evidence. The committed results above are from
#
# ```
# gqc batch run notebooks/batches/09_upgd_normalisation.yaml --jobs 2
# ```

# %% tags=["parameters"]
# settings: gqc_lab.studies.continual.ContinualConfig
scale = "smoke"  # seconds, minutes, hours
streams = ["input_permuted"]
normalizations = [
    "minmax",
    "max",
    "minmax_published",
    "max_published",
]
steps = [1, 10, 100, 1000]  # at least 1; steps at which gates are read
lr_factors = [0.5, 1.0, 2.0]  # above 0; times the learning rate that was tuned with minmax
seed = 0  # the first one, of weights, stream and noise
num_seeds = 1  # at least 1; an interval needs two
device = "auto"
dtype = "float32"

# %%
import pandas as pd

from gqc_lab.stats import analysis
from gqc_lab import figures, runs
from gqc_lab.studies.continual import upgd_gates

# %% [markdown]
# ## By construction
#
# Five weights, from a harmful one to the most useful one; gates at the first step, and late, when
# bias correction no longer matters. *Kept*: the more useful a weight, the smaller its gate.
# *Partly*: some gates are equal though utilities are not. *Lost*: all gates are equal. *Reversed*:
# the most useful weight moves most. *None to keep*: all utilities are equal.

# %%
constructed = {
    when: upgd_gates.constructed_gates(normalizations, step=step)
    for when, step in {"first": 1, "late": 100_000}.items()
}
orders = pd.concat({w: upgd_gates.order_of_protection(g) for w, g in constructed.items()})
orders = orders.reset_index(names=["when", "row"])
orders.pivot_table(
    "order", ["when", "case"], "normalization", aggfunc="first", sort=False
)

# %% [markdown]
# ## In training
#
# A network learns a stream of tasks (each with a new permutation of the pixels) with UPGD;
# utilities are averaged with a decay of 0.999. All runs start from the same weights.

# %% tags=["nbval-ignore-output"]
seeds = range(seed, seed + num_seeds)
configs = upgd_gates.comparison(
    scale, streams, normalizations, lr_factors, seeds, device=device, dtype=dtype
)
bars, numbers, experiments = zip(*[upgd_gates.watch(c, steps) for c in configs], strict=True)
bars, numbers = (pd.concat(parts, ignore_index=True) for parts in (bars, numbers))
results = pd.DataFrame([experiment.summary() for experiment in experiments])
tasks = pd.concat([experiment.tasks.assign(lr=experiment.config.lr) for experiment in experiments])

# %% tags=["nbval-ignore-output"]
first_lr = sorted(bars["lr"].unique())[len(lr_factors) // 2]
figures.upgd.gate_histograms(bars[(bars["stream"] == streams[0]) & (bars["lr"] == first_lr)])

# %% [markdown]
# `at_ends`: share of gates within 0.001 of an end of their range. `unused`: share of weights whose
# utility is exactly 0 so far (their pixel was dark, or their unit off); `at_ends_used` leaves these
# out. `least`, `median` and `largest`: gates; a gate of 0 would freeze the weight.

# %%
columns = ["at_ends", "unused", "at_ends_used", "least", "median", "largest"]
by_step = numbers.groupby(["normalization", "step"], sort=False)[columns].mean()
by_step.round(3)

# %% [markdown]
# ## Effect on learning
#
# Online accuracy: share of examples classified correctly before the step that learns from them.
# Larger gates on average are a larger step, so every normalization is run at several learning
# rates.

# %% tags=["nbval-ignore-output"]
figures.upgd.against_lr(results)

# %%
means = results.groupby(["stream", "normalization", "lr"], sort=False)["online_accuracy"].mean()
means.unstack("lr").mul(100).round(1)

# %% [markdown]
# ## What this run says

# %%
first, last = by_step.xs(min(steps), level="step"), numbers["step"].max()
for name in normalizations:
    row, later = first.loc[name], by_step.loc[(name, last)]
    print(f"{name:17} used weights with gates at the ends: {row['at_ends_used']:4.0%} at step 1,")
    print(f"{'':17} {later['at_ends_used']:4.0%} at step {last}; least gate {later['least']:.3f}")


# %%
def against_minmax(group):
    rates = group.groupby(["normalization", "lr"])["online_accuracy"].mean().reset_index()
    best = rates.loc[rates.groupby("normalization")["online_accuracy"].idxmax()]
    runs_of_best = group.merge(best[["normalization", "lr"]])
    return analysis.paired_difference(
        runs_of_best, "online_accuracy", by="normalization", baseline="minmax"
    )


# %%
differences = pd.concat({s: against_minmax(g) for s, g in results.groupby("stream", sort=False)})
differences[["normalization", "mean", "low", "high", "n"]].round(3)

# %% [markdown]
# Differences are in online accuracy, each normalization at the best of its own learning rates,
# paired over seeds.

# %% [markdown]
# **Limits.** The rates were chosen on the seeds that are shown, in the same way for all; noise and
# decay are those tuned with `minmax`. One small network.

# %%
saved = runs.save(
    numbers,
    results,
    data_hash=experiments[0].data_hash,
)
