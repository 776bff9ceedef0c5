r"""Prediction errors of an operator, how steadily it learned, and the weights of its losses.

Errors are pooled: :math:`\mathrm{NRMSE} = \sqrt{\sum (\hat u - u)^2 / \sum u^2}` over all fields.
The conservation gap is the mean of :math:`|\int \hat u\,dx - \int u_0\,dx|` over the states of a
rollout.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from gqc_lab.stats.analysis import check_columns
from gqc_lab.studies.operator_learning.losses import (
    LOSSES,
    inverse_decoding_loss,
    inverse_encoding_loss,
)

EVALUATED = (
    *("nrmse", "rollout_nrmse", "conservation_gap"),
    *("reconstruction_nrmse", "val_forward", "val_inv_enc", "val_inv_dec"),
)


def nrmse(predicted: Tensor, truth: Tensor) -> float:
    """Return the NRMSE pooled over all elements."""
    return ((predicted - truth).square().sum() / truth.square().sum()).sqrt().item()


@torch.inference_mode()
def measure_operator(
    model: Any, fields: Tensor, positions: Tensor, step: int, rollout_steps: int
) -> dict[str, float]:
    """Return the numbers named `EVALUATED` of trajectories (num, frames, points).

    One-step errors start at every ``step``-th frame, rollouts at the first.
    """
    frames = fields[:, ::step]
    before, after = frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)
    latents, next_latents = model.encoder(before, positions), model.encoder(after, positions)
    stepped = model.approximator(latents)
    predicted = model.decoder(stepped, positions)
    rolled = model(fields[:, 0], positions, rollout_steps)
    truth = frames[:, 1 : rollout_steps + 1]
    gap = (rolled.mean(-1) - fields[:, :1].mean(-1)).abs().mean()
    pair = (model.encoder, model.decoder)
    return {
        "nrmse": nrmse(predicted, after),
        "rollout_nrmse": nrmse(rolled, truth),
        "conservation_gap": gap.item(),
        "reconstruction_nrmse": nrmse(model.decoder(latents, positions), before),
        "val_forward": F.mse_loss(stepped, next_latents).item(),
        "val_inv_enc": inverse_encoding_loss(*pair, before, positions).item(),
        "val_inv_dec": inverse_decoding_loss(*pair, latents, positions).item(),
    }


def persistence(fields: Tensor, step: int) -> float:
    """Return the NRMSE of predicting no motion over one step."""
    frames = fields[:, ::step]
    return nrmse(frames[:, :-1], frames[:, 1:])


def by_epoch(history: pd.DataFrame) -> pd.DataFrame:
    """Return a row per epoch of each run: mean losses, largest norms and shares, evaluations.

    Args:
        history: records of one or more runs, identified by those of ``run``, ``variant``,
            ``method``, ``inverse_weight`` and ``seed`` that are there.
    Returns: ``loss`` and ``loss/NAME`` (means; NaN where a loss was never computed), ``weighted``
        (mean of the inverse losses over that of the forward loss, with their weights),
        ``unweighted`` (the same of held-out losses, without them), ``grad_norm`` and
        ``grad_norm/PART`` (maxima), ``share/NAME`` and ``weight/NAME`` (maxima), ``inverse_share``
        (maximum over batches of the inverse losses' share together), the evaluations,
        ``num_not_finite`` (batches whose loss or gradient is NaN or infinite).
    """
    keys = [k for k in ("run", "variant", "method", "inverse_weight", "seed") if k in history]
    check_columns("by_epoch", history, ["epoch", "loss", "grad_norm", *EVALUATED])
    norms = [str(c) for c in history if str(c).split("/")[0] == "grad_norm"]
    rows = history.assign(epoch=np.floor(history["epoch"] + 1e-9).astype(int))
    is_finite = np.isfinite(rows[["loss", "grad_norm"]].to_numpy(dtype=float)).all(axis=1)
    rows["num_not_finite"] = ~is_finite
    rows["inverse_share"] = rows[["share/inv_enc", "share/inv_dec"]].astype(float).sum(axis=1)
    for name in LOSSES:
        rows[f"part/{name}"] = rows[f"loss/{name}"].fillna(0.0) * rows[f"weight/{name}"]
    means = ["loss", *(f"{kind}/{n}" for n in LOSSES for kind in ("loss", "part"))]
    peaks = [f"{kind}/{n}" for n in LOSSES for kind in ("share", "weight")]
    peaks += [*norms, "inverse_share"]
    how = dict.fromkeys(means, "mean") | dict.fromkeys(peaks, "max")
    how |= dict.fromkeys(EVALUATED, "last") | {"num_not_finite": "sum"}
    columns = [*keys, "epoch", *how]
    numbers = rows[columns].astype(dict.fromkeys(how, float))
    frame = numbers.groupby([*keys, "epoch"], sort=False).agg(how).reset_index()
    inverse = frame["part/inv_enc"] + frame["part/inv_dec"]
    frame["weighted"] = inverse / frame["part/forward"].replace(0.0, np.nan)
    frame["unweighted"] = (frame["val_inv_enc"] + frame["val_inv_dec"]) / frame["val_forward"]
    return frame.drop(columns=[f"part/{n}" for n in LOSSES])


def summarize_run(history: pd.DataFrame) -> dict[str, float | int | None]:
    """Return one run's numbers: final evaluations and the course of its operator phase.

    Returns: the last of `EVALUATED`; ``operator_loss`` (mean forward loss of the last epoch),
        ``max_grad_norm`` and its parts', ``num_not_finite``, ``epochs``, ``epochs_not_falling``
        (after the first, those whose mean loss is not below the one before),
        ``forward_not_falling`` (of the forward loss), ``val_forward_not_falling`` (of the held-out
        one, of averaged weights), ``inverse_to_forward_weighted`` and ``_unweighted`` (the last
        epoch's).
    """
    frame = by_epoch(history)
    numbers: dict[str, Any] = {n: _last(frame[n]) for n in EVALUATED}
    frame = frame[frame["epoch"] >= 0]
    if not len(frame):
        return numbers
    parts = [str(c) for c in frame if str(c).startswith("grad_norm/")]
    numbers |= {
        "operator_loss": frame["loss/forward"].iloc[-1],
        "max_grad_norm": frame["grad_norm"].max(),
        **{f"max_{part.replace('/', '_')}": frame[part].max() for part in parts},
        "num_not_finite": int(frame["num_not_finite"].sum()),
        "epochs": len(frame),
        "epochs_not_falling": _not_falling(frame["loss"]),
        "forward_not_falling": _not_falling(frame["loss/forward"]),
        "val_forward_not_falling": _not_falling(frame["val_forward"].dropna()),
        "inverse_to_forward_weighted": frame["weighted"].iloc[-1],
        "inverse_to_forward_unweighted": _last(frame["unweighted"]),
    }
    return {n: None if v is None or not math.isfinite(v) else v for n, v in numbers.items()}


def _not_falling(means: pd.Series) -> int:
    return int((~(means.diff().iloc[1:] < 0)).sum())


def _last(values: pd.Series) -> float | None:
    values = values.dropna()
    return float(values.iloc[-1]) if len(values) else None
