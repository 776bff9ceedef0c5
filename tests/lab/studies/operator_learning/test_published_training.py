"""A published training section runs as an operator experiment; what it lacks here is named."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from gqc_lab.studies import operator_learning
from gqc_lab.studies.operator_learning import read_training

PRODUCTION = {
    "training": {
        "epochs": 35,
        "batch_size": 12,
        "learning_rate": 1e-3,
        "weight_decay": 0.03,
        "betas": [0.9, 0.999],
        "ema_decay": 0.999,
        "time_stride": 2,
        "dt": 0.1,
        "lambda_spectral": 0.05,
        "lambda_inv_enc": 0.001,
        "lambda_inv_dec": 0.001,
        "inverse_loss_warmup_epochs": 15,
        "inverse_loss_max_weight": 0.05,
        "inverse_loss_frequency": 1,
        "grad_clip": 0.3,
        "grad_clip_per_param": True,
    }
}


def section(**changes):
    return {**PRODUCTION["training"], **changes}


def test_the_production_configuration_is_read():
    c = read_training(PRODUCTION)
    assert (c.method, c.epochs, c.lr, c.weight_decay, c.step) == ("fixed", 35, 1e-3, 0.03, 5)
    assert (c.lambda_inv_enc, c.lambda_inv_dec, c.lambda_spectral) == (0.001, 0.001, 0.05)
    assert (c.clip, c.max_norm, c.has_curriculum) == ("group", 0.3, True)
    assert (c.inverse_loss_warmup_epochs, c.inverse_loss_max_weight) == (15, 0.05)
    assert (c.beta1, c.beta2, c.stride, c.batch_size) == (0.9, 0.999, 2, 12)


def test_the_exploding_configuration_has_no_curriculum():
    c = read_training({"lambda_inv_enc": 0.5, "lambda_inv_dec": 0.5, "grad_clip": 1.0})
    assert (c.method, c.clip, c.max_norm, c.has_curriculum) == ("exploding", "total", 1.0, False)
    assert read_training({"grad_clip": 1.0}).method == "baseline"
    assert read_training({"grad_clip": 1.0, "grad_clip_per_param": 0.3}).max_norm == 0.3


def test_the_production_and_the_diagnostic_configuration_run():
    small = {"epochs": 2, "batch_size": 4, "time_stride": 8, "inverse_loss_warmup_epochs": 1}
    c = read_training(section(**small), pretraining_epochs=1, seed=3)
    for _ in (experiment := operator_learning.build(c)):
        pass
    history = experiment.history
    assert history["loss"].map(math.isfinite).all()
    by_epoch = history.groupby(history["epoch"].astype(int))["weight/inv_enc"].max()
    assert by_epoch[1] > 0
    with pytest.warns(UserWarning, match="this run cannot test them"):
        c = read_training(section(**small | {"epochs": 1}), pretraining_epochs=0)
    for _ in (experiment := operator_learning.build(c)):
        pass
    weights = experiment.history.filter(like="weight/inv").fillna(0)
    assert (weights == 0).all(axis=None)


def test_what_has_no_counterpart_is_named():
    with pytest.warns(UserWarning, match="ttc=True: test-time conditioning is not implemented"):
        read_training(section(ttc=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_training(section(ttc=False))
    with pytest.raises(ValueError, match="training section: unknown key 'lambda_inverse'; did"):
        read_training(section(lambda_inverse=1.0))


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # torch's compiler
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # as well
@pytest.mark.parametrize(
    "changes", [{"amp": True}, pytest.param({"compile": True}, marks=pytest.mark.slow)]
)
def test_amp_and_compile_train_about_as_without(changes, monkeypatch):
    whole = torch.nn.Module.compile  # its code for the processor takes a minute to be made
    monkeypatch.setattr(torch.nn.Module, "compile", lambda part: whole(part, backend="eager"))
    small = {"epochs": 1, "batch_size": 12, "time_stride": 8, "inverse_loss_warmup_epochs": 0}
    losses = []
    for own in ({}, changes):
        c = read_training(section(**small | own), pretraining_epochs=0)
        experiment = operator_learning.build(c)
        losses.append([record["loss"] for record in experiment])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    if "amp" in changes:
        assert losses[1] != losses[0]
