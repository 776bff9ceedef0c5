"""What the fork server imports, once for all kernels that it forks.

Not plotly: what it finds at import decides how it shows figures.
"""

# ruff: noqa: E402, F401, I001
import gc
import sys

# Nobody debugs a run, and importing this takes each kernel longer than the rest of its start.
sys.modules["debugpy"] = None  # type: ignore[assignment]
import ipykernel.debugger

del sys.modules["debugpy"]  # a cell may still import it
import IPython.core.debugger
import IPython.extensions.storemagic
import ipykernel.kernelapp
import ipykernel_launcher  # type: ignore[import-untyped]
import pandas.io.formats.html  # type: ignore[import-not-found]
import pyarrow.pandas_compat
import pyarrow.parquet
import torch

import gqc_lab.runs.kernel
import gqc_lab.runs.output

gc.freeze()  # each kernel would look through all of this when it ends
