"""``make gpu-check`` without a card: it refuses in words, and rehearses the benchmark."""

from __future__ import annotations

import json
import math

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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_card_it_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["check"])
    assert gpu.check.main() == 2
    assert "--device cpu rehearses" in capsys.readouterr().out
