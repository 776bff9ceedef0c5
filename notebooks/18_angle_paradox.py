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
# # Can gradients align with momentum and still shrink 20-fold?
#
# An angle below 1 degree between Adam's momentum and the raw gradient has been reported, together
# with gradient norms cut 20-fold by accumulation. Independent noise does not allow both: pure noise
# stands at 64 degrees to the momentum ($\arcsin \beta_1$, $\beta_1$ = 0.9); an angle near 0 means
# that there is no noise, and then averaging cuts nothing; and n microbatches cut norms at most
# $\sqrt n$ times.
#
# **Question.** What are the angle and the norms while a small GPT trains, and which reading of the
# report is possible?

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %% tags=["evidence", "nbval-ignore-output"]
from gqc_lab import claims

claims.show_evidence("18_angle_paradox")

# %% [markdown]
# ## Run it yourself
#
# The rest of this notebook does the same in seconds at the `smoke` scale: a regression test, not
# evidence. The committed results above are from
#
# ```
# gqc batch run notebooks/batches/18_angle_paradox.yaml --jobs 2
# gqc batch run notebooks/batches/18_under_accumulation.yaml --jobs 2
# ```

# %% tags=["parameters"]
# settings: gqc_lab.studies.pretraining.PretrainingConfig
scale = "smoke"  # seconds, a minute, a GPU
moments = [0.0, 0.02, 0.1, 0.5, 1.0]  # at least 0, at most 1; shares of the run
num_draws: int | None = None  # at least 2; most microbatches averaged, None: the scale's
accumulation = 1  # microbatches per step of AdamW
arm: str | None = None  # of notebook 22, such as "gnts, constant"; None: AdamW at a constant batch
seed = 0  # of the weights and of the order of the text
tokens: int | None = None  # training budget, None: the scale's
corpus: str | None = None  # kjv, hf:NAME or the path of a text; None: the scale's
device = "auto"
dtype = "float32"

# %%
import pandas as pd

from gqc_lab import figures, runs, track
from gqc_lab.studies.pretraining import annealing, gradient_angles
from gqc_lab.studies import pretraining
from gqc_lab.loop.placement import make_generator
from gqc_lab.loop.settings import of_scale

# %% [markdown]
# ## Train
#
# AdamW at a constant batch, or another `arm`, with the angle at every step. At some points training
# pauses: gradients of further text are averaged at the current weights.

# %% tags=["nbval-ignore-output"]
place = {"corpus": corpus, "device": device, "dtype": dtype, "seed": seed}
place |= of_scale(gradient_angles.SCALES, scale, tokens=tokens, num_draws=num_draws)
num_draws = place.pop("num_draws")
if arm is None:
    config = pretraining.config(scale, method="adamw", accumulation=accumulation, **place)
else:
    [config] = annealing.comparison([arm], annealing.OF_SCALE[scale], **place).values()
run = gradient_angles.build(config)
further = make_generator(seed, "probe")
pauses = {round(share * config.num_microbatches) for share in moments}
probes = {0: gradient_angles.probe(run, num_draws, further)} if 0 in pauses else {}
for _ in track(run, has_bar=False):
    if run.microbatch in pauses:
        probes[run.microbatch] = gradient_angles.probe(run, num_draws, further)
probed = pd.concat(probes.values()).assign(kind="probe", method=config.name, seed=seed)
history = pd.concat([run.history.assign(kind="step"), probed], ignore_index=True)

# %% [markdown]
# ## The angle
#
# The momentum that a step uses contains the gradient of that step, with a weight of $1-\beta_1$;
# the momentum before the step does not. Diamonds: the prediction for independent noise of the
# measured strength around a gradient $G$ that stays constant. Early in training it does not, and
# the prediction lies far below the angle of the step. $G$ turns faster than the momentum, a mean
# over ten steps or so, can follow: even a mean of many microbatches, with little noise left, may
# stand at about a right angle to it then (*angle to momentum*, in the last table).

# %% tags=["nbval-ignore-output"]
figures.claims.angles(history)

# %% [markdown]
# ## The norm of a mean
#
# Lines: $\sqrt{(\|G\|^2 + \mathrm{tr}\,\Sigma/n) / (\|G\|^2 + \mathrm{tr}\,\Sigma)}$, from
# different microbatches than the points.

# %% tags=["nbval-ignore-output"]
figures.claims.norms_against_draws(history)

# %% [markdown]
# ## What this run says
#
# The noise scale is in microbatches.

# %%
largest = probed[probed["num_draws"] == probed["num_draws"].max()].set_index("microbatch")
shown = {"noise_scale": 1, "predicted_angle": 0, "norm": 2, "norm_ratio": 2, "predicted_ratio": 2}
shown |= {"sum_ratio": 0, "angle_to_momentum": 0}
largest[list(shown)].astype(float).round(shown)

# %%
results = gradient_angles.numbers(run, probed)
print(f"median angle: {results['median_angle']:.0f} degrees to the momentum with the gradient,")
print(f"{results['median_angle_before']:.0f} to the one before;")
print(f"{results['first_angle']:.0f} at step 1; below 1 degree at")
print(f"{100 * results['share_below_1']:.1f} % of the steps.")
print(f"A mean of {num_draws} is at most {results['largest_cut']:.1f} times smaller than one;")
print(f"independent noise allows {num_draws**0.5:.1f}.")

# %% [markdown]
# **Possible readings of the report.** *The first steps*: at step 1 the momentum is the gradient, at
# 0 degrees, whatever the noise. *The momentum contains the gradient*: that alone takes noise from
# 90 to 64 degrees, no further. *Bias correction* scales the momentum and rotates nothing if all
# parameters have made the same number of steps. *Unsigned*: angles folded at 90 degrees are smaller
# only where the cosine is negative. *Sum instead of mean*: the sum of n gradients is n times the
# mean (*sum ratio*); a library that divides each of them by n makes norms n times smaller at the
# first draw, without averaging anything, and that may be read as a 20-fold cut.
#
# **Limits.** One small model, one optimizer; the angle is over all parameters together.

# %%
saved = runs.save(history, results, data_hash=run.data_hash)
