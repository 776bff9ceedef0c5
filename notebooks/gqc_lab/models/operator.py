r"""A neural operator in a latent space: encoder E, approximator A, decoder D.

E turns fields at any points of a periodic line into L latent tokens with fixed centres, A moves the
tokens one time step forward, and D evaluates the field at any query points:

- E: the points nearest to the centre of a token are summed with weights computed by a network from
  their offset (a continuous convolution), then transformer blocks and a layer norm, so that latents
  have unit variance;
- A: transformer blocks, added to their input;
- D: a transformer block; the value at a point is then the sum over the nearest tokens of a network
  of the offset times the token, with weights that fade out with distance.

Attention is biased by the periodic distance between tokens.  Nothing else encodes where a token is,
so shifting a field by one token shifts everything.

Source: Alkin et al. 2024, arXiv:2402.12365 (Universal Physics Transformers).  Differs: kernels of
the offset instead of message passing at supernodes and perceivers, since tokens stay where the
field is; pre-norm blocks; one spatial dimension.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gqc_lab.models.operator_sizes import OperatorConfig

NUM_WAVES = 8  # of the offset, in the kernels' networks


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``; attention biased by distance."""

    def __init__(self, config: OperatorConfig) -> None:
        super().__init__()
        width = config.hidden
        self.heads = config.heads
        self.attention_norm = _norm(config, width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.distance_bias = nn.Parameter(torch.zeros(config.heads, config.tokens))
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = _norm(config, width)
        self.mlp_in = nn.Linear(width, 2 * width)
        self.mlp_out = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.query_key_value(self.attention_norm(x))
        q, k, v = qkv.view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        step = torch.arange(tokens, device=x.device)
        bias = self.distance_bias[:, (step.unsqueeze(0) - step.unsqueeze(1)) % tokens]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x)), approximate="tanh"))


class Kernel(nn.Module):
    """Map an offset, in units of a token, to the weights of ``outputs`` channels."""

    def __init__(self, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(2 * NUM_WAVES, hidden)
        self.second = nn.Linear(hidden, outputs)

    def forward(self, offset: Tensor) -> Tensor:
        waves = torch.arange(1, NUM_WAVES + 1, device=offset.device, dtype=offset.dtype)
        angles = 0.5 * math.pi * offset.unsqueeze(-1) * waves
        features = torch.cat([angles.sin(), angles.cos()], -1)
        return self.second(F.gelu(self.first(features), approximate="tanh"))


class Encoder(nn.Module):
    """Map fields to latents.

    Args of the call: fields, shape (batch, points); positions of the points in [0, 1), (points,).
    Returns of the call: shape (batch, tokens, latent_dim).
    """

    def __init__(self, config: OperatorConfig) -> None:
        super().__init__()
        self.config = config
        self.kernel = Kernel(config.hidden, config.hidden)
        self.mix = nn.Linear(config.hidden, config.hidden)
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.codec_blocks)))
        self.out = nn.Linear(config.hidden, config.latent_dim)
        self.norm = _norm(config, config.latent_dim, affine=False)

    def forward(self, fields: Tensor, positions: Tensor) -> Tensor:
        _check_fields(fields, positions)
        offsets = _offsets(positions.to(fields.dtype), self.config.tokens)  # (tokens, points)
        nearest = offsets.abs().topk(min(self.config.neighbors, len(positions)), 1, largest=False)
        offsets = offsets.gather(1, nearest.indices)
        # 0 at the farthest one: no jump, and no tie, where the set of nearest points changes.
        fade = _fade(offsets / nearest.values.amax(1, keepdim=True))
        weights = self.kernel(offsets) * fade.unsqueeze(-1)
        dense = _spread(weights.transpose(0, 1), nearest.indices.T, len(positions), 0)
        x = (fields @ dense.flatten(1)).unflatten(1, (self.config.tokens, -1))
        x = x + self.mix(F.gelu(x, approximate="tanh"))
        return self.norm(self.out(self.blocks(x)))


class Approximator(nn.Module):
    """Map latents to those one time step later, of the same shape (batch, tokens, latent_dim)."""

    def __init__(self, config: OperatorConfig) -> None:
        super().__init__()
        self.into = nn.Linear(config.latent_dim, config.hidden)
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.blocks)))
        self.norm = _norm(config, config.hidden)
        self.out = nn.Linear(config.hidden, config.latent_dim)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.into(latents)))
        return latents + self.out(x)


