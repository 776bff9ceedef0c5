r"""Losses of an operator in a latent space: forward, rollout, spectral, and two inverse ones.

With encoder E, approximator A, decoder D, fields u and latents z = E(u), MSE a mean over all
elements:

================  ==========================================================================
``forward``       :math:`\mathrm{MSE}(A(z_t), z_{t+1})`
``rollout``       :math:`\mathrm{MSE}` over the states of a rollout of several steps
``spectral``      MSE of :math:`|\mathrm{rfft}|` along space (orthonormal) of decoded fields
``inv_enc``       :math:`\mathrm{MSE}(D(E(u)), u)`: fields to latents and back, in physical space
``inv_dec``       :math:`\mathrm{MSE}(E(D(z)), z)`: latents to fields and back, z not differentiated
================  ==========================================================================

Source: Alkin et al. 2024, arXiv:2402.12365 (the inverse losses), and a published configuration of
them, whose keys these are.  Differs: that code ignored keys that it did not know, and let the
caller pass some other tensors for fields and latents of the inverse losses.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from gqc.curricula import cap_shares, compute_inverse_loss_curriculum_weight
from gqc_lab.errors import check_name
from gqc_lab.studies.operator_learning.settings import WEIGHTS

NO_INPUTS = (
    "no loss has its inputs: expected a prediction with its target, or an encoder, a decoder and "
    "fields with positions or latents with query_positions"
)
Codec = Callable[[Tensor, Tensor], Tensor]  #: E or D: (fields or latents, positions)

LOSSES = ("forward", "spectral", "rollout", "inv_enc", "inv_dec")


@dataclass(frozen=True)
class LossBundle:
    """Losses of one batch.

    Args:
        total: the weighted sum, differentiable.
        components: by name of `LOSSES`, unweighted; only those that were computed.
        weights: by name, of each component in ``total``.
    """

    total: Tensor
    components: dict[str, Tensor]
    weights: dict[str, float]

    def shares(self) -> dict[str, float]:
        """Return each component's weighted share of the total, NaN where the total is 0."""
        total = self.total.item()
        parts = {n: self.weights[n] * loss.item() for n, loss in self.components.items()}
        return {n: part / total if total else math.nan for n, part in parts.items()}

    def record(self) -> dict[str, float | None]:
        """Return ``loss/NAME``, ``weight/NAME``, ``share/NAME``; None if not computed."""
        shares = self.shares()
        values: dict[str, float | None] = {}
        for name in LOSSES:
            is_there = name in self.components
            values[f"loss/{name}"] = self.components[name].item() if is_there else None
            values[f"weight/{name}"] = self.weights[name] if is_there else 0.0
            values[f"share/{name}"] = shares[name] if is_there else 0.0
        return values


def inverse_encoding_loss(encoder: Codec, decoder: Codec, fields: Tensor, points: Tensor) -> Tensor:
    """Return ``inv_enc`` of fields (batch, points) at ``points``."""
    return _mse("inv_enc", decoder(encoder(fields, points), points), fields)


def inverse_decoding_loss(
    encoder: Codec, decoder: Codec, latents: Tensor, points: Tensor
) -> Tensor:
    """Return ``inv_dec``, decoded at and encoded from the query ``points``."""
    fixed = latents.detach()
    return _mse("inv_dec", encoder(decoder(fixed, points), points), fixed)


