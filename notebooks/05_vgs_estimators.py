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
# # What does it cost to measure gradient variance correctly?
#
# Two estimators find the noise-to-signal ratio on every stream of notebook 04. `elementwise`
# averages every element of the gradient; `sketch` averages the buckets of three hashes of each
# tensor, which add up elements with random signs, and takes the median of what the three estimate.
#
# **Question.** How large is the error of each, how much memory and time does it take, and what else
# makes it wrong: few elements, a drifting mean, the batch size?

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %% tags=["evidence", "nbval-ignore-output"]
from gqc_lab import claims

claims.show_evidence("05_vgs_estimators")

# %% [markdown]
# ## Run it yourself
#
# The rest of this notebook does the same in seconds at the `smoke` scale: a regression test, not
# evidence. The committed results above are from
#
# ```
# gqc batch run notebooks/batches/04_vgs_smoking_gun.yaml --jobs 2
# gqc batch run notebooks/batches/05_vgs_estimators.yaml --jobs 2
# ```

# %% tags=["parameters"]
# settings: gqc_lab.loop.settings.Config
scale = "smoke"  # one of smoke, laptop, paper; seconds, minutes, minutes on a large machine
seed = 0  # of the streams
num_signs: int | None = None  # at least 2; draws of a sketch's signs, None: the scale's
steps: int | None = None  # at least 30; gradients of each stream, None: the scale's
beta: float | None = None  # above 0, below 1; of the averages, None: the scale's
numel: int | None = None  # at least 8; elements of a gradient, None: the scale's
sketch_sizes = [16, 64, 256]  # at least 1; k: up to k^2 elements are kept as they are
sizes: list | None = None  # at least 8; elements, where their number varies, None: the scale's
periods = [200, 400, 1600, 6400]  # at least 4; updates in which the mean turns once
correlations = [0.0, 0.5, 0.9]  # at least 0, below 1; of the noise of successive draws
degrees = [3, 5, 30]  # at least 3; of freedom of Student's t
batch_sizes: list | None = None  # at least 1; images in a minibatch, None: the scale's
width: int | None = None  # at least 1; of the network that is measured, None: the scale's
layers: int | None = None  # at least 1; of that network, None: the scale's
device = "auto"
dtype = "float32"

# %%
from math import sqrt

import pandas as pd

from gqc_lab import figures, runs
from gqc_lab.loop.settings import of_scale
from gqc_lab.studies.vgs import costs as vgs_costs, streams as vgs_streams
from gqc_lab.studies.vgs.streams import (
    VERSIONS, correlated, heavy_tailed, iid, minibatches, rotating,
)

place = {"device": device, "dtype": dtype}
chosen = {"num_signs": num_signs, "steps": steps, "beta": beta, "numel": numel, "sizes": sizes}
chosen |= {"batch_sizes": batch_sizes, "width": width, "layers": layers}
chosen = of_scale(vgs_costs.SCALES, scale, **chosen)
num_signs, steps, beta, numel, sizes, batch_sizes, width, layers = chosen.values()

# %% [markdown]
# ## Error by sketch size
#
# One stream with ratio 1, read by sketches that differ only in their signs. A tensor of up to
# $k^2$ elements is kept whole; of a larger one each hash has more than k buckets, so that the error
# is at most about $\sqrt{2/k}$. The other estimators are read on as many streams.

# %%
sketches = {
    f"sketch, k = {k}, signs {i}": {"estimator": "sketch", "sketch_size": k, "sketch_seed": i}
    for k in sketch_sizes
    for i in range(num_signs)
}
common = {"beta": beta, **place}
by_signs = vgs_streams.measure([iid(numel, 1.0)], steps, sketches, seeds=[seed], **common)
others = {name: {"estimator": name} for name in VERSIONS if name != "sketch"}
seeds = range(seed, seed + num_signs)
by_seed = vgs_streams.measure([iid(numel, 1.0)], steps, others, seeds=seeds, **common)
readings = pd.concat([by_signs, by_seed], ignore_index=True)
readings["of"] = readings["estimator"].str.replace(r", signs \d+", "", regex=True)
readings["squared_error"] = (readings["variance"] / readings["truth"] - 1) ** 2
errors = readings.groupby("of", sort=False)["squared_error"].mean() ** 0.5
errors.round(2)

# %%
for k in sketch_sizes:
    print(f"k = {k:4}: error {errors[f'sketch, k = {k}']:.2f}, at most {sqrt(2 / k):.2f} expected")

# %% [markdown]
# ## Memory and time
#
# The method's documents state 12 MB per million parameters: three numbers for each. Bytes are
# counted here, in a network of `layers` square layers: what a checkpoint carries, and what the
# scaler holds in total, including the signs and working memory of a sketch, which do not grow with
# the network.

