"""What kernels of runs have in common: no debugger, and a bound on what a cell prints."""

import gc
import sys

from ipykernel.iostream import OutStream

# Nobody debugs a run, and importing this takes a kernel longer than the rest of its start.
sys.modules["debugpy"] = None  # type: ignore[assignment]
import ipykernel.debugger  # noqa: E402, F401

del sys.modules["debugpy"]  # a cell may still import it
gc.freeze()  # what is imported so far; else all of it is looked through when a kernel ends

MOST_CHARACTERS = 1_000_000


class BoundedStream(OutStream):
    """Standard output or error of a run's kernel, of a million characters for each cell.

    Texts with a carriage return, which draw progress bars, pass: nobody keeps them.
    """

    _cell: object = None
    _length = 0

    def write(self, string: str) -> int | None:  # type: ignore[override]  # as its own is
        """Write what there is room for, and say once where the rest is cut."""
        if not isinstance(string, str) or "\r" in string:  # the former is an error
            return super().write(string)
        if self.parent_header.get("msg_id") != self._cell:
            self._cell, self._length = self.parent_header.get("msg_id"), 0
        room = MOST_CHARACTERS - self._length
        self._length += len(string)
        if room >= len(string):
            return super().write(string)
        if room >= 0:
            note = f"[cut: {self.name} of this cell is longer than {MOST_CHARACTERS:,} characters]"
            super().write(f"{string[:room]}\n{note}\n")
            self._length = MOST_CHARACTERS + 1
        return len(string)
