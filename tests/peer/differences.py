"""Where torch-gqc 0.10.4 and this project differ, and why: a table whose numbers are measured.

``python tests/peer/differences.py`` measures and prints it; ``--write`` renews ``DIFFERENCES.md``,
which ``test_differences.py`` holds to what is measured.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest's pythonpath does

from peer import estimates, mechanics

TABLE = Path(__file__).with_name("DIFFERENCES.md")


@dataclass(frozen=True)
class Difference:
    """A row: ``measure`` gives (the peer's, ours), ``peer`` and ``ours`` say them in words."""

    title: str
    measure: Callable[[], tuple[Any, Any]]
    peer: str
    ours: str
    why: str


ROWS = (
    Difference(
        "Attach a torch lr scheduler to the wrapper",
        mechanics.torch_scheduler,
        "{}: the wrapper is not an `Optimizer`",
        "{}",
        "schedulers, GradScaler, Accelerate and Lightning check the type",
    ),
    Difference(
        "Step the inner optimizer's lr scheduler once a microbatch",
        mechanics.scheduler_in_a_window,
        "torch warns of a wrong order ({})",
        "{} warnings",
        "schedules count microbatches, so a draw counts as a call",
    ),
    Difference(
        "`zero_grad()`, as every training loop has it",
        mechanics.zero_grad_in_the_loop,
        "{}",
        "{}; draws that wait for a step are kept",
        "loops written for plain optimizers go on working",
    ),
    Difference(
        "Step after 4 draws of the gradient 10, each clipped to 1",
        mechanics.clipped_draws,
        "{:.2f}: each call shrinks the earlier draws too",
        "{:.2f}",
        "each draw is taken out of `.grad`; `clip_norm=` clips the mean",
    ),
    Difference(
        "`step()` without a `backward`, after a draw of 1 in a window of 2",
        mechanics.draw_without_backward,
        "steps with {:g}",
        "{}",
        "a microbatch without a gradient is no draw",
    ),
    Difference(
        "Mean losses over 7 and 1 examples, of gradients 1 and 9: the step",
        mechanics.unequal_microbatches,
        "{:g}: microbatches count alike",
        "{:g}",
        "`step(weight=n)` gives the gradient of the whole batch",
    ),
    Difference(
        "Warnings of a threshold below the norm of every gradient, in 12 windows",
        mechanics.threshold_that_cannot_be_met,
        "{}: each window runs to `max_draws`",
        "{}, with the measured norm",
        "a threshold that cannot be met makes batches of constant size",
    ),
    Difference(
        "`deepcopy` and `pickle` of a wrapper",
        mechanics.copies,
        "{0[0]} and {0[1]}",
        "{0[0]} and {0[1]}",
        "sweeps, EMA copies and process pools need both",
    ),
    Difference(
        "Resume after 2 of 4 draws: mean of the gradients 1, 2, 3, 4",
        mechanics.resume_in_mid_window,
        "{:g}: draws before the cut are lost, but counted",
        "{:g}",
        "the pending gradient is part of the state",
    ),
    Difference(
        "Load a state with 5 pending draws where `max_draws` is 4",
        mechanics.smaller_max_draws,
        "{} at the next draw",
        "{}",
        "a bound is met, not a reason to stop",
    ),
    Difference(
        "SBC, physical batch 1, logical batch 256: draws",
        mechanics.batch_of_256,
        "{} (`max_draws`), and nothing says so",
        "{}",
        "the schedule decides; a bound has to be asked for",
    ),
    Difference(
        "One microbatch with a NaN gradient",
        mechanics.nan_microbatch,
        "parameters are NaN after {} microbatches",
        "{}",
        "it is discarded, counted and warned of",
    ),
    Difference(
        "Mean of 1024 bfloat16 gradients of 1",
        mechanics.sixteen_bit_sum,
        "{:g}: the sum stops at 256",
        "{:g}",
        "16-bit parameters are summed in float32",
    ),
    Difference(
        "GNS on a stream of noise scale 100 (10,000 dimensions)",
        estimates.noise_scale,
        "{:.0e}: the variance of the scalar norms",
        "{:.0f}",
        "the noise scale is tr Sigma over the squared norm of G",
    ),
    Difference(
        "GNS when all gradients shrink by 2^-20: estimate, over that before",
        estimates.gns_scale_invariance,
        "{:.0e}, from an absolute 1e-8",
        "{:g}",
        "a ratio has no unit",
    ),
    Difference(
        "GNS with a parameter that gets no gradient",
        estimates.gns_unused_parameter,
        "{}",
        "{}",
        "norms come from a buffer, not from hooks",
    ),
    Difference(
        "GNS with a frozen parameter",
        estimates.gns_frozen_parameter,
        "{} at construction",
        "{}",
        "fine-tuning freezes parameters",
    ),
    Difference(
        "MHT with its default confidence, equal metrics: draws",
        estimates.mht_default_confidence,
        "{} (`max_draws`): confidence 1.0 has an infinite interval",
        "{}",
        "the default is 0.98",
    ),
    Difference(
        "MHT with a negative metric, always -1: draws",
        estimates.mht_negative_metric,
        "{} (`max_draws`): its bounds change places",
        "{}",
        "the width is compared with the mean's absolute value",
    ),
    Difference(
        "MHT's first window on metrics 1, 3, 2, 2, ...: draws",
        estimates.mht_first_call,
        "{}: the metric is compared with itself",
        "{}",
        "the running mean holds earlier metrics only",
    ),
    Difference(
        "GNR on a zero gradient (momentum 0.9, decay 0.1): movement",
        estimates.gnr_zero_gradient,
        "{:.3f}",
        "{:g}",
        "no direction, hence no step: momentum and decay wait",
    ),
    Difference(
        "Statistics of two groups with thresholds 1 and 3",
        mechanics.reported_threshold,
        "{:g}, the mean; the minimum decides",
        "{:g}, and each group's own",
        "what is reported is what decides",
    ),
    Difference(
        "`add_param_group`: has the new group a threshold?",
        mechanics.added_group,
        "{}: it can no longer be scheduled or reported",
        "{}",
        "tunables are defaults of the optimizer",
    ),
    Difference(
        "Threshold 5 steps past the end of a cosine of 20 from 1 to 0",
        mechanics.schedule_past_its_end,
        "{:.2f}: every window runs to `max_draws`",
        "{:g}",
        "a schedule holds its last value",
    ),
    Difference(
        "Gradient norm 1, threshold 2, a loss scaled by a GradScaler: draws",
        mechanics.scaled_norms,
        "{}: it compares the scaled norm",
        "{}",
        "`grad_scaler=` unscales what the decision reads",
    ),
    Difference(
        "Mean of the draws 1 and 3 under a GradScaler",
        mechanics.unscaled_twice,
        "{:.2f}: the first draw is unscaled twice",
        "{:g}",
        "a window is unscaled once, when it closes",
    ),
    Difference(
        "One Inf under a GradScaler: steps in the next 200 microbatches",
        mechanics.overflow_under_a_scaler,
        "{0[0]}, and a loss scale of {0[1]:g}: the Inf stays in `.grad`",
        "{0[0]}, loss scale halved once to {0[1]:g}",
        "the draw is dropped and the scale backs off",
    ),
    Difference(
        "Norm of a gradient (3, 4) sharded over two ranks",
        mechanics.sharded_norm,
        "{:.3g}: divided by the root of the world size",
        "{:g}",
        "shards are parts of one vector",
    ),
)


def table() -> str:
    """The table in markdown.  Runs every measurement (about 15 s, most of it two processes)."""
    head = f"torch-gqc {version('torch-gqc')}"
    lines = [f"| | {head} | gqc | why |", "|---|---|---|---|"]
    for row in ROWS:
        peer, ours = row.measure()
        cells = (row.title, row.peer.format(peer), row.ours.format(ours), row.why)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def document() -> str:
    """The committed file: the table and how it is made."""
    return (
        "<!-- Written by `python tests/peer/differences.py --write`; a test keeps it true. -->\n\n"
        "Step decisions and parameters of GNTS, SBC and GNR are the peer's on random gradient\n"
        "streams (`tests/peer/test_same.py`). They differ, on purpose, here:\n\n" + table()
    )


if __name__ == "__main__":
    text = document()
    if sys.argv[1:] == ["--write"]:
        TABLE.write_text(text)
    sys.stdout.write(text)
