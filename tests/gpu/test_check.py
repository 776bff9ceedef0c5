"""``make gpu-check`` without a card: it refuses in words, and rehearses the benchmark."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import gpu.check
import pytest
import torch
from gpu.bench import LOOPS, OPTIMIZERS, STEPPING, WAITING, bench


def test_the_benchmark_times_every_contestant():
    numbers = bench("rehearsal", torch.device("cpu"), rounds=1)
    assert len(numbers["step"]) == len(OPTIMIZERS) + len(WAITING) + len(STEPPING)
    assert set(numbers["loop over the loop by hand"]) == set(LOOPS)
    assert all(0 < t < math.inf for row in numbers["step"].values() for t in row.values())
    gpu.check.show("rehearsal", numbers)


def test_the_report_names_the_device_and_what_failed(monkeypatch, tmp_path):
    tests = {"exit status": 1, "passed": 3, "skipped": 0, "failed": ["test_a[cpu]"]}
    monkeypatch.setattr(gpu.check, "run_tests", lambda device, report: tests)
    monkeypatch.setattr(gpu.check, "bench", lambda size, device, rounds: {"parameters": 1})
    monkeypatch.setattr(gpu.check, "show", lambda size, numbers: None)
    out = tmp_path / "report.json"
    monkeypatch.setattr("sys.argv", ["check", "--device", "cpu", "--out", str(out)])
    assert gpu.check.main() == 1
    report = json.loads(out.read_text())
    assert report["device"] == "cpu"
    assert report["torch"] == torch.__version__
    assert report["tests"] == tests
    assert report["benchmark"] == {"rehearsal": {"parameters": 1}}


IN_WORDS = {
    "GNTS, a draw": "gnts draw",
    "GNTS, a draw, sum in `.grad`": "gnts in .grad draw",
    "SBC, a draw": "sbc draw",
    "SBC, a draw, sum in `.grad`": "sbc in .grad draw",
    "GNS, a draw": "gns draw",
    "NormTest, a draw": "normtest draw",
    "GNTS, a draw and AdamW's step": "gnts step",
    "VGS and AdamW's step": "vgs step",
}


def test_the_page_has_the_numbers_of_the_card():
    here = Path(__file__).parent
    before, after = json.loads((here / "nvidia-h200.json").read_text())["runs"]
    page = (here.parents[1] / "docs" / "wrappers.md").read_text(encoding="utf-8")
    _, text = page.split("## What it costs on a GPU")
    rows = re.findall(r"^\| ([^|]+) \| ([\d.]+)(?: ms)? \| ([\d.]+)(?: ms)? \|$", text, re.M)
    assert len(rows) == 15
    for name, *cells in rows:
        for size, cell in zip(("10M", "124M"), cells, strict=True):
            found = before["benchmark"][size]
            loop = re.match("windows of 4 in (.*), over", name)
            if loop:
                number = found["loop over the loop by hand"][loop[1].lower()]
            elif name == "forward and backward":
                number = found["forward and backward [ms]"]
            else:
                number = found["step [ms]"][IN_WORDS.get(name, name)]
            assert float(cell) == pytest.approx(number, abs=0.0051), name
    now = after["benchmark"]["10M"]["step [ms]"]
    assert f"{now['vgs step']:.2f} ms at 10M, on a slower host" in text
    assert f"{now['AdamW(fused)']:.2f} ms for AdamW(fused)" in text
    assert after["tests"]["failed"] == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_card_it_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["check"])
    assert gpu.check.main() == 2
    assert "--device cpu rehearses" in capsys.readouterr().out
