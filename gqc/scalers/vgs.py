r"""Variance gradient scaler (VGS): the noisier the gradient, the smaller it is made.

.. math:: f = \mathrm{clip}\left(\frac{1}{1+\alpha\min(V, V_\max)},\; f_\min,\; 1\right)

with V a normalised variance of the gradient over time; f = 1 during warmup.  Order in a training
step: ``backward``, ``GradScaler.unscale_`` (a loss scale that changes would count as noise),
:meth:`~VarianceGradientScaler.scale_gradients`, clip, ``optimizer.step``,
:meth:`~VarianceGradientScaler.step`, ``zero_grad``.

Source: the method's published versions 1.0 to 3.2; what V was there, and where that goes wrong, is
in :mod:`gqc.scalers.published`, the present definition in :mod:`gqc.scalers.variance`.
"""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import zip_longest
from typing import Any, Self

import torch
from torch import Tensor

from gqc.checks import untraced
from gqc.scalers.checkpoints import VERSION, VGSMigrationWarning, read_checkpoint
from gqc.scalers.factors import mean_factor, multiply_by, numbers, tensor_factors
from gqc.scalers.parameters import ParameterList
from gqc.scalers.published import whole_gradient_statistics
from gqc.scalers.settings import ESTIMATORS, Settings, from_published_keys
from gqc.scalers.variance import Reading, VarianceEstimator


def _setting(name: str, is_fixed: bool = False) -> Any:
    """Make an attribute of a hyperparameter; assigning to it checks the value."""

    def assign(self: Any, value: Any) -> None:
        self._settings = self._settings.changed({name: value})

    return property(lambda self: getattr(self._settings, name), None if is_fixed else assign)


