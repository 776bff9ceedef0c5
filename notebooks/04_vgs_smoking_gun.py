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
# # Which VGS estimator measures gradient noise?
#
# The variance gradient scaler divides gradients by $1 + \alpha V$. Its versions 1.x to 3.2 (3.2
# computes as 3.1) each computed a different $V$, each one correcting a "critical bug" of the
# version before. Here they read streams of gradients $g_t = \mu + \epsilon_t$ whose noise-to-signal
# ratio $R = \sum_j \mathrm{Var}\,\epsilon_j \,/\, \sum_j \mu_j^2$ is known by construction.
#
# **Question.** For which estimator is $V = R$, whatever the stream?

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %% tags=["evidence", "nbval-ignore-output"]
from gqc_lab import claims

claims.show_evidence("04_vgs_smoking_gun")

# %% [markdown]
# ## Run it yourself
#
# The rest of this notebook does the same in seconds at the `smoke` scale: a regression test, not
# evidence. The committed results above are from
#
# ```
# gqc batch run notebooks/batches/04_vgs_smoking_gun.yaml --jobs 2
# ```

# %% tags=["parameters"]
# settings: gqc_lab.loop.settings.Config
scale = "smoke"  # one of smoke, laptop, paper; seconds, a minute, minutes
seed = 0  # of the streams
steps: int | None = None  # at least 30; gradients of each stream, None: the scale's
numel: int | None = None  # at least 8; elements of a gradient, None: the scale's
sizes: list | None = None  # at least 8; elements, where their number varies, None: the scale's
beta: float | None = None  # above 0, below 1; of the averages, None: the scale's
device = "auto"
dtype = "float32"

# %%
import math

import pandas as pd

from gqc_lab import figures, runs
from gqc_lab.loop.settings import of_scale
from gqc_lab.studies.vgs import streams as vgs_streams
from gqc_lab.studies.vgs.streams import heterogeneous, iid, smoking_gun, uniform

# %% [markdown]
# ## The streams
#
# - *constant, heterogeneous*: no noise at all; one element in eight is 8, the others are 0. R = 0.
# - *uniform noise*: all elements are the same number, which varies in time. The published test of
#   version 2.0 is ones times `randn * 2`: its mean is zero, so R is infinite.
# - *iid noise*: a Gaussian mean vector plus independent noise in each element; in one case the mean
#   is zero.

# %%
chosen = {"steps": steps, "numel": numel, "sizes": sizes, "beta": beta}
steps, numel, sizes, beta = of_scale(vgs_streams.SCALES, scale, **chosen).values()
streams = [heterogeneous(numel), smoking_gun(numel), uniform(numel, 1.0, 0.5)]
streams += [iid(numel, ratio) for ratio in (0.1, 1.0, 10.0, math.inf)]
place = {"device": device, "dtype": dtype}
readings = vgs_streams.measure(streams, steps, beta=beta, seeds=[seed], at=[30], **place)
readings["is_right"] = vgs_streams.judge(readings)

# %% tags=["nbval-ignore-output"]
figures.vgs.estimates_and_truths(readings)

# %% [markdown]
# ## The published test
#
# Thirty updates of uniform noise. Version 2.0 is blind to it; version 3.0 printed 17.897791 with a
# random stream of its own, where any positive number would have passed.

# %%
gun = readings[(readings["stream"] == "uniform noise, published") & (readings["step"] == 30)]
gun.set_index("estimator")["variance"].map("{:.6f}".format)

# %% [markdown]
# ## Does the number of elements matter?
#
# It should not. The ratio is 1 throughout: once around equal means, where version 3.1 happens to be
# right, and once around Gaussian means, which nearly cancel in the tensor mean that 3.0 and 3.1
# divide by.

# %%
kinds = {"equal means, R = 1": True, "Gaussian means, R = 1": False}
by_size = [
    vgs_streams.measure(
        [iid(n, 1.0, equal) for n in sizes], steps, beta=beta, seeds=[seed], **place
    ).assign(kind=kind)
    for kind, equal in kinds.items()
]
by_size = pd.concat(by_size, ignore_index=True)
by_size["is_right"] = vgs_streams.judge(by_size)

# %% tags=["nbval-ignore-output"]
figures.vgs.against(
    by_size, "numel", "V against the size of a tensor", ["elements of the tensor"] * 2
)

# %% [markdown]
# ## What this run says

# %%
last = readings[readings["step"] == steps]
table = last.assign(shown=last["variance"].round(6).map("{:.2g}".format))
table.loc[table["is_unresolved"], "shown"] = "not resolved"
table = table.pivot(index=["truth", "stream"], columns="estimator", values="shown")
table[list(vgs_streams.VERSIONS)]

# %%
right = (
    pd.concat([last, by_size]).groupby("estimator", sort=False)["is_right"].agg(["sum", "count"])
)
for estimator, (good, count) in right.iterrows():
    version = vgs_streams.VERSIONS[estimator]
    print(f"{estimator:15} ({version}): right on {good} of {count} streams")

# %% [markdown]
# *Right* means within a factor of 1.4; below 0.01 where R is 0; and unresolved, or close to the
# largest value that `beta` can resolve, where R is infinite.
#
# The 1.x and 2.0 estimators measure how much elements differ from each other, so they miss noise
# that all elements share and respond to the heterogeneity of a healthy network. 3.0 averages a
# tensor before it looks at it: independent noise comes out N times too small around equal means,
# and arbitrary around means that cancel. 3.1 brings the spread of the elements back in, so it is
# right only where all means are equal.
#
# **Limits.** One seed: a sketch is off by about $\sqrt{2/k}$ (one standard deviation) for a draw of
# its signs (notebook 05). Noise in a single direction, as in *uniform noise*, looks resolved by
# chance in some runs, with a V near the limit.

# %%
results = (
    pd.concat([last, by_size], ignore_index=True)
    .drop(columns="step")
    .replace({"truth": {math.inf: None}})
)
saved = runs.save(readings, results)
