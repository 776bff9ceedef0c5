"""``make gpu-check``: the tests of this folder and the benchmark on one card, in under 6 minutes.

Writes what came out to a JSON file that carries the card's name.  ``--device cpu`` rehearses the
whole of it with a tiny model where there is no card.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from gpu.bench import SIZES, bench  # noqa: E402  (tests/ is on the path only now)


def run_tests(device: str, report: Path) -> dict[str, Any]:
    """The tests of this folder on ``device``, in a process of their own."""
    command = [sys.executable, "-m", "pytest", str(HERE), "-q", "-k", f"[{device}"]
    done = subprocess.run([*command, f"--junitxml={report}"], check=False)
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [c.get("name") for c in cases if any(child.tag != "skipped" for child in c)]
    skipped = sum(child.tag == "skipped" for c in cases for child in c)
    return {
        "exit status": done.returncode,
        "passed": len(cases) - len(failed) - skipped,
        "skipped": skipped,
        "failed": failed,
    }


def describe(device: str) -> dict[str, Any]:
    """What the numbers were measured on."""
    about: dict[str, Any] = {"device": device, "torch": torch.__version__}
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        about |= {
            "card": card.name,
            "memory [GiB]": round(card.total_memory / 2**30, 1),
            "CUDA": torch.version.cuda,
        }
    return about


def show(size: str, numbers: dict[str, Any]) -> None:
    backward = numbers["forward and backward [ms]"]
    print(f"\n{size}: {numbers['parameters']:,} parameters, forward and backward {backward:.2f} ms")
    for name, row in numbers["step"].items():
        ms, adamw, share = row.values()
        print(f"  {name:24s} {ms:9.3f} ms  {adamw:7.3f} of AdamW(fused)  {share:7.2%} of f+b")
    for name, ratio in numbers["loop over the loop by hand"].items():
        print(f"  loop, {name:18s} {ratio:7.3f} of the loop by hand")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, help="default: build/gpu/CARD.json")
    parser.add_argument("--sizes", nargs="*", choices=list(SIZES))
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("gpu-check: torch finds no CUDA device; --device cpu rehearses it without one")
        return 2
    is_card = arguments.device == "cuda"
    about = describe(arguments.device)
    slug = re.sub(r"\W+", "-", about.get("card", "cpu")).strip("-").lower()
    out = arguments.out or HERE.parents[1] / "build" / "gpu" / f"{slug}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    tests = run_tests(arguments.device, out.with_suffix(".xml"))
    rounds = 20 if is_card else 2
    benchmark = {}
    for size in arguments.sizes or (["10M", "124M"] if is_card else ["rehearsal"]):
        benchmark[size] = bench(size, torch.device(arguments.device), rounds)
        show(size, benchmark[size])
    seconds = time.perf_counter() - start
    result = {**about, "seconds": round(seconds, 1), "tests": tests, "benchmark": benchmark}
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{tests['passed']} passed, {len(tests['failed'])} failed in {seconds:.0f} s: {out}")
    return 1 if tests["exit status"] else 0


if __name__ == "__main__":
    sys.exit(main())
