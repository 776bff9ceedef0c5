"""Wrappers in the Trainer of Lightning, with automatic or manual optimization."""

from __future__ import annotations

from typing import Any

from gqc.integrations.attached import finish, refuse_clipping, wrappers_in
from gqc.schedules import ParamGroupSchedule

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.utilities import rank_zero_warn
except ModuleNotFoundError:  # the package of its older name
    from pytorch_lightning import Callback, LightningModule, Trainer
    from pytorch_lightning.utilities import rank_zero_warn


class WrapperCallback(Callback):
    """Check a Trainer's clipping, count schedules in draws, log, and step with the last draws.

    ::

        def configure_optimizers(self):
            wrapper = OptimizerWrapperGNTS(torch.optim.AdamW(self.parameters()), clip_norm=1.0)
            return [wrapper], [{"scheduler": threshold_schedule(wrapper)}]

        Trainer(callbacks=[WrapperCallback()], ...)

    Lightning calls the wrapper once per microbatch (per ``accumulate_grad_batches`` of them), so
    ``max_steps`` and ``global_step`` count draws.  Schedules of gqc are stepped after each draw,
    also where the ``"interval"`` that Lightning assumes is ``"epoch"``; in manual optimization
    ``self.lr_schedulers().step()`` is yours to call.  A checkpoint is exact in mid-window.

    Args:
        flush: step with the draws that are left at the end of ``fit``; they are dropped with a
            warning where it is False.
    Raises: ValueError: as ``fit`` begins: ``gradient_clip_val``, which clips each draw, or no
        wrapper among the optimizers.
    """

    def __init__(self, flush: bool = True) -> None:
        self.flush = flush

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        wrappers = wrappers_in(*trainer.optimizers)
        refuse_clipping("gradient_clip_val", trainer.gradient_clip_val, wrappers[0])
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ParamGroupSchedule):
                config.interval = "step"

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
