"""What the package loads, and Colab's widget manager, with a stand-in for Colab."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(code):
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=1000
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


COLAB = """
    import sys, types
    google, colab, output = (types.ModuleType(n) for n in ("google", "colab", "output"))
    calls = []
    output.enable_custom_widget_manager = lambda: calls.append(1)
    colab.output, google.colab = output, colab
    sys.modules |= {"google": google, "google.colab": colab, "google.colab.output": output}
"""


def test_in_colab_importing_it_turns_custom_widgets_on():
    code = COLAB + "    import gqc_widgets\n    print(len(calls))"
    assert run(code) == "1"


def test_the_seam_needs_no_widgets():
    code = """
        import sys
        import gqc_lab.loop.live
        print(sorted({"ipywidgets", "IPython", "anywidget", "gqc_widgets"} & set(sys.modules)))
    """
    assert run(code) == "[]"


def test_every_public_name_is_there_and_others_are_not():
    import gqc_widgets

    assert all(hasattr(gqc_widgets, name) for name in gqc_widgets.__all__)
    assert dir(gqc_widgets) == sorted(gqc_widgets.__all__)
    with pytest.raises(AttributeError, match="LiveRum"):
        _ = gqc_widgets.LiveRum


def test_nothing_imports_it_but_notebooks():
    pattern = re.compile(r"^\s*(import|from)\s+gqc_widgets", re.M)
    sources = [*(ROOT / "gqc").rglob("*.py"), *(ROOT / "paper").rglob("*.py")]
    assert len(sources) > 30
    assert [s for s in sources if pattern.search(s.read_text(encoding="utf-8"))] == []
