r"""Do settings that were tuned for pretraining suit fine-tuning on another text?

A model is pretrained on the King James text by AdamW with a cosine, and fine-tuned on a much
smaller and very different one, the topics of Python's ``help()``, both as bytes.  Arms:

- ``"gnts, as before"``, ``"adamw, as before"``: the learning rate and the threshold or batch that
  `gqc_lab.studies.pretraining.annealing` tuned for pretraining, GNTS at a constant learning rate
  and AdamW with a cosine;
- ``"gnts, retuned"``, ``"adamw, retuned"``: the same, tuned for the fine-tuning (:func:`main`).

The schedules span the fine-tuning.  AdamW's moments start again, and all arms of a seed see the
same microbatches.
"""

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from gqc_lab.errors import check_name
from gqc_lab.loop.settings import read_tuned
from gqc_lab.loop.track import track
from gqc_lab.studies.pretraining import annealing, training
from gqc_lab.studies.pretraining.settings import PretrainingConfig

SOURCES = {"gnts": "gnts, constant", "adamw": "adamw, cosine"}  #: method -> arm of pretraining
ARMS = tuple(f"{method}, {which}" for method in SOURCES for which in ("as before", "retuned"))
RETUNED = tuple(arm for arm in ARMS if arm.endswith("retuned"))
#: scale -> tokens of the fine-tuning
TOKENS = {"smoke": 2**12, "laptop": 2**17, "paper": 40_000_000}
#: (scale, arm) -> values; the trials that they were chosen from are in the file
TUNED = read_tuned(Path(__file__).with_name("fine_tuning.csv"), ("scale", "arm"), "val_loss")


def config(arm: str, scale: str = "smoke", **overrides: Any) -> PretrainingConfig:
    """Return the config of the fine-tuning of an arm; ``overrides`` win over all others."""
    check_name("arm", arm, ARMS)
    check_name("scale", scale, TOKENS)
    tokens = TOKENS[scale]
    values = {"corpus": "pydoc", "tokenizer": "byte", "tokens": tokens}
    values |= {"evaluation_tokens": tokens // 8, **TUNED.get((scale, arm), {}), **overrides}
    return annealing.config(SOURCES[arm.split(", ")[0]], annealing.OF_SCALE[scale], **values)


def build(config: PretrainingConfig) -> training.Pretraining:
    """Return the fine-tuning of that config, before its first step: with pretrained weights."""
    run = training.build(config)
    run.model.load_state_dict(pretrained(config.scale, config.seed, config.device, config.dtype))
    return run


@cache
def pretrained(scale: str, seed: int, device: str, dtype: str) -> Mapping[str, Tensor]:
    """Return the weights that pretraining leaves with that seed; trained once a process."""
    place: dict[str, Any] = {"seed": seed, "device": device, "dtype": dtype, "tokenizer": "byte"}
    run = training.build(annealing.config(SOURCES["adamw"], annealing.OF_SCALE[scale], **place))
    for _ in track(run, has_bar=False):
        pass
    return run.model.state_dict()


def measure(arm: str, values: dict[str, Any], seed: int) -> dict[str, Any]:
    """Fine-tune once at laptop scale and return what `annealing.trained` does."""
    run = build(config(arm, "laptop", seed=seed, device="cpu", **annealing.rounded(values)))
    return annealing.trained(run)


def main(path: str) -> None:
    """Tune the arms that are tuned, and print the trials; ``path``: file to keep them in."""
    methods = {arm: arm.split(", ")[0] for arm in RETUNED}
    annealing.tune_arms(measure, methods, path, scale="laptop")


if __name__ == "__main__":
    main(*sys.argv[1:])
