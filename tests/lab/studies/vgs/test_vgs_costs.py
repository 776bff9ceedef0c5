"""Bytes are counted right, and are what the estimators are said to need."""

import math

import pytest
import torch

from gqc.scalers import VarianceGradientScaler
from gqc_lab.studies.vgs.costs import held_bytes, measure_costs, state_bytes
from gqc_lab.studies.vgs.streams import VERSIONS

SHAPES = [(300, 400), (400,), (400, 10), (10,)]
NUMEL = 300 * 400 + 400 + 4000 + 10


@pytest.fixture(scope="module")
def costs():
    frame = measure_costs({name: {"estimator": name} for name in VERSIONS}, SHAPES, rounds=2)
    return frame.set_index("estimator")


def test_state_bytes_by_hand():
    state = {"a": torch.zeros(3), "b": [torch.zeros(2, dtype=torch.float64), {"c": 5}], "d": "x"}
    assert state_bytes(state) == 12 + 16


def test_held_bytes_counts_each_storage_once_and_leaves_parameters_out():
    parameters = [torch.zeros(100, 10, requires_grad=True)]
    parameters[0].grad = torch.ones(100, 10)
    scaler = VarianceGradientScaler(parameters, estimator="elementwise")
    before = held_bytes(scaler, parameters)
    scaler.scale_gradients()
    after = held_bytes(scaler, parameters)
    assert before == 0
    assert 4000 <= after <= 4000 + 200  # one float an element, and a few for the tensor
    scaler.extra = [parameters[0], parameters[0][:3], torch.zeros(7)]
    assert held_bytes(scaler, parameters) == after + 28  # views of parameters are theirs


@pytest.mark.parametrize("name", ["tensor_spatial", "tensor_mean", "mean_square"])
def test_published_estimators_keep_numbers_per_tensor(costs, name):
    """Two averages a tensor (and its size, in the published files), whatever the parameters."""
    assert costs.loc[name, "held_bytes"] <= 4 * len(SHAPES) * 4 + 100
    assert costs.loc[name, "checkpoint_bytes"] <= costs.loc[name, "held_bytes"] + 100


def test_elementwise_is_one_float_a_parameter(costs):
    held = costs.loc["elementwise", "held_bytes"]
    assert 4 * NUMEL <= held <= 4 * NUMEL + 40 * len(SHAPES) + 100


def test_the_sketch_is_working_memory_and_little_else(costs):
    """Three hashes of 15000 eighths of the largest tensor, and the small ones whole."""
    values = 3 * (math.isqrt(15_000) + 2) + 400 + 4000 + 10
    assert costs.loc["sketch", "checkpoint_bytes"] <= 4 * values + 60 * len(SHAPES) + 100
    assert costs.loc["sketch", "held_bytes"] <= 2 * 2**20  # signs and scratch, 0.5 MB each
    larger = measure_costs({"sketch": {}}, [(2000, 1000)], rounds=1)
    eighth = 4 * 2_000_000 / 8
    assert larger["held_bytes"].item() - costs.loc["sketch", "held_bytes"] < 1.6 * eighth


def test_times_are_measured_and_shapes_counted(costs):
    assert (costs["parameters"] == NUMEL).all()
    assert (costs["tensors"] == len(SHAPES)).all()
    assert (costs["seconds"] > 0).all()
    assert costs["adamw_seconds"].nunique() == 1
