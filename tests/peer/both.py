"""Both libraries' wrappers on one scalar parameter, for the measurements beside this file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradient_quality_control as peer
import torch
from torch import Tensor
from torch.optim import SGD

import gqc

THRESHOLD = "gradient_norm_threshold"


def scalar(value: float = 0.0) -> Tensor:
    return torch.tensor([value], requires_grad=True)


def backward(param: Tensor, grad: float) -> None:
    (param * grad).sum().backward()


def peer_gnts(param: Tensor, threshold: float = 1.0, **options: Any) -> Any:
    wrapper = peer.OptimizerWrapperGNTS(SGD([param], lr=1.0), **options)
    wrapper.param_groups[0][THRESHOLD] = threshold
    return wrapper


def peer_sbc(param: Tensor, logical: float) -> Any:
    wrapper = peer.OptimizerWrapperSBC(SGD([param], lr=1.0), 1)
    wrapper.param_groups[0]["logical_batch_size"] = logical
    return wrapper


def our_sbc(param: Tensor, logical: float, **options: Any) -> gqc.OptimizerWrapperSBC:
    return gqc.OptimizerWrapperSBC(SGD([param], lr=1.0), 1, logical, **options)


def outcome(call: Callable[[], Any], fine: str) -> str:
    """What a user sees: the name of the error, or ``fine``."""
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return fine
