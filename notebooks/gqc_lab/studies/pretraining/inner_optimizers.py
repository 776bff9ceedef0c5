r"""Does the effect of GNTS depend on AdamW?  Pretraining with another optimizer inside the wrapper.

Inner optimizers:

- ``"adamw"``: that of `gqc_lab.studies.pretraining.training`;
- ``"sgd"``: stochastic gradient descent with momentum 0.9, without weight decay, which torch
  couples to a learning rate that is some hundred times AdamW's here;
- ``"muon"``: Muon for the matrices of the blocks, which makes the singular values of their momentum
  about equal (approximate second order), and AdamW for embeddings and gains.  With
  ``"match_rms_adamw"`` one learning rate fits both;
- ``"soap"``: Adam in the eigenbases of Shampoo's preconditioners, which are renewed every ten
  steps; of the package pytorch-optimizer.  Gains have no such basis and get Adam.

Each is a comparison of two runs at equal tokens, ``"control"`` (a constant batch) and ``"gnts"``,
tuned alike.  The comparison ``"tradeoff"`` is AdamW with a step on every n microbatches, n = 1, 2,
4, 8, where the naive theory says that all are worth the same: the learning rate is
:math:`\eta\sqrt n`, and :math:`\beta^n` keeps the half-life of both averages the same in tokens.
Weight decay stays as it is.

Sources: Muon: Jordan et al. 2024, kellerjordan.github.io/posts/muon; its learning rate: Liu et al.
2025, arXiv:2502.16982.  SOAP: Vyas et al. 2024, arXiv:2409.11321.  Square root and betas: Malladi
et al. 2022, arXiv:2205.10287, where :math:`1 - \beta` is multiplied by n; half-life: Marek et al.
2025, arXiv:2507.07101.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.optim import SGD, AdamW, Optimizer

from gqc import JoinedOptimizer
from gqc_lab.errors import check_name
from gqc_lab.loop.settings import read_tuned, setting
from gqc_lab.models.gpt import GPT, param_groups
from gqc_lab.studies.pretraining.settings import PretrainingConfig
from gqc_lab.studies.pretraining.settings import config as pretraining_config
from gqc_lab.studies.pretraining.training import Pretraining, wrap

INNER = ("adamw", "sgd", "muon", "soap")
COMPARISONS = (*INNER, "tradeoff")
METHODS = {"control": "adamw", "gnts": "gnts"}  # label -> method of the wrapper
DRAWS = (1, 2, 4, 8)
MOMENTUM = {"sgd": 0.9, "muon": 0.95}

#: (scale, inner, method) -> values; the trials that they were chosen from are in the file
TUNED = read_tuned(
    Path(__file__).with_name("tuned_inner.csv"), ("scale", "inner", "method"), "val_loss"
)
#: scale -> the fields of all runs, at laptop scale the budget that they were tuned for; 64 draws
#: would not fit into the 16 microbatches of smoke
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {"tokens": 2**13, "max_draws": 4},
    "laptop": {"tokens": 2**19},
    "paper": {},
}


@dataclass(frozen=True, kw_only=True)
class InnerConfig(PretrainingConfig):
    """`PretrainingConfig` and the optimizer inside the wrapper; use `config`."""

    inner: str = setting("adamw", "optimizer inside the wrapper", choices=INNER)

    def check_together(self) -> None:
        super().check_together()
        if self.vgs_alpha is not None:
            raise ValueError(f"vgs_alpha={self.vgs_alpha!r}: expected None with an inner optimizer")

    @property
    def name(self) -> str:
        """Inner optimizer, and the method unless it is the constant batch."""
        return self.inner if self.method == "adamw" else f"{self.inner}, {self.method}"


def config(
    scale: str = "smoke", inner: str = "adamw", method: str = "gnts", **overrides: Any
) -> InnerConfig:
    """Return the config of a scale, with the values tuned for ``method`` around ``inner``.

    ``overrides``, fields of `PretrainingConfig`, win.
    """
    tuned = TUNED.get((scale, inner, method), {})
    values = pretraining_config(scale, **{**tuned, **overrides, "method": method})
    return InnerConfig(**vars(values), inner=inner)


def comparison(name: str, scale: str = "smoke", **overrides: Any) -> dict[str, InnerConfig]:
    """Return the configs of a comparison, of `COMPARISONS`, by label; see the module."""
    check_name("comparison", name, COMPARISONS)
    if name != "tradeoff":
        return {label: config(scale, name, m, **overrides) for label, m in METHODS.items()}
    every = config(scale, "adamw", "adamw", **{**overrides, "accumulation": 1})
    return {f"n = {n}": _with_draws(every, n) for n in DRAWS}


def _with_draws(c: InnerConfig, n: int) -> InnerConfig:
    lr, beta1, beta2 = c.lr * math.sqrt(n), c.beta1**n, c.beta2**n
    return replace(c, accumulation=n, lr=lr, beta1=beta1, beta2=beta2)


class InnerOptimizers(Pretraining):
    """`Pretraining` whose wrapper holds the optimizer that ``config.inner`` names."""

    config: InnerConfig

    def __init__(self, config: InnerConfig) -> None:
        super().__init__(config)
        if config.inner != "adamw":
            optimizer = _make_inner(self.model, config)
            self.wrapper = self.parts["optimizer"] = wrap(optimizer, config)


build = InnerOptimizers


def _make_inner(model: GPT, c: InnerConfig) -> Optimizer:
    if c.inner == "sgd":
        return SGD(model.parameters(), lr=c.lr, momentum=MOMENTUM["sgd"])
    if c.inner == "soap":
        from pytorch_optimizer import SOAP

        return SOAP(param_groups(model, c.weight_decay), lr=c.lr, betas=(c.beta1, c.beta2))
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"inner='muon': torch {torch.__version__} has no Muon; expected 2.9")
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    embeddings = [model.tokens.weight, model.positions.weight]
    gains = [p for p in model.parameters() if p.ndim == 1]
    common: dict[str, Any] = {"lr": c.lr, "weight_decay": c.weight_decay}
    muon = torch.optim.Muon(
        matrices, **common, momentum=MOMENTUM["muon"], adjust_lr_fn="match_rms_adamw"
    )
    groups: list[dict[str, Any]] = [{"params": embeddings}, {"params": gains, "weight_decay": 0.0}]
    adamw = AdamW(groups, **common, betas=(c.beta1, c.beta2), fused=True)
    return JoinedOptimizer([muon, adamw])
