"""A small GPT: pre-norm transformer decoder with learned positions and GPT-2's initialisation.

Source: Radford et al. 2019 (GPT-2).  Differs: linear layers and layer norms have no bias (fewer
kernels for small models on a CPU), initial weights scale with the width (see `make_gpt`), and there
is no dropout, which would draw from the global random stream.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INIT_STD = 0.02  # at GPT-2's width of 768


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of a GPT: about ``12 * depth * width**2`` parameters plus the embeddings.

    The output layer is the transposed token embedding.  ``context``: of the longest sequence
    [tokens]; ``width``: channels, a multiple of ``heads``; ``depth``: blocks.
    """

    vocabulary: int
    context: int
    width: int
    depth: int
    heads: int


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.query_key_value(self.attention_norm(x))
        q, k, v = qkv.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x)), approximate="tanh"))


class GPT(nn.Module):
    """Predict next-token logits.  Use `make_gpt`, which also draws the weights.

    Args of the call: ids, integer, shape (batch, length), length at most ``config.context``.
    Returns of the call: logits, shape (batch, length, vocabulary).
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.width, bias=False)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def make_gpt(config: GPTConfig, generator: torch.Generator) -> GPT:
    r"""Make a GPT with weights from ``generator`` only, float32 on the CPU.

    Weights are :math:`\mathcal N(0, s^2)`, :math:`s = 0.02\sqrt{768/\mathrm{width}}`; those that
    write into the residual stream (``attention_out``, ``mlp_out``) have
    :math:`s / \sqrt{2\,\mathrm{depth}}`; gains of norms are 1.  The global random stream is not
    touched.

    Source: GPT-2, whose 0.02 is for a width of 768.  Without scaling, signals at a width of
    32 to 64 are so small that training stays at the unigram entropy for half a laptop-scale run,
    and the moment when it leaves (0.2 nats between seeds) hides every difference between methods.
    """
    with torch.device("meta"):  # torch's own initialisation would draw from the global stream
        model = GPT(config)
    model.to_empty(device="cpu")
    model.head.weight = model.tokens.weight  # to_empty gives each module its own storage
    std = INIT_STD * math.sqrt(768 / config.width)
    residual_std = std / math.sqrt(2 * config.depth)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                is_residual = name.endswith("_out.weight")
                parameter.normal_(0.0, residual_std if is_residual else std, generator=generator)
    return model


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the groups of an optimizer: matrices are decayed, gains of layer norms are not."""
    return [
        {"params": [p for p in model.parameters() if (p.ndim > 1) is is_matrix], "weight_decay": d}
        for is_matrix, d in ((True, weight_decay), (False, 0.0))
    ]


def count_parameters(model: nn.Module) -> int:
    """Count the trainable parameters; tied ones count once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
