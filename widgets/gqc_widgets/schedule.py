"""What the norm schedule editor shows: the curve, points drawn by hand, and expected draws."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from typing import Any

from gqc.noise import predicted_draws
from gqc_lab import Experiment
from gqc_lab.loop.norm_schedule import NAMES, NormSchedule, has_norm_schedule, norm_schedule

NUM_POINTS = 241  #: of a drawn schedule
NUM_SAMPLED = 7  #: points that a curve turns into when it is edited by hand

XY = tuple[list[float], list[float]]
PointPairs = tuple[tuple[float, float], ...]  # (share of the run, norm)


class NormScheduleModel:
    """The norm schedule of one experiment, before and while it runs.

    Args:
        experiment: with the controls of `gqc_lab.loop.norm_schedule`.
        max_draws: microbatches after which a step is forced, or None.
    Raises: ValueError: the experiment has no norm schedule.
    """

    def __init__(self, experiment: Experiment, max_draws: int | None = None) -> None:
        if not has_norm_schedule(experiment.controls):
            raise ValueError(
                f"experiment {experiment.label!r} has no norm schedule: expected controls "
                f"{', '.join(NAMES)}, as with method='gnts'"
            )
        self.experiment = experiment
        self.controls = experiment.controls
        self.max_draws = max_draws

    @property
    def schedule(self) -> NormSchedule:
        """The schedule that the controls make now."""
        return norm_schedule(self.controls)

    @property
    def total(self) -> int:
        """Microbatches of the whole run, the longest that its warmup can be."""
        return int(self.controls.specs["norm_warmup_microbatches"].high)

    def implied(self, name: str, content: Any) -> dict[str, Any]:
        """Return the edits that come with one: the curve "points" starts on the present curve."""
        is_new = name == "norm_curve" and content == "points" and not self.controls["norm_points"]
        return {"norm_points": self.sampled()} if is_new else {}

    def with_point(self, share: float, norm: float) -> PointPairs:
        """Return the points with one at ``share`` of the run, in place of one that is there."""
        points = dict(self.controls["norm_points"])
        points[_nearest(points, share)] = norm
        return tuple(sorted(points.items()))

    def moved_point(self, share: float, to: float, norm: float) -> PointPairs:
        """Return the points with the one at ``share`` moved."""
        points = dict(self.controls["norm_points"])
        points.pop(_nearest(points, share), None)
        points[min(max(to, 0.0), 1.0)] = norm
        return tuple(sorted(points.items()))

    def without_point(self, share: float) -> PointPairs:
        """Return the points without the one at ``share``; the last one stays."""
        points = dict(self.controls["norm_points"])
        if len(points) > 1:
            points.pop(_nearest(points, share), None)
        return tuple(sorted(points.items()))

    def sampled(self) -> PointPairs:
        """Return the present schedule as a few points: its start, then evenly from the warmup."""
        schedule, total = self.schedule, self.total
        has_warmup = schedule.norm_curve != "points"
        warmup = schedule.norm_warmup_microbatches / total if has_warmup else 0.0
        inner = [warmup + (1 - warmup) * i / (NUM_SAMPLED - 1) for i in range(NUM_SAMPLED)]
        shares = sorted({0.0, *(round(share, 4) for share in inner)})
        return tuple((s, float(f"{schedule.threshold(s * total, total):.4g}")) for s in shares)

    def curve(self) -> XY:
        """Return microbatches from 0 to the end, and the thresholds there."""
        schedule, total = self.schedule, self.total
        is_drawn = schedule.norm_curve == "points"
        steps = sorted(
            {total * i / (NUM_POINTS - 1) for i in range(NUM_POINTS)}
            | {float(min(schedule.norm_warmup_microbatches, total))}
            | {share * total for share, _ in schedule.norm_points if is_drawn}
        )
        return steps, [schedule.threshold(step, total) for step in steps]

    def expected_draws(self, statistics: Mapping[str, Any]) -> list[float | None] | None:
        r"""Return :math:`n^*` along `curve`, at least 1; None where the threshold is out of reach.

        Args:
            statistics: of the wrapper, with ``signal_sq`` and ``noise_trace``.
        Returns: None while the noise is not known (no step has taken two draws yet).
        """
        signal_sq, noise_trace = statistics.get("signal_sq"), statistics.get("noise_trace")
        if signal_sq is None or noise_trace is None or not noise_trace >= 0:
            return None
        draws = [predicted_draws(signal_sq, noise_trace, tau) for tau in self.curve()[1]]
        return [max(n, 1.0) if math.isfinite(n) else None for n in draws]

    def expected_draws_now(self, statistics: Mapping[str, Any]) -> str | None:
        """Return :math:`n^*` at the next microbatch as a text; None while the noise is unknown."""
        expected = self.expected_draws(statistics)
        if expected is None:
            return None
        steps = self.curve()[0]
        now = min(bisect.bisect_left(steps, self.experiment.microbatch), len(steps) - 1)
        draws = expected[now]
        return "out of reach" if draws is None else f"{draws:.1f}"

    def forced_share(self, statistics: Mapping[str, Any]) -> float | None:
        """Return the share of steps that ``max_draws`` forced; None before the first step."""
        steps = statistics.get("steps")
        return statistics.get("num_forced", 0) / steps if steps else None

    def warning(self, statistics: Mapping[str, Any]) -> str | None:
        """Say where in the rest of the run the threshold cannot be met, or return None."""
        expected = self.expected_draws(statistics)
        if expected is None:
            return None
        most = math.inf if self.max_draws is None else self.max_draws
        steps = self.curve()[0]
        left = [i for i, step in enumerate(steps) if step >= self.experiment.microbatch]
        bad = [i for i in left if (n := expected[i]) is None or n > most]
        if not bad:
            return None
        norm = math.sqrt(max(statistics["signal_sq"], 0.0))
        limit = "" if self.max_draws is None else f": steps will be forced at {most:g} draws"
        return (
            f"out of reach in {len(bad) / len(left):.0%} of what is left, first at microbatch "
            f"{steps[bad[0]]:,.0f}{limit} (norm without noise about {norm:.2g})"
        )

    def export(self) -> dict[str, Any]:
        """Return the schedule as parameters for papermill."""
        values = {name: self.controls[name] for name in NAMES}
        warmup = values.pop("norm_warmup_microbatches")
        points = [list(point) for point in values.pop("norm_points")]
        return {**values, "norm_warmup": warmup / self.total, "norm_points": points}


def _nearest(points: Mapping[float, float], share: float) -> float:
    """Return the share of the point within half a percent of the run, or ``share``."""
    return next((x for x in points if abs(x - share) < 0.005), share)
