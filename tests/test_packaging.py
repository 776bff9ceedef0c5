"""What a user installs: a core that needs torch alone, extras that agree with each other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import textwrap
import tomllib
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEAVY = (
    "IPython",
    "ipywidgets",
    "plotly",
    "pandas",
    "matplotlib",
    "papermill",
    "scipy",
    "numpy.f2py",
)
CONDA_NAMES = {"torch": "pytorch", "duckdb": "python-duckdb", "matplotlib": "matplotlib-base"}
CONDA_NAMES["kaleido"] = "python-kaleido"


def run(code: str, python: str | Path = sys.executable, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        [python, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=900,
        **kwargs,
    )


def floors(requirements: list[str]) -> dict[str, str]:
    """{name: floor} of ``name>=floor`` requirements, without those on the project itself."""
    pairs = (re.fullmatch(r"([\w.-]+)(?:>=([\d.]+))?", r) for r in requirements)
    return {m[1]: m[2] for m in pairs if m and m[1] != "gqc-kit"}


def test_environment_yml_has_the_names_and_floors_of_pyproject():
    extras = PROJECT["optional-dependencies"]
    wanted = floors(PROJECT["dependencies"])
    for extra in ("lab", "widgets", "dask", "paper"):
        wanted |= floors(extras[extra])
    wanted = {CONDA_NAMES.get(name, name): floor for name, floor in wanted.items()}
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    listed = [d for d in environment["dependencies"] if isinstance(d, str)]
    listed += next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    found = floors(listed)
    assert found.pop("pip", "missing") is None
    assert found.pop("python") == PROJECT["requires-python"].removeprefix(">=")
    assert found == wanted


def test_constraints_pin_every_direct_dependency_exactly_and_above_its_floor():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if line)
    pinned = {canonicalize_name(name): version for name, version in pinned.items()}
    extras = PROJECT["optional-dependencies"]
    for text in (*PROJECT["dependencies"], *(r for extra in extras.values() for r in extra)):
        requirement = Requirement(text)
        if requirement.name != "gqc-kit":
            assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, text
    assert pinned["torch"] == "2.13.0"


def test_the_core_loads_torch_and_nothing_heavy():
    code = f"""
        import sys, torch
        before = set(sys.modules)
        import gqc
        loaded = {{name.split('.')[0] for name in set(sys.modules) - before}}
        assert not loaded & set({HEAVY!r}), loaded & set({HEAVY!r})
        assert not any(name.startswith(('gqc_lab', 'gqc_widgets')) for name in sys.modules)
    """
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_the_core_costs_little_over_torch():
    """CPU time, the least of up to ten fresh processes, so that a busy machine does not count.

    Without the collector, which goes over torch's objects in whichever import comes next: 0.08 s.
    """
    code = "import gc, time, torch; gc.disable(); t = time.process_time(); import gqc; "
    code += "print(time.process_time() - t)"
    times = []
    while not times or (min(times) > 0.1 and len(times) < 10):
        times.append(float(run(code).stdout))
    assert min(times) <= 0.1, times


def test_dependencies_between_the_packages_point_one_way():
    imports = re.compile(r"^\s*(?:from|import)\s+([\w.]+)", re.M)
    for path in (ROOT / "gqc").rglob("*.py"):
        names = imports.findall(path.read_text())
        relative = path.relative_to(ROOT / "gqc")
        assert not any(n.startswith("gqc_widgets") for n in names), relative
        assert not any(n.startswith("gqc_lab") for n in names), relative


def test_the_version_is_one():
    import gqc

    assert gqc.__version__ == PROJECT["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_package_page_has_the_quickstart_and_no_link_into_a_checkout():
    page, readme = ((ROOT / name).read_text() for name in (PROJECT["readme"], "README.md"))
    example = re.compile(r"```python\n(.*?)```", re.S)
    assert example.search(page)[1] == example.search(readme)[1]
    assert re.findall(r"\]\((?!https://)([^)]*)\)", page) == []
    assert "`pip install gqc`" in page


def test_the_classifiers_are_the_supported_versions_of_python():
    stated = [c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if ":: 3." in c]
    assert stated == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == ">=" + stated[0]
    assert PROJECT["authors"] == [{"name": "The gqc developers"}]


@pytest.mark.slow
def test_the_source_distribution_holds_every_file_and_its_tests_run(tmp_path):
    build = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, ROOT]
    done = subprocess.run(build, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("gqc_kit-*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    folder = tmp_path / archive.name.removesuffix(".tar.gz")
    listed = ["git", "-C", ROOT, "ls-files", "-z"]
    files = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0")
    assert [name for name in files if name and not (folder / name).is_file()] == []
    some = ["tests/test_packaging.py", "tests/test_schedules.py", "tests/interop/test_attached.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", *some]
    paths = os.pathsep.join(str(folder / name) for name in ("", "notebooks", "widgets"))
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_wheel_with_only_torch_runs_the_quickstart(tmp_path):
    """A new venv that sees the wheel and torch (with what torch needs), and nothing else."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT]
    done = subprocess.run(build, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("gqc_kit-*.whl")
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=900)
    site = next(venv.glob("lib/python*/site-packages"))
    for name in ("torch", "torchgen", "functorch", *TORCH_NEEDS):
        source = Path(torch.__file__).parents[1] / name
        for candidate in (source, source.with_suffix(".py")):
            if candidate.exists():
                (site / candidate.name).symlink_to(candidate)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel],
        check=True,
        timeout=900,
    )
    readme = (ROOT / "README.md").read_text()
    quickstart = re.search(r"```python\n(.*?)```", readme, re.S)[1]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    python = venv / "bin" / "python"
    numpy_is_missing = "ignore:Failed to initialize NumPy"  # torch itself says so
    quiet = {**environment, "PYTHONWARNINGS": f"error,{numpy_is_missing}"}
    done = run(quickstart, python, cwd=tmp_path, env=quiet)
    assert done.returncode == 0, done.stderr
    assert "draws" in done.stdout
    listing = run("import pandas", python, cwd=tmp_path, env=environment)
    assert "No module named 'pandas'" in listing.stderr
    console = run("from gqc_lab.cli import main; main()", python, cwd=tmp_path, env=environment)
    assert "gqc-kit[lab]" in console.stdout + console.stderr


TORCH_NEEDS = (
    "typing_extensions",
    "sympy",
    "mpmath",
    "networkx",
    "jinja2",
    "markupsafe",
    "fsspec",
    "filelock",
)
