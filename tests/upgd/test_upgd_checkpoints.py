"""Files of released versions load to the last bit, and training continues as if it were not cut."""

from __future__ import annotations

import pytest
import torch
import torch.distributed.checkpoint as dcp
from fixtures.upgd.make import CUT, END, FILE, VARIANTS, flat, make, run

STATES = torch.load(FILE, weights_only=True)


def plain(value):
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return (str(value.dtype), value.tolist()) if isinstance(value, torch.Tensor) else value


def test_there_is_a_state_of_every_variant():
    assert set(STATES) == set(VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_file_of_version_010_loads_to_the_last_bit_and_continues(name):
    saved = STATES[name]
    params, optimizer = make(name)
    optimizer.load_state_dict(saved["state"])
    state = plain(optimizer.state_dict())
    for group in state["param_groups"]:  # what later versions add, they have to default
        assert group.keys() >= saved["state"]["param_groups"][0].keys()
    assert state["state"] == plain(saved["state"]["state"])
    assert state["upgd"].pop("num_states") == len(state["state"])
    assert state["upgd"] == plain(saved["state"]["upgd"])
    with torch.no_grad():
        for param, values in zip(params, split(saved["weights"], params), strict=True):
            param.copy_(values)
    run(optimizer, params, CUT, END)
    # The last bits belong to the processor and the torch that wrote the file.
    torch.testing.assert_close(flat(params), saved["end"], rtol=1e-5, atol=1e-6)
    uncut_params, uncut = make(name)
    run(uncut, uncut_params, 0, END)
    torch.testing.assert_close(flat(params), flat(uncut_params), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_new_optimizer_says_that_dcp_loaded_nothing(tmp_path):
    """Without a process group: with one there is room to load into."""
    (params, first), (_, second) = make("UPGDW-minmax"), make("UPGDW-minmax")
    run(first, params, 0, 2)
    dcp.save({"optimizer": first}, checkpoint_id=tmp_path, no_dist=True)
    with pytest.raises(ValueError, match="state of 3 parameters, and that of 0 came with it"):
        dcp.load({"optimizer": second}, checkpoint_id=tmp_path, no_dist=True)


def split(values, params):
    parts = values.split([p.numel() for p in params])
    return [part.view(p.shape) for part, p in zip(parts, params, strict=True)]
