"""Memory does not grow with the number of draws: measured in a fresh process."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import resource, torch, gqc
torch.set_num_threads(1)
NEVER = {"GNTS": "gradient_norm_threshold", "GNS": "noise_tolerance", "NormTest": "theta",
         "MHT": "error_tolerance"}

def one_window(kind, draws):
    params = [torch.zeros(1_000_000, requires_grad=True) for _ in range(2)]  # 8 MB
    options = {"draws": [draws]} if kind == "Replay" else {"max_draws": draws}
    if kind == "SBC":
        options |= {"physical_batch_size": 1, "logical_batch_size": draws}
    if kind in NEVER:
        options[NEVER[kind]] = 1e-30
    optimizer = torch.optim.SGD(params, lr=0.1)
    wrapper = getattr(gqc, "OptimizerWrapper" + kind)(optimizer, **options)
    noise = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    steps = 0
    for i in range(draws):
        for p in params:
            g = noise * (1 + i % 3)
            p.grad = g if p.grad is None else p.grad.add_(g)
        steps += wrapper.step(metric=float(i % 5))
    assert steps == 1, (kind, steps)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

for kind in ("SBC", "Replay", "MHT", "GNTS", "GNS", "NormTest"):
    print(kind, one_window(kind, 8), one_window(kind, 32))
"""


def test_peak_memory_is_flat_in_the_number_of_draws():
    """24 more draws of 8 MB each would add 192 MB if they were kept."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=1000
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) == 6
    for kind, few, many in rows:
        assert float(many) - float(few) < 24, kind
