"""Execute one run: in a process of its own, with papermill, into the store.

The process is the run's: it holds the run's lock and its kernel dies with it.  It ends by
publishing the run, by moving it to ``failed``, or by leaving it in ``partial`` to be resumed.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from gqc_lab.runs.kernel import CAN_FORK, ForkedKernel, fork_kernel, manager_class
from gqc_lab.runs.notebook import is_passing
from gqc_lab.runs.store import HISTORY, NOTEBOOK, RECORD, RESULT, TRACEBACK, Store, write_json

Emit = Callable[[dict[str, Any]], None]
_GRACE = 10.0  # seconds that a cell has to save its checkpoint when the run is to end


def execute(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Execute ``job`` and return its outcome.

    Args:
        job: id, name, notebook (path), text, parameters, inputs, environment, runs (the store),
            timeout, is_warm.
        emit: called with progress events.
    Returns: ``status`` is

        - ``finished``: published, now or meanwhile by another process;
        - ``failed``: a cell failed or the time was up; ``error`` and ``folder`` say more;
        - ``interrupted``: stopped on request; a checkpoint may wait in ``partial``;
        - ``busy``: another process has this run in hand;
        - ``lost``: not the notebook's fault (its kernel died or did not start).
    """
    store = Store(job["runs"])
    with store.lock(job["id"]) as is_held:
        if not is_held:
            return {"status": "busy"}
        if job["id"] in store.finished():
            return {"status": "finished", "was_there": True}
        try:
            return _Execution(job, store, emit).outcome()
        except OSError as error:  # a full disk, most often; trying again would not help
            return {"status": "failed", "error": f"could not store the run: {_one_line(error)}"}