class Decoder(nn.Module):
    """Map latents to fields.

    Args of the call: latents, shape (batch, tokens, latent_dim); query positions, (points,).
    Returns of the call: shape (batch, points).
    """

    reach = 2.0  #: tokens; four of them see a point

    def __init__(self, config: OperatorConfig) -> None:
        super().__init__()
        self.config = config
        self.into = nn.Linear(config.latent_dim, config.hidden)
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.codec_blocks)))
        self.norm = _norm(config, config.hidden)
        self.kernel = Kernel(config.hidden, config.hidden)

    def forward(self, latents: Tensor, positions: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.into(latents)))
        offsets = _offsets(positions.to(latents.dtype), self.config.tokens).T  # (points, tokens)
        nearest = offsets.abs().topk(min(4, self.config.tokens), 1, largest=False)
        offsets = offsets.gather(1, nearest.indices)
        fade = _fade(offsets / self.reach)
        weights = self.kernel(offsets) * fade.unsqueeze(-1) / math.sqrt(self.config.hidden)
        dense = _spread(weights, nearest.indices, self.config.tokens, 1)
        return x.flatten(1) @ dense.flatten(1).T


class Operator(nn.Module):
    """E, A and D together.  Use `make_operator`, which also draws the weights."""

    def __init__(self, config: OperatorConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.approximator = Approximator(config)
        self.decoder = Decoder(config)

    def forward(self, fields: Tensor, positions: Tensor, steps: int = 1) -> Tensor:
        """Return the fields after each of ``steps`` steps, shape (batch, steps, points)."""
        states = self.rollout(self.encoder(fields, positions), steps)
        decoded = self.decoder(states.flatten(0, 1), positions)
        return decoded.unflatten(0, (len(fields), steps))

    def rollout(self, latents: Tensor, steps: int) -> Tensor:
        """Return the latents after each of ``steps`` steps, (batch, steps, tokens, latent_dim)."""
        states = []
        for _ in range(steps):
            latents = self.approximator(latents)
            states.append(latents)
        return torch.stack(states, 1)


def make_operator(config: OperatorConfig, generator: torch.Generator) -> Operator:
    r"""Make an operator with weights from ``generator`` only, float32 on the CPU.

    Weights are :math:`\mathcal N(0, 1/\mathrm{inputs})`, those that write into a residual stream
    smaller by :math:`\sqrt{2\,\mathrm{blocks}}`, and those of the last layer of A by 10, so that a
    step starts near the identity; biases are 0, and attention starts with a bias of
    :math:`-(\mathrm{distance}/w)^2`, w = 1, 2, 4, ... tokens by head.
    """
    with torch.device("meta"):  # torch's own initialisation would draw from the global stream
        model = Operator(config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("distance_bias"):
                parameter.copy_(_first_bias(config))
            elif parameter.ndim == 1:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            else:
                std = 1 / math.sqrt(parameter.shape[1])
                std /= math.sqrt(2 * config.blocks) if name.endswith("_out.weight") else 1
                std /= 10 if name == "approximator.out.weight" else 1
                parameter.normal_(0.0, std, generator=generator)
    return model


def _first_bias(config: OperatorConfig) -> Tensor:
    step = torch.arange(config.tokens)
    distance = torch.minimum(step, config.tokens - step)
    width = 2.0 ** torch.arange(config.heads)
    return -(distance / width.unsqueeze(1)).square().clamp(max=20.0)


def _offsets(positions: Tensor, tokens: int) -> Tensor:
    """Return the shortest way from each token's centre to each point, in tokens."""
    centers = (torch.arange(tokens, device=positions.device, dtype=positions.dtype) + 0.5) / tokens
    apart = positions - centers.unsqueeze(1)
    return tokens * (apart - apart.round())


def _spread(weights: Tensor, places: Tensor, size: int, dim: int) -> Tensor:
    """Scatter weights to their places along ``dim``, 0 elsewhere: (points, tokens, hidden).

    A product with the dense result takes a third of the time of gathering the nearest points.
    """
    shape = [*weights.shape]
    shape[dim] = size
    index = places.unsqueeze(-1).expand_as(weights)
    return weights.new_zeros(shape).scatter(dim, index, weights)


def _fade(distance: Tensor) -> Tensor:
    """Return weights that fall to 0 at distance 1 and sum to 1 along dim 1."""
    weights = torch.cos(0.5 * math.pi * distance.clamp(-1, 1)).square()
    return weights / weights.sum(1, keepdim=True)


def _norm(config: OperatorConfig, width: int, affine: bool = True) -> nn.Module:
    return nn.LayerNorm(width, elementwise_affine=affine) if config.is_normalized else nn.Identity()


def _check_fields(fields: Tensor, positions: Tensor) -> None:
    if positions.ndim != 1 or fields.ndim != 2 or fields.shape[1] != len(positions):
        raise ValueError(
            f"fields of shape {tuple(fields.shape)} with positions of shape "
            f"{tuple(positions.shape)}: expected (batch, points) with (points,)"
        )
