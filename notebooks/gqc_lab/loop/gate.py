"""Let a loop through between two batches, hold it or end it, at the wish of any thread."""

import atexit
import contextvars
import math
import threading
import time
import traceback
from collections.abc import Callable
from concurrent import futures
from typing import TypeVar

from gqc_lab.loop.jupyter import Cell, current_cell
from gqc_lab.loop.openmp import release_threads

READY, RUNNING, PAUSED = "ready", "running", "paused"
STOPPED, FINISHED, FAILED, REPLACED = "stopped", "finished", "failed", "replaced"

T = TypeVar("T")
_running: set["Gate"] = set()


class Gate:
    """The part of `Live` that knows of threads, and nothing of what is trained.

    A loop runs in the thread of its cell, or in one of its own.  There it calls `_may_go_on`
    between two batches, which is where wishes of other threads are met.
    """

    label = "loop"
    _is_iterator = False  # does a pause end the thread, for `start` to make another?
    _is_over: Callable[[], bool]  # has the last batch been trained?
    _update: Callable[[bool], None]  # tells the views and saves, if it is time to
    _tell: Callable[[], None]  # tells the views
    _leave: Callable[[], None]  # cleans up after the last batch

    def __init__(self, cell: Cell | None) -> None:
        self.state = READY
        self.error: str | None = None
        self._cell = cell or current_cell()
        self._news = threading.Condition(threading.RLock())
        self._thread: threading.Thread | None = None
        self._loop_thread: threading.Thread | None = None
        self._function: Callable[[], object] | None = None
        self._calls: list[Callable[[], None]] = []
        self._due = -math.inf  # when messages of widgets, views and checkpoints are looked after
        self._left, self._is_stopping, self._is_inside = math.inf, False, False

    def _may_go_on(self, is_whole: bool = True) -> bool:
        """Meet the wishes; wait while paused.  False: the loop has to end."""
        while True:
            is_due = time.perf_counter() >= self._due
            if is_due and self._cell is not None:
                self._cell.pump()
            has_wishes = self._calls or self._is_stopping or self._left < math.inf
            if self.state == RUNNING and not has_wishes and not self._is_over():
                if is_due:
                    self._update(is_whole)
                return True  # nearly every batch: no lock
            with self._news:
                calls, self._calls = self._calls, []
            for call in calls:
                call()
            self._update(is_whole)
            with self._news:
                before = self.state
                if self._is_stopping or self._is_over():
                    ended = STOPPED if self._is_stopping else FINISHED
                    self.state = before if before == REPLACED else ended
                elif self._left > 0:
                    self._left -= 1 if is_whole else 0
                    self.state = RUNNING
                else:
                    self.state = PAUSED
                is_held = self.state == PAUSED and not self._is_iterator
                if is_over := self.state != RUNNING and not is_held:
                    self._is_inside = False
            if self.state != before and not (is_over and self._is_iterator):
                self._tell()  # the thread of an iterator tells at its own end
            if is_over or self.state == RUNNING:
                return not is_over
            self._hold()

    def _hold(self) -> None:
        """Wait for news; the thread of a cell looks after widget messages in between."""
        release_threads()
        is_main = threading.current_thread() is threading.main_thread()
        with self._news:
            if self._left <= 0 and not self._is_stopping and not self._calls:
                self._news.wait(0.02 if is_main and self._cell is not None else None)

    def start(self) -> None:
        """Train to the end."""
        self.step(math.inf)

    def step(self, count: float = 1) -> None:
        """Train for ``count`` batches, then pause."""
        if self.state == PAUSED and not self._is_inside:
            self.wait()  # for a thread that has paused and is still telling
        release_threads()
        with self._news:
            if self.state in (READY, PAUSED, RUNNING):
                self._left = count  # takes back a pause that was not yet noticed
                self._news.notify_all()
            if self._is_inside or self._function is None or self.state not in (READY, PAUSED):
                return
            self.state, self._is_inside = RUNNING, True
            name = f"gqc {self.label}"
            run = contextvars.copy_context().run  # ipykernel 7.0 finds the cell there
            self._thread = threading.Thread(None, run, name, (self._work,), daemon=True)
            self._loop_thread = self._thread
            _running.add(self)
            self._thread.start()

    def _work(self) -> None:
        try:
            if self._cell is not None:
                self._cell.enter()
            self._tell()  # here: what it reads is this thread's from now on
            assert self._function is not None
            self._function()
            with self._news:
                if self.state == RUNNING:  # stopped before its first batch, or at its end
                    self.state = STOPPED if self._is_stopping else FINISHED
        except Exception:
            self._fail(traceback.format_exc())
        finally:
            self._is_inside = False
            _running.discard(self)
        self._leave()
        self._tell()

    def _fail(self, error: str) -> None:
        with self._news:
            self.state, self.error, self._is_inside = FAILED, error, False

    def pause(self) -> None:
        """Pause after the current batch."""
        with self._news:
            self._left = 0

    def stop(self) -> None:
        """End the run for good; only `reset` starts another."""
        with self._news:
            self._is_stopping = True
            self._news.notify_all()
        self.wait()
        with self._news:
            if self._is_inside:  # a loop in a cell, which tells at its own end
                return
            if self.state in (READY, PAUSED, RUNNING):
                self.state = STOPPED
        self._tell()

    def finish(self) -> None:
        """Say that training is over, for loops whose end cannot be seen."""
        self._is_inside = False
        if self.state in (READY, RUNNING, PAUSED):
            self.state = FINISHED
        self._leave()
        if self._thread is not threading.current_thread():  # a thread tells at its own end
            self._tell()

    def _end_of_cell(self, error: BaseException | None) -> None:
        """See the end of a loop in a cell: by itself, by an exception or an interrupt."""
        if self._is_inside and self._loop_thread is threading.main_thread():
            if error is not None:
                self._fail("".join(traceback.format_exception(error)))
            self.finish()

    def between(self, call: Callable[[], T]) -> T:
        """Call between two batches, in the thread of the loop, and return what it returns."""
        with self._news:
            thread = self._loop_thread if self._is_inside else None
            if thread is None or thread is threading.current_thread() or not thread.is_alive():
                return call()
            done: futures.Future[T] = futures.Future()

            def work() -> None:
                try:
                    done.set_result(call())
                except Exception as error:
                    done.set_exception(error)

            self._calls.append(work)
            self._news.notify_all()
        while not futures.wait([done], 0.05).done:
            with self._news:
                if not self._is_inside and work in self._calls:
                    self._calls.remove(work)  # the next loop must not call it again
                    return call()
        return done.result()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait up to ``timeout`` seconds for the thread to end; returns whether it has."""
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout)
        return not thread.is_alive()

    def replace(self) -> None:
        """Stop, since another one has taken over; the views say so."""
        self.stop()
        self.between(self._retire)

    def _retire(self) -> None:
        self.state = REPLACED
        self._leave()
        self._tell()


_owners: dict[str, tuple[str, list[Gate]]] = {}


def claim(gate: Gate, cell: Cell | None) -> None:
    """Replace what the cell made when it ran before; several of one run stand side by side."""
    if cell is None:
        return
    turn, gates = _owners.get(cell.owner, (cell.turn, []))
    if turn != cell.turn:
        for former in gates:
            former.replace()
        gates = []
    _owners[cell.owner] = (cell.turn, [*gates, gate])


@atexit.register
def stop_all() -> None:
    """Stop every thread: Python would otherwise end one in the middle of a torch call."""
    for gate in list(_running):
        gate._tell = lambda: None
        gate.stop()
