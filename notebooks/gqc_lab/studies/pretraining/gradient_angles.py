r"""Angles and norms of gradients while AdamW pretrains, predicted from noise and measured.

At every step: the angle between the gradient and Adam's momentum.  At chosen moments, with the
weights as they are: microbatch gradients :math:`g_1, \dots, g_N` of further text, the norm of their
mean :math:`G_n` for n = 1, 2, 4, ..., its angle to the momentum, and, from other microbatches
still, :math:`\|G\|^2` and :math:`\mathrm{tr}\,\Sigma`, from which independent noise predicts

.. math:: \frac{\|G_n\|}{\|g\|} = \sqrt{\frac{\|G\|^2+\mathrm{tr}\,\Sigma/n}
    {\|G\|^2+\mathrm{tr}\,\Sigma}} \ge \frac{1}{\sqrt n}.
"""

import math
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.optim import Optimizer

from gqc.checks import expect
from gqc.diagnostics import cosine, momentum_angle
from gqc.gradients import total_norm
from gqc.noise import two_batch
from gqc_lab.data.text import draw_batch
from gqc_lab.studies.pretraining.settings import PretrainingConfig
from gqc_lab.studies.pretraining.training import Pretraining

#: scale -> training tokens, and the most microbatches that are averaged at a moment
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {"tokens": 2**14, "num_draws": 32},
    "laptop": {"tokens": 2**18, "num_draws": 512},
    "paper": {"num_draws": 512},
}
NOISE_SHARE = 4  #: one microbatch for :math:`|G|^2` and its noise to this many for the norms


