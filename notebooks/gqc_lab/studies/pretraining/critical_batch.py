r"""Tokens to a loss against the size of the batch, beside the noise scale at that loss.

AdamW trains at a constant learning rate, tuned for each batch, until the held-out loss has passed
some values.  With B sequences a step, McCandlish et al. 2018 (arXiv:1812.06162) expect the tokens
to a loss to be

.. math:: E = E_0\,(1 + B / B_c)

with a critical batch :math:`B_c` near the noise scale :math:`R = \mathrm{tr}\,\Sigma / |G|^2` of
one sequence, which `gqc.noise.probe` measures here at the weights that reach the loss.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from gqc.noise import probe
from gqc_lab.data.text import draw_batch
from gqc_lab.errors import check_name
from gqc_lab.loop.placement import make_generator
from gqc_lab.loop.settings import read_tuned
from gqc_lab.studies.pretraining import annealing
from gqc_lab.studies.pretraining.settings import PretrainingConfig
from gqc_lab.studies.pretraining.training import Pretraining
from gqc_lab.studies.pretraining.training import build as build

_BATCHES, _LOSSES = [1, 2, 4, 8, 16, 32, 64], [2.3, 2.15, 2.0]
#: scale -> sequences of a step, held-out losses [nat/token] that are waited for, the most tokens
#: that are spent on them, and the microbatches that the noise scale is measured with
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {"batches": [2, 4, 8], "losses": [3.0, 2.8], "tokens": 2**14, "draws": 32},
    "laptop": {"batches": _BATCHES, "losses": _LOSSES, "tokens": 1_310_720, "draws": 256},
    "paper": {"batches": [8, 64, 512], "losses": [1.3, 1.2], "tokens": 564_000_000, "draws": 256},
}
EVALUATIONS = 64  #: in all tokens
WARMUP = 0.02  #: of the learning rate, as a share of all tokens
PROBED_SIZE = 8  #: sequences of a microbatch for the noise scale
#: batch -> values; the trials that they were chosen from are in the file
TUNED = read_tuned(Path(__file__).with_suffix(".csv"), ("batch",), "tokens")


def config(batch: int, scale: str = "smoke", **overrides: Any) -> PretrainingConfig:
    """Return the config of a batch; ``overrides``, fields of `PretrainingConfig`, win."""
    check_name("scale", scale, SCALES)
    tokens = SCALES[scale]["tokens"]
    values = {"microbatch_size": batch, "accumulation": 1, "lr": 1.2e-3 * batch**0.5}
    values |= {"tokens": tokens, "evaluation_tokens": tokens // EVALUATIONS, "lr_warmup": WARMUP}
    values |= TUNED.get((str(batch),), {}) | overrides
    return annealing.config("adamw, constant", annealing.OF_SCALE[scale], **values)


def train(run: Pretraining, losses: Sequence[float], draws: int = 0) -> pd.DataFrame:
    """Train until the held-out loss has passed the lowest of ``losses``, or the tokens are spent.

    Args:
        draws: microbatches for each noise scale; 0: measure none.
    Returns: a row for each loss that was passed, highest first: ``method``, ``batch``, ``seed``,
        ``lr``, ``loss``, ``tokens`` to it (on a straight line between evaluations), ``steps``,
        ``noise_scale`` [sequences] (None while unresolved).
    """
    c, rows, further = run.config, [], make_generator(run.config.seed, "probe")
    waiting, before = sorted(losses), (0, np.inf)
    for record in run:
        if record["val_loss"] is None:
            continue
        now = record["tokens"], record["val_loss"]
        while waiting and now[1] <= waiting[-1]:
            loss = waiting.pop()
            tokens = np.interp(loss, [now[1], before[1]], [now[0], before[0]])
            noise = noise_scale(run, draws, further) if draws else None
            steps = tokens / c.microbatch_tokens
            rows.append({"loss": loss, "tokens": tokens, "steps": steps, "noise_scale": noise})
        before = now
        if not waiting:
            break
    known = {"method": f"batch {c.microbatch_size}", "batch": c.microbatch_size, "seed": c.seed}
    return pd.DataFrame([{**known, "lr": c.lr, **row} for row in rows])


def noise_scale(run: Pretraining, draws: int, generator: torch.Generator) -> float | None:
    """Return the noise scale of further text at the weights of ``run``, in sequences."""
    size = (PROBED_SIZE, run.config.context, generator)
    batches = ([t.to(run.device) for t in draw_batch(run.data.train, *size)] for _ in range(draws))
    return probe(run.model, lambda _, b: run.compute_loss(b), batches, None, draws).critical_batch


def with_critical_batch(results: pd.DataFrame) -> pd.DataFrame:
    """Add ``fewest_tokens`` and ``critical_batch``, of a fit to the rows of each loss and seed.

    :math:`E_0` and :math:`B_c` make the squares of the logarithms of E over its prediction
    smallest; NaN with fewer than three batches.
    """
    tried, fits = np.geomspace(0.1, 1e4, 5001)[:, None], []
    for _, rows in results.groupby(["seed", "loss"], sort=False):
        batches, tokens = rows["batch"].to_numpy(), rows["tokens"].to_numpy()
        logs = np.log(tokens / (1 + batches / tried))  # of E_0, by each batch
        best = int(logs.var(axis=1).argmin())
        fit = [np.exp(logs[best].mean()), tried[best, 0]] if len(rows) > 2 else [np.nan, np.nan]
        fits.append(rows.assign(fewest_tokens=fit[0], critical_batch=fit[1]))
    return pd.concat(fits, ignore_index=True)
