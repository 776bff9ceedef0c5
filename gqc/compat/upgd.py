"""The UPGD optimizers with the constructor keywords and group keys of the published classes.

``from gqc.compat.upgd import UPGD, AdaptiveUPGD, UPGDW``.  Behaviour is that of :mod:`gqc.upgd`,
whose state has the published keys already; ``normalization="max_published"`` and
``"minmax_published"`` repeat what was published to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import gqc
from gqc import UPGD
from gqc.checks import expect

__all__ = ["UPGD", "UPGDW", "AdaptiveUPGD"]

_DECAYS = ("beta1", "beta2")


class AdaptiveUPGD(gqc.AdaptiveUPGD):
    """:class:`gqc.AdaptiveUPGD` whose groups hold ``beta1`` and ``beta2``, which decide."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-5,
        weight_decay: float = 0.001,
        beta_utility: float = 0.999,
        sigma: float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        **options: Any,
    ) -> None:
        self._shown: dict[int, tuple[float, ...]] = {}  # decays of each group, in both spellings
        own = {"sigma": sigma, "betas": options.pop("betas", (beta1, beta2)), "eps": eps}
        super().__init__(params, lr, weight_decay, beta_utility, **own, **options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self._agree()

    def check_groups(self) -> None:
        self._agree()
        super().check_groups()

    def state_dict(self) -> dict[str, Any]:
        self._agree()
        return super().state_dict()

    def __getstate__(self) -> dict[str, Any]:
        self._agree()
        return super().__getstate__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # load_state_dict comes here too
        self._shown = {}
        self._agree()

    def _agree(self) -> None:
        """Take the decays that the groups hold now; a scheduler changes ``betas``."""
        for place, group in enumerate(self.param_groups):
            if group["betas"] != self._shown.get(place):
                group.update(zip(_DECAYS, group["betas"], strict=True))
            group["betas"] = self._shown[place] = tuple(group[name] for name in _DECAYS)


class UPGDW(gqc.UPGDW):
    """:class:`gqc.UPGDW`, which takes AdamW's ``amsgrad`` where it is False."""

    def __init__(self, params: Iterable[Any], *args: Any, amsgrad: bool = False, **kwargs: Any):
        expect(not amsgrad, "amsgrad", amsgrad, "False: UPGDW keeps no maximum of second moments")
        super().__init__(params, *args, **kwargs)
        for group in (self.defaults, *self.param_groups):
            group["amsgrad"] = False
