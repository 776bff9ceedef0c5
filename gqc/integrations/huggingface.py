"""A wrapper in the Trainer of Hugging Face Transformers."""

from typing import Any

from transformers import TrainerCallback
from transformers.utils import logging

from gqc.integrations import attached
from gqc.schedules import ParamGroupSchedule

logger = logging.get_logger(__name__)


class WrapperCallback(TrainerCallback):
    """Check a Trainer's arguments, step and save schedules, log, and step with the last draws.

    ::

        wrapper = OptimizerWrapperGNTS(torch.optim.AdamW(model.parameters()), clip_norm=1.0)
        args = TrainingArguments(..., max_grad_norm=0)
        trainer = Trainer(
            model, args, optimizers=(wrapper, None), callbacks=[WrapperCallback(schedule)], ...
        )

    The Trainer calls the wrapper once per microbatch (per ``gradient_accumulation_steps`` of them)
    and believes that each call steps: ``max_steps``, ``logging_steps``, ``save_steps``, its warmup
    and its lr schedule all count draws.  Checkpoints are exact in the middle of a window.

    Numbers of the last window join each entry of ``state.log_history`` as ``gqc/...``.  Reporters
    such as W&B's get them where this callback comes first: ``report_to="none"`` and
    ``callbacks=[WrapperCallback(...), WandbCallback()]``.

    Args:
        schedules: of the wrapper, to be attached to it (:func:`gqc.integrations.attach`).
        flush: step with the draws that are left at the end; they are dropped, and counted in a
            message, where it is False or where the Trainer has gone back to its best model.
    Raises:
        ValueError: as training begins: ``max_grad_norm``, which clips each draw; a wrapper that
            sums in ``.grad``, which the Trainer clears after every microbatch, or that reads a
            metric, which it does not give; no wrapper; a schedule of another one.
    """

    def __init__(self, *schedules: ParamGroupSchedule, flush: bool = True) -> None:
        self.flush, self.schedules = flush, schedules
        self.wrapper: Any = None
        if schedules:
            attached.attach(*schedules)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any
    ) -> None:
        self.wrapper = wrapper = attached.wrappers_in(optimizer)[0]
        attached.refuse_clipping("max_grad_norm", args.max_grad_norm, wrapper)
        attached.refuse_metric("the Trainer", wrapper)
        if not {each.optimizer for each in self.schedules} <= {*attached.within(wrapper)}:
            raise ValueError(
                "WrapperCallback(schedule) with a schedule of another wrapper than the Trainer's, "
                "which would not move: make the callback again, with a schedule of this one"
            )
        if wrapper.sums_in_grad:
            raise ValueError(
                'accumulate="grad" in a Trainer, which clears .grad after every microbatch and '
                'with it the sum of the window: pass accumulate="buffer" to the wrapper'
            )
        size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        if wrapper.counts_examples and wrapper.default_weight != size:
            logger.warning(
                f"physical_batch_size={wrapper.default_weight:g}, but a draw has {size} examples, "
                f"gradient_accumulation_steps and processes together: pass {size} to the wrapper"
            )
        if args.max_steps > 0:
            logger.warning(
                f"max_steps={state.max_steps} counts microbatches, not optimizer steps, as do "
                "logging_steps, save_steps, the warmup and the lr schedule"
            )

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.wrapper.accept_gradients()  # measured, by clipping to infinity

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if self.wrapper is None:  # an evaluation before training
            return
        numbers = {f"gqc/{k}": v for k, v in self.wrapper.numbers().items()}
        for entry in (*state.log_history[-1:], logs or {}):
            entry.update(numbers)

    def on_train_end(self, args: Any, *others: Any, **kwargs: Any) -> None:
        is_last = not args.load_best_model_at_end
        attached.finish(self.wrapper, self.flush and is_last, logger.warning)