class VarianceGradientScaler:
    r"""Scale all gradients by a factor that falls as their variance over time rises.

    The estimators ``"sketch"`` and ``"elementwise"`` read the raw gradient in
    :meth:`scale_gradients`; the factor at t uses what was read up to t - 1.  The published ones
    read in :meth:`step` whatever scaling and clipping have left, as they did.  At most one host
    sync a step, one in 1000 during warmup.  A gradient with NaN or inf is not read, but counted in
    ``num_skipped``.  A tensor without a gradient keeps its V, which counts, unless it is frozen
    (``requires_grad``; the published ones keep that too).

    Args:
        parameters: parameters, (name, parameter) pairs (as of ``named_parameters``; adds a metric
            for each name), or an optimizer's ``param_groups``.
        enabled: False makes every method that acts do nothing.
        beta: decay of the statistics in (0, 1); resolves ratios up to :math:`(1+\beta)/(1-\beta)`.
        alpha: :math:`\alpha \ge 0`, strength; 0 never scales.
        eps: of the published estimators only, > 0; the others do not depend on gradient scale.
        warmup_steps: steps with factor 1.
        logger: gets the metrics at every step (and costs its one host sync in warmup too): an
            object with ``record(key, value)``, or a callable that takes the dict.
        min_scaling_factor: :math:`f_\min` in [0, 1].
        variance_cap: :math:`V_\max`, also the V of a tensor whose signal is not resolved; None:
            the most that ``beta`` resolves.
        estimator: ``"sketch"`` or ``"elementwise"``, which take a moving mean for noise;
            ``"differences"``, which takes correlated noise for signal (both in figures:
            :mod:`gqc.scalers.variance`); or a published one: ``"mean_square"`` (3.1, 3.2),
            ``"tensor_mean"`` (3.0), ``"tensor_spatial"`` (2.0), ``"spatial"`` (1.x).
        percentile: of V over tensors, in [0, 1].
        aggregate: ``"percentile"``, ``"mean"``, ``"numel_weighted"`` or ``"max"`` over tensors.
        granularity: one factor for all (``"global"``), for each ``"group"``, each ``"tensor"``, or
            each ``"element"`` (needs ``"elementwise"``, and twice its memory).
        sketch_size: k; tensors of more than :math:`k^2` elements are projected, see
            :mod:`gqc.scalers.sketch`.
        sketch_seed: of their signs.
        track_spatial: also average mean|g|, var|g| and max|g| of the raw gradient, and the norm
            exactly instead of from the sketch; some passes over the gradient.
    Raises: ValueError: an argument out of its range, or no parameters.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        enabled: bool = True,
        beta: float = 0.99,
        alpha: float = 0.1,
        eps: float = 1e-8,
        warmup_steps: int = 100,
        logger: Any = None,
        min_scaling_factor: float = 0.1,
        variance_cap: float | None = 50.0,
        *,
        estimator: str = "sketch",
        percentile: float = 0.9,
        aggregate: str = "percentile",
        granularity: str = "global",
        sketch_size: int = 64,
        sketch_seed: int = 0,
        track_spatial: bool = False,
    ) -> None:
        arguments = {k: v for k, v in locals().items() if k in Settings.__dataclass_fields__}
        self._settings = Settings(**arguments)
        self._parameters = ParameterList(parameters)
        self._parameters.check(granularity)
        self.logger = logger
        self._is_read: bool  # were this step's gradients read?
        self._estimator: VarianceEstimator | None = None  # made when the first gradient is read
        self._host: dict[str, tuple[Any, Any]]  # what was read of the present statistics
        self.reset_statistics()

    @classmethod
    def from_config(
        cls, mapping: Mapping[str, Any], parameters: Iterable[Any], **options: Any
    ) -> Self:
        """Make a scaler from a training configuration with the published keys.

        Args:
            mapping: may hold ``variance_gradient_scaling`` (enabled), ``vgs_beta``, ``vgs_alpha``,
                ``vgs_warmup_steps``, also in mappings in it; others may not start with ``vgs_``.
            parameters: see the class, as are ``options``.
        Raises: ValueError: an unknown key that starts with ``vgs_``, or one with two values.
        """
        return cls(parameters, **{**from_published_keys(mapping), **options})

    enabled: bool = _setting("enabled")
    alpha: float = _setting("alpha")
    warmup_steps: int = _setting("warmup_steps")
    min_scaling_factor: float = _setting("min_scaling_factor")
    variance_cap: float | None = _setting("variance_cap")
    percentile: float = _setting("percentile")
    aggregate: str = _setting("aggregate")
    beta: float = _setting("beta", is_fixed=True)
    eps: float = _setting("eps", is_fixed=True)
    estimator: str = _setting("estimator", is_fixed=True)
    granularity: str = _setting("granularity", is_fixed=True)

    @untraced
    @torch.no_grad()
    def scale_gradients(self) -> float:
        """Scale ``.grad`` of all parameters in place; once a step, before clipping.

        Returns: the factor; with a finer granularity the mean factor over tensors (or elements).
        Warns: UserWarning: there was no :meth:`step` since the first call.
        Raises: TypeError: a sparse gradient.  RuntimeError: it was scaled before in this step.
        """
        if not self.enabled:
            return 1.0
        grads = self._parameters.gradients()
        self._parameters.mark(grads, self.step_count == 0)
        factor, factors = 1.0, None
        if self.step_count >= self.warmup_steps and self._estimator is not None:
            factor, factors = self._factors(self._estimator)
        must_read = ESTIMATORS[self.estimator].reads_raw and not self._is_read
        if factors is None and must_read:
            self._observe(grads, factor)  # reads and multiplies in one pass
            return factor
        if must_read:
            self._observe(grads)
        for grad, one in zip(grads, factors or [factor] * len(grads), strict=True):
            if grad is not None:
                multiply_by(grad, one)
        return factor

    @untraced
    def step(self) -> None:
        """Count a step; read what was not read; RuntimeError: it is gone, or came late."""
        if self.enabled and (self._parameters.was_early or not self._is_read):
            self._parameters.check_there(self.estimator)
            self.update_statistics()
        self._is_read = self._parameters.is_marked = self._parameters.was_early = False
        if not self.enabled:
            return
        self.step_count += 1
        if hasattr(self.logger, "record"):
            for key, value in self.metrics().items():
                self.logger.record(key, value)
        elif self.logger is not None:
            self.logger(self.metrics())

    @torch.no_grad()
    def update_statistics(self) -> None:
        """Read the gradients that are there now."""
        self._observe(self._parameters.gradients())

    @torch.no_grad()
    def compute_gradient_statistics(self) -> dict[str, float]:
        """Return grad_norm, grad_mean, grad_var, grad_max, num_params of the present gradients.

        Mean, unbiased variance and maximum are of absolute elements; num_params counts those with
        a gradient.  All 0 without any.
        """
        grads = self._parameters.gradients()
        numbers = whole_gradient_statistics(grads)
        mean, var, norm, largest = [0.0] * 4 if numbers is None else numbers.tolist()
        count = sum(g.numel() for g in grads if g is not None)
        found = {"grad_norm": norm, "grad_mean": mean, "grad_var": var, "grad_max": largest}
        return {**found, "num_params": count}

    def get_normalized_variance(self) -> float:
        """Return V, aggregated over tensors; 0 before there are statistics."""
        return self._read()["normalized_variance"]

    def get_scaling_factor(self) -> float:
        """Return the factor that :meth:`scale_gradients` would use now."""
        is_active = self.enabled and self.step_count >= self.warmup_steps
        return self._read()["scaling_factor"] if is_active else 1.0

    @property
    def num_skipped(self) -> int:
        """Updates that were skipped because a gradient was NaN or infinite."""
        return int(self._read()["skipped"])

    def metrics(self) -> dict[str, float]:
        """Return the present numbers under their published names.

        ``vgs/`` + ``stochastic_var_p10``, ``_p50``, ``_p90``, ``_mean`` (of V over tensors),
        ``normalized_variance``, ``scaling_factor``, ``step_count``, ``warmup_active``,
        ``unresolved`` (share of tensors), ``grad_norm_ema``; where they are tracked
        ``grad_max_ema`` and the deprecated ``grad_mean_ema_spatial``, ``grad_var_ema_spatial``;
        with named parameters ``normalized_variance/NAME``.
        """
        left_out = {"skipped"}
        if not self._settings.track_spatial and ESTIMATORS[self.estimator].reads_raw:
            left_out |= {"grad_mean_ema_spatial", "grad_var_ema_spatial", "grad_max_ema"}
        return {
            **{f"vgs/{k}": v for k, v in self._read().items() if k not in left_out},
            "vgs/scaling_factor": self.get_scaling_factor(),  # 1 in the warmup
            "vgs/step_count": self.step_count,
            "vgs/warmup_active": float(self.step_count < self.warmup_steps),
        }

    def update_parameters(self, parameters: Iterable[Any]) -> None:
        """Scale other parameters from now on; those that stay keep their statistics.

        No scaler notices a new param group or a replaced layer by itself.
        """
        new = ParameterList(parameters)
        new.check(self.granularity)
        if self._estimator is not None:
            estimator = self._settings.build(new.tensors)
            places = {id(p): i for i, p in enumerate(self._parameters.tensors)}
            estimator.carry(self._estimator, [places.get(id(p)) for p in new.tensors])
            self._estimator = estimator
        new.is_marked, new.mark_of = self._parameters.is_marked, self._parameters.mark_of
        self._parameters, self._host = new, {}

    def follow(self, param_groups: list[dict[str, Any]]) -> None:
        """:meth:`update_parameters`, if the groups' parameters are others than before."""
        current = (p for group in param_groups for p in group["params"])
        if any(a is not b for a, b in zip_longest(current, self._parameters.tensors)):
            self.update_parameters(param_groups)

    def reset_statistics(self) -> None:
        """Forget all statistics; the warmup starts again."""
        self.step_count = 0
        self._is_read = self._parameters.is_marked = False
        self._estimator, self._host = None, {}

    def state_dict(self) -> dict[str, Any]:
        """Return everything, as tensors, plain numbers and lists of them; exact on a resume.

        Statistics of shards are ``DTensor`` (``"elementwise"``) or belong to one rank, see
        :mod:`gqc.scalers.shards`; ``dcp.load({"vgs": scaler}, ...)`` loads both.
        """
        config = asdict(self._settings)
        estimator = self._estimator or self._settings.build(self._parameters.tensors)
        return {
            "vgs_version": VERSION,
            "estimator": config.pop("estimator"),
            "config": config,
            "step_count": self.step_count,
            "shapes": self._parameters.shapes(),
            "statistics": estimator.state_dict(),  # a new scaler's is room to load into
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`, or the file of a published version.

        Configuration comes from the file too.

        Warns: VGSMigrationWarning: the statistics are of another version than the estimator; they
            and the warmup start again.
        Raises: ValueError: a newer or damaged file, another estimator's or another model's; the
            scaler is unchanged then.
        """
        checkpoint = read_checkpoint(state)
        settings = self._settings.changed(checkpoint.config)
        self._parameters.check(settings.granularity)
        estimator = settings.build(self._parameters.tensors)
        is_exact = checkpoint.is_of(self.estimator)
        checkpoint.check_same(self.estimator, self._parameters.shapes())
        if is_exact and checkpoint.statistics:
            try:
                estimator.load_state_dict(checkpoint.statistics)
            except (AttributeError, KeyError, RuntimeError, TypeError) as error:
                raise ValueError(f"VGS checkpoint is damaged: {error!r}") from error
        elif checkpoint.version == "1.x":
            estimator.load_scalars(checkpoint.statistics["averages"])
        self._settings = settings
        self.reset_statistics()
        self.step_count = checkpoint.step_count if is_exact else 0
        self._estimator, self._host = estimator, {}
        if not is_exact:
            message = checkpoint.migration_message(self.estimator)
            warnings.warn(message, VGSMigrationWarning, stacklevel=2)

    def _factors(self, estimator: VarianceEstimator) -> tuple[float, list[float | Tensor] | None]:
        """Return the factor, or the mean of them and that of each tensor or its elements."""
        found = tensor_factors(estimator, self._reading, self._parameters, self._settings)
        settings, read = self._host.get("numbers", (None, None))
        factor = (
            read["scaling_factor"] if settings is self._settings else mean_factor(estimator, found)
        )
        return factor, None if self.granularity == "global" else found

    def _observe(self, grads: list[Tensor | None], factor: float = 1.0) -> None:
        self._is_read = True
        if all(g is None for g in grads):
            return
        if self._estimator is None:
            self._estimator = self._settings.build(self._parameters.tensors)
        tracked = whole_gradient_statistics(grads) if self._settings.track_spatial else None
        is_known = self._estimator.update(grads, factor, tracked)
        self._host = {}  # last, and a new one: another thread may be reading into the former
        if is_known:  # here the few operations that the next factor takes find the cache warm
            self._reading()

    def _reading(self) -> Reading:
        host, settings, estimator = self._host, self._settings, self._estimator
        if estimator is None:
            num = len(self._parameters.tensors)
            return Reading([0.0] * num, [True] * num, [False] * num, [0.0] * 4, 0)
        known, reading = host.get("reading", (None, None))
        if known is not settings:
            reading = estimator.read(settings.variance_cap)
            host["reading"] = settings, reading
        return reading

    @torch.no_grad()
    def _read(self) -> dict[str, float]:
        """All numbers on the host: one sync for each update of the statistics."""
        host, settings = self._host, self._settings
        known, found = host.get("numbers", (None, None))
        if known is not settings:
            factor = 1.0 if self._estimator is None else self._factors(self._estimator)[0]
            found = numbers(self._reading(), factor, self._parameters, settings)
            host["numbers"] = settings, found
        return found
