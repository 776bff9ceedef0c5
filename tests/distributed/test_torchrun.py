"""Two processes under ``torchrun`` (gloo, CPU) decide and step as one process does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = [
    "check_ddp",
    "check_bucket_views",
    "check_fsdp2",
    "check_tiny_gradients",
    "check_mixed",
    "check_no_sync",
    "check_nan_on_one_rank",
    "check_resume_of_shards",
]


@pytest.mark.slow
def test_two_ranks_do_what_one_process_does():
    script = Path(__file__).with_name("ranks.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(script), *CHECKS],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-6000:]
    assert done.stdout.count(" ok") == len(CHECKS)
