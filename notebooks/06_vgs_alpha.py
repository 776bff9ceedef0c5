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
# # Does scaling by gradient variance stabilize training?
#
# VGS multiplies gradients by $1/(1 + \alpha \min(V, V_\max))$. It is claimed to lower the variance
# of the loss (of a value function, in the source), to converge better under noise, and to cost
# nothing in final performance.
#
# **Question.** On digits with wrong labels, and on values of a small Markov chain learned from TD
# targets: does VGS do so, and does it do more than a constant factor?

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %% tags=["evidence", "nbval-ignore-output"]
from gqc_lab import claims

claims.show_evidence("06_vgs_alpha")

# %% [markdown]
# ## Run it yourself
#
# The rest of this notebook does the same in seconds at the `smoke` scale: a regression test, not
# evidence. The committed results above are from
#
# ```
# gqc batch run notebooks/batches/06_vgs_alpha.yaml --jobs 2
# gqc batch run notebooks/batches/06_aggregates.yaml --jobs 2
# ```

# %% tags=["parameters"]
# settings: gqc_lab.studies.vgs.settings.VGSTrainingConfig
scale = "smoke"  # seconds, minutes, hours
tasks = ["digits", "values"]
optimizers = ["sgd", "adamw"]
alphas = [0.1]  # above 0; strengths of VGS
betas = [0.9, 0.99, 0.999]  # of its averages, in the question of what is resolved
warmup_steps = 40  # steps before it scales
seed = 0  # the first one, of weights, order and wrong labels
num_seeds = 2  # at least 1; an interval needs two
lr_of = "control"  # one of control, vgs, aggregate; whose tuned learning rate all methods use
aggregate = "percentile"  # one of percentile, mean; of V over tensors
device = "auto"
dtype = "float32"

# %%
import pandas as pd

from gqc_lab.stats import analysis
from gqc_lab import figures, runs, track
from gqc_lab.studies.vgs import training as vgs_training

# %% [markdown]
# ## Train
#
# All methods share weights, data, order and learning rate. *Constant factor* is the non-reactive
# baseline: after the same warmup it multiplies every gradient by 1/6, which is what VGS with alpha
# 0.1 does with a variance that it cannot resolve.

# %% tags=["nbval-ignore-output"]
place = {"device": device, "dtype": dtype}
configs = vgs_training.comparison(
    scale,
    tasks,
    optimizers,
    alphas,
    range(seed, seed + num_seeds),
    warmup_steps=warmup_steps,
    lr_of=lr_of,
    aggregate=aggregate,
    **place,
)
experiments = [vgs_training.build(config) for config in configs]
for experiment in experiments:
    for _ in track(experiment, has_bar=False):
        pass
history = pd.concat([experiment.history for experiment in experiments], ignore_index=True)
results = pd.DataFrame([experiment.summary() for experiment in experiments])

# %% tags=["nbval-ignore-output"]
figures.vgs_training.loss_panels(history)


# %% [markdown]
# ## Compared with no scaling, and with the constant factor
#
# Paired over seeds. *Held-out loss, last quarter*: better convergence, no worse in the end? *sd of
# the held-out loss* and *sd of the training loss*: standard deviation in the second half; more
# stable? (Printed at the end as `tail_val_loss`, `val_loss_sd` and `loss_sd`.)

# %%
def paired(value, baseline):
    groups = results.groupby(["task", "optimizer"], sort=False)
    parts = {k: analysis.paired_difference(g, value, "method", baseline) for k, g in groups}
    return pd.concat(parts, names=["task", "optimizer"]).reset_index().assign(measure=value)


measures = ["tail_val_loss", "val_loss_sd", "loss_sd"]
differences = pd.concat([paired(m, c) for c in ("no scaling", "constant factor") for m in measures])
is_vgs = differences["method"].str.startswith("VGS")
shown = differences[is_vgs].set_index(["baseline", "measure", "task", "optimizer", "method"])
shown[["mean", "low", "high", "n"]].round(2)

