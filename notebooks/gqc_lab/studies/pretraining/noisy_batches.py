"""Do wrappers draw more when a microbatch is noisy?  Pretraining with some targets shuffled.

A share of the microbatches is spoiled (`PretrainingConfig.noisy_share`).  A window that draws more
microbatches holds a spoiled one more often for that reason alone, whether it reacts or not.  So
windows are classified by their **first** microbatch: every window has exactly one, and a wrapper
that looks at nothing finds it spoiled as often in long windows as in short ones.  The replay, on
other text and other noise, shows what is left of a difference without reaction.
"""

from typing import Any

import pandas as pd
from scipy import stats

from gqc_lab.studies.pretraining.settings import PretrainingConfig, config

#: label -> what a wrapper decides by
METHODS: dict[str, dict[str, Any]] = {
    "gnts": {"method": "gnts"},
    "gns": {"method": "gns"},
    "gns, reactive": {"method": "gns", "gns_reactive": True},
    "mht": {"method": "mht"},
}
#: scale -> the fields of all runs; with the tuned tolerances, which are looser, draws hardly vary
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {"tokens": 24_576, "noisy_share": 0.2},
    "laptop": {
        "tokens": 2**17,
        "noisy_share": 0.1,
        "noise_tolerance": 10.0,
        "error_tolerance": 0.2,
    },
    "paper": {"noisy_share": 0.1},
}
NEIGHBOURS = 101  # microbatches of the running median, a tenth of the shortest laptop run


def comparison(
    scale: str = "smoke", noisy_share: float = 0.1, **overrides: Any
) -> dict[str, PretrainingConfig]:
    """Return the config of each of `METHODS`."""
    common = {**overrides, "noisy_share": noisy_share}
    return {label: config(scale, **{**common, **method}) for label, method in METHODS.items()}


def windows(history: pd.DataFrame) -> pd.DataFrame:
    """Return the history of one run with the window of each microbatch.

    Added columns: ``window``: number of the window, from 0; ``window_draws``: its draws, None for
    the one that the run left open; ``is_first``: its first microbatch; ``difficulty``: the
    microbatch's loss before it was learnt from, less the median of the `NEIGHBOURS` around it
    [nats per token], so that the fall of the loss does not count.
    """
    window = history["steps"] - history["stepped"].astype(int)
    closed = history[history["stepped"]].set_index(window[history["stepped"]])["num_draws"]
    median = history["loss"].rolling(NEIGHBOURS, center=True, min_periods=1).median()
    return history.assign(
        window=window,
        window_draws=window.map(closed).astype(float),
        is_first=history["num_draws"] == 1,
        difficulty=history["loss"] - median,
    )


def reaction(history: pd.DataFrame) -> dict[str, float | int]:
    """Return how the draws of one run, as `windows` returns it, depend on its noise.

    ``draws_noisy_first``, ``draws_clean_first``: mean draws of windows by their first microbatch;
    ``extra_draws``: their difference; ``draws_with_noisy``, ``draws_without_noisy``: by whether any
    of their microbatches is noisy (which longer windows have more often); ``correlation``:
    Spearman's, of the first microbatch's difficulty with its window's draws, and
    ``clean_correlation`` over windows without a noisy one at the first place; ``windows``.  NaN
    where draws do not vary.
    """
    closed = history.dropna(subset=["window_draws"])
    first = closed[closed["is_first"]]
    clean = first[~first["is_noisy"]]
    by_first = first.groupby("is_noisy")["window_draws"].mean()
    has_noisy = closed.groupby("window")["is_noisy"].any()
    by_any = first.set_index("window")["window_draws"].groupby(has_noisy).mean()
    noisy, plain = by_first.get(True, float("nan")), by_first.get(False, float("nan"))
    return {
        "draws_noisy_first": float(noisy),
        "draws_clean_first": float(plain),
        "extra_draws": float(noisy - plain),
        "draws_with_noisy": float(by_any.get(True, float("nan"))),
        "draws_without_noisy": float(by_any.get(False, float("nan"))),
        "correlation": _spearman(first),
        "clean_correlation": _spearman(clean),
        "windows": len(first),
    }


def _spearman(first: pd.DataFrame) -> float:
    if first["window_draws"].nunique() < 2 or first["difficulty"].nunique() < 2:
        return float("nan")
    return float(stats.spearmanr(first["difficulty"], first["window_draws"]).statistic)
