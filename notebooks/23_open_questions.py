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
# The authors of these methods list questions that they could not answer. The table says what the
# committed results say about each, and where they say nothing. Nothing is trained here.

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %% tags=["evidence", "nbval-ignore-output"]
from gqc_lab import claims

claims.show_evidence("23_open_questions")

# %% [markdown]
# ## Why
#
# **Alignment.** A gradient that is mostly noise stands at a right angle to everything that it was
# not part of. Averaging microbatches turns the mean toward the signal, and so toward a momentum,
# if that follows the signal. Here the signal turns faster than the momentum can.
#
# **Excess magnitude.** The squared norm of a mean of n microbatches is $\|G\|^2 +
# \mathrm{tr}\,\Sigma/n$: what averaging removes is noise, and norms fall with n as predicted from
# the noise of other microbatches.
#
# **Three explanations of the same reports.** A wrapper may draw more when a batch is unusual; its
# steps may have one size; or it may just use larger batches. A replay makes the same batches
# without reacting, and a rescaler makes the same size without drawing.
#
# **A percentile and not the mean.** The published scaler reads a percentile of the variance over
# tensors. A mean follows the noisiest tensor, whose estimate is also the least certain. Each tensor
# counts up to a cap, and where most are at it hardly a difference is left.
#
# **A norm schedule and a learning rate schedule.** Both make the noise of the steps fall; only runs
# can tell whether the norm does more.
