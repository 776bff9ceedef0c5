"""Gradient quality control: act on the gradient before the optimizer sees it.

Reading order: the wrappers decide when a gradient is good enough to step, schedules move their
thresholds, :mod:`gqc.scalers` scales a gradient by its variance, :mod:`gqc.clipping` bounds its
norm, :mod:`gqc.curricula` brings loss terms in late, and :mod:`gqc.upgd` has optimizers that
protect useful weights.  :mod:`gqc.noise` estimates how noisy a gradient is,
:mod:`gqc.diagnostics` how it lies to its neighbours and to Adam's momentum, and
:mod:`gqc.gradients` holds the batched operations under all of them.  Experiments, notebooks and
batches live in :mod:`gqc_lab`.
"""

from gqc.clipping import (
    clip_before_step,
    clip_grad_norm_per_group_,
    clip_grad_norm_per_tensor_,
    clip_grad_norm_total_,
)
from gqc.curricula import Curriculum, cap_shares, compute_inverse_loss_curriculum_weight
from gqc.scalers import VarianceGradientScaler
from gqc.schedules import (
    NormWarmupScheduler,
    ParamGroupSchedule,
    PiecewiseSchedule,
    get_constant_schedule,
    get_curved_batch_schedule,
    get_direct_cosine_annealing_with_warmup,
    get_linear_schedule,
    get_norm_threshold_cosine_annealing_with_warmup,
    get_quadratic_batch_schedule,
)
from gqc.upgd import UPGD, UPGDW, AdaptiveUPGD
from gqc.wrappers import (
    JoinedOptimizer,
    OptimizerWrapper,
    OptimizerWrapperGNR,
    OptimizerWrapperGNS,
    OptimizerWrapperGNTS,
    OptimizerWrapperMHT,
    OptimizerWrapperNormTest,
    OptimizerWrapperReplay,
    OptimizerWrapperSBC,
    OptimizerWrapperVGS,
)

__version__ = "0.2.0"

__all__ = [
    "UPGD", "UPGDW", "AdaptiveUPGD", "Curriculum", "JoinedOptimizer", "NormWarmupScheduler",
    "OptimizerWrapper", "OptimizerWrapperGNR", "OptimizerWrapperGNS", "OptimizerWrapperGNTS",
    "OptimizerWrapperMHT", "OptimizerWrapperNormTest", "OptimizerWrapperReplay",
    "OptimizerWrapperSBC", "OptimizerWrapperVGS", "ParamGroupSchedule", "PiecewiseSchedule",
    "VarianceGradientScaler", "cap_shares", "clip_before_step", "clip_grad_norm_per_group_",
    "clip_grad_norm_per_tensor_", "clip_grad_norm_total_", "compute_inverse_loss_curriculum_weight",
    "get_constant_schedule", "get_curved_batch_schedule", "get_direct_cosine_annealing_with_warmup",
    "get_linear_schedule", "get_norm_threshold_cosine_annealing_with_warmup",
    "get_quadratic_batch_schedule",
]  # fmt: skip
