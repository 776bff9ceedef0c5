"""What a live loop needs from Jupyter: the running cell, its end, and widget messages in between.

A kernel handles no widget message while a cell runs.  `Cell.pump` handles those that wait, called
between two batches.  It uses internals of ipykernel 6.29 to 7.4; with others it does nothing, and
`Cell.can_pump` says so.
"""

import asyncio
import functools
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

_MESSAGES = {"comm_open", "comm_msg", "comm_close"}
_QUESTIONS = {"comm_info_request", "kernel_info_request"}  #: of a page that is loaded again
PUMP_SECONDS = 0.02  #: between two looks for messages, each of which costs 5 to 40 us


def current_cell() -> "Cell | None":
    """Return the cell that is running, or None outside Jupyter."""
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython

    shell = get_ipython()
    return Cell(shell) if shell is not None and hasattr(shell, "get_parent") else None


class Cell:
    """One execution of a cell.

    Attributes:
        owner: the id of the cell if the front end sends one, else a name for all cells.
        turn: identifies this execution.
        is_watched: is a person there?  JupyterLab and VS Code name the cell, nbclient and papermill
            do not.
        can_pump: does `pump` work with this kernel?
    """

    def __init__(self, shell: Any) -> None:
        self._shell, self._parent = shell, shell.get_parent()
        metadata = self._parent.get("metadata", {})
        self.owner: str = metadata.get("cellId", "a cell")
        self.turn: str = self._parent.get("header", {}).get("msg_id", "")
        self.is_watched = "cellId" in metadata or "google.colab" in sys.modules
        self._kernel: Any = getattr(shell, "kernel", None)
        self._waiting: list[Any] = []
        self._pump_at = 0.0
        self._is_seven = bool(getattr(self._kernel, "shell_channel_thread", None))
        needed = ("shell_main",) if self._is_seven else ("shell_stream", "msg_queue")
        self.can_pump = "google.colab" not in sys.modules and all(
            hasattr(self._kernel, name) for name in ("comm_manager", *needed)
        )
        self._ahead = _overhear(self._kernel) if self.can_pump and self._is_seven else {}

    def enter(self) -> None:
        """Send what this thread prints to the cell, and not to whichever one is running."""
        if hasattr(self._shell, "set_thread_parent"):  # ipykernel 7
            self._shell.set_thread_parent(self._parent)

    def on_end(self, call: Callable[[BaseException | None], None]) -> Callable[[], None]:
        """Call ``call`` with the error, or None, when a cell has ended; returns what undoes it."""

        def end(result: Any) -> None:
            call(result.error_in_exec)

        self._shell.events.register("post_run_cell", end)
        return lambda: self._shell.events.unregister("post_run_cell", end)

    def pump(self) -> None:
        """Handle the widget messages that wait, in the main thread while a cell runs."""
        if not self.can_pump or (now := time.perf_counter()) < self._pump_at:
            return
        self._pump_at = now + PUMP_SECONDS
        if threading.current_thread() is threading.main_thread():
            try:
                self._pump_seven() if self._is_seven else self._pump_six()
            except (AttributeError, TypeError):  # another kernel than those that this knows
                self.can_pump = False

    def _pump_seven(self) -> None:
        import zmq

        manager = self._kernel.shell_channel_thread.manager
        self._replies = manager.get_subshell_to_shell_channel_socket(None)
        for name, frames in list(self._ahead.items()):
            self._ahead[name] = None
            if frames is not None:
                self._handle(frames)
        socket = manager.get_shell_channel_to_subshell_pair(None).to_socket
        while True:
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            if not self._handle(frames):  # waits for its turn behind this cell
                self._waiting.append(asyncio.ensure_future(self._kernel.shell_main(None, frames)))

    def _pump_six(self) -> None:
        kernel, held = self._kernel, []
        self._replies = kernel.shell_stream
        kernel.shell_stream.flush()  # also what was answered at the last look
        while not kernel.msg_queue.empty():
            item = kernel.msg_queue.get_nowait()
            frames = item[2][0] if item[2] else None
            if frames is None or not self._handle(frames):
                held.append(item)
        for item in held:
            kernel.msg_queue.put_nowait(item)

    def _handle(self, frames: list[Any]) -> bool:
        """Handle a message of a widget or of a page that looks for them; False: it is another."""
        kernel = self._kernel
        idents, rest = kernel.session.feed_identities(frames, copy=False)
        kind = _header(kernel, rest)["msg_type"]
        if kind not in _MESSAGES | _QUESTIONS:
            return False
        message = kernel.session.deserialize(rest, content=True, copy=False)
        cell = kernel.get_parent("shell")
        kernel._publish_status("busy", "shell", parent=message)
        if kind in _MESSAGES:
            getattr(kernel.comm_manager, kind)(kernel.shell_stream, idents, message)
        else:
            answer = getattr(kernel, kind)(self._replies, idents, message)
            list(answer.__await__())  # it waits for nothing
        kernel._publish_status("idle", "shell", parent=message)
        kernel._publish_status("busy", "shell", parent=cell)
        return True


def _header(kernel: Any, frames: list[Any]) -> dict[str, Any]:
    return dict(kernel.session.unpack(getattr(frames[1], "bytes", frames[1])))


@functools.cache
def _overhear(kernel: Any) -> dict[str, Any]:
    """Keep the widget messages that ipykernel 7 has read and not yet handled, by their ids.

    It reads on until the cell blocks its event loop, and handles what it has read behind the cell.
    A cell that takes a message out leaves None, and the kernel then leaves it alone.
    """
    stream = kernel.shell_channel_thread.manager.get_shell_channel_to_subshell_pair(None).to_stream
    read, should_handle = stream._recv_callback, kernel.should_handle
    ahead: dict[str, Any] = {}

    def hear(frames: list[Any]) -> Any:
        header = _header(kernel, kernel.session.feed_identities(frames, copy=False)[1])
        if header["msg_type"] in _MESSAGES:
            ahead[header["msg_id"]] = frames
        return read(frames)

    def is_left(stream: Any, message: dict[str, Any], idents: Any) -> Any:
        is_taken = ahead.pop(message["header"]["msg_id"], False) is None
        return False if is_taken else should_handle(stream, message, idents)

    stream.on_recv(hear, copy=False)
    kernel.should_handle = is_left
    return ahead
