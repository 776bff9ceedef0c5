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
# # How do I use VGS and UPGD in PPO?
#
# Stable-Baselines3 clips with `max_grad_norm` before the optimizer steps. VGS belongs before that,
# so it comes as a callback. UPGD is an optimizer, and goes where the optimizer goes.

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %% tags=["install"]
if find_spec("stable_baselines3") is None:
    raise SystemExit("skipped: this guide needs it; run: %pip install stable-baselines3")

# %%
from gqc import UPGD
from gqc.integrations.sb3 import VGSCallback
from stable_baselines3 import PPO

# %% [markdown]
# ## VGS before clipping

# %% tags=["sb3"]
model = PPO("MlpPolicy", "CartPole-v1", n_steps=128, n_epochs=4, seed=0, device="cpu")
vgs = VGSCallback(alpha=0.02, warmup_steps=10)  # changed
trained = model.learn(1024, callback=vgs)  # changed

# %%
found = vgs.scaler.metrics()
print(f"{vgs.scaler.step_count} steps; V {found['vgs/normalized_variance']:.0f}, "
      f"factor {found['vgs/scaling_factor']:.1f}")

# %% [markdown]
# V stands at its cap, `variance_cap=50`: there VGS only lowers the learning rate. How to see more
# is in [the guide on VGS](variance_scaling.ipynb).
#
# The callback records `vgs/...` with PPO's own logger. A model's file does not hold the scaler:
# save `vgs.scaler.state_dict()` with it, and give it back as `VGSCallback(state=...)`.
#
# ## UPGD as the optimizer

# %%
chosen = {"optimizer_class": UPGD, "optimizer_kwargs": {"sigma": 1e-3, "weight_decay": 1e-3}}
model = PPO("MlpPolicy", "CartPole-v1", n_steps=128, n_epochs=4, seed=0, policy_kwargs=chosen)
trained = model.learn(512)
print(type(model.policy.optimizer).__name__)

# %% [markdown]
# `PPO(learning_rate=...)` sets the learning rate of any optimizer. UPGD is plain gradient descent
# with noise and protection: its rate is that of SGD, not that of Adam; `AdaptiveUPGD` takes Adam's.
