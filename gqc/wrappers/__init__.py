"""Optimizer wrappers: each decides when the accumulated gradient is good enough to step."""

from gqc.wrappers.base import OptimizerWrapper
from gqc.wrappers.gnts import OptimizerWrapperGNTS
from gqc.wrappers.replay import OptimizerWrapperReplay
from gqc.wrappers.sbc import OptimizerWrapperSBC

__all__ = [
    "OptimizerWrapper",
    "OptimizerWrapperGNTS",
    "OptimizerWrapperReplay",
    "OptimizerWrapperSBC",
]
