"""How many files of ours four ways pass: ``python tests/ways.py`` prints them.

A reader who wants to know how a number comes about has to open the files on its way, so these are
few.  Each way is followed with `sys.setprofile` through a real smoke run.  A file is on a way where
one of its functions runs between the two ends and, if the way is that of a value, holds that value:
in a variable, in what it returns, or within a dict, list or dataclass there.  Imports do not count.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
OURS = tuple(f"{ROOT / folder}/" for folder in ("gqc", "notebooks/gqc_lab", "widgets/gqc_widgets"))


class Way:
    """The files that are passed while the way is open, each with the function that came first.

    Args:
        values: numbers that are followed; none: all functions are on the way.
    """

    def __init__(self, *values: float) -> None:
        self.files: dict[str, str] = {}
        self._values = values

    def start(self) -> None:
        sys.setprofile(self._note)

    def stop(self) -> None:
        sys.setprofile(None)

    @contextmanager
    def open(self) -> Iterator[None]:
        self.start()
        try:
            yield
        finally:
            self.stop()

    def _note(self, frame: FrameType, event: str, result: Any) -> None:
        code = frame.f_code
        # Neither the body of a module or class, nor a comprehension in one.
        is_function = code.co_flags & CO_OPTIMIZED and not code.co_qualname.startswith("<")
        if event != "return" or not is_function or not code.co_filename.startswith(OURS):
            return
        path = str(Path(code.co_filename).relative_to(ROOT))
        if path in self.files or not path.endswith(".py") or _is_imported(frame):
            return
        if not self._values or self._holds(result) or self._holds(frame.f_locals):
            self.files[path] = code.co_qualname

    def _holds(self, thing: Any, depth: int = 4) -> bool:
        if isinstance(thing, float | int):
            return thing in self._values
        if depth == 0:
            return False
        if dataclasses.is_dataclass(thing):
            thing = vars(thing)
        if isinstance(thing, dict):
            thing = tuple(thing.values())
        return isinstance(thing, list | tuple) and any(
            self._holds(part, depth - 1) for part in thing[:100]
        )


def _is_imported(frame: FrameType | None) -> bool:
    """Whether a module that is being imported called the function of ``frame``."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def before(owner: Any, name: str, action: Callable[[], None]) -> Any:
    """Patch ``owner.name`` to run ``action`` first."""
    inner = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        action()
        return inner(*args, **kwargs)

    return mock.patch.object(owner, name, wrapped)


def after(owner: Any, name: str, action: Callable[[], None]) -> Any:
    """Patch ``owner.name`` to run ``action`` last."""
    inner = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = inner(*args, **kwargs)
        action()
        return result

    return mock.patch.object(owner, name, wrapped)


def gradient_to_figure() -> Way:
    """From `backward` in the flagship's training, through the history, to the figure of norms."""
    import torch

    from gqc_lab import figures, track
    from gqc_lab.loop import experiment as loop
    from gqc_lab.studies import pretraining

    way = Way()
    experiment = pretraining.build(pretraining.config("smoke", method="gnts", tokens=60 * 512))
    # From each backward pass to its record in the history, without what an evaluation computes.
    with (
        before(torch.Tensor, "backward", way.start),
        before(experiment, "evaluate", way.stop),
        after(loop, "append", way.stop),
    ):
        for _ in track(experiment):
            pass
    with way.open():
        figures.norm_against_threshold(experiment.history)
    return way


def parameter_to_optimizer() -> Way:
    """From the notebook's cell that reads three of its parameters to the optimizer they set up."""
    from gqc_lab.studies import pretraining

    way = Way(lr := 1.2345e-3, norm := 0.65432, draws := 17)
    with way.open():
        experiment = pretraining.build(
            pretraining.config("smoke", method="gnts", lr=lr, start_norm=norm, max_draws=draws)
        )
        experiment.set_hyperparameters()
    return way


def claim_to_macro() -> Way:
    """From the paper's claims and committed results to its macros, as ``gqc claims`` makes them."""
    from gqc_lab.claims.commands import decide
    from gqc_lab.claims.render import describe_claims, render

    way = Way()
    with way.open():
        text = render("claims-macros.tex", claims=describe_claims(decide(ROOT / "paper")))
    assert r"\newcommand{\numClaims}" in text
    return way


def slider_to_training() -> Way:
    """From a slider of the view of a loop to the step that is made under its value."""
    import torch

    from gqc_widgets import Live

    way = Way(rate := 0.01995)  # a notch of the slider
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    live, seen = Live(optimizer), []
    fields, controls = live.view.fields, live.experiment.controls
    for number in live(range(3)):
        if number == 1:
            with way.open(), after(controls, "update", way.stop):  # the view draws what is set
                fields._hear({"slide": ["lr", 65]})
            way.start()
        if number == 2:
            hook = optimizer.register_step_pre_hook(
                lambda *_: seen.append(optimizer.param_groups[0]["lr"])
            )
            optimizer.step()
            way.stop()
            hook.remove()
    assert seen == [rate]
    return way


#: way -> most files on it; 10, 7, 8 and 6 are aimed at
WAYS = {
    gradient_to_figure: 15,
    parameter_to_optimizer: 10,
    claim_to_macro: 8,
    slider_to_training: 5,
}

if __name__ == "__main__":
    for follow, most in WAYS.items():
        found = follow().files
        print(f"{follow.__name__}: {len(found)} files, at most {most}")
        for path, function in found.items():
            print(f"    {path}  ({function})")
