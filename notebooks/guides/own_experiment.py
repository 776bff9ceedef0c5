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
# # How do I make an experiment and a batch of my own?
#
# `gqc new experiment NAME` writes a module, a notebook, a batch file, and a claim to decide. It
# runs as it is: an MLP on scans of digits. Put your data and model in its place.

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %% [markdown]
# ## Write the files
#
# In a shell: `gqc new experiment batch_noise --question "Does GNTS help on digits?" --to mine`

# %%
import sys
import tempfile
from pathlib import Path

from gqc_lab.publish.scaffold import write_experiment

folder = Path(tempfile.mkdtemp(prefix="mine"))
made = write_experiment("batch_noise", "Does GNTS help on digits?", folder)
for path in made.paths:
    print(path.relative_to(folder))

# %% [markdown]
# ## Run the experiment in a cell
#
# An experiment is an iterator of records. `config(scale, method, **fields)` takes any field of its
# `Config`, checks it, and fills in the rest.

# %%
sys.path.append(str(folder))
import batch_noise
from gqc_lab import figures

experiment = batch_noise.build(batch_noise.config("smoke", "gnts", lr=5e-3))
history = list(experiment)
found = experiment.summary()
print(f"held-out loss {found['val_loss']:.1f} nat, accuracy {found['accuracy']:.1f}")

# %% tags=["nbval-ignore-output"]
figures.loss_against(experiment.history, x="examples")

# %% [markdown]
# ## A batch over any field
#
# A batch file is a grid over the notebook's parameters, times seeds. Each field of `Config` that
# the notebook declares may be in it, and is checked before anything runs.

# %%
from gqc_lab.runs.plan import read_batch

ours = made.batch.with_name("thresholds.yaml")
grid = "{methods: [[gnts]], threshold: [0.4, 0.6], width: [32, 64]}"
ours.write_text(made.batch.read_text().replace("{methods: [[adamw], [gnts]]}", grid))
print(ours.read_text())
runs = read_batch(ours).runs
print(f"{len(runs)} runs; the last: threshold {runs[-1].parameters['threshold']}, "
      f"width {runs[-1].parameters['width']}, seed {runs[-1].parameters['seed']}")

# %% [markdown]
# To run it: `gqc batch run mine/batches/thresholds.yaml --jobs 2`. Finished runs are kept, and an
# interrupted one continues. `gqc runs list` shows what is there; the table at the end of a batch
# has means and intervals over seeds.
