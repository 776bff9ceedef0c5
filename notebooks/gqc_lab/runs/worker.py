"""What executes a batch's runs; on this machine, the batch's end of a warm process."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Protocol

from gqc_lab.runs.plan import Batch, Run
from gqc_lab.runs.store import Store

_THREAD_COUNTS = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_job(batch: Batch, run: Run, store: Store, *, is_warm: bool = True) -> dict[str, Any]:
    """All that a worker has to know to execute ``run``, as plain values."""
    return {
        "id": run.id,
        "name": batch.notebook.name,
        "notebook": str(batch.notebook.path),
        "text": batch.notebook.text,
        "parameters": run.parameters,
        "inputs": run.inputs,
        "runs": str(store.root),
        "timeout": batch.timeout,
        "is_warm": is_warm,
    }


class Executor(Protocol):
    """The seam between a batch and where its runs are executed."""

    def capacity(self) -> int:
        """Runs that are worth submitting at a time where ``--jobs`` does not say."""

    def submit(self, job: dict[str, Any]) -> None: ...
    def interrupt(self, key: str) -> None: ...
    def kill(self, key: str) -> None: ...
    def events(self, timeout: float) -> Iterator[dict[str, Any]]: ...
    def close(self) -> None: ...


class Worker:
    """A warm process (:mod:`gqc_lab.runs.warm`) that executes any number of runs at once.

    Args:
        threads: BLAS and OpenMP threads of each run.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self.pids: dict[str, int] = {}

    def capacity(self) -> int:
        """One run at a time: the user's other work may need the machine."""
        return 1

    def start(self) -> None:
        """Begin the imports; returns at once."""
        env = os.environ | dict.fromkeys(_THREAD_COUNTS, str(self.threads))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gqc_lab.runs.warm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            start_new_session=True,  # Ctrl-C reaches the batch, which decides
        )
        self._buffer = b""

    def submit(self, job: dict[str, Any]) -> None:
        """Start a run now."""
        if self._process is None:
            self.start()
        self.pids[job["id"]] = 0
        self._order({"do": "run", "job": job})

    def interrupt(self, key: str) -> None:
        """Let a run save its checkpoint and end."""
        self._order({"do": "interrupt", "id": key})

    def kill(self, key: str) -> None:
        self._order({"do": "kill", "id": key})

    def _order(self, order: dict[str, Any]) -> None:
        process = self._process
        if process is None or process.stdin is None:
            return
        # events() reports the loss; where it does so in another thread, the pipe may be closed.
        with contextlib.suppress(BrokenPipeError, ValueError):
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.flush()

    def events(self, timeout: float) -> Iterator[dict[str, Any]]:
        """What happened since the last call; waits up to ``timeout`` seconds for something.

        If the warm process died, each of its runs ends as ``lost``; the next submit starts
        another one.
        """
        if self._process is None or self._process.stdout is None:
            return
        readable, _, _ = select.select([self._process.stdout], [], [], timeout)
        if not readable:
            return
        chunk = os.read(self._process.stdout.fileno(), 1 << 20)
        if not chunk:
            yield from self._died()
            return
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        for line in lines:
            event = json.loads(line)
            if event["event"] == "started":
                self.pids[event["id"]] = event["pid"]
            elif event["event"] == "ended":
                self.pids.pop(event["id"], None)
            yield event

    def _died(self) -> Iterator[dict[str, Any]]:
        lost, self.pids = list(self.pids), {}
        self.close()
        for key in lost:
            error = "the process that runs are started from died"
            yield {"event": "ended", "id": key, "status": "lost", "error": error}

    def close(self) -> None:
        """End the process and every run that it has."""
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
            self._process.wait()
            self._process = None
