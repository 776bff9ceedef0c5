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
# Methods that act on the gradient before the optimizer sees it: gradient norm threshold scheduling
# (GNTS) and other wrappers wait for a better one, variance gradient scaling (VGS) shrinks noisy ones,
# utility-based perturbed gradient descent (UPGD) protects useful weights; and inverse losses train
# neural operators. Each notebook asks one question and begins with the answer, which rests on
# committed runs where runs decide it.
#
# |  |  |  |  |  |  |  |
# |---|---|---|---|---|---|---|
# | **Norm thresholds and other wrappers** | [<img src="thumbnails/01_gnts_pretraining.png" width="130" alt=""><br>01 Does a gradient norm threshold help pretraining?](01_gnts_pretraining.ipynb) | [<img src="thumbnails/02_all_wrappers.png" width="130" alt=""><br>02 Which wrapper helps at equal tokens?](02_all_wrappers.ipynb) | [<img src="thumbnails/15_equal_tokens.png" width="130" alt=""><br>15 What does GNTS gain at equal tokens, and over which baseline?](15_equal_tokens.ipynb) | [<img src="thumbnails/22_noise_annealing.png" width="130" alt=""><br>22 Does a norm schedule do more than a learning rate schedule?](22_noise_annealing.ipynb) | [<img src="thumbnails/21_inner_optimizers.png" width="130" alt=""><br>21 Is the effect of GNTS specific to Adam?](21_inner_optimizers.ipynb) | [<img src="thumbnails/16_multi_epoch_floor.png" width="130" alt=""><br>16 Does GNTS plateau at a higher loss over many epochs?](16_multi_epoch_floor.ipynb) |
# | **Noise, batches and settings** | [<img src="thumbnails/17_anomaly_smoothing.png" width="130" alt=""><br>17 Do difficult microbatches trigger more draws, and does that help?](17_anomaly_smoothing.ipynb) | [<img src="thumbnails/18_angle_paradox.png" width="130" alt=""><br>18 Can gradients align with momentum and still shrink 20-fold?](18_angle_paradox.ipynb) | [<img src="thumbnails/03_noise_scale.png" width="130" alt=""><br>03 Do the estimators recover a known noise scale?](03_noise_scale.ipynb) | [<img src="thumbnails/19_scaling_fit.png" width="130" alt=""><br>19 How does the loss scale with the number of tokens?](19_scaling_fit.ipynb) | [<img src="thumbnails/26_critical_batch.png" width="130" alt=""><br>26 How large may a batch be before it wastes tokens?](26_critical_batch.ipynb) | [<img src="thumbnails/24_fine_tuning.png" width="130" alt=""><br>24 Do settings from pretraining suit fine-tuning?](24_fine_tuning.ipynb) |
# | **Variance gradient scaling (VGS)** | [<img src="thumbnails/04_vgs_smoking_gun.png" width="130" alt=""><br>04 Which VGS estimator measures gradient noise?](04_vgs_smoking_gun.ipynb) | [<img src="thumbnails/05_vgs_estimators.png" width="130" alt=""><br>05 What does it cost to measure gradient variance correctly?](05_vgs_estimators.ipynb) | [<img src="thumbnails/06_vgs_alpha.png" width="130" alt=""><br>06 Does scaling by gradient variance stabilize training?](06_vgs_alpha.ipynb) | [<img src="thumbnails/25_vgs_ppo.png" width="130" alt=""><br>25 Does VGS steady the value loss of PPO?](25_vgs_ppo.ipynb) |  |  |
# | **Protecting useful weights (UPGD)** | [<img src="thumbnails/09_upgd_normalisation.png" width="130" alt=""><br>09 Which weights does UPGD protect?](09_upgd_normalisation.ipynb) | [<img src="thumbnails/10_upgd_continual.png" width="130" alt=""><br>10 Does UPGD prevent the loss of plasticity?](10_upgd_continual.ipynb) | [<img src="thumbnails/11_upgd_vgs.png" width="130" alt=""><br>11 Do UPGD and VGS help each other?](11_upgd_vgs.ipynb) |  |  |  |
# | **Inverse losses of operators** | [<img src="thumbnails/12_upt_explosion.png" width="130" alt=""><br>12 Do inverse losses make gradients explode?](12_upt_explosion.ipynb) | [<img src="thumbnails/13_upt_fix.png" width="130" alt=""><br>13 Which of the three fixes for inverse losses matters?](13_upt_fix.ipynb) | [<img src="thumbnails/14_curricula.png" width="130" alt=""><br>14 What does a curriculum of loss weights actually bound?](14_curricula.ipynb) |  |  |  |
# | **Steered runs; without training; not known** | [<img src="thumbnails/07_norm_schedule_live.png" width="130" alt=""><br>07 What happens when you move the norm threshold during a run?](07_norm_schedule_live.ipynb) | [<img src="thumbnails/08_vgs_alpha_live.png" width="130" alt=""><br>08 What happens when you change alpha during a run?](08_vgs_alpha_live.ipynb) | [<img src="thumbnails/20_without_training.png" width="130" alt=""><br>20 Which claims can be decided without training?](20_without_training.ipynb) | [23 What do we know about gradient quality?](23_open_questions.ipynb) |  |  |

# %% [markdown]
# ## Guides, and live runs
#
# **In your own script.** Guides: [your own loop](guides/own_loop.ipynb), [clipping and
# schedules](guides/clipping_and_schedules.ipynb), [does it help](guides/does_it_help.ipynb),
# [choose settings](guides/choose_settings.ipynb), [from
# torch-gqc](guides/moving_from_torch_gqc.ipynb), [VGS
# checkpoints](guides/moving_vgs_checkpoints.ipynb), [several GPUs](guides/data_parallel.ipynb),
# [Hugging Face](guides/with_huggingface.ipynb), [Lightning](guides/with_lightning.ipynb),
# [Accelerate](guides/with_accelerate.ipynb), [VGS](guides/variance_scaling.ipynb),
# [PPO](guides/reinforcement_learning.ipynb), [UPGD](guides/continual_learning.ipynb), [an
# experiment of your own](guides/own_experiment.ipynb).
#
# **Live.** [Steer your own loop](guides/steer_your_own_loop.ipynb) while it trains, a [norm
# threshold](07_norm_schedule_live.ipynb) or the [alpha of VGS](08_vgs_alpha_live.ipynb); or run the
# last cells here with `interactive = True`.
#
# ## Claims by verdict

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[widgets] @ ADDRESS"')

# %% tags=["evidence", "nbval-ignore-output"]
from gqc_lab import claims

claims.show_verdicts("all")

# %% [markdown]
# Rules are evaluated from committed results, small models on two processor cores: a claim made at
# fifty million parameters may hold there and not here. `gqc claims` decides them again, `make paper`
# draws figures and paper, `make results` runs everything again.
#
# ## One live run
#
# A small language model trained with GNTS. With `interactive = True` you can press *Start* and edit
# the schedule of the norm threshold while it trains.

# %% tags=["parameters"]
# settings: gqc_lab.studies.pretraining.PretrainingConfig
interactive = False  # True: show the widgets and wait for a person
scale = "smoke"  # of the live run
seed = 0  # of the live run
device = "auto"
dtype = "float32"

# %%
from IPython.display import display

from gqc_lab import figures, runs, track
from gqc_lab.studies import pretraining

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

# %%
saved = runs.save(experiment.history, [experiment.summary()], data_hash=experiment.data_hash)
