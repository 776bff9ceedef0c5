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
# # What do we know about gradient quality?
#
# The authors of these methods list questions that they could not answer. Here is what the committed
# results say about each, and where they say nothing. Verdicts are explained in
# [notebook 00](00_start_here.ipynb); nothing is trained here.

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %%
from gqc_lab import claims

# %% [markdown]
# ## What does accumulation do to the alignment with momentum?
#
# A gradient that is mostly noise stands at a right angle to everything that it was not part of.
# Averaging microbatches turns the mean toward the signal, and so toward a momentum that follows it.
# The angles were measured with a constant batch. Under accumulation that reacts to the gradient
# they are **not known**.

# %% tags=["nbval-ignore-output"]
claims.show_verdicts("gqc-angle")

# %% [markdown]
# ## Where does the excess magnitude of a gradient live?
#
# In the noise. The squared norm of a mean of n microbatches is $\|G\|^2 + \mathrm{tr}\,\Sigma/n$,
# and norms fall with n as predicted from the noise of other microbatches ([notebook
# 18](18_angle_paradox.ipynb)). Which directions of the weights hold most of it is **not known**.

# %% [markdown]
# ## Smoothing of anomalies, constant magnitude, or extra batches: what would help?
#
# Three explanations of the same reports. A wrapper may draw more when a batch is unusual; its steps
# may have one size; or it may just use larger batches. A replay makes the same batches without
# reacting, and a rescaler makes the same size without drawing.

# %% tags=["nbval-ignore-output"]
claims.show_verdicts("gqc-anomaly-smoothing")

# %% tags=["nbval-ignore-output"]
claims.show_verdicts("gqc-constant-magnitude")

# %% tags=["nbval-ignore-output"]
claims.show_verdicts("gqc-reactive")

# %% [markdown]
# ## Adam, or every adaptive optimizer? Do second-order methods gain more?
#
# The comparison inside AdamW, SGD with momentum and Muon is measured. Shampoo and SOAP are not, so
# whether methods of second order gain more is **not known**.

# %% tags=["nbval-ignore-output"]
claims.show_verdicts("gqc-adam-specific")

# %% [markdown]
# ## What does a norm schedule do that a learning rate schedule does not?
#
# Perhaps nothing: both make the noise of the steps fall. The comparison is set up and its rule is
# written; the runs that decide it are not made.

# %% tags=["nbval-ignore-output"]
claims.show_verdicts("gqc-annealing")

# %% [markdown]
# ## Why a percentile and not the mean of the variance?
#
# The published scaler reads a percentile over tensors. A mean follows the noisiest tensor, whose
# estimate is also the least certain. That this is better for training is **not known**; what the
# estimators measure is.

# %% tags=["nbval-ignore-output"]
claims.show_verdicts("vgs-v4-true")

# %% tags=["nbval-ignore-output"]
claims.show_verdicts("vgs-resolves")
