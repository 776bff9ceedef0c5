"""Sharded parameters on two ranks (gloo): the statistics of the whole tensors, on every rank.

Run as a script it is one of the ranks, and prints what it saw as JSON.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from vgs_reference import feed, normal, variances_of

from gqc.scalers import VarianceGradientScaler

SHAPES = ((301, 5), (40,), (7,))  # 301 rows: the shards differ; 7: not sharded
STEPS, BAD = 12, 6


def gradients(step):
    return [1 + normal(*shape, seed=10 * step + i) for i, shape in enumerate(SHAPES)]


def options(estimator):
    return {"estimator": estimator, "warmup_steps": 2, "alpha": 1.0, "variance_cap": None}


def rank_main(rank: int, store: str) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    placements = [[Shard(0)], [Replicate()], None]

    def place(tensor, placement):
        return tensor if placement is None else distribute_tensor(tensor, mesh, placement)

    seen = {}
    for estimator in ("elementwise", "sketch", "mean_square"):
        params = [
            torch.nn.Parameter(place(torch.zeros(shape), p))
            for shape, p in zip(SHAPES, placements, strict=True)
        ]
        scaler = VarianceGradientScaler(params, **options(estimator))
        factors = []
        for step in range(STEPS):
            for param, grad, p in zip(params, gradients(step), placements, strict=True):
                param.grad = place(grad, p)
            if step == BAD and rank == 1 and estimator != "mean_square":
                params[0].grad.to_local()[3, 2] = torch.nan  # on one rank only
            factors.append(scaler.scale_gradients())
            scaler.step()
        full = params[0].grad.full_tensor()
        seen[estimator] = {
            "factors": factors,
            "ratios": variances_of(scaler).tolist(),
            "skipped": scaler.num_skipped,
            "scaled": (full / gradients(STEPS - 1)[0]).mean().item(),
            "norm": scaler.metrics()["vgs/grad_norm_ema"],
        }
    print(json.dumps(seen))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of the two ranks saw."""
    store = tmp_path_factory.mktemp("gloo") / "store"
    helpers = str(Path(__file__).parents[1])  # tests/, on the path as under pytest
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(store)],
            env={**os.environ, "PYTHONPATH": helpers},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    results = []
    for worker in workers:
        out, err = worker.communicate(timeout=1000)
        assert worker.returncode == 0, err
        results.append(json.loads(out.splitlines()[-1]))
    return results


def alone(estimator):
    params = [torch.zeros(shape, requires_grad=True) for shape in SHAPES]
    scaler = VarianceGradientScaler(params, **options(estimator))
    kept = [s for s in range(STEPS) if s != BAD or estimator == "mean_square"]
    factors = feed(scaler, params, [gradients(step) for step in kept])
    return scaler, factors


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["elementwise", "sketch", "mean_square"])
def test_both_ranks_see_the_same(ranks, estimator):
    assert ranks[0][estimator] == ranks[1][estimator]


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["elementwise", "mean_square"])
def test_shards_give_the_statistics_of_the_whole(ranks, estimator):
    """One rank's NaN skipped the update on both; sums in another order: 1e-4."""
    scaler, factors = alone(estimator)
    seen = ranks[0][estimator]
    assert seen["ratios"] == pytest.approx(variances_of(scaler).tolist(), rel=1e-4)
    assert seen["factors"][-1] == pytest.approx(factors[-1], rel=1e-4)
    assert seen["scaled"] == pytest.approx(factors[-1], rel=1e-4)
    assert seen["norm"] == pytest.approx(scaler.metrics()["vgs/grad_norm_ema"], rel=1e-4)
    assert seen["skipped"] == (estimator != "mean_square")


@pytest.mark.slow
def test_the_sketch_of_shards_has_its_stated_error(ranks):
    """Other buckets than in one process; 64 and more of them: 18%, three times that."""
    scaler, _ = alone("elementwise")
    seen, whole = ranks[0]["sketch"], variances_of(scaler).tolist()
    assert seen["skipped"] == 1
    assert seen["ratios"][0] == pytest.approx(whole[0], rel=0.54)
    # Tensors of fewer than 64 elements are kept element by element.
    assert seen["ratios"][1:] == pytest.approx(whole[1:], rel=1e-4)
    assert min(seen["factors"]) < 1


if __name__ == "__main__":
    rank_main(int(sys.argv[1]), sys.argv[2])
