"""Each test of this folder runs on the CPU as well, so that a card only has to confirm it."""

from __future__ import annotations

import pytest
import torch
from gpu.streams import no_cuda


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=no_cuda)])
def device(request) -> torch.device:
    """The device that the test runs on; without an index, as users write it."""
    return torch.device(request.param)