def spectral_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Return ``spectral`` of fields (batch, points): it ignores where waves are."""
    _check_pair("spectral", predicted, target)
    wide = torch.promote_types(predicted.dtype, torch.float32)  # no FFT in bfloat16
    spectra = (torch.fft.rfft(u.to(wide), norm="ortho").abs() for u in (predicted, target))
    return F.mse_loss(*spectra)


def effective_weights(
    weights: Mapping[str, float], current_epoch: float | None = None, batch: int = 0
) -> dict[str, float]:
    """Return the weight of each loss in this batch, before a cap of shares.

    Args:
        weights: keys of `WEIGHTS`; what is absent has its default.
        current_epoch: fractions allowed; the inverse losses' weights follow
            `gqc.curricula.compute_inverse_loss_curriculum_weight`.  None: no curriculum and no cap.
        batch: number of the batch; inverse losses are 0 except in every
            ``inverse_loss_frequency``-th, from 0 on.
    """
    values = check_weights(weights)
    result = {name: float(values[f"lambda_{name}"]) for name in LOSSES}
    for name in ("inv_enc", "inv_dec"):
        if batch % values["inverse_loss_frequency"]:
            result[name] = 0.0
        elif current_epoch is not None:
            result[name] = compute_inverse_loss_curriculum_weight(
                current_epoch,
                result[name],
                values["inverse_loss_warmup_epochs"],
                values["inverse_loss_max_weight"],
            )
    return result


def check_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """Return ``weights`` with the defaults of what is absent.

    Raises: ValueError: an unknown key, or a value out of its range.
    """
    for key in weights:
        check_name("weight", key, WEIGHTS)
    return {n: each.check(n, weights.get(n, each.default)) for n, each in WEIGHTS.items()}


def compute_operator_loss_bundle(
    *,
    weights: Mapping[str, float],
    predicted_latents: Tensor | None = None,
    next_latents: Tensor | None = None,
    predicted_fields: Tensor | None = None,
    next_fields: Tensor | None = None,
    predicted_rollout: Tensor | None = None,
    target_rollout: Tensor | None = None,
    fields: Tensor | None = None,
    positions: Tensor | None = None,
    latents: Tensor | None = None,
    query_positions: Tensor | None = None,
    encoder: Codec | None = None,
    decoder: Codec | None = None,
    current_epoch: float | None = None,
    batch: int = 0,
) -> LossBundle:
    """Return the weighted sum of the losses whose inputs are given.

    Args:
        weights, current_epoch, batch: see `effective_weights`.  A loss of weight 0 is not computed.
        predicted_latents, next_latents: of ``forward``, same shapes.
        predicted_fields, next_fields: of ``spectral``, (batch, points).
        predicted_rollout, target_rollout: of ``rollout``, same shapes, fields or latents.
        encoder, decoder: of the inverse losses, with ``fields`` (batch, points) at ``positions``
            for ``inv_enc`` and ``latents`` at ``query_positions`` for ``inv_dec``.
    Raises: ValueError: the inputs of no loss are there, a pair's shapes differ, NaN or infinity in
        ``fields``, or bad weights.
    """
    ready = effective_weights(weights, current_epoch, batch)
    computed: dict[str, Callable[[], Tensor]] = {}
    if predicted_latents is not None and next_latents is not None:
        computed["forward"] = lambda: _mse("forward", predicted_latents, next_latents)
    if predicted_fields is not None and next_fields is not None:
        computed["spectral"] = lambda: spectral_loss(predicted_fields, next_fields)
    if predicted_rollout is not None and target_rollout is not None:
        computed["rollout"] = lambda: _mse("rollout", predicted_rollout, target_rollout)
    if encoder is not None and decoder is not None:
        pair = encoder, decoder
        if fields is not None and positions is not None:
            _check_fields(fields, positions)
            computed["inv_enc"] = lambda: inverse_encoding_loss(*pair, fields, positions)
        if latents is not None and query_positions is not None:
            computed["inv_dec"] = lambda: inverse_decoding_loss(*pair, latents, query_positions)
    if not computed:
        raise ValueError(NO_INPUTS)
    components = {name: make() for name, make in computed.items() if ready[name] > 0}
    return _weighted_sum(components, ready, check_weights(weights)["inverse_loss_max_share"])


def _weighted_sum(
    components: dict[str, Tensor], weights: Mapping[str, float], max_share: float
) -> LossBundle:
    used = {name: weights[name] for name in components}
    if max_share < 1 and {"inv_enc", "inv_dec"} & components.keys():
        values = {name: loss.item() for name, loss in components.items()}
        used = cap_shares(values, used, {"inv_enc": max_share, "inv_dec": max_share})
    parts = [used[name] * loss for name, loss in components.items()]
    total = reduce(torch.add, parts) if parts else torch.zeros((), requires_grad=True)
    return LossBundle(total, components, used)


def _mse(name: str, predicted: Tensor, target: Tensor) -> Tensor:
    _check_pair(name, predicted, target)
    return F.mse_loss(predicted, target)


def _check_pair(name: str, predicted: Tensor, target: Tensor) -> None:
    if predicted.shape != target.shape:
        raise ValueError(
            f"{name}: prediction of shape {tuple(predicted.shape)}, target of shape "
            f"{tuple(target.shape)}: expected the same"
        )


def _check_fields(fields: Tensor, positions: Tensor) -> None:
    if fields.ndim != 2 or positions.ndim != 1 or fields.shape[1] != len(positions):
        raise ValueError(
            f"fields of shape {tuple(fields.shape)} at positions of shape "
            f"{tuple(positions.shape)}: expected (batch, points) at (points,)"
        )
    if not fields.isfinite().all():
        bad = (~fields.isfinite()).any(1).nonzero().flatten().tolist()
        raise ValueError(f"fields: NaN or infinite in examples {bad[:5]}")
