r"""Curricula of loss weights: a term that comes late, grows slowly, and never rules the total.

The weight of a term at an epoch :math:`e` (fractions of an epoch too) is

.. math:: w(e) = \min\bigl(b\,s\bigl(\tfrac{e - d}{r}\bigr),\; c\bigr)

with base weight b, delay d, ramp r and cap c; s is 0 below 0, 1 above 1 and rises in between.  A
cap bounds the *weight*.  What it is often meant to bound is the *share* of the total loss,
:math:`w_i L_i / \sum_j w_j L_j`, which depends on the losses: :func:`cap_shares` bounds that.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gqc.checks import check_finite, expect, one_of

_RATE = 5.0  # of the exponential ramp, which is at 7.6 % half-way

#: shape of a ramp -> s(x) on [0, 1]
RAMPS: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "cosine": lambda x: 0.5 * (1 - math.cos(math.pi * x)),
    "exponential": lambda x: math.expm1(_RATE * x) / math.expm1(_RATE),
}


@dataclass(frozen=True)
class Curriculum:
    r"""The weight of one loss term by epoch; call it with the epoch.

    Args:
        base: b, the weight at the end of the ramp, >= 0.
        delay: d [epochs], >= 0; the weight is 0 before it.
        ramp: r [epochs], >= 0; with 0 the weight is full from the delay on.
        shape: s, one of `RAMPS`: ``"linear"``, ``"cosine"`` (:math:`(1-\cos\pi x)/2`) or
            ``"exponential"`` (:math:`(e^{5x}-1)/(e^5-1)`).
        cap: c, >= 0; ``math.inf`` for none.
    Raises: ValueError: an argument out of its range, or an epoch that is negative or not finite.
    """

    base: float
    delay: float = 0.0
    ramp: float = 0.0
    shape: str = "linear"
    cap: float = math.inf

    def __post_init__(self) -> None:
        check_finite(base=self.base, delay=self.delay, ramp=self.ramp)
        expect(self.cap >= 0, "cap", self.cap, "a number >= 0; math.inf for none")
        one_of("shape", self.shape, RAMPS)

    def __call__(self, epoch: float) -> float:
        """w(epoch)."""
        check_finite(epoch=epoch)
        if epoch < self.delay:
            return 0.0
        x = (epoch - self.delay) / self.ramp if epoch < self.delay + self.ramp else 1.0
        return min(self.base * RAMPS[self.shape](x), self.cap)


def compute_inverse_loss_curriculum_weight(
    epoch: float, base_weight: float, warmup_epochs: float = 15, max_weight: float = 0.05
) -> float:
    r"""The published curriculum of inverse losses: absent, then a straight ramp, then level.

    With W warmup epochs: 0 for :math:`e < W`; :math:`\min(b\,(e-W)/W, c)` for
    :math:`W \le e < 2W`; then :math:`\min(b, c)`.  W = 0: full weight at once.

    Args:
        epoch: e >= 0; fractions make the ramp smooth.
        base_weight, warmup_epochs, max_weight: b, W [epochs] and c, >= 0 and finite.
    Raises: ValueError: an argument that is negative or not finite.
    """
    check_finite(base_weight=base_weight, warmup_epochs=warmup_epochs, max_weight=max_weight)
    return Curriculum(base_weight, warmup_epochs, warmup_epochs, cap=max_weight)(epoch)


def cap_shares(
    losses: Mapping[str, float], weights: Mapping[str, float], max_shares: Mapping[str, float]
) -> dict[str, float]:
    r"""Lower weights until no term has more than its allowed share of the total.

    The largest weights :math:`w'_i \le w_i` with :math:`w'_i L_i \le s_i T`, where
    :math:`T = \sum_j w'_j L_j` counts what the capped terms are left with.  One equation, with a
    kink for each capped term: T is found exactly, from the term that exceeds its share most.

    Args:
        losses: :math:`L_i \ge 0` by name, unweighted, numbers or tensors.  One that is not finite
            keeps its weight and counts nothing: no weight would make the total finite.
        weights: :math:`w_i \ge 0` by name, of the same terms.
        max_shares: :math:`s_i` in [0, 1] of the terms that are bounded; they may be absent.
    Returns: new weights.  0 where bounded terms (of together less than 1) are all there is.
    Raises: ValueError: names that differ, a negative loss or weight, a share outside [0, 1].
    """
    if losses.keys() != weights.keys():
        raise ValueError(f"losses {sorted(losses)}, weights {sorted(weights)}: expected one each")
    # Of tensors the numbers: a weight c / L that knew L would take all gradient out of its term.
    losses = {n: loss.item() if hasattr(loss, "item") else loss for n, loss in losses.items()}
    for name, share in max_shares.items():
        expect(0 <= share <= 1, f"max_shares[{name!r}]", share, "a share in [0, 1]")
    parts = {}
    for name, loss in losses.items():
        if loss < 0 or not weights[name] >= 0:
            both = f"losses[{name!r}]={loss!r}, weights[{name!r}]={weights[name]!r}"
            raise ValueError(f"{both}: expected both >= 0")
        if math.isfinite(weights[name] * loss):
            parts[name] = weights[name] * loss
    bounded = [n for n, part in parts.items() if n in max_shares and part > 0]
    excess = {n: parts[n] / max_shares[n] if max_shares[n] else math.inf for n in bounded}
    capped: list[str] = []
    for term in (*sorted(excess, key=lambda n: -excess[n]), None):
        # What the terms that are not capped weigh, and the share of the total that is theirs.
        rest = math.fsum(part for n, part in parts.items() if n not in capped)
        room = 1 - math.fsum(max_shares[n] for n in capped)
        # Shares of together 1 leave the last term just its own: rounding must not cap it.
        if term is None or parts[term] * room <= max_shares[term] * rest * (1 + 1e-12):
            break
        capped.append(term)
    return dict(weights) | {n: max_shares[n] * rest / room / losses[n] for n in capped}
