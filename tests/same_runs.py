"""What tests of experiments share: train up to a record, and compare two runs bit for bit."""

import pandas as pd
import torch


def run(experiment, until=None):
    while experiment.microbatch != until and next(experiment, None) is not None:
        pass
    return experiment


def weights(experiment):
    return torch.cat([p.detach().flatten() for p in experiment.model.parameters()])


def assert_same_run(a, b):
    left, right = (e.history.drop(columns="seconds") for e in (a, b))
    pd.testing.assert_frame_equal(left, right, check_exact=True)
    assert torch.equal(weights(a), weights(b))