# %%
options = others | {
    f"sketch, k = {k}": {"estimator": "sketch", "sketch_size": k} for k in sketch_sizes
}
shapes = [(width, width), (width,)] * layers
costs = vgs_costs.measure_costs(options, shapes, **place).set_index("estimator")
millions = costs["parameters"].iloc[0] / 1e6
memory = costs[["checkpoint_bytes", "held_bytes"]].copy()
memory["checkpoint_MB_per_million"] = memory["checkpoint_bytes"] / 1e6 / millions
print(f"{millions:.2f} million parameters in {costs['tensors'].iloc[0]} tensors")
memory.round(4)

# %% tags=["nbval-ignore-output"]
costs["error"] = errors
costs["bytes_per_parameter"] = costs["checkpoint_bytes"] / costs["parameters"]
costs["time"] = costs["seconds"] / costs["adamw_seconds"]
figures.vgs.error_against_memory(costs.reset_index())

# %% [markdown]
# ## What makes estimates wrong
#
# *Elements*: ratio 1, tensors of several sizes. *Drift*: ratio 0.1 around a mean that rotates;
# whatever moves within the memory of the averages counts as noise, as predicted where training is
# longer than a turn (the smoke run is not, and reads less). *Batch*: gradients of minibatches of
# digits at fixed weights, where the ratio of a single image is known from the full data set (the
# smoke run reads 15 for its 28). *Correlation*: ratio 10, noise that lasts for $(1+\rho)/(1-\rho)$
# draws; noise that stays within the memory of the averages counts as mean. *Tails*: ratio 1,
# Student's t with few degrees of freedom.

# %%
per_image = vgs_streams.digits_gradients(seed=seed)
panels = {
    "elements, R = 1": [(n, iid(n, 1.0)) for n in sizes],
    "drift, R = 0.1": [(p, rotating(numel, 0.1, p)) for p in periods],
    "digits": [(b, minibatches(per_image, b)) for b in batch_sizes],
    "correlation, R = 10": [
        ((1 + rho) / (1 - rho), correlated(numel, 10.0, rho)) for rho in correlations
    ],
    "tails, R = 1": [(n, heavy_tailed(numel, 1.0, n)) for n in degrees],
}
chosen = {name: {"estimator": name} for name in ("mean_square", "elementwise", "sketch")}
varied = []
for kind, streams in panels.items():
    for x, stream in streams:
        reading = vgs_streams.measure([stream], steps, chosen, seeds=[seed], **common)
        varied.append(reading.assign(kind=kind, x=x))
for p in periods:
    expected = vgs_streams.drift_prediction(0.1, p, beta)
    row = {"kind": "drift, R = 0.1", "x": p, "truth": 0.1, "estimator": "predicted"}
    varied.append(pd.DataFrame([row | {"variance": expected}]))
varied = pd.concat(varied, ignore_index=True)

# %% tags=["nbval-ignore-output"]
axes = ["elements of the tensor", "updates per turn", "images per batch", "draws that noise lasts",
        "degrees of freedom"]
figures.vgs.against(varied, "x", "What makes estimates wrong", axes)

# %% [markdown]
# ## What this run says

# %%
table = varied.pivot_table("variance", ["kind", "x", "truth"], "estimator", sort=False)
table.map("{:.2g}".format)

# %%
per_million = memory["checkpoint_MB_per_million"]
print("statistics, MB per million parameters (documents: 12):")
for name in ("mean_square", "elementwise", "sketch, k = 64"):
    print(f"  {name:15} {per_million.get(name, float('nan')):8.4f}")
ceiling = (1 + beta) / (1 - beta)
digits = varied[(varied["kind"] == "digits") & (varied["estimator"] == "elementwise")]
beyond = digits.loc[digits["truth"] > ceiling, "x"].tolist()
print(f"beta {beta:g} resolves ratios up to {ceiling:.0f}; batches with a larger one: {beyond}")

# %% [markdown]
# The published code keeps three numbers for each *tensor*, not for each parameter, and cannot see
# the noise in them. `elementwise` keeps one number for each parameter; the sketch keeps a fixed
# number for each tensor of more than $k^2$ elements, and a few megabytes of working memory shared
# by all.
#
# Both take a mean that rotates within the memory of the averages, $1/(1-\beta)$ updates, for noise;
# a larger beta resolves more noise and less drift.
#
# **Limits.** Times are from one machine and small networks, where fixed costs dominate: `make
# bench` measures up to ten million parameters. Gradients of digits at initial weights only.

# %%
results = costs.reset_index().assign(kind="cost")
results = pd.concat([results, varied.drop(columns=["stream", "step"])], ignore_index=True)
saved = runs.save(readings, results)
