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
# # What happens when you move the norm threshold during a run?
#
# The threshold of GNTS decides how many microbatches (*draws*) are averaged before a step: a lower
# threshold means less noise, more draws and fewer steps. Its schedule is a curve with five numbers,
# and the easiest way to find a good one is to watch a run.
#
# **The draws follow from the next microbatch on.** In the run below, a mean threshold of 0.34 in
# place of 2.99 took 2.1 draws per step in place of 1.0, and raising it to 0.8 brought 1.0 back.
#
# **To steer a run.** Set `interactive = True` in the parameters cell, run all cells, press *Start*,
# and edit the schedule while the model trains. An edit takes effect at the next microbatch. *Save*
# keeps the run with every change that you made, as parameters that repeat it exactly.
#
# **To read.** Below is a run that was steered: its threshold was lowered and later raised. The
# changes are in the parameters cell, and this notebook has replayed them.

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[widgets] @ ADDRESS"')

# %% tags=["parameters"]
# settings: gqc_lab.studies.pretraining.PretrainingConfig
interactive = False  # True: wait for a person; False: replay `changes` and train to the end
scale = "smoke"  # seconds, minutes, a GPU
seed = 0  # of the weights and of the order of the text
tokens: int | None = 131_072  # training budget, None: the scale's
lr: float | None = None  # peak learning rate, None: the scale's
corpus: str | None = None  # kjv, hf:NAME or the path of a text; None: the scale's
device = "auto"
dtype = "float32"
start_norm: float | None = None  # threshold after warmup, None: the scale's
end_norm: float | None = None  # threshold at the end, None: the scale's
norm_warmup: float | None = None  # share of the run, None: the scale's
norm_warmup_multiplier = 10.0  # first threshold / start_norm
norm_curve = "cosine"
norm_exponent = 1.0  # of polynomial
norm_points: list = []  # of points: [share of the run, threshold] pairs
max_draws = 16  # microbatches after which a step is forced
changes = [
    {"microbatch": 101, "name": "start_norm", "value": 0.4},
    {"microbatch": 101, "name": "end_norm", "value": 0.25},
    {"microbatch": 181, "name": "norm_curve", "value": "constant"},
    {"microbatch": 181, "name": "start_norm", "value": 0.8},
]  # controls that were changed, and the first microbatch under the new value

# %%
from IPython.display import display

from gqc_lab import figures, runs, track
from gqc_lab.studies import pretraining

# %% [markdown]
# ## Run

# %%
config = {"scale": scale, "seed": seed, "tokens": tokens, "lr": lr, "corpus": corpus}
config |= {"device": device, "dtype": dtype, "max_draws": max_draws}
config |= {"start_norm": start_norm, "end_norm": end_norm, "norm_warmup": norm_warmup}
config |= {"norm_warmup_multiplier": norm_warmup_multiplier, "norm_curve": norm_curve}
config |= {"norm_exponent": norm_exponent, "norm_points": norm_points}
config = {name: value for name, value in config.items() if value is not None}
experiment = pretraining.build(pretraining.config(method="gnts", **config))

# %% tags=["nbval-ignore-output"]
if interactive:
    from gqc_widgets import LiveRun, NormScheduleEditor

    live = LiveRun(experiment, parameters=config | {"interactive": False})
    display(live)
else:
    experiment.replay(changes)
    for _ in track(experiment):
        pass

# %% tags=["nbval-ignore-output"]
if interactive:
    editor = NormScheduleEditor(live)
    display(editor)

# %% [markdown]
# ## What the changes did
#
# These cells show the run so far: run them again while it trains, or at its end. The threshold is
# an upper bound: at every step the norm is below it, except where `max_draws` forced the step
# (crosses).

# %% tags=["nbval-ignore-output"]
history = experiment.history
if len(history):
    display(figures.norm_against_threshold(history, x="microbatch"))

# %% tags=["nbval-ignore-output"]
if len(history):
    display(figures.draws_per_step(history, x="microbatch"))

# %%
for change in experiment.changes:
    print(f"from microbatch {change['microbatch']}: {change['name']} = {change['value']}")

# %% [markdown]
# ## Answer
#
# Draws per step between each pair of changes:

# %%
if len(history):
    started = history["changes"].notna().cumsum().rename("changes")
    steps = history[history["stepped"]].astype({"num_draws": float})
    by_stretch = steps.groupby(started.loc[steps.index])
    table = by_stretch.agg(
        first_microbatch=("microbatch", "min"),
        threshold=("gradient_norm_threshold", "mean"),
        steps=("stepped", "size"),
        mean_draws=("num_draws", "mean"),
    )
    display(table.round({"threshold": 2, "mean_draws": 1}))

# %%
summary = experiment.summary()
if summary["val_loss"] is not None:
    print(f"held-out loss {summary['val_loss']:.2f} nat/token after {summary['tokens']:,} tokens")
    print(f"{summary['num_forced']} of {summary['steps']} steps forced at {max_draws} draws")

# %% [markdown]
# Lowering the threshold costs draws from the next microbatch on, and raising it gives them back:
# the norm of a mean of $n$ draws falls as $\sqrt{|G|^2 + \mathrm{tr}\,\Sigma/n}$, so a threshold
# near $|G|$ needs many draws, and one below it cannot be met at all.
#
# **Limits.** One seed of a small model, steered by eye: such a run shows how the threshold works,
# not whether it helps. A saved run that was steered says so (`is_steered`), and its
# `parameters.yaml` repeats it without a person; *Save* says where it is:
#
# ```
# gqc run notebooks/07_norm_schedule_live.ipynb -f .../parameters.yaml
# ```
#
# *Export* in the editor gives the schedule alone, ready to be run as a batch over seeds. For
# evidence see notebook 01.

# %%
if not interactive:
    saved = runs.save(history, summary, data_hash=experiment.data_hash)
