"""Clipping where a model's parameters are on two devices: on the CPU and on a card."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

from gqc.clipping import (
    clip_grad_norm_per_group_,
    clip_grad_norm_per_tensor_,
    clip_grad_norm_total_,
)

CLIPPERS = [clip_grad_norm_per_group_, clip_grad_norm_per_tensor_, clip_grad_norm_total_]


def groups(*devices: torch.device | str) -> list[list[torch.Tensor]]:
    """Two groups, each with a tensor on each of the devices."""
    made = []
    for number in range(2):
        params = [torch.zeros(5, device=d, requires_grad=True) for d in devices]
        for index, param in enumerate(params):
            param.grad = torch.full_like(param, 1.0 + number + 3 * index)
        made.append(params)
    return made


@pytest.mark.parametrize("clip", CLIPPERS)
@pytest.mark.parametrize("order", [("cpu", "device"), ("device", "cpu")])
def test_two_devices_are_clipped_as_one(clip, order, device):
    mixed = groups(*(device if name == "device" else "cpu" for name in order))
    alone = groups("cpu", "cpu")
    assert clip(mixed, 2.0).tolist() == pytest.approx(clip(alone, 2.0).tolist(), rel=1e-6)
    for ours, theirs in zip(chain(*mixed), chain(*alone), strict=True):
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize("clip", CLIPPERS)
def test_a_group_of_its_own_on_each_device(clip, device):
    mixed = [groups("cpu")[0], groups(device)[1]]
    alone = [groups("cpu")[0], groups("cpu")[1]]
    assert clip(mixed, 2.0).tolist() == pytest.approx(clip(alone, 2.0).tolist(), rel=1e-6)
    for ours, theirs in zip(chain(*mixed), chain(*alone), strict=True):
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad, rtol=1e-6, atol=0)
