"""What tests of experiments share: train up to a record, and compare two runs bit for bit."""

import io

import pandas as pd
import torch


def run(experiment, until=None):
    while experiment.microbatch != until and next(experiment, None) is not None:
        pass
    return experiment


def with_cuts(build, cuts):
    """Return an uncut run, and a file of the state at each of ``cuts``, increasing.

    The states are those of a second run, which goes on after each of them.
    """
    second, files = build(), {}
    for cut in cuts:
        files[cut] = io.BytesIO()
        torch.save(run(second, until=cut).state_dict(), files[cut])
    return run(build()), files


def resume(experiment, file):
    """Run to its end what begins with the state in ``file``."""
    file.seek(0)
    experiment.load_state_dict(torch.load(file, weights_only=True))
    return run(experiment)


def weights(experiment):
    return torch.cat([p.detach().flatten() for p in experiment.model.parameters()])


def assert_same_run(a, b):
    left, right = (e.history.drop(columns="seconds") for e in (a, b))
    pd.testing.assert_frame_equal(left, right, check_exact=True)
    assert torch.equal(weights(a), weights(b))
