"""The arms that anneal the noise of steps: what they share, where they differ, how they replay."""

import csv
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch

from gqc_lab.claims.frozen import load_frozen
from gqc_lab.loop.tune import Range
from gqc_lab.models.gpt import count_parameters
from gqc_lab.studies.pretraining import annealing, build
from gqc_lab.studies.pretraining.annealing import (
    ARMS,
    RUNGS,
    SPACES,
    TUNABLE,
    TUNED,
    WIDE,
    comparison,
    config,
)  # fmt: skip

PLACE = {"device": "cpu", "tokens": 2**12}
DIFFERING = {
    "method", "lr", "lr_curve", "accumulation", "start_norm", "end_norm", "final_accumulation",
    "growth_exponent", "norm_warmup_multiplier", "max_draws", "norm_warmup", "beta1",
}  # fmt: skip


@pytest.mark.parametrize("rung", ["smoke", "0.16M"])
def test_arms_differ_only_in_how_they_anneal(rung):
    configs = {arm: vars(config(arm, rung)) for arm in TUNABLE}
    for arm, c in configs.items():
        assert (c["method"], c["lr_curve"]) == ARMS[arm]
    alike = [c for arm, c in configs.items() if arm not in WIDE]
    for name in alike[0].keys() - DIFFERING:
        assert len({str(c[name]) for c in alike}) == 1, name
        free = () if rung == "smoke" else ("beta2_tokens", "weight_decay")
        assert name in free or all(configs[arm][name] == alike[0][name] for arm in WIDE), name


def test_the_wide_arms_were_tuned_alike_and_not_at_an_edge():
    trials = pd.read_csv(annealing.TRIALS, comment="#").query("arm in @WIDE")
    budget = 2 * (annealing.BUDGET + annealing.CLOSE_BUDGET)
    assert Counter(trials["arm"]) == dict.fromkeys(WIDE, budget)
    for arm, tried in trials.groupby("arm"):
        best = TUNED["0.16M", arm]
        for name in set(best) - {"accumulation"}:  # of which none is below one
            assert tried[name].min() < best[name] < tried[name].max(), (arm, name)


def test_the_untuned_arm_has_the_defaults_of_torch():
    c = config("adamw, untuned", "0.16M", device="cpu")
    torchs = torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).defaults
    assert (c.lr_curve, c.accumulation, c.beta2_tokens) == ("constant", 1, None)
    assert (c.lr, c.beta1, c.beta2) == (torchs["lr"], *torchs["betas"])
    assert c.weight_decay == torchs["weight_decay"]


@pytest.mark.parametrize("rung", ["0.04M", "0.16M", "0.4M", "1M"])
def test_a_rung_has_the_size_of_its_name_and_the_tokens_of_the_source(rung):
    c = config("adamw, cosine", rung, device="cpu")
    size = count_parameters(build(c).model)
    assert size == pytest.approx(float(rung.rstrip("M")) * 1e6, rel=0.04)
    assert c.tokens == pytest.approx(annealing.TOKENS_PER_PARAMETER * size, rel=1e-6)


def test_a_replay_has_the_batches_of_another_seed():
    configs = comparison(["gnts, constant", "replay, constant"], "smoke", seed=3, **PLACE)
    source = build(config("gnts, constant", "smoke", seed=4, **PLACE))
    for _ in source:
        pass
    gnts, replay = (build(c) for c in configs.values())
    for _ in replay:
        pass
    assert replay.config.seed == gnts.config.seed == 3
    assert replay.config.lr == gnts.config.lr
    draws = [e.history.loc[e.history["stepped"], "num_draws"].tolist() for e in (source, replay)]
    assert draws[0] == draws[1]
    assert max(draws[0]) > 1


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["gnts, constant", "sbc, constant"])
def test_the_present_code_repeats_the_beginning_of_a_committed_run(arm):
    """To the last bit on the machine of that run; elsewhere kernels may round otherwise."""
    results = Path(__file__).parents[4] / "paper/results"
    history = load_frozen(results)["22_noise_annealing"].history
    is_it = (history["method"] == arm) & (history["seed"] == 1000) & history["val_loss"].notna()
    first = history[is_it].sort_values("tokens").iloc[0]
    run = build(config(arm, "0.16M", seed=1000, device="cpu"))
    while run.done < first["tokens"]:
        next(run)
    assert run.history["val_loss"].iloc[-1] == pytest.approx(first["val_loss"], abs=0.01)


