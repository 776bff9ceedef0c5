"""Editor of a norm schedule: its fields, the curve with what became of it, and what it costs."""

import bisect
import html
import math
from collections.abc import Iterable
from typing import Any

import ipywidgets as widgets

from gqc.noise import predicted_draws
from gqc_lab import Experiment
from gqc_lab.loop.controls import CURVES, NORM_NAMES, NormSchedule, norm_schedule
from gqc_lab.loop.live import Live
from gqc_lab.loop.settings import Pairs
from gqc_lab.stats.numbers import decimals
from gqc_widgets.editor import Editor, columns, note
from gqc_widgets.fields import Fields, say
from gqc_widgets.panels import Panels, schedule_panels

NUM_POINTS = 241  #: of a drawn schedule
NUM_SAMPLED = 7  #: points that a curve turns into when it is edited by hand
#: field -> curves that use it
FIELDS = {
    "norm_curve": CURVES,
    "start_norm": CURVES[:4],
    "end_norm": CURVES[:3],
    "norm_warmup_microbatches": CURVES[:4],
    "norm_warmup_multiplier": CURVES[:4],
    "norm_exponent": ("polynomial",),
    "norm_points": ("points",),
}


class NormScheduleModel:
    """The norm schedule of one run, before it and while it trains.

    Args:
        live: with the controls of `gqc_lab.loop.controls`.
    Raises: ValueError: the run has no norm schedule.
    """

    def __init__(self, live: Live) -> None:
        self.live, self.controls = live, live.experiment.controls
        if not set(NORM_NAMES) <= set(self.controls):
            raise ValueError(
                f"experiment {live.label!r} has no norm schedule: expected controls "
                f"{', '.join(NORM_NAMES)}, as with method='gnts'"
            )
        #: microbatches after which a step is forced, or None
        self.max_draws: int | None = getattr(live.optimizer, "max_draws", None)

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

    def points(self, old: float | None, new: tuple[float, float] | None) -> Pairs:
        """Return the points with the one at ``old`` replaced by ``new``, (share of the run, norm).

        A ``new`` one within half a percent of another takes its place; the last one stays.
        """
        points = dict(self.controls["norm_points"])
        if old is not None and (new is not None or len(points) > 1):
            points.pop(_nearest(points, old), None)
        if new is not None:
            points[_nearest(points, min(max(new[0], 0.0), 1.0))] = new[1]
        return tuple(sorted(points.items()))

    def sampled(self) -> Pairs:
        """Return the present schedule as a few points: its start, then evenly from the warmup."""
        schedule, total = self.schedule, self.total
        has_warmup = schedule.norm_curve != "points"
        warmup = schedule.norm_warmup_microbatches / total if has_warmup else 0.0
        inner = [warmup + (1 - warmup) * i / (NUM_SAMPLED - 1) for i in range(NUM_SAMPLED)]
        shares = sorted({0.0, *(round(share, 4) for share in inner)})
        return tuple((s, float(f"{schedule.threshold(s * total, total):.4g}")) for s in shares)

    def curve(self) -> tuple[list[float], list[float]]:
        """Return microbatches from 0 to the end, and the thresholds there."""
        schedule, total = self.schedule, self.total
        is_drawn = schedule.norm_curve == "points"
        steps = sorted(
            {total * i / (NUM_POINTS - 1) for i in range(NUM_POINTS)}
            | {float(min(schedule.norm_warmup_microbatches, total))}
            | {share * total for share, _ in schedule.norm_points if is_drawn}
        )
        return steps, [schedule.threshold(step, total) for step in steps]

    def expected_draws(self) -> list[float | None] | None:
        r"""Return :math:`n^*` along `curve`, at least 1; None where the threshold is out of reach.

        Returns: None while the noise is not known (no step has taken two draws yet).
        """
        known = self.live.statistics
        signal_sq, noise_trace = known.get("signal_sq"), known.get("noise_trace")
        if signal_sq is None or noise_trace is None or not noise_trace >= 0:
            return None
        draws = [predicted_draws(signal_sq, noise_trace, tau) for tau in self.curve()[1]]
        return [max(n, 1.0) if math.isfinite(n) else None for n in draws]

    def notes(self) -> list[str]:
        """Say what the next step costs, as HTML, and how many steps were forced so far."""
        expected, notes = self.expected_draws(), []
        if expected is None:
            notes.append("expected draws: not known before a step takes two draws")
        else:
            steps = self.curve()[0]
            at = min(bisect.bisect_left(steps, self.live.experiment.microbatch), len(steps) - 1)
            draws = expected[at]
            text = "out of reach" if draws is None else f"{draws:.1f}"
            notes.append(f"expected draws now: <b>{text}</b>")
        if steps_so_far := self.live.statistics.get("steps"):
            share = 100 * self.live.statistics.get("num_forced", 0) / steps_so_far
            notes.append(f"steps forced by max_draws: <b>{decimals(share, 1)}%</b>")
        return notes

    def warning(self) -> str | None:
        """Say where in the rest of the run the threshold cannot be met, or return None."""
        expected = self.expected_draws()
        if expected is None:
            return None
        most = math.inf if self.max_draws is None else self.max_draws
        steps = self.curve()[0]
        left = [i for i, step in enumerate(steps) if step >= self.live.experiment.microbatch]
        bad = [i for i in left if (n := expected[i]) is None or n > most]
        if not bad:
            return None
        norm = math.sqrt(max(self.live.statistics["signal_sq"], 0.0))
        limit = "" if self.max_draws is None else f": steps will be forced at {most:g} draws"
        share = decimals(100 * len(bad) / len(left), 0)
        return (
            f"out of reach in {share}% of what is left, first at microbatch "
            f"{steps[bad[0]]:,.0f}{limit} (norm without noise about {norm:.2g})"
        )


