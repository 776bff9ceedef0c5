"""Interactive figures from tidy histories: data in, a plotly figure out.

Nothing here trains, shows or, except for :func:`write_html`, writes.  The same data gives the same
JSON, so that a saved notebook changes only when its numbers do: values are rounded to five digits
and long histories thinned for display.  Counts and averages are taken before thinning.  A function
begins with the columns that it needs; ValueError names one that is missing.

The figures of any training are here, those of a family of experiments in a module of its own::

    figures.loss_against(history)
    figures.noise.noise_scale_against(history)
"""

from gqc_lab.figures import claims, noise, operator, scaler, upgd, vgs, vgs_training
from gqc_lab.figures import without_training as without_training
from gqc_lab.figures.style import DASHES, HOUSE, LABELS, MAX_POINTS, OKABE_ITO, thin, write_html
from gqc_lab.figures.training import batch_loss, draws_per_step, loss_against
from gqc_lab.figures.training import norm_against_threshold as norm_against_threshold

__all__ = [
    "DASHES", "HOUSE", "LABELS", "MAX_POINTS", "OKABE_ITO", "batch_loss", "claims",
    "draws_per_step", "loss_against", "noise", "norm_against_threshold", "operator", "scaler",
    "thin", "upgd", "vgs", "vgs_training", "without_training", "write_html",
]  # fmt: skip
