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
# # Does VGS steady the value loss of PPO?
#
# VGS was made for PPO: it is said to lower the variance of the value function's loss, and to cost
# nothing in the end. PPO clips gradients and steps with Adam, and VGS acts before both.
#
# **Question.** On a pole that is to be balanced, against PPO without scaling and against a constant
# factor: does the value loss vary less with the last published VGS, or with the right estimator,
# and is the return as high in the end?

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %% tags=["evidence", "nbval-ignore-output"]
from gqc_lab import claims

claims.show_evidence("25_vgs_ppo")

# %% [markdown]
# ## Run it yourself
#
# The rest of this notebook does the same in seconds at the `smoke` scale: a regression test, not
# evidence. The committed results above are from
#
# ```
# gqc batch run notebooks/batches/25_vgs_ppo.yaml --jobs 2
# ```

# %% tags=["install"]
if find_spec("stable_baselines3") is None:
    raise SystemExit("skipped: this notebook needs it; run: %pip install stable-baselines3")

# %% tags=["parameters"]
# settings: gqc_lab.loop.settings.Config
scale = "smoke"  # one of smoke, laptop, paper; seconds, minutes, hours
arms = ["no scaling", "VGS 3.2", "VGS", "constant factor"]
seed = 0  # of weights, actions and environment
device = "auto"
dtype = "float32"  # PPO has no other

# %%
from gqc_lab import figures, runs
from gqc_lab.studies.vgs import ppo

# %% tags=["nbval-ignore-output"]
history, results = ppo.run_all(arms, scale, seed, device)

# %% tags=["nbval-ignore-output"]
figures.loss_against(history, "environment_steps", "value_loss")

# %% [markdown]
# `value_loss_sd` is the standard deviation over the second half of the rollouts, `episode_return`
# the mean over the last quarter. At the smoke scale that is one rollout each,
# and within the warmup, where every factor is 1.

# %% tags=["nbval-ignore-output"]
shown = {"value_loss": 2, "value_loss_sd": 2, "episode_return": 1, "mean_factor": 2}
results.set_index("method")[list(shown)].round(shown)

# %% [markdown]
# **Limits.** One environment, which PPO masters in this time, and its default learning rate, which
# was tuned for none of the arms.

# %%
saved = runs.save(history, results)
