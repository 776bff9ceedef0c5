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
# # What happens when you change alpha during a run?
#
# **The factor follows from the next step on, and here a smaller one only slows training down.**
# With alpha at 0, 0.1 and 0.5 throughout, the mean factor is 1, 0.46 and 0.20, and the mean square
# error of the values 1.42, 1.97 and 2.61 reward² (one seed of the short runs below).
#
# VGS multiplies each gradient by $f = 1/(1 + \alpha \min(V, V_\max))$, where $V$ is the variance of
# the gradient over its squared mean, both averaged over recent steps: the median over tensors here,
# the 90th percentile by default. How strong should it be? A recorded $V$ shows at once which
# factor any other $\alpha$ would have given. It cannot show what training would have become: that
# takes another run.
#
# **To steer a run.** Set `interactive = True` in the parameters cell, run all cells, press *Start*,
# and move alpha while the model trains. *What if* redraws the factor for other settings without
# training; *Side by side* trains several alphas from one start.
#
# **To read.** Below is a run that was steered: alpha was raised and later set to 0. Next to it are
# three runs with a constant alpha each, and what the record of the first predicts for them.

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[widgets] @ ADDRESS"')

# %% tags=["parameters"]
# settings: gqc_lab.studies.vgs.settings.VGSTrainingConfig
interactive = False  # True: wait for a person; False: replay `changes` and train to the end
scale = "smoke"  # seconds, minutes, hours
task = "values"  # or digits, with wrong labels
optimizer = "sgd"
seed = 0  # of weights, order and wrong labels
steps: int | None = 400  # None: the scale's
lr: float | None = None  # None: the one tuned for the plain optimizer
alpha = 0.1  # strength at the start, 0 measures only
beta = 0.97  # decay of the statistics
warmup_steps = 40  # steps with factor 1
percentile = 0.5  # of the variance over tensors
min_scaling_factor = 0.1  # least factor
variance_cap: float | None = 50.0  # None: as far as beta resolves
estimator = "sketch"  # one of sketch, elementwise; or a published one: see notebook 04
alphas = [0.0, 0.1, 0.5]  # side by side
device = "auto"
dtype = "float32"
changes = [
    {"microbatch": 161, "name": "alpha", "value": 0.5},
    {"microbatch": 281, "name": "alpha", "value": 0.0},
]  # controls that were changed, and the first microbatch under the new value

# %%
from dataclasses import replace

import pandas as pd
from IPython.display import display

from gqc_lab import figures, runs, track
from gqc_lab.studies.vgs import training as vgs_training
from gqc_lab.loop.scaler_controls import LAW, scaled_steps, what_if

# %% [markdown]
# ## Run

# %%
config = {"scale": scale, "task": task, "optimizer": optimizer, "seed": seed, "steps": steps}
config |= {"lr": lr, "alpha": alpha, "beta": beta, "warmup_steps": warmup_steps}
config |= {"percentile": percentile, "min_scaling_factor": min_scaling_factor}
config |= {"estimator": estimator, "device": device, "dtype": dtype}
config = {name: value for name, value in config.items() if value is not None}
config |= {"variance_cap": variance_cap}
experiment = vgs_training.build(vgs_training.config(**config))

# %% tags=["nbval-ignore-output"]
if interactive:
    from gqc_widgets import LiveRun, VGSAlphaTuner

    live = LiveRun(experiment, parameters=config | {"interactive": False})
    display(live)
else:
    experiment.replay(changes)
    for _ in track(experiment):
        pass

# %% tags=["nbval-ignore-output"]
compared = {}
if interactive:
    tuner = VGSAlphaTuner(live)
    display(tuner)
else:
    for strength in alphas:
        other = vgs_training.build(replace(experiment.config, alpha=strength))
        compared[strength] = other
        for _ in track(other, has_bar=False):
            pass

# %% [markdown]
# ## What the changes did
#
# These cells show the run so far: run them again while it trains, or at its end. Dotted lines mark
# where alpha was changed: the factor jumps, while V, which is read from the gradient before
# scaling, does not.

# %% tags=["nbval-ignore-output"]
history = experiment.history
if len(history):
    display(figures.scaler.variance_and_factor(history))

# %%
for change in experiment.changes:
    print(f"from microbatch {change['microbatch']}: {change['name']} = {change['value']}")

# %% [markdown]
# ## Side by side

# %% tags=["nbval-ignore-output"]
if interactive:
    compared = {strength: runner.experiment for strength, runner in tuner.side.runners.items()}
    compared = {strength: other for strength, other in compared.items() if other.microbatch}
parts = [o.history.assign(method=f"alpha {a:g}", alpha=a) for a, o in compared.items()]
if parts:
    together = pd.concat(parts, ignore_index=True)
    display(figures.vgs_training.loss_panels(together))

# %% tags=["nbval-ignore-output"]
laws = {f"alpha {a:g}": {n: o.controls[n] for n in LAW} for a, o in compared.items()}
if parts:
    display(figures.scaler.what_if_against_runs(together, laws, recorded=next(iter(laws))))

# %% [markdown]
# ## Answer
#
# For each alpha: the mean factor after the warmup that the record of the first run predicts, the
# mean factor of its own run, the error of the values (mean of its last quarter of evaluations), and
# the standard deviation of the training loss over the second half:

# %%
rows = []
for strength, other in compared.items():
    record = scaled_steps(next(iter(compared.values())).history, "microbatch")
    warm = record["count"] >= other.controls["warmup_steps"]
    promised = what_if(record, {n: other.controls[n] for n in LAW})[warm].mean()
    measured = vgs_training.stability(other.history, other.controls["warmup_steps"])
    rows.append({"alpha": strength, "promised_factor": promised, **measured})
results = pd.DataFrame(rows)
if rows:
    columns = ["promised_factor", "mean_factor", "tail_val_loss", "loss_sd"]
    display(results.set_index("alpha")[columns].round(2))

# %% [markdown]
# The factor follows alpha from the next microbatch on. The training loss does not vary less with a
# larger alpha here (0.77, 0.82, 0.88). What the record predicts for another alpha holds as long as
# both trainings are at the same point: a smaller factor slows training down, so its gradients are
# those of an earlier time, with more signal in them. A stronger scaling therefore meets less
# variance than the record shows, and turns out weaker than predicted.
#
# **Limits.** One seed of a small network. A run steered by eye shows how alpha works, not whether
# it helps, and a smaller factor is also a smaller step: for evidence, with a constant factor as the
# baseline, see notebook 06. A saved run that was steered says so (`is_steered`), and its
# `parameters.yaml` repeats it without a person; *Save* says where it is:
#
# ```
# gqc run notebooks/08_vgs_alpha_live.ipynb -f .../parameters.yaml
# ```

# %%
if not interactive:
    saved = runs.save(together, results, data_hash=experiment.data_hash)