class GradientAngles(Pretraining):
    """`Pretraining` whose records also hold two angles [degrees], None without a step.

    ``angle``: between the gradient of the step and the momentum that the step uses, which holds
    it (0 at the first step, whose momentum is a multiple of it); ``angle_before``: and the
    momentum before it, which does not.
    """

    def __init__(self, config: PretrainingConfig) -> None:
        super().__init__(config)
        self._angles: dict[str, float | None] = {}
        self.wrapper.optimizer.register_step_pre_hook(self._note)

    def _note(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        angle = momentum_angle(optimizer) if optimizer.state else 0.0
        before = momentum_angle(optimizer, include_gradient=False)
        self._angles = {"angle": angle, "angle_before": before}

    def measure(self, batch: tuple[Tensor, Tensor], stepped: bool) -> dict[str, Any]:
        angles = self._angles if stepped else {"angle": None, "angle_before": None}
        return {**super().measure(batch, stepped), **angles}


build = GradientAngles


def probe(run: Pretraining, num_draws: int, generator: torch.Generator) -> pd.DataFrame:
    r"""Return norms and angles of means of further microbatch gradients; ``run`` is unchanged.

    Args:
        run: between two microbatches.
        num_draws: N, the most that are averaged; a quarter as many (two at least) are drawn before
            them for the noise.
        generator: of the text.
    Returns: a row for each n = 1, 2, 4, ... up to N: ``microbatch`` and ``tokens`` of the run;
        ``num_draws``: n; ``norm``: of their mean; ``norm_ratio``: over the root mean square of
        the single ones' norms; ``sum_ratio``: the same of their sum; ``predicted_ratio``,
        ``angle_to_momentum`` [degrees] (of the mean; None before the first step), ``signal_sq``,
        ``noise_trace``, ``noise_scale`` (None where the signal is not resolved),
        ``predicted_angle`` [degrees] of ``angle`` in `GradientAngles`.
    """
    signal, trace = _noise(run, max(2, num_draws // NOISE_SHARE), generator)
    scale = trace / signal if signal > 0 else None
    beta = float(run.wrapper.param_groups[0]["betas"][0])
    params = list(run.model.parameters())
    momentum = [run.wrapper.state.get(p, {}).get("exp_avg") for p in params]
    sums, squares, rows = [torch.zeros_like(p) for p in params], 0.0, []
    for n in range(1, num_draws + 1):
        squares += _add_gradient(run, generator, sums)
        if n & (n - 1) == 0:
            norm = total_norm(sums).item() / n
            row = {"num_draws": n, "norm": norm, "angle_to_momentum": _angle(sums, momentum)}
            rows.append({**row, "predicted": math.sqrt(max(signal, 0.0) + trace / n)})
    frame = pd.DataFrame(rows)
    ratio = frame["norm"] / math.sqrt(squares / num_draws)
    predicted = frame.pop("predicted")
    return frame.assign(
        microbatch=run.microbatch,
        tokens=run.done,
        norm_ratio=ratio,
        sum_ratio=frame["num_draws"] * ratio,
        predicted_ratio=predicted / predicted.iloc[0],
        signal_sq=signal,
        noise_trace=trace,
        noise_scale=scale,
        predicted_angle=expected_momentum_angle(math.inf if scale is None else scale, beta),
    )


def numbers(run: GradientAngles, probed: pd.DataFrame) -> dict[str, Any]:
    """Return the result row: the run's summary, its angles [degrees], the largest cut of a norm.

    ``median_angle``, ``median_angle_before``: over all steps; ``median_angle_many``: of the angle
    before, over steps of at least 8 microbatches; ``first_angle``: at step 1; ``share_below_1``: of
    the steps with ``angle`` below 1 degree; of ``probed``, rows of `probe`, ``num_draws``: the most
    that were averaged; ``largest_cut``: greatest norm of one over that of their mean.
    """
    steps = run.history.dropna(subset=["angle"])
    most = probed[probed["num_draws"] == probed["num_draws"].max()]
    return {
        **run.summary(),
        "median_angle": float(steps["angle"].median()),
        "median_angle_before": float(steps["angle_before"].median()),
        "median_angle_many": steps.loc[steps["num_draws"] >= 8, "angle_before"].median(),
        "first_angle": float(steps["angle"].iloc[0]),
        "share_below_1": float((steps["angle"] < 1).mean()),
        "num_draws": int(most["num_draws"].iloc[0]),
        "largest_cut": float((1 / most["norm_ratio"]).max()),
    }


def _noise(run: Pretraining, n: int, generator: torch.Generator) -> tuple[float, float]:
    r"""Return :math:`\|G\|^2` and :math:`\mathrm{tr}\,\Sigma` of n microbatches of further text."""
    sums = [torch.zeros_like(p) for p in run.model.parameters()]
    squares = sum(_add_gradient(run, generator, sums) for _ in range(n))
    return two_batch(squares / n, (total_norm(sums).item() / n) ** 2, n)


def _add_gradient(run: Pretraining, generator: torch.Generator, sums: list[Tensor]) -> float:
    """Add a microbatch's gradient to ``sums``, return its squared norm, leave ``.grad``."""
    c = run.config
    batch = draw_batch(run.data.train, c.microbatch_size, c.context, generator)
    inputs, targets = (t.to(run.device) for t in batch)
    grads = torch.autograd.grad(run.compute_loss((inputs, targets)), list(run.model.parameters()))
    torch._foreach_add_(sums, grads)
    return total_norm(grads).item() ** 2


def _angle(a: list[Tensor], b: list[Tensor | None]) -> float | None:
    known = [t for t in b if t is not None]
    similarity = cosine(a, known) if len(known) == len(a) else None
    return None if similarity is None else math.degrees(math.acos(similarity))


def expected_momentum_angle(
    noise_scale: float, beta: float, *, include_gradient: bool = True
) -> float:
    r"""The angle that independent noise around a constant gradient gives, in degrees.

    With :math:`\kappa=(1-\beta)/(1+\beta)`, the share of the noise that a long average keeps,

    .. math:: \cos\alpha = \frac{1+(1-\beta)R}{\sqrt{(1+R)(1+\kappa R)}}, \qquad
        \cos\alpha_{\text{without } g} = \frac{1}{\sqrt{(1+R)(1+\kappa R)}}

    to leading order in many dimensions.  Pure noise: :math:`\alpha=\arcsin\beta`, 64.2 degrees at
    0.9 (and 90 without g): an angle near it says that the momentum is mostly noise.

    Args:
        noise_scale: R >= 0; ``math.inf`` for noise alone.
        beta: :math:`\beta_1` in [0, 1).
        include_gradient: as in :func:`gqc.diagnostics.momentum_angle`.
    """
    expect(noise_scale >= 0, "noise_scale", noise_scale, ">= 0")
    expect(0 <= beta < 1, "beta", beta, "in [0, 1)")
    kappa = (1 - beta) / (1 + beta)
    share = (1 - beta) if include_gradient else 0.0
    if math.isinf(noise_scale):
        similarity = share / math.sqrt(kappa)
    else:
        spread = (1 + noise_scale) * (1 + kappa * noise_scale)
        similarity = (1 + share * noise_scale) / math.sqrt(spread)
    return math.degrees(math.acos(min(similarity, 1.0)))
