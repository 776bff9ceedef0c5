"""What the norm schedule editor shows: a draft of the plan, what is wrong with it, what it costs.

The draft is `gqc_widgets.draft`.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from typing import Any

import yaml

from gqc.noise import predicted_draws
from gqc_lab import Experiment
from gqc_lab.loop.norm_schedule import NAMES, NormSchedule, has_norm_schedule, norm_schedule
from gqc_widgets.draft import Draft

NUM_POINTS = 241  #: of a drawn plan
NUM_COLUMNS, NUM_ROWS = 50, 30  #: of the grid that takes clicks
NUM_DRAWN = 7  #: points that a curve turns into when it is to be drawn by hand


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
        self._draft = Draft(self.controls)

    @property
    def plan(self) -> NormSchedule:
        """The last right one."""
        return norm_schedule(self.controls)

    @property
    def total(self) -> int:
        """Microbatches of the whole run: its warmup can be no longer."""
        return int(self.controls.specs["norm_warmup_microbatches"].high)

    # ---- editing

    def edit(self, name: str, content: Any) -> None:
        """Put ``content``, a text or a value, into the field ``name``."""
        more = {}
        if name == "norm_curve" and content == "points" and not self.controls["norm_points"]:
            more["norm_points"] = self.drawn()
        self._draft.edit(name, content, **more)

    @property
    def errors(self) -> dict[str, str]:
        """Field -> what is wrong with it; empty when the draft is the plan."""
        return self._draft.errors

    def text(self, name: str) -> str:
        """The field's content as a text that `edit` reads."""
        return self._draft.text(name)

    def put_point(self, share: float, norm: float) -> None:
        """Draw the point at ``share`` of the run, instead of one that is there."""
        points = dict(self.controls["norm_points"])
        points[_nearest(points, share)] = norm
        self.edit("norm_points", tuple(sorted(points.items())))

    def remove_point(self, share: float) -> None:
        """Take away the point at ``share``; the last one stays."""
        points = dict(self.controls["norm_points"])
        if len(points) > 1:
            points.pop(_nearest(points, share), None)
            self.edit("norm_points", tuple(sorted(points.items())))

    def drawn(self) -> tuple[tuple[float, float], ...]:
        """The present plan as a few points: its start, the end of warmup, and evenly on."""
        plan, total = self.plan, self.total
        warmup = 0.0 if plan.norm_curve == "points" else plan.norm_warmup_microbatches / total
        inner = [warmup + (1 - warmup) * i / (NUM_DRAWN - 1) for i in range(NUM_DRAWN)]
        shares = sorted({0.0, *(round(share, 4) for share in inner)})
        return tuple((s, float(f"{plan.threshold(s * total, total):.4g}")) for s in shares)

    # ---- what is drawn

    def curve(self) -> tuple[list[float], list[float]]:
        """Microbatches from 0 to the end, and the plan's threshold there."""
        plan, total = self.plan, self.total
        steps = sorted(
            {total * i / (NUM_POINTS - 1) for i in range(NUM_POINTS)}
            | {float(min(plan.norm_warmup_microbatches, total))}
            | {share * total for share, _ in plan.norm_points if plan.norm_curve == "points"}
        )
        return steps, [plan.threshold(step, total) for step in steps]

    def expected_draws(self, statistics: Mapping[str, Any]) -> list[float | None] | None:
        r""":math:`n^*` along `curve`, at least ``1``; None where the threshold is out of reach.

        Args:
            statistics: of the wrapper, with ``signal_sq`` and ``noise_trace``.
        Returns: None while the noise is not known (no step took two draws yet).
        """
        signal_sq, noise_trace = statistics.get("signal_sq"), statistics.get("noise_trace")
        if signal_sq is None or noise_trace is None or not noise_trace >= 0:
            return None
        draws = [predicted_draws(signal_sq, noise_trace, tau) for tau in self.curve()[1]]
        return [max(n, 1.0) if math.isfinite(n) else None for n in draws]

    def expected_draws_now(self, statistics: Mapping[str, Any]) -> str | None:
        """:math:`n^*` of the next microbatch as a text; None while the noise is not known."""
        expected = self.expected_draws(statistics)
        if expected is None:
            return None
        steps = self.curve()[0]
        now = min(bisect.bisect_left(steps, self.experiment.microbatch), len(steps) - 1)
        draws = expected[now]
        return "out of reach" if draws is None else f"{draws:.1f}"

    def raster(self) -> tuple[list[float], list[float]]:
        """A grid of points over the figure that can be clicked on: to draw is to click one."""
        norms = [norm for norm in self.curve()[1] if norm > 0] or [1.0]
        low, high = math.log(min(norms) / 2), math.log(max(norms) * 2)
        xs = [self.total * i / NUM_COLUMNS for i in range(NUM_COLUMNS + 1)]
        ys = [math.exp(low + (high - low) * i / NUM_ROWS) for i in range(NUM_ROWS + 1)]
        ys = [float(f"{y:.3g}") for y in ys]
        return [x for x in xs for _ in ys], [y for _ in xs for y in ys]

    def forced_share(self, statistics: Mapping[str, Any]) -> float | None:
        """Share of the steps that ``max_draws`` forced; None before the first step."""
        steps = statistics.get("steps")
        return statistics.get("num_forced", 0) / steps if steps else None

    def warning(self, statistics: Mapping[str, Any]) -> str | None:
        """Where in what is left the threshold cannot be met, by the present estimate, or None."""
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

    # ---- what is kept

    def export(self) -> dict[str, Any]:
        """The plan as parameters for papermill: it can be run as a batch."""
        values = {name: self.controls[name] for name in NAMES}
        warmup = values.pop("norm_warmup_microbatches")
        points = [list(point) for point in values.pop("norm_points")]
        return {**values, "norm_warmup": warmup / self.total, "norm_points": points}

    def export_yaml(self) -> str:
        """`export` as the text of a YAML file for ``gqc run NOTEBOOK -f FILE``."""
        return yaml.safe_dump(self.export(), sort_keys=False, default_flow_style=None)


def _nearest(points: Mapping[float, float], share: float) -> float:
    """The share of the point at ``share``, up to half a percent of the run, or ``share``."""
    return next((x for x in points if abs(x - share) < 0.005), share)
