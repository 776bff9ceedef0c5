"""What watching costs: microbatches a second with the live views attached, to the run headless.

Both runs take turns in one process, so that the ratio holds on a busy machine; at least 0.9 is
asked of it.  There is no browser: what is measured is the kernel's side, which makes the figures.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

from gqc.lab.experiments import pretraining
from gqc_widgets import LiveRun, NormScheduleEditor


def rate(train: Callable[[int], None], count: int) -> float:
    began = time.perf_counter()
    train(count)
    return count / (time.perf_counter() - began)


def main(rounds: int, count: int) -> None:
    config = pretraining.config("smoke", tokens=2**26)
    headless, watched = pretraining.build(config), LiveRun(pretraining.build(config))
    editor = NormScheduleEditor(watched)

    def train(count: int) -> None:
        for _ in range(count):
            next(headless)

    def train_watched(count: int) -> None:
        watched.runner.step(count)
        watched.runner.wait()

    ratios = [1 / rate(train, count) * rate(train_watched, count) for _ in range(rounds)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"watched / headless: median {statistics.median(ratios):.2f} of {rounds} ({spread})")
    editor.close()
    watched.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=300, help="microbatches of a round")
    main(**vars(parser.parse_args()))
