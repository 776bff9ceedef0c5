"""What live views cost, against their bars; there is no browser, so this is the kernel's side.

- *watched*: processor time of a batch with the views attached, to that of a batch without, in a
  kernel: of an experiment in its thread, and of a loop of one's own with four numbers logged.  At
  most 3 % more, or 50 us.
- *slider*: from an edit to the gradient that it acts on, beyond the microbatch under way.  At most
  0.25 s; tests/browser measures the whole way from the key.
- *first figure*: processor time until the views are made, imports done.  At most 2 s.
- *a million records*: an update takes at most 0.1 s of processor time, and the page gets at most
  2 MB of curves.

``--check`` exits with 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import ast
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from jupyter_client.manager import start_new_kernel

from gqc_lab import Experiment
from gqc_lab.studies import pretraining
from gqc_widgets import Live, LiveRun, NormScheduleEditor, VGSAlphaTuner

RECORDS = 999_999


def build(method: str) -> Experiment:
    return pretraining.build(pretraining.config("smoke", method=method, tokens=2**26))


def watch(method: str) -> tuple[Live, Any]:
    live = LiveRun(build(method))
    return live, NormScheduleEditor(live) if method == "gnts" else VGSAlphaTuner(live)


def watched_experiment(method: str, rounds: int, seconds: float) -> list[tuple[float, float]]:
    """Processor seconds a microbatch in each round: of training alone, and of the whole process."""
    live, view = watch(method)
    run, spent = live.experiment, 0.0
    plain = run._advance

    def advance() -> dict[str, Any]:
        nonlocal spent
        began = time.thread_time()
        record = plain()
        spent += time.thread_time() - began
        return record

    run._advance = advance  # type: ignore[method-assign]
    found = []
    live.start()
    for _ in range(rounds):
        time.sleep(0.3)  # what is told at a start is over
        alone, began, first = spent, time.process_time(), run.microbatch
        time.sleep(seconds)
        alone, whole, count = spent - alone, time.process_time() - began, run.microbatch - first
        found.append((alone / count, whole / count))
    live.stop()
    view.close()
    live.view.close()
    return found


def watched_loop(rounds: int, seconds: float, block: int = 50) -> list[tuple[float, float]]:
    """The same of a loop over a small network; blocks of bare and watched batches take turns."""
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    bare, optimizer = (torch.optim.AdamW(model.parameters(), lr=1e-3) for _ in range(2))
    x, y = torch.randn(32, 64), torch.randint(0, 10, (32,))
    live, numbers = Live(optimizer), dict.fromkeys("abc", 1.0)
    live.view  # noqa: B018

    def train(optimizer: torch.optim.Optimizer) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    found = []
    for _ in range(rounds + 1):  # the first one warms up
        until, count, plain, watched = time.perf_counter() + seconds, 0, 0.0, 0.0
        while time.perf_counter() < until:
            began = time.process_time()
            for _ in range(block):
                train(bare)
            between = time.process_time()
            for _ in live(range(block)):
                live.log(loss=train(optimizer), **numbers)
            ended = time.process_time()
            plain, watched, count = (
                plain + between - began,
                watched + ended - between,
                count + block,
            )
        found.append((plain / count, watched / count))
    return found[1:]


def in_a_kernel(name: str, *arguments: Any) -> Any:
    """What a function of this file returns in a kernel, as JupyterLab starts a cell there."""
    manager, client = start_new_kernel()
    try:
        code = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        code += "import torch, bench_widgets\ntorch.set_num_threads(1)\n"
        code += f"found = bench_widgets.{name}(*{arguments!r})"
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
        content |= {"user_expressions": {"found": "found"}}
        message = client.session.msg("execute_request", content, metadata={"cellId": "a"})
        client.shell_channel.send(message)
        while (reply := client.get_shell_msg())["parent_header"].get("msg_id") != message["msg_id"]:
            pass
        if reply["content"]["status"] != "ok":
            raise RuntimeError(reply["content"]["evalue"])
        found = reply["content"]["user_expressions"]["found"]["data"]["text/plain"]
        return ast.literal_eval(found)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


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


def main(rounds: int, seconds: float, check: bool) -> int:
    missed = []

    def bar(name: str, value: float, limit: float) -> None:
        missed.extend([] if value <= limit else [name])
        print(f"{name}: {value:.3g} (at most {limit:g})")

    def watched(name: str, found: list[tuple[float, float]]) -> None:
        more = statistics.median(b / a - 1 for a, b in found)
        median, best = (1e6 * pick(b - a for a, b in found) for pick in (statistics.median, min))
        missed.extend([] if more <= 0.03 or median <= 50 else [name])
        print(f"watching {name}: {more:+.1%}; {best:.0f} us a batch at best, median {median:.0f}")

    watched("a loop of one's own", in_a_kernel("watched_loop", rounds, seconds))
    for method in ("gnts", "vgs"):
        watched(method, in_a_kernel("watched_experiment", method, rounds, seconds))
        bar(f"first figure, {method} [s]", first_figure(method), 2.0)
    bar("slider to gradient [s]", slider_to_gradient(15), 0.25)
    update, megabytes = an_hour()
    bar("an update after a million records [s]", update, 0.1)
    bar("curves after a million records [MB]", megabytes, 2.0)
    if missed:
        print(f"missed: {', '.join(missed)}")
    return 1 if check and missed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.5, help="of a round")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a bar is missed")
    sys.exit(main(**vars(parser.parse_args())))
