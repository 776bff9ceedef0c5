r"""Variance gradient scaling where its source has it in PPO: between ``backward`` and clipping.

Stable-Baselines3 clips with ``max_grad_norm`` between ``backward`` and ``step``, so a wrapper, or
any optimizer, comes after clipping.  Optimizers need no module: ``UPGD`` and the others go into
``policy_kwargs={"optimizer_class": UPGD, "optimizer_kwargs": {...}}``.
"""

from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from torch.optim import Optimizer

from gqc.scalers import VarianceGradientScaler
from gqc.wrappers.vgs import OptimizerWrapperVGS
from gqc.wrappers.watch import GradientWatch


class ScaleBeforeClipping(GradientWatch):
    """Scale gradients as each ``backward`` ends, and observe them as the optimizer has stepped.

    For any loop that clips: what it clips is scaled already, and the published estimators read what
    clipping has left, as they did.

    Args:
        optimizer: steps once per ``backward``; of the parameters that ``scaler`` scales.  One that
            is scaled already is scaled by this alone.
    """

    def __init__(self, optimizer: Optimizer, scaler: VarianceGradientScaler) -> None:
        self.scaler = scaler
        for hook in [*optimizer._optimizer_step_post_hooks.values()]:  # of a run that broke off
            if isinstance(former := getattr(hook, "__self__", None), ScaleBeforeClipping):
                former.remove()
        super().__init__([p for group in optimizer.param_groups for p in group["params"]])
        self._handles.append(optimizer.register_step_post_hook(self._observe))

    def _end(self, task: int) -> None:
        super()._end(task)
        self.scaler.scale_gradients()

    def _observe(self, *args: Any) -> None:
        self.forget()  # a backward that failed too
        self.scaler.step()


class VGSCallback(BaseCallback):
    """``model.learn(..., callback=VGSCallback(alpha=0.3))``: VGS before PPO's clipping.

    Metrics are recorded as ``vgs/...`` at each rollout.  The model's file does not hold the scaler:
    save ``callback.scaler.state_dict()`` beside it, and give it as ``state``.

    Args:
        state: of the scaler of an earlier run.
        options: keywords of :class:`~gqc.scalers.vgs.VarianceGradientScaler`.
    Attributes: scaler: of the model that learns or did last; its next ``learn`` continues with it.
    Raises: ValueError, TypeError: as training begins, as the scaler, or several optimizers.
    """

    def __init__(self, *, state: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__()
        self.options, self.state = options, state
        self.scaler: VarianceGradientScaler | None = None
        self._policy: Any = None  # that of the model which the scaler belongs to
        self._hooks: ScaleBeforeClipping | None = None

    def _on_training_start(self) -> None:
        self._remove_hooks()
        if (optimizer := getattr(self.model.policy, "optimizer", None)) is None:
            raise TypeError(
                f"{type(self.model).__name__} has no policy.optimizer, as PPO, A2C and DQN have: "
                "wrap those that it has in OptimizerWrapperVGS, such as model.actor.optimizer"
            )
        if OptimizerWrapperVGS in getattr(optimizer, "_kinds", ()):
            raise ValueError(
                "the policy's optimizer is in an OptimizerWrapperVGS: drop VGSCallback"
            )
        if self.scaler is None or self._policy is not self.model.policy:
            self._policy = self.model.policy
            self.scaler = VarianceGradientScaler(optimizer.param_groups, **self.options)
            if self.state is not None:
                self.scaler.load_state_dict(self.state)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:  # no error or interrupt of a rollout leaves the hooks
        assert self.scaler is not None
        for key, value in self.scaler.metrics().items():
            self.logger.record(key, value)
        self._hooks = ScaleBeforeClipping(self.model.policy.optimizer, self.scaler)

    def _remove_hooks(self) -> None:
        if self._hooks is not None:
            self._hooks.remove()

    _on_rollout_start = _on_training_end = _remove_hooks