# %% [markdown]
# ## What the factor was
#
# Its mean and standard deviation over the steps after warmup; the share of those steps at which V
# is at `variance_cap`, so that the factor cannot react; and the share of tensors whose signal was
# not resolved, which count as `variance_cap`.

# %%
columns = ["mean_factor", "factor_sd", "at_cap", "unresolved"]
results.groupby(["task", "optimizer", "method"], sort=False)[columns].mean().round(2)

# %% [markdown]
# ## Does a larger beta resolve more?
#
# Averages over more steps resolve smaller signals, $R$ up to $(1+\beta)/(1-\beta)$, as long as the
# mean gradient does not change. Here VGS watches a training that it does not scale.

# %% tags=["nbval-ignore-output"]
watched = []
for beta in betas:
    config = vgs_training.config(
        scale, task=tasks[0], optimizer=optimizers[-1], alpha=0.0, beta=beta, seed=seed, **place
    )
    watcher = vgs_training.build(config)
    for _ in track(watcher, has_bar=False):
        pass
    would_be = 1 / (1 + 0.1 * watcher.history["vgs/normalized_variance"].clip(upper=50))
    watched.append(watcher.history.assign(beta=beta, would_be_factor=would_be))
watched = pd.concat(watched, ignore_index=True)
figures.vgs_training.resolution(watched)

# %%
late = watched[watched["microbatch"] > watched["microbatch"].max() / 2]
by_beta = late.groupby("beta").agg(
    unresolved=("vgs/unresolved", "mean"),
    factor=("would_be_factor", "mean"),
    factor_sd=("would_be_factor", "std"),
)
by_beta.round(2)

# %% [markdown]
# ## How Adam responds
#
# Adam divides by the size of past gradients, so a constant factor cancels. The drop at the end of
# the warmup does not, until the second moments have forgotten what came before it, $1/(1-\beta_2)$
# = 1000 steps later. The prediction, `vgs_training.adam_response`, is for independent gradients;
# successive ones are not, and in the short run below the measured size ends above it.

# %% tags=["nbval-ignore-output"]
name = next(m for m in history["method"] if m.startswith("VGS"))
runs_of = history[(history["task"] == tasks[0]) & (history["optimizer"] == "adamw")]
runs_of = runs_of[runs_of["seed"] == seed].set_index("microbatch")
scaled, plain = (runs_of[runs_of["method"] == m] for m in (name, "no scaling"))
frame = pd.DataFrame({"factor": scaled["factor"]})
frame["measured"] = scaled["update_norm"] / plain["update_norm"]
frame["predicted"] = vgs_training.adam_response(scaled["factor"], 0.9, 0.999)
figures.vgs_training.update_ratio(frame.reset_index())


# %% [markdown]
# ## What this run says

# %%
def one_line(row):
    sign = "below" if row["high"] < 0 else "above" if row["low"] > 0 else "indistinguishable from"
    return f"{row['task']:7} {row['optimizer']:9} {row['method']:15} {row['measure']:14} {sign}"


for baseline, rows in differences[is_vgs].groupby("baseline", sort=False):
    print(f"against {baseline}, 95 % interval over {num_seeds} seeds:")
    print("\n".join("  " + one_line(row) for _, row in rows.iterrows()))

# %% [markdown]
# **What to make of it.** Where V is at its cap in all steps the factor is constant: VGS
# is then a learning rate that drops once, at the end of the warmup, and the constant factor trains
# in exactly the same way. V is the 90th percentile over tensors: it is enough for a tenth of them
# to be above the cap.
#
# **Limits.** Networks of a few thousand parameters, constant learning rates tuned on three other
# seeds, and no correction for multiple comparisons except in the verdicts.

# %%
saved = runs.save(history, results, data_hash=experiments[0].data_hash)
