"""Which changes make a run stale, and which do not."""

import json
import subprocess

import pytest

from gqc_lab.errors import BadInput
from gqc_lab.runs import sources
from gqc_lab.runs.fingerprint import cell_hash, data_hashes, environment, strip_prose
from gqc_lab.runs.sources import source_hashes

PROSE = '''"""Module."""
import a  # why


def f(x):
    """Doc
    on two lines."""
    return "# no comment" + x   # yes
'''


def test_prose_does_not_count_and_code_does():
    bare = 'import a\ndef f(x):\n    return "# no comment" + x'
    assert strip_prose(PROSE) == bare
    assert cell_hash(PROSE) == cell_hash(bare)
    assert cell_hash(PROSE) != cell_hash(bare.replace("x", "y"))
    assert cell_hash("%time x") == cell_hash(" %time x\n") != cell_hash("%time y")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('x = """a\n\nb"""', 'x = """a\nb"""'),
        ('x = """a  \nb"""', 'x = """a\nb"""'),
        ('x = f"""{y}\n\nb"""', 'x = f"""{y}\nb"""'),
        ("def f(): 'doc'; return 1", "def f(): 'doc'; return 2"),
        ("def f():\n    'doc'; return 1", "def f():\n    'doc'; return 2"),
        ("x = 'ä'\nclass A: 'ö'; y = 1", "x = 'ä'\nclass A: 'ö'; y = 2"),
        ("x = 1 + \\\n 2", "x = 1 + \\\n 3"),
    ],
)
def test_different_programs_differ(one, other):
    assert strip_prose(one) != strip_prose(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('def f():\n    """a\n\n    b"""\n    return 1', "def f():\n    return 1"),
        ('"""Ä."""  # why\n\n\nx = 1  \n', "x = 1"),
        ("x = 1\r\ny = 2\r\n", "x = 1\ny = 2"),
        ("x = [\n    1,\n\n    2,  # two\n]", "x = [\n    1,\n    2,\n]"),
    ],
)
def test_prose_alone_is_ignored(one, other):
    assert strip_prose(one) == strip_prose(other)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in gqc's place, with a re-exporting and a working __init__."""
    files = {
        "gqc/__init__.py": (
            '"""Doc."""\nfrom gqc.a import A\nfrom gqc.sub import Deep\n__all__ = []\n'
        ),
        "gqc/a.py": "from gqc.base import B\nclass A(B): pass\n",
        "gqc/base.py": "class B: pass\n",
        "gqc/other.py": "import gqc.base\n",
        "gqc/sub/__init__.py": "from .deep import Deep\nfrom . import beside\n",
        "gqc/sub/deep.py": "def f():\n    from ..base import B\nclass Deep: pass\n",
        "gqc/sub/beside.py": "x = 1\n",
        "gqc/busy/__init__.py": "y = 2\n",
        "gqc/busy/inner.py": "z = 3\n",
        "gqc/lazy.py": 'import importlib\nimportlib.import_module("gqc.other")\n',
        "gqc_lab/runs/__init__.py": "from gqc.base import B\n",
        "gqc_lab/figures/noise.py": "from gqc.base import B\n",
        "gqc_lab/cli/__init__.py": "from gqc.base import B\n",
        "gqc_lab/cli/paper.py": "from gqc.base import B\n",
        "gqc/clipping.py": "limit = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    packages = {name: tmp_path / name for name in ("gqc", "gqc_lab")}
    monkeypatch.setattr(sources, "PACKAGES", packages)
    return tmp_path / "gqc"


@pytest.mark.parametrize(
    ("code", "modules"),
    [
        ("import gqc", []),
        ("import gqc\ngqc.A()", ["gqc.a", "gqc.base"]),
        ("import gqc as g\ng.A.x.y", ["gqc.a", "gqc.base"]),
        ("from gqc import A", ["gqc.a", "gqc.base"]),
        ("from gqc import Deep", ["gqc.base", "gqc.sub.deep"]),
        ("from gqc.sub import beside", ["gqc.sub.beside"]),
        ("import gqc.sub.beside", ["gqc.sub.beside"]),
        ("import gqc\nprint(gqc)", ["gqc.a", "gqc.base", "gqc.sub.deep"]),
        ("from gqc.sub import *", ["gqc.base", "gqc.sub.beside", "gqc.sub.deep"]),
        ("from gqc.busy import inner", ["gqc.busy", "gqc.busy.inner"]),
        ("from gqc import lazy", ["gqc.base", "gqc.lazy", "gqc.other"]),
        ("%matplotlib inline\nimport gqc.base", ["gqc.base"]),
        ("from gqc_lab import runs\nruns.save()", []),
        ("from gqc_lab.figures import noise\nimport gqc_lab.cli.paper", []),
        ("from gqc import clipping", ["gqc.clipping"]),  # its name begins like the command line's
        ("import numpy, torch.nn", []),
        ("import helper", ["helper"]),
        ("%run helper.py 1 2", ["helper"]),
        ("if True:\n    %run -i ./helper", ["helper"]),
        ("x = !ls\nimport gqc.other", ["gqc.a", "gqc.base", "gqc.other", "gqc.sub.deep"]),
    ],
)
def test_only_what_the_code_reaches_counts(package, tmp_path, code, modules):
    (tmp_path / "helper.py").write_text("import numpy\n")
    assert list(source_hashes(code.splitlines(), [tmp_path])) == modules


def test_a_changed_module_changes_its_hash_only(package, tmp_path):
    before = source_hashes(["from gqc import A"], [tmp_path])
    (package / "base.py").write_text("class B: x = 1\n")
    after = source_hashes(["from gqc import A"], [tmp_path])
    assert after["gqc.a"] == before["gqc.a"]
    assert after["gqc.base"] != before["gqc.base"]


@pytest.mark.parametrize("line", ["%run ../lib/far.py", "if True:\n    %run -i ../lib/far 3"])
def test_a_file_that_is_run_from_another_folder_counts(tmp_path, line):
    folder, lib = tmp_path / "notebooks", tmp_path / "lib"
    folder.mkdir()
    lib.mkdir()
    (lib / "far.py").write_text("import near\n")
    (lib / "near.py").write_text("x = 1\n")
    code = ["y = 2", line]
    before = source_hashes(code, sources.search_folders(code, folder))
    assert list(before) == ["far", "near"]
    (lib / "far.py").write_text("import near as other\n")
    assert source_hashes(code, sources.search_folders(code, folder))["far"] != before["far"]


@pytest.mark.parametrize(
    "line",
    [
        'sys.path.insert(0, "../lib")',
        'sys.path.append("../lib")',
        'sys.path.insert(0, str(Path("../lib").resolve()))',
    ],
)
def test_modules_of_folders_that_the_notebook_adds_count(tmp_path, line):
    (tmp_path / "lib").mkdir()
    (tmp_path / "nb").mkdir()
    (tmp_path / "lib" / "tool.py").write_text("x = 1\n")
    code = ["import sys\nfrom pathlib import Path", line, "import tool"]
    folders = sources.search_folders(code, tmp_path / "nb")
    before = source_hashes(code, folders)
    assert list(before) == ["tool"]
    (tmp_path / "lib" / "tool.py").write_text("x = 2\n")
    assert source_hashes(code, folders) != before


def make_job(tmp_path, planned, **data):
    inputs = {"source": planned, "data": dict.fromkeys(data, "0" * 64)}
    return {"inputs": inputs, "data": data, "folders": [str(tmp_path)]}


def test_what_was_loaded_is_held_against_the_plan(tmp_path):
    (tmp_path / "tool.py").write_text("x = 1\n")
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "tool.py").write_text("x = 2\n")
    record = tmp_path / "modules.json"
    planned = source_hashes(["import tool"], [tmp_path])
    near, far = str(tmp_path / "tool.py"), str(tmp_path / "far" / "tool.py")

    def unplanned(loaded, planned=planned, **data):
        record.write_text(json.dumps(loaded))
        return sources.unplanned_modules(make_job(tmp_path, planned, **data), record)

    assert unplanned({"tool": near, "gqc": "/else/gqc/__init__.py"}) == []
    assert unplanned({"tool": far}) == [f"tool ({far})"]  # the name, but another program
    assert unplanned({"tool": near}, planned={}) == [f"tool ({near})"]
    assert unplanned({"tool": near}, planned={}, tool=near) == []  # listed under data
    assert sources.changed_inputs(make_job(tmp_path, planned)) == []
    (tmp_path / "tool.py").write_text("x = 3\n")
    job = make_job(tmp_path, planned, corpus=str(tmp_path / "none"))
    assert sources.changed_inputs(job) == ["tool", "corpus"]


