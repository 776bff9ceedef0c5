"""What live views cost, against their bars; there is no browser, so this is the kernel's side.

- *watched*: microbatches a second in a thread with the views attached, to those of the run headless
  in a cell; the two take turns in one process.  At least 0.9.
- *slider*: from an edit to the gradient that it acts on, beyond the microbatch under way.  At most
  0.25 s; tests/browser measures the whole way from the key.
- *first figure*: processor time until the views are made, imports done.  At most 2 s.
- *a loop of one's own*: at most 50 us a batch; after a million records an update takes at most
  0.1 s of processor time, and the page gets at most 2 MB of curves.

``--check`` exits with 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from gqc_lab import Experiment
from gqc_lab.studies import pretraining
from gqc_widgets import Live, LiveRun, NormScheduleEditor, VGSAlphaTuner

RECORDS = 999_999


def build(method: str) -> Experiment:
    return pretraining.build(pretraining.config("smoke", method=method, tokens=2**26))


def watch(method: str) -> tuple[Live, Any]:
    live = LiveRun(build(method))
    return live, NormScheduleEditor(live) if method == "gnts" else VGSAlphaTuner(live)


def rate(train: Callable[[int], None], count: int) -> float:
    began = time.perf_counter()
    train(count)
    return count / (time.perf_counter() - began)


def watched_to_headless(method: str, rounds: int, count: int) -> float:
    headless, (live, view) = build(method), watch(method)

    def train(count: int) -> None:
        for _ in range(count):
            next(headless)

    def train_watched(count: int) -> None:
        live.step(count)
        live.wait()

    ratios = [1 / rate(train, count) * rate(train_watched, count) for _ in range(rounds)]
    view.close()
    live.view.close()
    print(f"  rounds: {' '.join(f'{ratio:.2f}' for ratio in ratios)}")
    return statistics.median(ratios)


def slider_to_gradient(edits: int) -> float:
    """Median seconds beyond the microbatch under way."""
    live, tuner = watch("vgs")
    experiment = live.experiment
    applied: list[tuple[float, float]] = []
    plain = experiment.set_hyperparameters

    def noting() -> None:
        plain()
        applied.append((experiment.scaler.alpha, time.perf_counter()))  # type: ignore[attr-defined]

    experiment.set_hyperparameters = noting  # type: ignore[method-assign]
    live.start()
    delays = []
    for i in range(edits):
        time.sleep(0.2)
        alpha = 0.2 + 0.01 * i
        edited = time.perf_counter()
        tuner.fields.edit("alpha", alpha)
        while not any(a == alpha for a, _ in applied):
            time.sleep(0.001)
        at = next(i for i, (a, _) in enumerate(applied) if a == alpha)
        microbatch = applied[at][1] - applied[at - 1][1]
        delays.append(applied[at][1] - edited - microbatch)
        applied.clear()
    tuner.close()
    live.view.close()
    return statistics.median(delays)


def first_figure(method: str) -> float:
    experiment = build(method)
    began = time.process_time()
    live = LiveRun(experiment)
    shown = live.view
    view: Any = NormScheduleEditor(live) if method == "gnts" else VGSAlphaTuner(live)
    seconds = time.process_time() - began
    view.close()
    shown.close()
    return seconds


def an_hour() -> tuple[float, float]:
    """Seconds of an update of a loop's view after a million records; megabytes of its panels."""
    import torch

    live = Live(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1))
    view, run = live.view, live.experiment
    for i in live(range(3)):
        live.log(loss=float(i), accuracy=1.0 - 1 / (1 + i))
    for column in run._columns.values():
        column *= RECORDS // len(column)
    run.microbatch = run.done = len(run._columns["loss"])
    run._columns["microbatch"] = list(range(1, run.microbatch + 1))
    live._tell()
    times = []
    for _ in range(9):
        began = time.process_time()
        live._tell()
        times.append(time.process_time() - began)
    megabytes = sum(len(xy[axis]) for xy in view.panels.points.values() for axis in "xy") / 1e6
    view.close()
    return statistics.median(times), megabytes


def loop_costs(count: int) -> float:
    """Microseconds that `Live` adds to a batch with four numbers logged, without a view."""
    import torch

    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.1)
    loss, numbers = torch.zeros(()), dict.fromkeys("abc", 1.0)
    live = Live(optimizer)
    began = time.perf_counter()
    for _ in live(range(count)):
        live.log(loss=loss, **numbers)
    return 1e6 * (time.perf_counter() - began) / count


def main(rounds: int, count: int, check: bool) -> int:
    missed = []

    def bar(name: str, value: float, limit: float, is_least: bool = False) -> None:
        is_met = value >= limit if is_least else value <= limit
        missed.extend([] if is_met else [name])
        print(f"{name}: {value:.3g} ({'at least' if is_least else 'at most'} {limit:g})")

    for method in ("gnts", "vgs"):
        ratio = watched_to_headless(method, rounds, count)
        bar(f"watched / headless, {method}", ratio, 0.9, is_least=True)
        bar(f"first figure, {method} [s]", first_figure(method), 2.0)
    bar("slider to gradient [s]", slider_to_gradient(15), 0.25)
    bar("Live in a loop of one's own [us a batch]", loop_costs(20_000), 50)
    seconds, megabytes = an_hour()
    bar("an update after a million records [s]", seconds, 0.1)
    bar("curves after a million records [MB]", megabytes, 2.0)
    if missed:
        print(f"missed: {', '.join(missed)}")
    return 1 if check and missed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=300, help="microbatches of a round")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a bar is missed")
    sys.exit(main(**vars(parser.parse_args())))