def _nearest(points: Iterable[float], share: float) -> float:
    """Return the share of the point within half a percent of the run, or ``share``."""
    return next((x for x in points if abs(x - share) < 0.005), share)


class NormScheduleEditor(Editor):
    """Edit the schedule of the norm threshold before a run and during it.

    A valid edit takes effect at the next microbatch; an invalid one shows what is wrong, and the
    run keeps the last valid schedule.  With the curve "points", a click into the figure adds a
    point, a click on a point removes it, and a drag moves it.  In a loop of your own, its schedule
    decides until the first edit here.

    Args:
        run: a `Live`, or an experiment.
    Attributes:
        fields: the input fields.
        model: what the figure shows.
    Raises: ValueError: the experiment has no norm schedule.
    """

    def __init__(self, run: Live | Experiment) -> None:
        super().__init__(run)
        self.model = NormScheduleModel(self.live)
        controls = self.experiment.controls
        self.fields = Fields(controls, FIELDS, self._refresh, implied=self.model.implied)
        self.notes = widgets.HTML()
        has_most = self.model.max_draws is not None
        self.panels = Panels(schedule_panels(has_most), self._hear_click)
        left = [self.fields, self.button, self.text]
        self.children = [self.banner, columns(left, [self.panels, self.notes])]
        self.add_class("gqc-norm-schedule")
        self.live.listeners.append(self._hear)
        self._refresh()

    def export(self) -> dict[str, Any]:
        values = {name: self.experiment.controls[name] for name in NORM_NAMES}
        warmup = values.pop("norm_warmup_microbatches")
        points = [list(point) for point in values.pop("norm_points")]
        return {**values, "norm_warmup": warmup / self.model.total, "norm_points": points}

    def _hear_click(self, content: dict[str, Any]) -> None:
        """Put, move or take away a point of a schedule that is drawn by hand.

        Args:
            content: ``old``, the microbatch of a point that goes, and ``new``, [microbatch, norm]
                of one that comes; each may be missing.
        """
        model, total = self.model, self.model.total
        if model.schedule.norm_curve == "points":
            old, new = content.get("old"), content.get("new")
            come = None if new is None else (new[0] / total, float(f"{new[1]:.4g}"))
            points = model.points(None if old is None else old / total, come)
            self.fields.edit("norm_points", points)

    def _refresh(self) -> None:
        """Show the fields that the curve uses, and the figure."""
        with self._drawing:
            curve = self.fields.values["norm_curve"]["text"]
            self.fields.show([name for name, curves in FIELDS.items() if curve in curves])
            self._draw()
            self._refresh_export()

    def _draw(self) -> None:
        model, points = self.model, self.live.curves.points
        steps, norms = model.curve()
        draws = model.expected_draws()
        gaps = [math.nan if n is None else n for n in draws or []]
        is_drawn = model.schedule.norm_curve == "points"
        by_hand = model.schedule.norm_points if is_drawn else ()
        curves: dict[str, tuple[Any, Any]] = {
            "schedule": (steps, norms),
            "expected": (steps if draws else [], gaps),
            "points": ([s * model.total for s, _ in by_hand], [y for _, y in by_hand]),
            "max_draws": (steps, [model.max_draws or math.nan] * len(steps)),
        }
        for name in ("gradient_norm_threshold", "grad_norm", "num_draws"):  # what became of it
            x, y = points(name)
            curves[name] = x * model.total / self.experiment.total, y
        self.panels.fill(curves)
        warning = model.warning()
        below = say(html.escape(warning), "warning") if warning else ""
        self.notes.value = note(" · ".join(model.notes()) + below)
