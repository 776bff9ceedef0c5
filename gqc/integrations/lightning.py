"""Wrappers in the Trainer of Lightning, with automatic or manual optimization."""

from typing import Any

from gqc.integrations.attached import finish, refuse_clipping, refuse_metric, wrappers_in
from gqc.schedules import ParamGroupSchedule

try:
    from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
    from lightning.pytorch.utilities import rank_zero_warn
except ModuleNotFoundError:  # the package of its older name
    from pytorch_lightning import Callback, LightningModule, Trainer, callbacks
    from pytorch_lightning.utilities import rank_zero_warn


class WrapperCallback(Callback):
    """Check a Trainer's clipping, count schedules in draws, log, and step with the last draws.

    ::

        def configure_optimizers(self):
            wrapper = OptimizerWrapperGNTS(torch.optim.AdamW(self.parameters()), clip_norm=1.0)
            return [wrapper], [{"scheduler": threshold_schedule(wrapper)}]

        Trainer(callbacks=[WrapperCallback()], ...)

    Lightning calls the wrapper once per microbatch (per ``accumulate_grad_batches`` of them, of
    which an epoch must have a whole number), so ``max_steps`` and ``global_step`` count draws.
    Schedules of gqc are stepped after each draw, also where the ``"interval"`` that Lightning
    assumes is ``"epoch"``; in manual optimization ``self.lr_schedulers().step()`` is yours to call.
    A checkpoint is exact in mid-window; in mid-epoch Lightning starts the loader again, unless it
    has a ``state_dict``.

    Args:
        flush: step with the draws that are left at the end of ``fit``; they are dropped with a
            warning where it is False.
    Raises: ValueError: ``gradient_clip_val``, which clips each draw; no wrapper among the
        optimizers, or one that reads a metric in automatic optimization, which gives none;
        ``StochasticWeightAveraging`` over a wrapper's schedule; a short group of
        ``accumulate_grad_batches`` at the end of an epoch, in automatic optimization.
    """

    def __init__(self, flush: bool = True) -> None:
        self.flush = flush

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        wrappers = wrappers_in(*trainer.optimizers)
        refuse_clipping("gradient_clip_val", trainer.gradient_clip_val, wrappers[0])
        if pl_module.automatic_optimization:
            for wrapper in wrappers:
                refuse_metric("Lightning", wrapper)
        is_averaged = callbacks.StochasticWeightAveraging in map(type, trainer.callbacks)
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ParamGroupSchedule):
                config.interval, key = "step", config.scheduler.key
                if is_averaged and key != "lr":
                    raise ValueError(
                        f"StochasticWeightAveraging takes the place of the schedule of {key!r}: do "
                        "not return it, but gqc.integrations.attach() it"
                    )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        k, num = trainer.accumulate_grad_batches, trainer.num_training_batches
        num = batch_idx + 1 if trainer.is_last_batch else num  # inf where it is not known before
        if pl_module.automatic_optimization and num % k > 0:
            raise ValueError(
                f"accumulate_grad_batches={k}, of which {num} batches an epoch are no multiple: "
                f"Lightning divides the last {num % k} by {k} as well, a draw that is too small. "
                f"Leave it at 1, or pass as limit_train_batches a multiple of {k}"
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        wrappers = wrappers_in(*trainer.optimizers)
        for i, wrapper in enumerate(wrappers):
            prefix = "gqc/" if len(wrappers) == 1 else f"gqc/{i}/"
            numbers = {prefix + k: float(v) for k, v in wrapper.numbers().items()}
            pl_module.log_dict(numbers, on_step=True, on_epoch=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for wrapper in wrappers_in(*trainer.optimizers):
            finish(wrapper, self.flush, rank_zero_warn)