def test_a_table_that_a_module_names_is_of_its_hash(tmp_path):
    (tmp_path / "helper.py").write_text('TUNED = read("tuned.csv")\n')
    hashes = []
    for text in ("lr,loss\n0.1,2\n", "lr,loss\n0.2,2\n"):
        (tmp_path / "tuned.csv").write_text(text)
        (tmp_path / "other.csv").write_text(text)
        hashes.append(source_hashes(["import helper"], [tmp_path])["helper"])
    assert hashes[0] != hashes[1]
    (tmp_path / "other.csv").unlink()
    assert source_hashes(["import helper"], [tmp_path])["helper"] == hashes[1]


def test_the_real_package_is_followed(tmp_path):
    found = source_hashes(["from gqc import OptimizerWrapperGNTS"], [tmp_path])
    assert {"gqc.wrappers.gnts", "gqc.wrappers.base"} <= found.keys()
    assert "gqc.wrappers.sbc" not in found


def test_data_are_files_or_distributions(tmp_path):
    (tmp_path / "corpus.txt").write_bytes(b"abc")
    hashes = data_hashes(["corpus.txt", "pyyaml"], tmp_path)
    # FIPS 180-2's test vector for "abc".
    assert hashes["corpus.txt"].startswith("ba7816bf8f01cfea")
    assert hashes["pyyaml"][0].isdigit()
    with pytest.raises(BadInput, match=r"'none\.txt': expected a file"):
        data_hashes(["none.txt"], tmp_path)


def test_environment_names_versions_and_the_commit(tmp_path):
    assert environment(tmp_path, 2)["commit"] is None
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@x", "-C", str(tmp_path)]
    (tmp_path / "f").write_text("1")
    for command in (["init", "-q"], ["add", "f"], ["commit", "-qm", "m"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    found = environment(tmp_path, 2)
    assert found["commit"] == head.stdout.strip()
    assert found["packages"]["torch"].startswith("2.")
    assert found["processor"] is None or found["processor"].strip()
    (tmp_path / "f").write_text("2")
    assert environment(tmp_path, 2)["commit"] == head.stdout.strip() + "-dirty"
