"""``gqc new``: files to start from."""

from pathlib import Path
from typing import Annotated

import typer

from gqc_lab.cli.shared import group, make_console

new = group("Write files to start from.")
new.callback()(lambda: None)  # keeps a group of one command a group


@new.command("experiment")
def new_experiment(
    name: Annotated[str, typer.Argument(help="Such as batch_noise.")],
    question: Annotated[str, typer.Option(help="Title of the notebook.")] = "",
    to: Annotated[
        Path, typer.Option(help="A checkout of the kit, or a folder for all files.")
    ] = Path(),
) -> None:
    """Write an experiment that runs as it is: module, notebook pair, batch."""
    from gqc_lab.publish.scaffold import write_experiment

    made = write_experiment(name, question, to)
    console = make_console()
    for path in made.paths:
        console.print(f"written: {path}", highlight=False)
    console.print(f"\nto have it decided, add to claims.yaml:\n\n{made.claim}", highlight=False)
    console.print(f"next: gqc run {made.notebook}", highlight=False)
    console.print(f"then: gqc batch run {made.batch} --jobs 2", highlight=False)