def test_a_shifted_threshold_is_the_same_at_every_rung():
    tuned = TUNED["0.16M", "gnts, constant"]
    for rung in ("0.04M", "0.16M", "0.4M"):
        own = config("gnts, constant", rung)
        for arm, factor in annealing.SHIFTED.items():
            c = config(arm, rung)
            assert (c.start_norm, c.end_norm) == (
                factor * tuned["start_norm"],
                factor * tuned["end_norm"],
            )
            assert (c.lr, c.lr_curve, c.tokens) == (own.lr, own.lr_curve, own.tokens)
    assert config("gnts, same", "0.16M") == config("gnts, constant", "0.16M")


def test_turns_round_each_window_up():
    history = pd.DataFrame({"stepped": [True, False, True, True], "num_draws": [1, 1, 5, 16]})
    assert [annealing.turns(history, n) for n in (1, 4, 16)] == [22, 1 + 2 + 4, 3]


def test_the_look_at_1m_is_told_as_it_was():
    root = Path(__file__).parents[4]
    trials = pd.read_csv(annealing.TRIALS, comment="#").query("rung == '1M'")
    best = trials.groupby("arm")["val_loss"].min()
    gnts, cosine, constant = best[["gnts, constant", "adamw, cosine", "adamw, constant"]]
    script = (root / "notebooks/22_noise_annealing.py").read_text(encoding="utf-8")
    told = " ".join(script.replace("\n# ", " ").split())
    assert f"{gnts:.4f} nat/token for GNTS, {cosine:.4f} for AdamW with a cosine" in told
    assert f"and {constant:.4f} for AdamW at a constant one" in told
    for arm, tried in trials.groupby("arm"):
        assert len(tried) >= 4
        assert tried["lr"].min() < TUNED["1M", arm]["lr"] < tried["lr"].max()


def test_the_wide_tuning_is_told_as_it_was():
    root = Path(__file__).parents[4]
    trials = pd.read_csv(annealing.TRIALS, comment="#").query("rung == '0.16M'")
    best = trials.groupby("arm")["val_loss"].min()
    script = (root / "notebooks/22_noise_annealing.py").read_text(encoding="utf-8")
    told = " ".join(script.replace("\n# ", " ").split())
    gnts, constant, cosine = best[["gnts, wide", "adamw, wide", "adamw, cosine, wide"]]
    assert f"rate ends at {gnts:.4f} nat/token on that seed, AdamW at a constant one at" in told
    assert f"one at {constant:.4f} and with a cosine at {cosine:.4f}; of the arms that" in told
    shared = best[["gnts, constant", "adamw, constant", "adamw, cosine"]]
    assert "end at {:.4f}, {:.4f} and {:.4f}. The".format(*shared) in told


def test_unknown_names_are_named():
    with pytest.raises(ValueError, match=r"arm='gnts, constnat'.*did you mean 'gnts, constant'"):
        config("gnts, constnat")
    with pytest.raises(ValueError, match="rung='laptop'"):
        config("gnts, constant", "laptop")


def test_what_is_tuned_is_of_an_arm_and_its_space():
    for rung, arm in TUNED:
        assert rung in RUNGS
        space = WIDE.get(arm) or SPACES[ARMS[arm][0]]
        assert set(TUNED[rung, arm]) <= {"lr", *space}


def test_tuning_measures_every_arm_alike(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(annealing.RUNGS, "smoke", {"tokens": 2**11, "max_draws": 4})
    monkeypatch.setattr(annealing, "BUDGET", 2)
    monkeypatch.setattr(annealing, "CLOSE_BUDGET", 1)
    arms = TUNABLE[:2] + TUNABLE[-1:]
    annealing.main("smoke", str(tmp_path / "trials.jsonl"), *arms)
    shown = capsys.readouterr()
    rows = list(csv.DictReader(shown.out.splitlines()))
    assert Counter(row["arm"] for row in rows if row["rung"]) == dict.fromkeys(arms, 3)
    assert all(f"# {arm}: outermost value of " in shown.err for arm in arms)
    with pytest.raises(ValueError, match="rung='huge'"):
        annealing.main("huge", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="arm='gtns'"):
        annealing.main("smoke", str(tmp_path / "none"), "gtns")
    assert isinstance(SPACES["gnts"]["start_norm"], Range)
