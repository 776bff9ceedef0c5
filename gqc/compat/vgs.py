"""The variance gradient scaler with the file format and attributes of its published versions.

``from gqc.compat.vgs import VarianceGradientScaler``.  On top of :mod:`gqc.scalers` it takes files
that hold no more than the documents of their version show, writes flat ones with the published
names, may be constructed before there are parameters, and announces a migration in the words that
the published documents tell you to search a log for.  The estimator is ours unless
``estimator=`` names the published one.
"""

import copy
import logging
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from gqc import scalers
from gqc.scalers import VGSMigrationWarning
from gqc.scalers.checkpoints import CONFIG, ESTIMATORS, SCALARS, VECTORS, WRONG, require, version_of
from gqc.scalers.published import PublishedEstimator

__all__ = ["VGSMigrationWarning", "VarianceGradientScaler"]

LOG = logging.getLogger(__name__)
MIGRATION = (
    "VGS Checkpoint Migration: OLD FORMAT DETECTED, CRITICAL BUG FIXED since: {}. "
    "ACTION REQUIRED: look at vgs/scaling_factor after the warmup, and lower alpha or name the old "
    "estimator if steps get too small"
)


class VarianceGradientScaler(scalers.VarianceGradientScaler):
    """:class:`gqc.VarianceGradientScaler` as published: see there for the arguments.

    Args:
        parameters: None or empty: nothing is scaled or counted until :meth:`set_parameters`.
    """

    def __init__(self, parameters: Iterable[Any] | None = None, *args: Any, **kwargs: Any) -> None:
        entries = list(parameters or [])
        self._is_waiting = not entries
        self._file: Mapping[str, Any] | None = None  # loaded before there were parameters
        super().__init__(entries or [torch.zeros(())], *args, **kwargs)

    def update_parameters(self, parameters: Iterable[Any]) -> None:
        """Scale these from now on; a file that was loaded before the first takes effect."""
        super().update_parameters(parameters)
        if self._is_waiting:
            self._is_waiting, file = False, self._file
            self.reset_statistics()
            if file is not None:
                self._file = None
                self.load_state_dict(file)

    set_parameters = update_parameters

    def step(self) -> None:
        if not self._is_waiting:
            super().step()

    def state_dict(self) -> dict[str, Any]:
        """Return the published names; with our estimators next to what those need.

        A published estimator's file is one of its version, which the published class loads too.
        """
        if self._is_waiting and self._file is not None:
            return dict(copy.deepcopy(self._file))
        own = super().state_dict()
        more = ("step_count", "min_scaling_factor", "variance_cap")
        flat = {name: getattr(self, name) for name in (*CONFIG, *more)}
        flat |= {name: self._scalar(index) for index, name in enumerate(SCALARS)}
        flat["param_numel"] = self._param_numel
        if self.estimator not in ESTIMATORS.values():
            return {**flat, **own}
        version = next(v for v in reversed(ESTIMATORS) if ESTIMATORS[v] == self.estimator)
        flat["num_updates"] = int(own["statistics"]["num_updates"])
        if version == "1.x":
            del flat["param_numel"]
            return flat
        vectors = {name: own["statistics"][name] for name in VECTORS}
        return {**flat, **vectors, "vgs_version": version}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from any file of the published versions, or of :meth:`state_dict`.

        Warns: VGSMigrationWarning: the statistics could not be used; also logged.
        Raises: ValueError: a newer or damaged file; the scaler is unchanged.
        """
        if self._is_waiting:
            self._file = copy.deepcopy(state)
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            whole = self._completed(state) if isinstance(state, Mapping) else state
            super().load_state_dict(whole)
        for warning in caught:
            message = str(warning.message)
            if issubclass(warning.category, VGSMigrationWarning):
                message = MIGRATION.format(message)
                LOG.warning(message)
            warnings.warn(message, warning.category, stacklevel=2)

    def _completed(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """``state`` with what documents leave out: settings stay, numbers start again."""
        version = version_of(state)
        if version not in WRONG or "statistics" in state:
            return state
        least = VECTORS if version != "1.x" else ("grad_mean_ema", "grad_var_ema")
        require(state, least, version)
        config = {name: getattr(self, name) for name in CONFIG}
        whole = {**config, **dict.fromkeys(SCALARS), **state}
        if "step_count" not in state:  # no average can be corrected for its bias
            whole |= {"step_count": 0, **dict.fromkeys(SCALARS)}
            whole |= {key: torch.zeros_like(state[key]) for key in VECTORS if key in state}
            warnings.warn(
                f"VGS checkpoint of version {version} without 'step_count': all starts again",
                VGSMigrationWarning,
                stacklevel=1,
            )
        return {"param_numel": None, **whole, "vgs_version": version}

    # What published code reads

    _step_count = property(lambda self: self.step_count)
    _param_grad_mean_ema = property(lambda self: self._vector(0))
    _param_grad_sq_ema = property(lambda self: self._vector(1))
    _grad_mean_ema = property(lambda self: self._scalar(0))
    _grad_var_ema = property(lambda self: self._scalar(1))

    @property
    def _param_numel(self) -> Tensor:
        return torch.tensor([p.numel() for p in self._parameters.tensors])

    def _vector(self, index: int) -> Tensor | None:
        """An average of each tensor, before it is corrected; None of our estimators."""
        known = isinstance(self._estimator, PublishedEstimator)
        return getattr(self._estimator, VECTORS[index]) if known else None

    def _scalar(self, index: int) -> float | None:
        """An average of all elements; None where it is not kept."""
        averages = {} if self._estimator is None else self._estimator.scalars()
        return float(averages["raw"][index]) if averages and averages["count"][index] else None
