"""Processes under ``torchrun`` (gloo, CPU) that decide, step and resume as one process does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = {  # number of ranks -> checks, all in one start of the processes
    2: [
        "ranks:check_ddp",
        "ranks:check_bucket_views",
        "ranks:check_clipping",
        "ranks:check_weights",
        "ranks:check_missing_metric",
        "ranks:check_seldom",
        "ranks:check_metrics_of_deferred_draws",
        "ranks:check_fsdp2",
        "ranks:check_messages_of_norms",
        "ranks:check_tiny_gradients",
        "ranks:check_mixed",
        "ranks:check_no_sync",
        "ranks:check_nan_on_one_rank",
        "ranks:check_resume_of_shards",
        "tensor_parallel:check_scaler_of_partial_gradients",
        "tensor_parallel:check_partial_gradients",
        "checkpoints:check_same_number_of_ranks",
        "local_gradients:check_no_sync_is_refused",
        "local_gradients:check_uneven_data_are_refused",
        "local_gradients:check_flat_shards_are_refused",
        "local_gradients:check_separate_trainings_are_left_alone",
        "local_gradients:check_stages_are_left_alone",
        "local_gradients:check_a_rank_that_skips_a_draw",
        "local_gradients:check_mixed_weights",
        "local_gradients:check_an_explicit_group",
        "local_gradients:check_compression_hooks",
        "local_gradients:check_a_checkpoint_of_rank_0_in_mid_window",
        "local_gradients:check_what_closes_next_left_local",
        "rank_noise:check_ddp",
        "rank_noise:check_fsdp2",
        "rank_noise:check_gns",
        "rank_noise:check_loss_scale",
        "rank_noise:check_what_cannot_be_compared",
        "rank_noise:check_habits",
        "rank_noise:check_habits_under_fsdp2",
        "scalers_and_upgd:check_scaler_on_as_many_ranks",
        "scalers_and_upgd:check_scaler_on_fewer_ranks",
        "scalers_and_upgd:check_upgd",
        "scalers_and_upgd:check_noise_of_replicas",
        "scalers_and_upgd:check_cosine_of_shards",
    ],
    4: [
        "checkpoints:check_same_number_of_ranks",
        "checkpoints:check_fewer_ranks",
        "checkpoints:check_statistics_of_shards",
        "checkpoints:check_between_windows_and_before_the_first",
        "checkpoints:check_replicated_parameters",
        "checkpoints:check_full_state",
        "scalers_and_upgd:check_scaler_on_as_many_ranks",
        "scalers_and_upgd:check_scaler_on_fewer_ranks",
        "scalers_and_upgd:check_upgd",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, pytest.param(4, marks=pytest.mark.cluster)])
def test_ranks_do_what_one_process_does(num_ranks):
    script = Path(__file__).with_name("start.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, f"--nproc_per_node={num_ranks}", str(script), *CHECKS[num_ranks]],
        capture_output=True,
        text=True,
        timeout=1000,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-6000:]
    assert done.stdout.count(" ok") == len(CHECKS[num_ranks])
