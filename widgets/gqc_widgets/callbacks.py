"""`Live` for trainers that own the loop: Hugging Face, Lightning and Stable-Baselines3."""

from __future__ import annotations

from typing import Any

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


def _transformers(options: dict[str, Any]) -> Any:
    from transformers import TrainerCallback

    class LiveCallback(TrainerCallback):
        live: Any = None

        def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if self.live is None:
                optimizer = getattr(given["optimizer"], "optimizer", given["optimizer"])
                self.live = Live(optimizer, state.max_steps, **options)
            if not self.live.turn():
                control.should_training_stop = True

        def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if self.live is not None:
                self.live.log(**_numbers(given["logs"]))

        def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if self.live is not None:
                self.live.finish()

    return LiveCallback()


def _lightning(options: dict[str, Any]) -> Any:
    from lightning.pytorch.callbacks import Callback

    class LiveCallback(Callback):
        live: Any = None

        def on_train_batch_start(  # type: ignore[override]
            self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
        ) -> int | None:
            if self.live is None:
                total = trainer.estimated_stepping_batches
                known = int(total) if total != float("inf") else None
                self.live = Live(trainer.optimizers, known, **options)
            if self.live.turn():
                return None
            trainer.should_stop = True
            return -1  # skips the rest of the epoch

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            self.live.log(**_numbers({"loss": loss, **trainer.callback_metrics}))

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if self.live is not None:
                self.live.log(**_numbers(trainer.callback_metrics))

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            if self.live is not None:
                self.live.finish()

    return LiveCallback()


def _stable_baselines3(options: dict[str, Any]) -> Any:
    from stable_baselines3.common.callbacks import BaseCallback

    class LiveCallback(BaseCallback):
        live: Any = None
        _may_go_on = True

        def _on_rollout_start(self) -> None:
            if self.live is None:
                self.live = Live(self.model.policy.optimizer, **options)
            self.live.log(**_numbers(self.logger.name_to_value))  # of the rollout before
            self._may_go_on = self.live.turn()

        def _on_step(self) -> bool:
            return self._may_go_on and self.live.look()

        def _on_training_end(self) -> None:
            self.live.log(**_numbers(self.logger.name_to_value))
            self.live.finish()

    return LiveCallback()


def _numbers(values: Any) -> dict[str, Any]:
    """Return the numbers among what a trainer logs; the learning rate is recorded as it acts."""
    found = {}
    for name, value in dict(values).items():
        is_one = value.numel() == 1 if hasattr(value, "numel") else isinstance(value, int | float)
        if is_one and name != "learning_rate":
            found[name] = value
    return found
