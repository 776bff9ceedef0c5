"""What live views cost, against their bars; there is no browser, so this is the kernel's side.

- *watched*: microbatches a second in a thread with the views attached, to those of the run headless
  in a cell; the two take turns in one process.  At least 0.9.
- *slider*: from an edit to the gradient that it acts on, beyond the microbatch under way.  At most
  0.25 s; tests/browser measures the whole way from the key.
- *first figure*: processor time until the views are made, imports done.  At most 2 s.
- *an hour*: updates of the views after as many records as an hour makes, to the first ones: at most
  1.5 times as long; and what the figures hold, at most 2 MB of JSON.

``--check`` exits with 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from gqc_widgets.curves import Curves

from gqc_lab import Experiment
from gqc_lab.studies import pretraining
from gqc_widgets import LiveRun, NormScheduleEditor, VGSAlphaTuner

RECORDS_OF_AN_HOUR = 360_000  # 100 a second


def build(method: str) -> Experiment:
    return pretraining.build(pretraining.config("smoke", method=method, tokens=2**26))


def watch(method: str) -> tuple[LiveRun, Any]:
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
        live.runner.step(count)
        live.runner.wait()

    ratios = [1 / rate(train, count) * rate(train_watched, count) for _ in range(rounds)]
    view.close()
    live.close()
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
    live.runner.start()
    delays = []
    for i in range(edits):
        time.sleep(0.2)
        alpha = 0.2 + 0.01 * i
        edited = time.perf_counter()
        tuner.fields.slider.value = alpha
        while not any(a == alpha for a, _ in applied):
            time.sleep(0.001)
        at = next(i for i, (a, _) in enumerate(applied) if a == alpha)
        microbatch = applied[at][1] - applied[at - 1][1]
        delays.append(applied[at][1] - edited - microbatch)
        applied.clear()
    tuner.close()
    live.close()
    return statistics.median(delays)


def first_figure(method: str) -> float:
    experiment = build(method)
    began = time.process_time()
    live = LiveRun(experiment)
    view: Any = NormScheduleEditor(live) if method == "gnts" else VGSAlphaTuner(live)
    seconds = time.process_time() - began
    view.close()
    live.close()
    return seconds


def an_hour() -> tuple[float, float]:
    """Seconds of an update at the end, to the first full ones; megabytes of all figures."""
    live, tuner = watch("vgs")
    live.runner.step(60)
    live.runner.wait()
    record = dict(live.runner.record or {})
    live.runner.curves = curves = Curves("tokens")

    def add(start: int, count: int) -> None:
        for i in range(start, start + count):
            noise = 1 + (i * 7919 % 1000) / 1000
            changed = {"tokens": 512 * i, "loss": noise, "val_loss": noise, "factor": noise / 2}
            changed |= {name: noise for name in record if name.startswith("vgs/stoch")}
            curves.add({**record, **changed})

    def update() -> float:
        times = []
        for _ in range(9):
            began = time.process_time()
            for listener in live.runner.listeners:
                listener(live.runner)
            times.append(time.process_time() - began)
        return statistics.median(times)

    add(0, 2000)
    first = update()
    add(2000, RECORDS_OF_AN_HOUR - 2000)
    last = update()
    figures = (live.figure, tuner.figure, tuner.what_if_figure)
    megabytes = sum(len(figure.plot.to_json()) for figure in figures) / 1e6
    tuner.close()
    live.close()
    return last / first, megabytes


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
    growth, megabytes = an_hour()
    bar("an update after an hour / at first", growth, 1.5)
    bar("figures after an hour [MB]", megabytes, 2.0)
    if missed:
        print(f"missed: {', '.join(missed)}")
    return 1 if check and missed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=300, help="microbatches of a round")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a bar is missed")
    sys.exit(main(**vars(parser.parse_args())))
