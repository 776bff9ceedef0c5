"""The cost of a run, counted by hand and by torch's own counter of operations."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gqc_lab.runs.overview import count_flops
from gqc_lab.runs.plan import read_batch
from gqc_lab.studies import pretraining
from gqc_lab.studies.pretraining.cost import count_parameters, notebook_flops, training_flops

BATCH = Path(__file__).parents[4] / "notebooks/batches/01_gnts_pretraining.paper.yaml"


def test_parameters_are_those_of_the_model():
    config = pretraining.config("smoke")
    built = pretraining.build(config)
    assert count_parameters(config) == sum(p.numel() for p in built.model.parameters())


def test_operations_are_those_of_one_microbatch_forward_and_backward():
    config = replace(pretraining.config("smoke"), width=64, context=64, microbatch_size=2)
    config = replace(config, tokens=config.microbatch_tokens)  # a run of one microbatch
    experiment = pretraining.build(config)
    batch = experiment.draw_batch()
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        experiment.compute_loss(batch).backward()
    # The counter sees products of matrices; the formula also counts the gains of the norms and the
    # table of positions, which are added: a few parts in a hundred at this width.
    positions_and_gains = (config.context + 2 * config.depth + 1) * config.width
    exact = training_flops(config) - 6 * positions_and_gains * config.microbatch_tokens
    assert counter.get_total_flops() == pytest.approx(exact, rel=1e-12)


def test_the_published_size_and_its_larger_control():
    paper, larger = (pretraining.config(scale) for scale in ("paper", "paper-16x"))
    assert count_parameters(paper) == pytest.approx(50e6, rel=0.03)
    assert count_parameters(larger) / count_parameters(paper) == pytest.approx(16, rel=0.03)
    six_n_d = 6 * count_parameters(paper) * 282e6
    assert training_flops(paper) == pytest.approx(six_n_d * 7 / 6, rel=0.03)  # attention: a sixth


def test_the_paper_batch_has_the_cost_of_its_runs():
    batch = read_batch(BATCH)
    flops = count_flops(batch)
    assert len(flops) == 15
    costs = {(r.parameters["scale"], *r.parameters["methods"]): flops[r.id] for r in batch.runs}
    assert costs["paper", "adamw"] == costs["paper", "gnts"]
    assert costs["paper-16x", "adamw"] == training_flops(pretraining.config("paper-16x"))


def test_a_notebook_pays_for_each_method_and_none_means_the_scale():
    base = {"scale": "smoke", "seed": 1, "tokens": None, "corpus": "kjv"}
    one = notebook_flops({**base, "methods": ["adamw"]})
    assert notebook_flops({**base, "methods": ["adamw", "gnts"]}) == 2 * one
    assert notebook_flops({**base, "methods": ["adamw"], "tokens": 2**15}) == one / 2
    with pytest.raises(ValueError, match="microbatch"):
        notebook_flops({**base, "methods": ["adamw"], "tokens": 5})
