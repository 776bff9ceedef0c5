"""A gradient, a parameter, a claim and a slider pass few files of ours."""

import subprocess
import sys
from pathlib import Path

import pytest
import ways


@pytest.mark.slow
@pytest.mark.parametrize("way", [way.__name__ for way in ways.WAYS])
def test_a_way_passes_few_files(way):
    """In a process of its own: what is imported, or in a cache, would not be passed."""
    code = f"import ways; print(*ways.{way}().files, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(ways.__file__).parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    files = done.stdout.split()
    assert 0 < len(files) <= ways.WAYS[getattr(ways, way)], files
