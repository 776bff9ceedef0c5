r"""PPO with the variance gradient scaler before its clipping, as in the source, and without.

The PPO of Stable-Baselines3, at its defaults except for shorter rollouts, learns to balance a pole
(``CartPole-v1``).  Arms share environment, initial weights and learning rate for each seed:

- ``"no scaling"``;
- ``"VGS 3.2"``: the last published estimator; ``"VGS"``: the right one; both with the published
  alpha, beta and warmup;
- ``"constant factor"``: each gradient times 1/6 after the same warmup, which is what VGS makes of
  a variance at its cap.

PPO's optimizer is Adam, to which a constant factor shows only through its eps and the clipping.

Source of PPO: Schulman et al. 2017, arXiv:1707.06347.
"""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from gqc_lab.errors import check_name

ENVIRONMENT = "CartPole-v1"
ROLLOUT = 512  #: steps of the environment between updates
#: scale -> steps of the environment
STEPS = {"smoke": 2 * ROLLOUT, "laptop": 48 * ROLLOUT, "paper": 2000 * ROLLOUT}
WARMUP = 100  #: updates by the optimizer with factor 1
#: arm -> keywords of the scaler; None: no scaler
ARMS: dict[str, dict[str, Any] | None] = {
    "no scaling": None,
    "VGS 3.2": {"alpha": 0.1, "estimator": "mean_square"},
    "VGS": {"alpha": 0.1},
    "constant factor": {"alpha": 1e9, "min_scaling_factor": 1 / 6},
}


def run(arm: str, scale: str, seed: int, device: str = "cpu") -> pd.DataFrame:
    """Train an arm once; return a row for each rollout.

    Stable-Baselines3 seeds the global generators of Python, NumPy and torch.

    Returns: ``method``, ``seed``, ``environment_steps``, ``value_loss`` (mean over the update),
        ``episode_return`` (mean of the last 100 episodes; NaN before the first has ended) and
        ``factor`` (NaN without a scaler).
    Raises: ValueError: unknown arm or scale.  ImportError: Stable-Baselines3 is missing.
    """
    check_name("arm", arm, ARMS)
    check_name("scale", scale, STEPS)
    try:
        from stable_baselines3 import PPO
        from stable_baselines3.common.logger import Logger
    except ImportError as error:
        raise ImportError("PPO needs the package stable-baselines3: pip install it") from error
    from gqc.integrations.sb3 import VGSCallback

    options, rows = ARMS[arm], []
    callback = None if options is None else VGSCallback(warmup_steps=WARMUP, **options)

    class Rows(Logger):
        def dump(self, step: int = 0) -> None:
            found = self.name_to_value
            rows.append(
                {
                    "method": arm,
                    "seed": seed,
                    "environment_steps": step,
                    "value_loss": found.get("train/value_loss", math.nan),
                    "episode_return": found.get("rollout/ep_rew_mean", math.nan),
                    "factor": found.get("vgs/scaling_factor", math.nan),
                }
            )
            super().dump(step)

    model = PPO("MlpPolicy", ENVIRONMENT, n_steps=ROLLOUT, seed=seed, device=device)
    model.set_logger(Rows(None, []))
    model.learn(STEPS[scale], callback=callback)
    return pd.DataFrame(rows)


def numbers(history: pd.DataFrame) -> dict[str, Any]:
    """Return the result row of one run.

    ``value_loss_sd`` and ``value_loss``: standard deviation and mean over the second half of the
    rollouts; ``episode_return``: mean over the last quarter; ``mean_factor``.
    """
    half, last = (history.iloc[-(len(history) // n) :] for n in (2, 4))
    return {
        **history[["method", "seed"]].iloc[0],
        "value_loss_sd": float(half["value_loss"].std()),
        "value_loss": float(half["value_loss"].mean()),
        "episode_return": float(last["episode_return"].mean()),
        "mean_factor": float(half["factor"].mean()),
    }


def run_all(
    arms: Sequence[str], scale: str, seed: int, device: str = "cpu"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train each arm; return the histories and the result rows."""
    histories = [run(arm, scale, seed, device) for arm in arms]
    return pd.concat(histories, ignore_index=True), pd.DataFrame(map(numbers, histories))
