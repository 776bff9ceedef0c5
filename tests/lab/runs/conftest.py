"""What tests of batches start from."""

from pathlib import Path

import pytest

from gqc_lab.runs.batch import LocalExecutor
from gqc_lab.runs.plan import read_batch

NOTEBOOKS = Path(__file__).parents[2] / "fixtures" / "notebooks"


@pytest.fixture(scope="module")
def executor():
    """One for the module; that batches can share it is part of what is tested."""
    executor = LocalExecutor(threads=1)
    yield executor
    executor.close()


@pytest.fixture
def make_batch(tmp_path):
    def make(text, notebook="tiny"):
        path = tmp_path / f"{Path(notebook).stem}.yaml"
        path.write_text(f"notebook: {NOTEBOOKS / notebook}.ipynb\n{text}")
        return read_batch(path)

    return make
