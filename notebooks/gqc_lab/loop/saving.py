"""Save a run that was steered by hand, so that it can be read and replayed without a person."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gqc_lab.loop.experiment import Experiment
from gqc_lab.loop.track import run_name, save_checkpoint


def save_run(experiment: Experiment, folder: str | Path, parameters: Mapping[str, Any]) -> Path:
    """Write the run to a new folder in ``folder``, named after the run.

    - ``history.parquet``: a row per record;
    - ``result.json``: `Experiment.summary`, with ``is_steered``, and the config;
    - ``parameters.yaml``: ``parameters`` and the ``changes`` that were made during the run, for
      ``gqc run NOTEBOOK -f parameters.yaml``, which repeats it bit for bit;
    - ``run.ckpt``: the state, for `gqc_lab.loop.track`.

    Args:
        experiment: between two microbatches.
        parameters: of the notebook that built it.
    """
    folder, number = Path(folder), 1
    while (place := folder / f"{run_name(experiment)}-{number}").exists():
        number += 1
    place.mkdir(parents=True)
    experiment.history.to_parquet(place / "history.parquet", index=False)
    identity = experiment.identity()
    result = {"results": [experiment.summary()], **identity, "changes": experiment.changes}
    (place / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    plain = json.loads(json.dumps({**parameters, "changes": experiment.changes}))  # no tuples
    text = yaml.safe_dump(plain, sort_keys=False, default_flow_style=None)
    (place / "parameters.yaml").write_text(text, encoding="utf-8")
    save_checkpoint(experiment, place / "run.ckpt")
    return place
