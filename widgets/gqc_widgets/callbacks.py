"""`Live` for trainers that own the loop: Hugging Face, Lightning and Stable-Baselines3."""

from collections.abc import Mapping
from typing import Any

from gqc_lab.loop.live import steered
from gqc_widgets.live import Live


def live_callback(trainer: str, **options: Any) -> Any:
    """Return a callback that shows and steers the training of ``trainer``.

    Its ``live`` is the `Live`, from the first batch on; what the trainer logs is recorded.

    Args:
        trainer: ``"transformers"``, ``"lightning"`` or ``"stable_baselines3"``.
        options: of `Live`, such as ``label``.
    Raises: ValueError: another trainer.
    """
    makers = {"transformers": _transformers, "lightning": _lightning}
    makers["stable_baselines3"] = _stable_baselines3
    if trainer not in makers:
        raise ValueError(f"trainer={trainer!r}: expected one of {', '.join(makers)}")
    return makers[trainer](options)


class _Callback:
    """What the callbacks of all trainers do."""

    live: Live | None = None

    def record(self, values: Mapping[str, Any]) -> None:  # Lightning sets `log` to its own
        """Log the numbers among ``values``; what `Live` measures itself is left out."""
        if self.live is not None:
            own = {"learning_rate", *self.live.loop.own_names}
            self.live.log(**{n: v for n, v in values.items() if n not in own and _is_number(v)})

    def on_train_end(self, *args: Any, **given: Any) -> None:
        if self.live is not None:
            self.live.finish()


def _is_number(value: Any) -> bool:
    return value.numel() == 1 if hasattr(value, "numel") else isinstance(value, int | float)


def _transformers(options: dict[str, Any]) -> Any:
    from transformers import TrainerCallback

    class LiveCallback(_Callback, TrainerCallback):
        def on_train_begin(self, *args: Any, **given: Any) -> None:
            self.live = None  # another training, maybe of another model

        def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if self.live is None:
                optimizer = getattr(given["optimizer"], "optimizer", given["optimizer"])
                self.live = Live(optimizer, state.max_steps, **options)
            if not self.live.turn():
                control.should_training_stop = True

        def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.record(given["logs"])

    return LiveCallback()


def _lightning(options: dict[str, Any]) -> Any:
    from lightning.pytorch.callbacks import Callback

    class LiveCallback(_Callback, Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            self.live, self._seen = None, dict[str, Any]()  # another training

        def record_new(self, values: Mapping[str, Any]) -> None:
            """Log what was measured since the last call: the trainer keeps older values too."""
            self.record({n: v for n, v in values.items() if self._seen.get(n) is not v})
            self._seen |= values

        def on_train_batch_start(
            self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
        ) -> int | None:
            if self.live is None:
                self.live = Live(trainer.optimizers, _batches(trainer), **options)
            if self.live.turn():
                return None
            trainer.should_stop = True
            return -1  # skips the rest of the epoch

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            if loss is not None and pl_module.automatic_optimization:
                loss = loss * trainer.accumulate_grad_batches  # which Lightning divides it by
            self.record({"loss": loss})
            self.record_new(trainer.callback_metrics)

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            self.record_new(trainer.callback_metrics)

    return LiveCallback()


def _batches(trainer: Any) -> int | None:
    """Return how many batches a Lightning trainer goes through; None: not known."""
    total = trainer.num_training_batches * trainer.max_epochs  # below 0 where there is no limit
    if trainer.max_steps != -1:
        is_automatic = trainer.lightning_module.automatic_optimization
        has_one = is_automatic and trainer.accumulate_grad_batches == 1  # a step
        total = trainer.estimated_stepping_batches if has_one else -1
    return int(total) if 0 < total < float("inf") else None


def _stable_baselines3(options: dict[str, Any]) -> Any:
    from stable_baselines3.common.callbacks import BaseCallback

    class LiveCallback(_Callback, BaseCallback):
        _may_go_on = True

        def _on_rollout_start(self) -> None:
            optimizer = self.model.policy.optimizer
            if self.live is None or steered.get(optimizer) is not self.live:
                self.live = Live(optimizer, **options)
            self.record(self.logger.name_to_value)  # of the rollout before
            self._may_go_on = self.live.turn()

        def _on_step(self) -> bool:
            return self._may_go_on and self.live is not None and self.live.look()

        def _on_training_end(self) -> None:
            self.record(self.logger.name_to_value)
            self.on_train_end()

    return LiveCallback()
