"""Optimizer wrappers: each decides when the accumulated gradient is good enough to step."""

from gqc.wrappers.base import OptimizerWrapper
from gqc.wrappers.gnr import OptimizerWrapperGNR
from gqc.wrappers.gns import OptimizerWrapperGNS
from gqc.wrappers.gnts import OptimizerWrapperGNTS
from gqc.wrappers.joined import JoinedOptimizer
from gqc.wrappers.mht import OptimizerWrapperMHT
from gqc.wrappers.normtest import OptimizerWrapperNormTest
from gqc.wrappers.replay import OptimizerWrapperReplay
from gqc.wrappers.sbc import OptimizerWrapperSBC
from gqc.wrappers.vgs import OptimizerWrapperVGS

__all__ = [
    "JoinedOptimizer", "OptimizerWrapper", "OptimizerWrapperGNR", "OptimizerWrapperGNS",
    "OptimizerWrapperGNTS", "OptimizerWrapperMHT", "OptimizerWrapperNormTest",
    "OptimizerWrapperReplay", "OptimizerWrapperSBC", "OptimizerWrapperVGS",
]  # fmt: skip