class _Execution:
    """The state of one run: its kernel, and why it is being stopped, if it is."""

    def __init__(self, job: dict[str, Any], store: Store, emit: Emit) -> None:
        self.job, self.store, self.emit = job, store, emit
        self.folder = store.partial(job["id"])
        self.child: ForkedKernel | None = None
        self.stop_reason: str | None = None
        self.last_shown = 0.0
        self.cell = 0
        self.attempts = 1

    def outcome(self) -> dict[str, Any]:
        started = time.time()
        self._prepare(started)
        if self.job["is_warm"] and CAN_FORK:
            self.child = fork_kernel(self.folder / "kernel.log")
        signal.signal(signal.SIGUSR1, self._interrupted)
        signal.signal(signal.SIGALRM, self._time_is_up)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        signal.setitimer(signal.ITIMER_REAL, self.job["timeout"] or 0.0)
        try:
            self._execute()
        except PapermillExecutionError as error:
            return self._stopped(error)
        except DeadKernelError as error:
            if self.stop_reason == "timeout":
                return self._failed(self._timeout_text(), str(error))
            return {"status": self.stop_reason or "lost", "error": f"the kernel died: {error}"}
        except KeyboardInterrupt:
            return {"status": "interrupted"}
        except OSError:
            raise
        except Exception as error:
            (self.folder / TRACEBACK).write_text(traceback.format_exc(), encoding="utf-8")
            return {"status": "lost", "error": _one_line(error)}
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            if self.child is not None:
                self.child.kill()
        self._publish(started)
        return {"status": "finished", "seconds": time.time() - started}

    def _prepare(self, started: float) -> None:
        # What an interrupted run left may hold a checkpoint; papermill's notebook is replaced.
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (RESULT, HISTORY):
            (self.folder / name).unlink(missing_ok=True)
        notebook = nbformat.reads(self.job["text"], as_version=4)
        notebook.metadata.pop("widgets", None)  # stale widget state can weigh megabytes
        nbformat.write(notebook, self.folder / NOTEBOOK)
        self.attempts = 1 + _attempts(self.folder / RECORD)
        record = {
            "id": self.job["id"],
            "status": "running",
            "started": started,
            "attempts": self.attempts,
            "pid": os.getpid(),
            "submission": self.job.get("submission"),
        }
        write_json(self.folder / RECORD, record)

    def _execute(self) -> None:
        # It warns of parameters that its regular expressions cannot read; they are checked here.
        logging.getLogger("papermill").setLevel(logging.ERROR)
        path = str(self.folder / NOTEBOOK).replace("{", "{{").replace("}", "}}")
        os.environ["GQC_RUN_DIR"] = str(self.folder)
        with tempfile.TemporaryDirectory(prefix="gqc-") as sockets:
            papermill.execute_notebook(
                path,
                path,
                self.job["parameters"],
                kernel_name="python3",
                language="python",
                progress_bar=False,
                cwd=str(Path(self.job["notebook"]).parent),
                kernel_manager_class=manager_class(self.child, Path(sockets)),
                store_widget_state=False,
                on_cell_start=self._cell_starts,
                stderr_file=self,
            )

    def _cell_starts(self, cell: Any, cell_index: int) -> None:
        if self.stop_reason is not None:
            raise KeyboardInterrupt
        self.cell = cell_index
        self.last_shown = 0.0
        self._show("")

    def write(self, text: str) -> None:
        """Take what the notebook writes to standard error: its own progress bars."""
        if time.monotonic() - self.last_shown > 0.5:
            lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
            if lines:
                self._show(lines[-1].strip())

    def flush(self) -> None:
        """Nothing is kept back; papermill calls it."""

    def _show(self, text: str) -> None:
        self.last_shown = time.monotonic()
        self.emit({"event": "cell", "id": self.job["id"], "cell": self.cell, "text": text[:160]})

    def _stop(self, reason: str) -> None:
        self.stop_reason = self.stop_reason or reason
        if self.child is not None:
            self.child.send_signal(signal.SIGINT)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        self._stop("interrupted")
        # Between two cells a kernel swallows the interrupt, and the run would wait for ever.
        signal.setitimer(signal.ITIMER_REAL, _GRACE)

    def _time_is_up(self, number: int, frame: FrameType | None) -> None:
        if self.stop_reason is not None and self.child is not None:
            self.child.kill()
            return
        self._stop("timeout")
        signal.setitimer(signal.ITIMER_REAL, _GRACE)

    def _timeout_text(self) -> str:
        return f"timeout: not finished after {self.job['timeout']:g} s"

    def _stopped(self, error: PapermillExecutionError) -> dict[str, Any]:
        if error.ename == "KeyboardInterrupt" and self.stop_reason == "interrupted":
            return {"status": "interrupted"}
        text = f"{error.ename}: {error.evalue}"
        if self.stop_reason == "timeout":
            text = self._timeout_text()
        return self._failed(text, "\n".join(error.traceback))

    def _failed(self, text: str, trace: str) -> dict[str, Any]:
        (self.folder / TRACEBACK).write_text(_without_colours(trace), encoding="utf-8")
        record = {
            "id": self.job["id"],
            "status": "failed",
            "error": text,
            "parameters": self.job["parameters"],
            "environment": self.job["environment"],
        }
        write_json(self.folder / RECORD, record)
        folder = self.store.fail(self.job["id"])
        return {"status": "failed", "error": text, "folder": str(folder)}

    def _publish(self, started: float) -> None:
        saved: dict[str, Any] = {"results": [], "info": {}}
        if (self.folder / RESULT).is_file():
            saved = json.loads((self.folder / RESULT).read_text(encoding="utf-8"))
        result = {
            "run": self.job["id"],
            "notebook": self.job["name"],
            "parameters": self.job["parameters"],
            **saved,
        }
        write_json(self.folder / RESULT, result)
        self._tidy_notebook()
        record = {
            "id": self.job["id"],
            "status": "finished",
            "notebook": self.job["name"],
            "parameters": self.job["parameters"],
            "inputs": self.job["inputs"],
            "environment": self.job["environment"],
            "started": started,
            "seconds": time.time() - started,  # of the last attempt
            "attempts": self.attempts,
        }
        self.store.publish(self.job["id"], record)
        self.store.forget_failure(self.job["id"])

    def _tidy_notebook(self) -> None:
        path = self.folder / NOTEBOOK
        notebook = json.loads(path.read_text(encoding="utf-8"))
        about = notebook["metadata"]["papermill"]
        about["input_path"], about["output_path"] = self.job["notebook"], NOTEBOOK
        for cell in notebook["cells"]:
            if "outputs" in cell:
                cell["outputs"] = [o for o in cell["outputs"] if not is_passing(o)]
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _attempts(record: Path) -> int:
    """How often an interrupted run was started."""
    try:
        return int(json.loads(record.read_text(encoding="utf-8"))["attempts"])
    except (OSError, ValueError, KeyError):
        return 0


def _without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
