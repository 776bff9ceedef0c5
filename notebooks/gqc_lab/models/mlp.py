r"""A multilayer perceptron whose hidden units are ReLUs, with He's initial weights.

Source of the weights: He et al. 2015, arXiv:1502.01852.
"""

import math
from itertools import pairwise

import torch
from torch import nn


def make_mlp(
    inputs: int, width: int, depth: int, outputs: int, generator: torch.Generator
) -> nn.Sequential:
    r"""Make a perceptron with weights from ``generator`` only, float32 on the CPU.

    Weights are :math:`\mathcal N(0, 2/\mathrm{inputs})`, those of the last layer
    :math:`\mathcal N(0, 1/\mathrm{inputs})`; biases are 0.  With a ``depth`` of 0 hidden layers the
    model is linear.  The global random stream is not touched.
    """
    with torch.device("meta"):  # torch's own initialisation would draw from the global stream
        layers = [nn.Linear(a, b) for a, b in pairwise([inputs, *[width] * depth, outputs])]
        parts: list[nn.Module] = [part for layer in layers for part in (layer, nn.ReLU())]
        model = nn.Sequential(*parts[:-1])
    model.to_empty(device="cpu")
    with torch.no_grad():
        for layer in layers:
            gain = 1.0 if layer is layers[-1] else 2.0
            layer.weight.normal_(0.0, math.sqrt(gain / layer.in_features), generator=generator)
            layer.bias.zero_()
    return model
