"""Colab draws widgets of other packages (anywidget, for our figures) only after being asked to."""

from __future__ import annotations

import importlib
import sys


def enable_custom_widgets() -> bool:
    """Turn Colab's custom widget manager on; returns whether this is Colab.

    Colab's kernel has imported ``google.colab`` before any cell runs; elsewhere nothing happens.
    """
    if "google.colab" not in sys.modules:
        return False
    importlib.import_module("google.colab.output").enable_custom_widget_manager()
    return True
