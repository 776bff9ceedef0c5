"""A multilayer perceptron with ReLUs and weights from its own generator.

Source of the initial weights: He et al. 2015, arXiv:1502.01852.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from gqc.checks import check_count


@dataclass(frozen=True)
class MLPConfig:
    """Sizes of a perceptron.

    Args:
        inputs: features of an example.
        width: channels of a hidden layer.
        depth: hidden layers, >= 0; with none the model is linear.
        outputs: numbers per example.
    """

    inputs: int
    width: int
    depth: int
    outputs: int

    def __post_init__(self) -> None:
        for name, least in (("inputs", 1), ("width", 1), ("depth", 0), ("outputs", 1)):
            check_count(name, getattr(self, name), least)


class MLP(nn.Module):
    """Linear layers with ReLUs between them.  Use `make_mlp`, which also draws the weights.

    Args of the call: examples, shape (batch, inputs).
    Returns of the call: shape (batch, outputs).
    """

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        self.config = config
        sizes = [config.inputs, *[config.width] * config.depth, config.outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        result: Tensor = self.layers[-1](x)
        return result


def make_mlp(config: MLPConfig, generator: torch.Generator) -> MLP:
    r"""Make an MLP with weights from ``generator`` only, float32 on the CPU.

    Weights are :math:`\mathcal N(0, 2/\mathrm{inputs})`, those of the last layer
    :math:`\mathcal N(0, 1/\mathrm{inputs})`; biases are 0.  The global random stream is not
    touched.
    """
    with torch.device("meta"):  # torch's own initialisation would draw from the global stream
        model = MLP(config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
                continue
            gain = 1.0 if name == f"layers.{config.depth}.weight" else 2.0
            std = math.sqrt(gain / parameter.shape[1])
            parameter.normal_(0.0, std, generator=generator)
    return model
