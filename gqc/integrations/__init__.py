"""Wrappers and their schedules inside trainers that other people wrote.

:func:`attach` is all that most loops need: the wrapper then steps and saves its schedules itself,
whoever calls it.  Accelerate needs nothing else.  What a trainer needs besides is a callback in the
module of its name, which imports that package when it is imported itself:
:mod:`gqc.integrations.huggingface`, :mod:`gqc.integrations.lightning` and
:mod:`gqc.integrations.sb3`.

Loggers need no client of their own: ``on_step=`` of every wrapper is called after each step with a
flat dict of numbers, as ``wandb.log`` and ``trackio.log`` take it.
"""

from gqc.integrations.attached import attach

__all__ = ["attach"]
