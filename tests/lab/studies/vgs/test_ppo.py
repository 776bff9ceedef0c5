"""PPO with VGS: arms differ in the scaler alone, and numbers are those of the rollouts."""

import math

import pandas as pd
import pytest
import torch

from gqc_lab.studies.vgs import ppo

pytest.importorskip("stable_baselines3")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(ppo, "ROLLOUT", 64)
    monkeypatch.setitem(ppo.STEPS, "smoke", 4 * 64)
    monkeypatch.setattr(ppo, "WARMUP", 5)


def test_without_a_scaler_it_is_plain_ppo():
    """What Stable-Baselines3 itself logs at the same seed."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.logger import Logger

    logged = []

    class Kept(Logger):
        def dump(self, step=0):
            logged.append(self.name_to_value.get("train/value_loss", math.nan))
            super().dump(step)

    plain = PPO("MlpPolicy", ppo.ENVIRONMENT, n_steps=64, seed=3, device="cpu")
    plain.set_logger(Kept(None, []))
    plain.learn(4 * 64)
    history = ppo.run("no scaling", "smoke", seed=3)
    assert history["environment_steps"].tolist() == [64, 128, 192, 256]
    assert history["value_loss"].tolist() == pytest.approx(logged, rel=0, nan_ok=True)
    assert math.isnan(logged[0])  # before the first update
    assert history["factor"].isna().all()


def test_a_constant_factor_is_constant_after_the_warmup():
    history = ppo.run("constant factor", "smoke", seed=3)
    assert history["factor"].iloc[1:].tolist() == pytest.approx([1 / 6] * 3)


def test_arms_share_the_first_rollout():
    first = [ppo.run(arm, "smoke", seed=3)["episode_return"].iloc[0] for arm in ppo.ARMS]
    assert len(set(first)) == 1
    other = ppo.run("no scaling", "smoke", seed=4)["episode_return"].iloc[0]
    assert other != first[0]


def test_numbers_are_of_the_second_half_and_the_last_quarter():
    losses, returns = [math.nan, 9.0, 9.0, 9.0, 1.0, 2.0, 3.0, 6.0], [*range(8)]
    history = pd.DataFrame(
        {"method": "VGS", "seed": 3, "value_loss": losses, "episode_return": returns}
    ).assign(factor=0.5)
    found = ppo.numbers(history)
    assert found["value_loss"] == 3.0
    assert found["value_loss_sd"] == pytest.approx(torch.tensor([1.0, 2, 3, 6]).std().item())
    assert found["episode_return"] == 6.5
    assert (found["method"], found["seed"], found["mean_factor"]) == ("VGS", 3, 0.5)


def test_unknown_names_are_named():
    with pytest.raises(ValueError, match=r"arm='VSG'.*did you mean 'VGS'"):
        ppo.run("VSG", "smoke", 0)
    with pytest.raises(ValueError, match="scale='lap'"):
        ppo.run("VGS", "lap", 0)
