"""A process with the slow imports behind it, from which runs are forked.

``python -m gqc_lab.runs.warm`` reads orders from standard input and writes events to standard
output, both as lines of JSON.  It never runs user code itself, so every run starts from the
same state and none can reach another.  It ends, and with it every run, when its standard input
closes: whoever started it may be killed at any time.

Orders: ``{"do": "run", "job": {...}}``; ``interrupt`` and ``kill`` with an id.
Events: ``ready``; ``started`` with id and pid; ``cell``; ``ended`` with id and outcome.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

import nbformat

from gqc_lab.runs.fingerprint import environment
from gqc_lab.runs.kernel import die_with_parent
from gqc_lab.runs.launch import execute

# Imported once for all runs.  Not plotly: what it finds at import decides how it shows figures.
_SLOW = (
    "ipykernel.kernelapp",
    "IPython.core.completer",
    "torch",
    "numpy",
    "pandas",
    "pyarrow.parquet",
)


class _Server:
    def __init__(self, events: int) -> None:
        self.events = events
        self.running: dict[int, str] = {}
        self.environments: dict[str, dict[str, Any]] = {}

    def emit(self, event: dict[str, Any]) -> None:
        # One write below PIPE_BUF (4096 bytes) is atomic, so the children's lines do not mix.
        try:
            os.write(self.events, json.dumps(event, ensure_ascii=False).encode() + b"\n")
        except BrokenPipeError:  # nobody is left to work for
            os._exit(1)

    def obey(self, order: dict[str, Any]) -> None:
        if order["do"] == "run":
            self.start(order["job"])
            return
        number = {"interrupt": signal.SIGUSR1, "kill": signal.SIGKILL}[order["do"]]
        for pid, key in self.running.items():
            if key == order["id"]:
                os.kill(pid, number)

    def start(self, job: dict[str, Any]) -> None:
        folder = str(Path(job["notebook"]).parent)
        if folder not in self.environments:
            self.environments[folder] = environment(Path(folder))
        job["environment"] = self.environments[folder]
        parent = os.getpid()
        pid = os.fork()
        if pid:
            self.running[pid] = job["id"]
            self.emit({"event": "started", "id": job["id"], "pid": pid})
            return
        code = 1
        try:
            die_with_parent(parent)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            outcome = execute(job, self.emit)
            outcome["error"] = outcome.get("error", "")[:500]
            self.emit({"event": "ended", "id": job["id"], **outcome})
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def reap(self) -> None:
        while self.running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            key = self.running.pop(pid, None)
            code = os.waitstatus_to_exitcode(status)
            if key is not None and code != 0:
                how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
                self.emit({"event": "ended", "id": key, "status": "lost",
                           "error": f"the run's process {how}"})  # fmt: skip

    def serve(self) -> None:
        awake, waker = os.pipe()
        os.set_blocking(waker, False)
        signal.signal(signal.SIGCHLD, _wake)
        signal.set_wakeup_fd(waker)
        buffer = b""
        while True:
            ready, _, _ = select.select([0, awake], [], [])
            if awake in ready:
                os.read(awake, 4096)
            self.reap()
            if 0 in ready:
                chunk = os.read(0, 1 << 20)
                if not chunk:
                    return
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    self.obey(json.loads(line))


def _wake(number: int, frame: FrameType | None) -> None:
    """The wake-up descriptor does the work; a handler has to exist for it to be written."""


def main() -> None:
    """Import, report ready, serve until standard input closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Kept pending until a run has its handler.  Nothing else stays blocked: who starts this process
    # may have blocked Ctrl-C, which kernels have to hear.
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGUSR1})
    for name in _SLOW:
        importlib.import_module(name)
    nbformat.validate(nbformat.v4.new_notebook())  # compiles its schema, once for all runs
    events = os.dup(1)
    os.dup2(2, 1)  # what anyone prints must not end up among the events
    server = _Server(events)
    server.emit({"event": "ready"})
    server.serve()
    for pid in server.running:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
