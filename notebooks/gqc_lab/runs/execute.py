"""Execute one run: with papermill, in a kernel of its own, into the store.

A run holds its lock in the store while it is executed.  It ends by being published, by being moved
to ``failed``, or by being left in ``partial`` to be resumed.
"""

import contextlib
import json
import logging
import os
import re
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import papermill
import psutil  # type: ignore[import-untyped]
from jupyter_core.utils import ensure_event_loop
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from gqc_lab.runs.fingerprint import environment, registration
from gqc_lab.runs.kernel import manager_class, send_signal, socket_folder
from gqc_lab.runs.notebook import is_passing
from gqc_lab.runs.sources import changed_inputs, unplanned_modules
from gqc_lab.runs.store import (
    HISTORY,
    MODULES,
    NO_STORE,
    NOTEBOOK,
    RECORD,
    RESULT,
    TRACEBACK,
    Store,
    read_note,
    to_json,
    write_json,
)  # fmt: skip

Emit = Callable[[dict[str, Any]], None]
_NOTE_SECONDS = 1.0  # between two notes of a run's progress
_GRACE = 10.0  # seconds that a cell has to save its checkpoint when the run is to end
_environment = cache(environment)


class Execution:
    """One run, executed by :meth:`run` in the calling thread; other threads may stop it.

    Args:
        job: id, name, notebook (path), text, parameters, inputs, data (paths), runs (the store),
            timeout, threads, is_forked, has_torch (as far as can be seen), perhaps submission.
        emit: called with progress events.
    """

    def __init__(self, job: dict[str, Any], emit: Emit) -> None:
        self.job, self.emit = job, emit
        self.store = Store(job["runs"])
        self.folder = self.store.partial(job["id"])
        self.kernel: Any = None  # its process, once there is one
        self.stop_reason: str | None = None
        self.timer: threading.Timer | None = None
        self.last_shown = self.last_noted = self.started = self.begun = 0.0
        self.cell, self.text = 0, ""
        self.outputs: list[Any] = []  # of the running cell
        self.attempts = 1
        self.registration: dict[str, Any] | None = None  # under which it began

    def run(self) -> dict[str, Any]:
        """Execute the run and return its outcome.

        Returns: ``status`` is

            - ``finished``: published, now or meanwhile by another process;
            - ``failed``: a cell failed, the time was up, or what the run depends on has changed;
              ``error`` and ``folder`` say more; ``is_store_lost`` if no run could be stored;
            - ``interrupted``: stopped on request; a checkpoint may wait in ``partial``;
            - ``busy``: another process has this run in hand; ``error`` says which;
            - ``lost``: not the notebook's fault (its kernel was killed or did not start).
        """
        key = self.job["id"]
        try:
            with self.store.lock(key) as is_held:
                if not is_held:
                    return {"status": "busy", "error": self.store.describe_holder(key)}
                if self.store.folder(key).is_dir():
                    return {"status": "finished", "was_there": True}
                return self._run()
        except OSError as error:  # a full disk, most often; trying again would not help
            text = f"could not store the run: {_one_line(error)}"
            return {"status": "failed", "error": text, "is_store_lost": error.errno in NO_STORE}

    def stop(self, *, at_once: bool = False, reason: str = "interrupted") -> None:
        """End the run, at once or after the running cell has saved its checkpoint."""
        self.stop_reason = self.stop_reason or reason
        send_signal(self.kernel, signal.SIGKILL if at_once else signal.SIGINT)
        if not at_once:
            # Between two cells a kernel swallows the interrupt, and the run would wait for ever.
            self._after(_GRACE, lambda: self.stop(at_once=True))

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer = threading.Timer(seconds, action)
        self.timer.daemon = True
        self.timer.start()

    def _run(self) -> dict[str, Any]:
        if refusal := self._difference():
            return {"status": "failed", "error": refusal}
        self.started, self.begun = time.time(), time.monotonic()
        self._prepare()
        self.emit({"event": "started", "id": self.job["id"]})
        if self.job["timeout"]:
            self._after(self.job["timeout"], lambda: self.stop(reason="timeout"))
        try:
            self._execute()
        except OSError:
            raise
        except BaseException as error:
            return self._ended(error) or self._lost(error)
        finally:
            if self.timer is not None:
                self.timer.cancel()
            send_signal(self.kernel, signal.SIGKILL)
            kill_processes_of(self.folder)
        try:
            if refusal := self._difference() or self._unplanned():
                return self._failed(refusal, refusal)
            self._publish()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return self._failed(f"left damaged files: {_one_line(error)}", traceback.format_exc())
        return {"status": "finished", "seconds": time.monotonic() - self.begun}

    def _difference(self) -> str:
        """What was planned is what is executed, or the id would be a lie."""
        changed = changed_inputs(self.job)
        if not changed:
            return ""
        shown = ", ".join(changed[:3]) + (", ..." if len(changed) > 3 else "")
        return f"{shown}: not as the batch was planned with; run it again with what is there now"

    def _unplanned(self) -> str:
        found = unplanned_modules(self.job, self.folder / MODULES)
        if not found:
            return ""
        return (
            f"loaded {', '.join(found)}, whose change would go unnoticed; name the folder in the "
            'notebook as `sys.path.insert(0, "...")`, or list the file under data in the batch file'
        )

    def _prepare(self) -> None:
        # What an interrupted run left may hold a checkpoint; papermill's notebook is replaced.
        kill_processes_of(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (RESULT, HISTORY, MODULES):
            (self.folder / name).unlink(missing_ok=True)
        (self.folder / NOTEBOOK).write_text(self.job["text"], encoding="utf-8")
        note = read_note(self.folder / RECORD)
        earlier = note.get("attempts")
        self.attempts = 1 + (earlier if isinstance(earlier, int) else 0)
        is_resumed, place = "registration" in note, Path(self.job["notebook"]).parent
        self.registration = note["registration"] if is_resumed else registration(place)
        self._note("running")

    def _note(self, status: str) -> None:
        """Say in the run's folder how far it is, for `gqc batch status` on any machine."""
        self.last_noted = time.monotonic()
        record = {
            "id": self.job["id"],
            "status": status,
            "started": self.started,
            "seconds": time.monotonic() - self.begun,
            "attempts": self.attempts,
            "registration": self.registration,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "kernel": self.kernel.pid if self.kernel is not None else None,
            "submission": self.job.get("submission"),
            "cell": self.cell,
            "text": self.text,
        }
        write_json(self.folder / RECORD, record, is_durable=False)

    def _execute(self) -> None:
        # It warns of parameters that its regular expressions cannot read; they are checked here.
        logging.getLogger("papermill").setLevel(logging.ERROR)
        path = str(self.folder / NOTEBOOK).replace("{", "{{").replace("}", "}}")
        folder = str(Path(self.job["notebook"]).parent)
        try:
            with socket_folder() as sockets:
                papermill.execute_notebook(
                    path,
                    path,
                    self.job["parameters"],
                    kernel_name="python3",
                    language="python",
                    progress_bar=False,
                    kernel_manager_class=manager_class(
                        self.folder,
                        sockets,
                        self.job["threads"],
                        is_forked=self.job["is_forked"],
                        on_start=self._kernel_starts,
                        gpus=self.job.get("gpus"),
                        has_torch=self.job["has_torch"],
                    ),
                    # Not papermill's cwd: it changes that of this process, which has other runs.
                    resources={"metadata": {"path": folder}},
                    store_widget_state=False,
                    on_cell_start=self._cell_starts,
                    stderr_file=self,
                )
        finally:
            ensure_event_loop().close()  # nbclient leaves this thread's open

    def _kernel_starts(self, kernel: Any) -> None:
        self.kernel = kernel
        self._note("running")

    def _cell_starts(self, cell: Any, cell_index: int) -> None:
        if self.stop_reason is not None:
            raise KeyboardInterrupt
        self.cell, self.outputs = cell_index, cell.get("outputs", [])
        self.last_shown = 0.0
        self._show("")

    def write(self, text: str) -> None:
        """Take what the notebook writes to standard error: its own progress bars."""
        if self.outputs and is_passing(self.outputs[-1]):
            self.outputs.pop()  # else those of a long run fill the memory
        if time.monotonic() - self.last_shown > 0.5:
            lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
            if lines:
                self._show(lines[-1].strip())

    def flush(self) -> None:
        """Do nothing: no text is kept back.  papermill calls it."""

    def _show(self, text: str) -> None:
        self.last_shown, self.text = time.monotonic(), text[:160]
        self.emit({"event": "cell", "id": self.job["id"], "cell": self.cell, "text": self.text})
        if self.last_shown - self.last_noted > _NOTE_SECONDS:
            self._note("running")

    def _ended(self, error: Any) -> dict[str, Any] | None:
        """Return the outcome of a run that was stopped or whose cell failed; None: it was lost."""
        is_of_cell = isinstance(error, PapermillExecutionError)
        name = error.ename if is_of_cell else "KeyboardInterrupt"
        trace = "\n".join(error.traceback) if is_of_cell else repr(error)
        if self.stop_reason == "timeout":
            return self._failed(f"timeout: not finished after {self.job['timeout']:g} s", trace)
        if self.stop_reason and name == "KeyboardInterrupt":
            self._note("interrupted")
            return {"status": "interrupted"}
        return self._failed(f"{name}: {error.evalue}", trace) if is_of_cell else None

    def _lost(self, error: BaseException) -> dict[str, Any]:
        if not isinstance(error, DeadKernelError):
            (self.folder / TRACEBACK).write_text(traceback.format_exc(), encoding="utf-8")
            return {"status": "lost", "error": _one_line(error)}
        code = None if self.kernel is None else self.kernel.poll()
        if code == 0:
            text = "a cell ended the kernel (exit() or quit()); leave the notebook's end to it"
            return self._failed(text, str(error))
        how = f"was killed by signal {-code}" if code and code < 0 else f"exited with code {code}"
        return {"status": "lost", "error": f"the run's kernel {how}"}

    def _failed(self, text: str, trace: str) -> dict[str, Any]:
        bare = re.sub(r"\x1b\[[0-9;]*m", "", trace)  # without colours
        (self.folder / TRACEBACK).write_text(bare, encoding="utf-8")
        with contextlib.suppress(ValueError, KeyError, TypeError):
            self._tidy_notebook()
        record = {
            "id": self.job["id"],
            "status": "failed",
            "error": text,
            "parameters": self.job["parameters"],
            "environment": self._surroundings(),
        }
        write_json(self.folder / RECORD, record)
        folder = self.store.fail(self.job["id"])
        return {"status": "failed", "error": text, "folder": str(folder)}

    def _surroundings(self) -> dict[str, Any]:
        return _environment(Path(self.job["notebook"]).parent, self.job["threads"])

    def _publish(self) -> None:
        saved: dict[str, Any] = {"results": [], "info": {}}
        if (self.folder / RESULT).is_file():
            saved = json.loads((self.folder / RESULT).read_text(encoding="utf-8"))
        common = {"notebook": self.job["name"], "parameters": self.job["parameters"]}
        write_json(self.folder / RESULT, {"run": self.job["id"], **common, **saved})
        self._tidy_notebook()
        record = {
            "id": self.job["id"],
            "status": "finished",
            **common,
            "inputs": self.job["inputs"],
            "environment": self._surroundings(),
            "registration": self.registration,
            "started": self.started,
            "seconds": time.monotonic() - self.begun,  # of the last attempt
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
        path.write_text(to_json(notebook, ensure_ascii=False) + "\n", "utf-8")


def kill_processes_of(folder: Path) -> None:
    """Kill what the cells of a run started here, also in sessions of its own.

    A process counts as the run's if it was started with the run's ``GQC_RUN_DIR``.
    """
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("GQC_RUN_DIR") == str(folder) and process.pid != os.getpid():
                process.kill()


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
