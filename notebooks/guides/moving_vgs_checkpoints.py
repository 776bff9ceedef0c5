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
# # How do I move checkpoints and configurations of VGS?
#
# Versions 1.x to 3.2 of the variance gradient scaler measured something other than gradient noise.
# `gqc.compat.vgs` reads their files and configurations. You decide what to continue with: the new
# estimate, which starts again, or the old one, exactly.

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %%
import logging
import sys
import warnings

import torch

# from your_package import VarianceGradientScaler
from gqc.compat.vgs import VarianceGradientScaler  # changed

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
params = list(model.parameters())
old_file = {
    "vgs_version": "3.1",
    "step_count": 500,
    "param_grad_mean_ema": torch.full((4,), 0.1),
    "param_grad_sq_ema": torch.full((4,), 0.04),
}

# %% [markdown]
# ## Continue with the new estimate
#
# The configuration is kept; the statistics and the warmup start again. The warning is logged too,
# where a search for "VGS Checkpoint Migration" finds it.

# %%
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(name)s: %(message)s")
scaler = VarianceGradientScaler(params)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the log says the same
    scaler.load_state_dict(old_file)
print(f"step {scaler.step_count}, factor {scaler.get_scaling_factor():.2f}")

# %% [markdown]
# ## Continue with the old one
#
# Name the estimator of the version: the file is loaded exactly, without a warning.
#
# | file | `estimator=` |
# |---|---|
# | 1.x | `"spatial"` |
# | 2.0, 2.0.1 | `"tensor_spatial"` |
# | 3.0 | `"tensor_mean"` |
# | 3.1, 3.2 | `"mean_square"` |

# %%
old = VarianceGradientScaler(params, estimator="mean_square")
old.load_state_dict(old_file)
print(f"step {old.step_count}, factor {old.get_scaling_factor():.2f}")

# %% [markdown]
# ## Roll back
#
# With a published estimator `state_dict()` is flat and has the marker of its version: the published
# class loads it. Keep the old file until you know that you will not go back; the new estimators'
# files are of a version that it refuses.

# %%
state = old.state_dict()
print(f"version {state['vgs_version']}, step {state['step_count']}, alpha {state['alpha']}")

# %% [markdown]
# ## Configurations
#
# `from_config` finds the published keys at any depth, and refuses a key of VGS that it does not
# know.

# %%
published = {"model": {"variance_gradient_scaling": False, "vgs_beta": 0.95, "vgs_alpha": 0.2}}
configured = VarianceGradientScaler.from_config(published, params)
print(f"enabled {configured.enabled}, beta {configured.beta}, alpha {configured.alpha}")

# %% [markdown]
# ## Troubleshooting
#
# - **Steps got much smaller.** The new estimate is often larger; at its cap the factor is
#   $1/(1 + \alpha V_\max)$. Lower `alpha`, or name the old estimator.
# - **The factor is constant.** `metrics()["vgs/unresolved"]` near 1 says that no tensor's signal is
#   resolved. Raise `beta`, which resolves ratios up to $(1 + \beta)/(1 - \beta)$, and
#   `variance_cap`.
# - **"without 'step_count'".** The averages cannot be corrected for their start, so they start
#   again.
# - **"it is another model's".** The file has another number of tensors; nothing was changed.
# - **There are no parameters yet.** Construct with `VarianceGradientScaler(None)` and call
#   `set_parameters(...)` later; a file that was loaded before takes effect then.
#
# **Next.** [VGS in a loop](variance_scaling.ipynb) and [in PPO](reinforcement_learning.ipynb).
