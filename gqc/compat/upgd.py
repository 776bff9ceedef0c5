"""The UPGD optimizers with the constructor keywords and group keys of the published classes.

``from gqc.compat.upgd import UPGD, AdaptiveUPGD, UPGDW``.  Behaviour is that of :mod:`gqc.upgd`,
whose state has the published keys already; ``normalization="max_published"`` and
``"minmax_published"`` repeat what was published to the last bit.
"""

from collections.abc import Iterable
from typing import Any

import gqc
from gqc import UPGD
from gqc.checks import expect

__all__ = ["UPGD", "UPGDW", "AdaptiveUPGD"]

_DECAYS = ("beta1", "beta2")


class AdaptiveUPGD(gqc.AdaptiveUPGD):
    """:class:`gqc.AdaptiveUPGD` whose groups hold ``beta1`` and ``beta2`` next to ``betas``.

    Either may be set; a scheduler of torch sets ``betas``.
    """

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

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = vars(self)["param_groups"]
        shown = vars(self).setdefault("_shown", {})  # by place, what both spellings said last
        for place, group in enumerate(groups):
            if "betas" not in group:  # of a published file, before it is adopted
                continue
            if group["betas"] != shown.get(place) or "beta1" not in group:
                group.update(zip(_DECAYS, group["betas"], strict=True))
            group["betas"] = shown[place] = tuple(group[name] for name in _DECAYS)
        return groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        vars(self).update(param_groups=groups, _shown={})


class UPGDW(gqc.UPGDW):
    """:class:`gqc.UPGDW`, which takes AdamW's ``amsgrad`` where it is False."""

    def __init__(self, params: Iterable[Any], *args: Any, amsgrad: bool = False, **kwargs: Any):
        expect(not amsgrad, "amsgrad", amsgrad, "False: UPGDW keeps no maximum of second moments")
        super().__init__(params, *args, **kwargs)
        for group in (self.defaults, *self.param_groups):
            group["amsgrad"] = False
