"""The values of schedules, as pure functions of the step (the last argument)."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence


def interpolate(points: Sequence[tuple[float, float]], step: float) -> float:
    """Return the value at ``step`` of the line through ``points``, level beyond its ends."""
    right = bisect.bisect_right(points, step, key=lambda point: point[0])
    if right == 0:
        return points[0][1]
    if right == len(points):
        return points[-1][1]
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return y0 + (y1 - y0) * (step - x0) / (x1 - x0)


def cosine_with_warmup(
    num_warmup_steps: int, num_training_steps: int, first: float, peak: float, end: float, step: int
) -> float:
    r"""Return the value at ``step`` of a straight line, a half cosine, and a level end.

    With W warmup and T training steps and :math:`x=(t-W)/(T-W)`:
    :math:`f + (p-f)\,t/W` for :math:`t<W`, then :math:`b + (p-b)(1+\cos\pi x)/2`, then b.

    Args:
        num_warmup_steps, num_training_steps: W and T.
        first, peak, end: f, p and b; an inverted warmup has f > p.
        step: t.
    """
    if step < num_warmup_steps:
        return first + (peak - first) * step / num_warmup_steps
    if step >= num_training_steps:
        return end
    progress = (step - num_warmup_steps) / (num_training_steps - num_warmup_steps)
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * progress))


def power_growth(
    num_training_steps: int, start: float, end: float, exponent: float, step: int
) -> float:
    r"""Return :math:`a + (b-a)\,(t/T)^p` at step t, b after T: ``start``, ``end``, ``exponent``."""
    return start + (end - start) * min(step / num_training_steps, 1.0) ** exponent
