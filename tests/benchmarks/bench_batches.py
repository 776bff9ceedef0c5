"""What 24 trivial runs cost, against papermill alone, as wall-clock time of whole commands.

- ``gqc batch run --jobs 2``: at most 0.20 of a loop over papermill's command line;
- ``gqc batch run --jobs 1``: at most 0.40 of a process that loops over papermill's function.

All take turns, so that what else the machine does hits each alike; the best turn of each counts.
Of the command line, which starts everything once per run, six runs are made and counted four times.
``--check`` exits with 1 where a bar is missed; ``--turns N`` takes N turns.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NOTEBOOK = Path(__file__).resolve().parents[1] / "fixtures" / "notebooks" / "tiny.ipynb"
RUNS, RUNS_OF_COMMAND = 24, 6
FUNCTION = """
import sys
import papermill
for seed in range(int(sys.argv[3])):
    options = {"progress_bar": False, "kernel_name": "python3"}
    papermill.execute_notebook(sys.argv[1], sys.argv[2], {"seed": seed}, **options)
"""


def seconds(folder: Path, *command: object) -> float:
    """Return how long a command with this interpreter takes."""
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stdout}{done.stderr}")
    return time.perf_counter() - begun


def papermill_commands(folder: Path) -> float:
    options = ["--no-progress-bar", "-k", "python3"]
    command = ["-m", "papermill", NOTEBOOK, folder / "out.ipynb", *options, "-p", "seed"]
    return sum(seconds(folder, *command, seed) for seed in range(RUNS_OF_COMMAND)) * (
        RUNS / RUNS_OF_COMMAND
    )


def papermill_function(folder: Path) -> float:
    return seconds(folder, "-c", FUNCTION, NOTEBOOK, folder / "out.ipynb", RUNS)


def batch(folder: Path, jobs: int) -> float:
    (folder / "b.yaml").write_text(f"notebook: {NOTEBOOK}\nseeds: {RUNS}\n", encoding="utf-8")
    with tempfile.TemporaryDirectory(dir=folder) as store:
        code = "from gqc_lab.cli import main; main()"
        return seconds(folder, "-c", code, "batch", "run", "b.yaml", "-j", jobs, "--runs", store)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    contestants = {
        "papermill, its command": papermill_commands,
        "papermill, its function": papermill_function,
        "gqc --jobs 2": lambda folder: batch(folder, 2),
        "gqc --jobs 1": lambda folder: batch(folder, 1),
    }
    best = dict.fromkeys(contestants, float("inf"))
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.turns):
            for name, run in contestants.items():
                best[name] = min(best[name], run(Path(folder)))
    command, function, two, one = best.values()
    for name, value in best.items():
        print(f"{name:36s} {value:8.2f} s")
    is_missed = False
    for name, ratio, most in (
        ("--jobs 2, of papermill's command", two / command, 0.20),
        ("--jobs 1, of papermill's function", one / function, 0.40),
    ):
        print(f"{name:36s} {ratio:8.3f}  at most {most:g}", flush=True)
        is_missed |= ratio > most
    return int(arguments.check and is_missed)


if __name__ == "__main__":
    sys.exit(main())
