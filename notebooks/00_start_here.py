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
# # Start here
#
# Gradient quality control: methods that act on the gradient before the optimizer sees it. This
# notebook is the map: where to find what, which claims hold so far, and one live run.
#
# | to find out | open |
# |---|---|
# | whether waiting for a better gradient pays off | [01](01_gnts_pretraining.ipynb), [02](02_all_wrappers.ipynb), [15](15_equal_tokens.ipynb), [21](21_inner_optimizers.ipynb), [22](22_noise_annealing.ipynb), [23](23_open_questions.ipynb) |
# | what the noise scale of a gradient is, and which estimators get it right | [03](03_noise_scale.ipynb) |
# | which variance VGS scales by, and whether that stabilizes training | [04](04_vgs_smoking_gun.ipynb), [05](05_vgs_estimators.ipynb), [06](06_vgs_alpha.ipynb) |
# | how to steer a norm threshold, or the alpha of VGS, during a run | [07](07_norm_schedule_live.ipynb), [08](08_vgs_alpha_live.ipynb) |
# | whether UPGD keeps a network plastic | [09](09_upgd_normalisation.ipynb), [10](10_upgd_continual.ipynb), [11](11_upgd_vgs.ipynb) |
# | what makes operator learning explode, and what fixes it | [12](12_upt_explosion.ipynb), [13](13_upt_fix.ipynb), [14](14_curricula.ipynb) |
# | many epochs, anomalous microbatches, angles, scaling | [16](16_multi_epoch_floor.ipynb), [17](17_anomaly_smoothing.ipynb), [18](18_angle_paradox.ipynb), [19](19_scaling_fit.ipynb) |
# | memory, old checkpoints, utilities of any sign | [20](20_without_training.ipynb) |
# | how to use it in your own script | guides: [your own loop](guides/own_loop.ipynb), [clipping and schedules](guides/clipping_and_schedules.ipynb), [does it help](guides/does_it_help.ipynb), [choose settings](guides/choose_settings.ipynb), [from torch-gqc](guides/moving_from_torch_gqc.ipynb), [VGS checkpoints](guides/moving_vgs_checkpoints.ipynb), [several GPUs](guides/data_parallel.ipynb), [Hugging Face](guides/with_huggingface.ipynb), [Lightning](guides/with_lightning.ipynb), [Accelerate](guides/with_accelerate.ipynb), [VGS](guides/variance_scaling.ipynb), [PPO](guides/reinforcement_learning.ipynb), [UPGD](guides/continual_learning.ipynb), [steering](guides/steer_your_own_loop.ipynb) |
# | how to make an experiment of your own | [guide](guides/own_experiment.ipynb) |
#
# **Question.** Which of the published claims hold?

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[widgets] @ ADDRESS"')

# %% tags=["parameters"]
# settings: gqc_lab.studies.pretraining.PretrainingConfig
interactive = False  # True: show the widgets and wait for a person
paper = "../paper"  # folder of the claims and the committed results, in a checkout
scale = "smoke"  # of the live run
seed = 0  # of the live run
device = "auto"
dtype = "float32"

# %%
from pathlib import Path

from IPython.display import Markdown, display

from gqc_lab import figures, runs, track
from gqc_lab.claims import commands, render
from gqc_lab.claims.registration import read_registration
from gqc_lab.studies import pretraining

# %% [markdown]
# ## Claims and verdicts
#
# Each rule is evaluated again from the committed results: the mean over seeds with its 95 %
# interval. A part *holds* or *fails* if its interval lies on one side of the bound, and is *open*
# otherwise. The verdict covers all parts at once. If Holm's correction over all claims leaves p <
# 0.05, the claim is *reproduced* (all parts hold), *without effect* (all effects are smaller than a
# margin that was set before), *refuted* (a statement about algebra or code of which a part fails)
# or *not reproduced* (an effect on training of which a part fails, at this scale). Otherwise it is
# *undecided* by these seeds. *Questions* are measured and have no verdict.

# %% tags=["nbval-ignore-output"]
verdicts = commands.decide(Path(paper)) if Path(paper, "claims.yaml").is_file() else []
if verdicts:
    frame = render.verdict_frame(verdicts, read_registration(Path(paper)))
    print(", ".join(f"{n} {name}" for name, n in render.count(frame).items()))
    display(Markdown(render.render("claims.md", frame=frame, links=".")))

# %% [markdown]
# ## One live run
#
# A small language model trained with GNTS. With `interactive = True` you can press *Start* and edit
# the schedule of the norm threshold while it trains.

# %% tags=["nbval-ignore-output"]
config = pretraining.config(scale, method="gnts", seed=seed, device=device, dtype=dtype)
experiment = pretraining.build(config)
if interactive:
    from gqc_widgets import LiveRun, NormScheduleEditor

    live = LiveRun(experiment)
    display(live, NormScheduleEditor(live))
else:
    for _ in track(experiment):
        pass
    display(figures.norm_against_threshold(experiment.history))

# %% [markdown]
# ## Answer

# %% tags=["nbval-ignore-output"]
for verdict in verdicts:
    print(f"{verdict.verdict:14} {verdict.claim.id}")

# %% [markdown]
# **Limits.** These are small models on two processor cores: a claim made at fifty million
# parameters may hold there and not here. To decide the claims again, to draw the figures and build
# the paper, or to run everything again:
#
# ```
# gqc claims
# make paper
# make results
# ```

# %%
saved = runs.save(None, [{"claim": v.claim.id, "verdict": v.verdict} for v in verdicts])
