"""Pretraining runs that are compared at equal tokens.

A comparison is a name and a few labelled configs that differ in one thing:

- ``"control"``: GNTS, AdamW as tuned, and AdamW with torch's defaults;
- ``"size"``: GNTS and AdamW, and AdamW on a model of 16 times the parameters (4 times the width);
  its learning rate is AdamW's times small width / large width, the rule that keeps Adam's update of
  a hidden layer's output the same;
- ``"microbatch"``: GNTS with 1, 2, 4, 8 and 16 sequences per microbatch and the same largest
  logical batch; at laptop size with a threshold of `NORM`, whose windows hold several of them, as
  the tuned one takes nearly every microbatch of four;
- ``"warmup"``: GNTS with a threshold that starts at 30 times its value, at a tenth of it, and at
  itself;
- ``"repeated"``: GNTS and AdamW on a short text that is read many times.

Source of the width rule: Yang et al. 2022, arXiv:2203.03466, table 3.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from gqc_lab.errors import check_name
from gqc_lab.loop.track import track
from gqc_lab.models.gpt import count_parameters
from gqc_lab.studies.pretraining.settings import PretrainingConfig, config
from gqc_lab.studies.pretraining.training import Pretraining, build

COMPARISONS = ("control", "size", "microbatch", "warmup", "repeated")
#: scale -> the fields of all runs; 64 draws would not fit into the 16 microbatches of smoke
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {"tokens": 2**13, "max_draws": 4},
    "laptop": {"tokens": 2**19},
    "paper": {},
}
#: the same of ``"repeated"``, whose text is read 16 times, 4 at smoke and 31 at paper size
REPEATED: dict[str, dict[str, Any]] = {
    "smoke": {"train_tokens": 2**12, "tokens": 2**14},
    "laptop": {"train_tokens": 2**15, "tokens": 2**19},
    "paper": {"train_tokens": 9_000_000},
}
#: of torch.optim.AdamW, stepping on every microbatch
UNTUNED = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.01, "accumulation": 1}
WIDER = 4
MICROBATCHES = (1, 2, 4, 8, 16)
NORM = 0.6
NORMS = {"laptop": {"start_norm": NORM, "end_norm": NORM}}  #: scale -> threshold of "microbatch"
MULTIPLIERS = {"inverted": 30.0, "upright": 0.1, "none": 1.0}


def comparison(
    name: str, scale: str = "smoke", train_tokens: int | None = None, **overrides: Any
) -> dict[str, PretrainingConfig]:
    """Return the configs of a comparison, of `COMPARISONS`, by label; see the module.

    Args:
        train_tokens: of ``"repeated"``: length of its text; the others read all.
        overrides: fields of `PretrainingConfig` that all of them get.
    """
    check_name("comparison", name, COMPARISONS)
    gnts = config(scale, **{**overrides, "method": "gnts"})
    adamw = config(scale, **{**overrides, "method": "adamw"})
    if name == "size":
        large = replace(adamw, width=WIDER * adamw.width, lr=adamw.lr / WIDER)
        return {"gnts": gnts, "adamw": adamw, "adamw, 16x": large}
    if name == "microbatch":
        return {f"microbatch {n}": _with_microbatch(gnts, scale, n) for n in MICROBATCHES}
    if name == "warmup":
        return {k: replace(gnts, norm_warmup_multiplier=m) for k, m in MULTIPLIERS.items()}
    if name == "repeated":
        both = {"adamw": adamw, "gnts": gnts}
        return {label: replace(each, train_tokens=train_tokens) for label, each in both.items()}
    untuned = replace(adamw, **dict[str, Any](UNTUNED))
    return {"adamw": adamw, "adamw, untuned": untuned, "gnts": gnts}


def _with_microbatch(gnts: PretrainingConfig, scale: str, size: int) -> PretrainingConfig:
    largest = gnts.max_draws * gnts.microbatch_size
    norms: dict[str, Any] = NORMS.get(scale, {})
    return replace(gnts, microbatch_size=size, max_draws=largest // size, **norms)


def run_all(
    compared: Mapping[str, Mapping[str, PretrainingConfig]],
    build: Callable[[Any], Pretraining] = build,
) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Train every run of some comparisons: name -> label -> config, as of :func:`comparison`.

    Returns: histories (:func:`labelled`) and result rows (:func:`numbers`) of all runs, and the
        hash of the data, which they share.
    """
    histories, rows, data_hash = [], [], ""
    for name, configs in compared.items():
        for label, each in configs.items():
            experiment = build(each)
            for _ in track(experiment, has_bar=False):
                pass
            histories.append(labelled(experiment, label, name))
            rows.append(numbers(experiment, label, name))
            data_hash = experiment.data_hash
    return pd.concat(histories, ignore_index=True), pd.DataFrame(rows), data_hash


def labelled(run: Pretraining, label: str, name: str) -> pd.DataFrame:
    """Return the history of ``run`` with its label as ``method``, and the comparison's name.

    Added columns: ``comparison``; ``microbatch_size``; ``is_warmup``: within the warmup of the norm
    threshold (of the same share of microbatches where a method has none).
    """
    c, history = run.config, run.history
    last = round(c.norm_warmup * c.num_microbatches)
    known: dict[str, Any] = {"method": label, "comparison": name}
    known |= {"microbatch_size": c.microbatch_size, "is_warmup": history["microbatch"] <= last}
    return history.assign(**known)


def numbers(run: Pretraining, label: str, name: str) -> dict[str, Any]:
    """Return the result row of ``run``: its summary and what the comparisons need.

    ``parameters``; ``lr``; ``microbatch_size``; ``final_train_loss``: mean training loss over the
    last tenth of the run; ``best_val_loss``: lowest one; ``epochs``: tokens trained over tokens of
    the text; ``warmup_steps`` and ``warmup_loss``: steps during the warmup of the threshold and
    mean training loss in its last half.
    """
    history, c = labelled(run, label, name), run.config
    warm = history[history["is_warmup"]]
    late = history["tokens"] > 0.9 * history["tokens"].max()
    return {
        **run.summary(),
        "method": label,
        "comparison": name,
        "parameters": count_parameters(run.model),
        "lr": c.lr,
        "microbatch_size": c.microbatch_size,
        "final_train_loss": float(history.loc[late, "loss"].mean()),
        "best_val_loss": float(history["val_loss"].min()),
        "epochs": run.done / (c.train_tokens or len(run.data.train)),
        "warmup_steps": int(warm["stepped"].sum()),
        "warmup_loss": float(warm["loss"].iloc[len(warm) // 2 :].mean()),
    }
