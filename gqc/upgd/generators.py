"""The random streams of an optimizer's noise: one a device, saved and copied with it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["SEED", "Generators"]

# Not 0 or another seed in use: with that of the weights, the noise would repeat their initial
# values.
SEED = 240_400_781


class Generators:
    """Generators by device, made when a device is first seen.

    Args:
        generator: the one of its device, and the seed of the others; None: ``SEED`` for all.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(
                f"generator is a {type(generator).__name__}: expected a torch.Generator or None"
            )
        self._seed = SEED if generator is None else generator.initial_seed()
        self._by_device: dict[str, torch.Generator] = {}
        if generator is not None:
            self._by_device[str(generator.device)] = generator

    def on(self, device: torch.device | str) -> torch.Generator:
        if str(device) not in self._by_device:
            made = torch.Generator(device).manual_seed(self._seed)
            self._by_device[str(device)] = made
        return self._by_device[str(device)]

    def state_dict(self) -> dict[str, Any]:
        """The seed, and the state of each device's stream as a uint8 tensor."""
        states = {device: g.get_state() for device, g in self._by_device.items()}
        return {"seed": self._seed, "states": states}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken; generators that were passed in included.

        A device that is not here is passed over, with a warning.
        """
        self._seed = saved["seed"]
        states: dict[str, Tensor] = saved["states"]
        for device, state in states.items():
            try:
                generator = self.on(device)
            except RuntimeError:
                warnings.warn(
                    f"the stream of noise on {device} was not loaded: that device is not here. "
                    "Parameters that moved to another draw from a stream of the same seed",
                    stacklevel=3,
                )
                continue
            generator.set_state(state.cpu())

    def __getstate__(self) -> dict[str, Any]:
        return self.state_dict()

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self._by_device = {}
        self.load_state_dict(saved)
