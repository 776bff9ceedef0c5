"""A history on disk that grows by its new records: a save costs the same however long the run is.

Each line is JSON: how many records there are, and the columns of those of one save.  The checkpoint
holds how many bytes of the file are its own, and their hash; what a killed save left behind them is
overwritten.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Columns = dict[str, list[Any]]


class AppendedHistory:
    """The file next to a checkpoint that holds its history.

    Args:
        path: of the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f"{path.name}.history")
        self.rows = self.size = 0
        self.names: set[str] = set()
        self._hash = hashlib.sha256()

    def append(self, columns: Columns, rows: int) -> dict[str, Any]:
        """Write the records from `rows` on, and return what :meth:`read` needs.

        Args:
            columns: of the new records, but all of a column that is not among `names`.
            rows: how many records there are in all.
        """
        line = json.dumps([rows, columns]).encode() + b"\n" if rows > self.rows else b""
        with open(self.path, "r+b" if self.size else "wb") as file:
            file.truncate(self.size)
            file.seek(self.size)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._hash.update(line)
        self.names |= set(columns) if line else set()
        self.rows, self.size = max(rows, self.rows), self.size + len(line)
        return {"bytes": self.size, "sha256": self._hash.hexdigest()}

    def read(self, mark: Mapping[str, Any], last: Columns) -> Columns:
        """Return the columns that were written up to ``mark``, and the ``last`` record after them.

        Raises: ValueError: the file does not hold them.
        """
        with open(self.path, "rb") as file:
            content = file.read(mark["bytes"])
        self._hash = hashlib.sha256(content)
        if self._hash.hexdigest() != mark["sha256"]:
            raise ValueError(f"{self.path.name} does not match the checkpoint")
        columns: Columns = {}
        for line in content.splitlines():
            rows, new = json.loads(line)
            _join(columns, new, rows)
            self.rows = rows
        self.names, self.size = set(columns), len(content)
        _join(columns, last, self.rows + 1)
        return columns


def _join(columns: Columns, new: Columns, rows: int) -> None:
    """Append ``new`` records, up to ``rows`` in all; a column that is new may be there whole."""
    for name in {**columns, **new}:
        values = new.get(name, [])
        column = columns.setdefault(name, [None] * (rows - len(values)))
        column += values
        column += [None] * (rows - len(column))
