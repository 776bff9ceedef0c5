"""The UPGD optimizers with the constructor keywords and group keys of the published classes.

``from gqc.compat.upgd import UPGD, AdaptiveUPGD, UPGDW``.  Behaviour is that of :mod:`gqc.upgd`,
whose state has the published keys already; ``normalization="max_published"`` and
``"minmax_published"`` repeat what was published to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import gqc
from gqc import UPGD

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
        own = {"sigma": sigma, "betas": options.pop("betas", (beta1, beta2)), "eps": eps}
        super().__init__(params, lr, weight_decay, beta_utility, **own, **options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self._show()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step with the decays that the groups hold now."""
        for group in self.param_groups:
            group["betas"] = tuple(group[name] for name in _DECAYS)
        return super().step(closure)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._show()

    def _show(self) -> None:
        for group in self.param_groups:
            group.update(zip(_DECAYS, group["betas"], strict=True))


class UPGDW(gqc.UPGDW):
    """:class:`gqc.UPGDW`, which takes AdamW's ``amsgrad`` where it is False."""

    def __init__(self, params: Iterable[Any], *args: Any, amsgrad: bool = False, **kwargs: Any):
        if amsgrad:
            raise ValueError(
                "amsgrad=True: UPGDW keeps no maximum of second moments, and would step otherwise "
                "than that promises; leave it out"
            )
        super().__init__(params, *args, **kwargs)
        self.defaults["amsgrad"] = False
        for group in self.param_groups:
            group["amsgrad"] = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if any(group.get("amsgrad") for group in self.param_groups):
            raise ValueError("amsgrad=True in the file: UPGDW keeps no maximum of second moments")
