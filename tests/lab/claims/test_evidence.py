"""Answers say size, direction, yes and no as the verdicts have them."""

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest

from gqc_lab.claims import load_frozen, show_evidence
from gqc_lab.claims.commands import read_verdicts
from gqc_lab.claims.effects import Effect
from gqc_lab.claims.evidence import answer, evidence, read_answers
from gqc_lab.claims.render import say
from gqc_lab.claims.rules import Claim, Comparison, Part
from gqc_lab.claims.verdicts import Verdict
from gqc_lab.errors import BadInput
from gqc_lab.stats.analysis import power_law, summarize

PAPER = Path(__file__).parents[3] / "paper"
VALUE = Part(name="x", batch="b", value="v", side="<", bound=1.0, unit="nat")
DIFFERENCE = replace(VALUE, compare=Comparison(by="method", of="a", against="b"))
RATIO = replace(VALUE, unit="", compare=Comparison(by="method", of="a", against="b", ratio=True))


def effect(mean, low, high, status="holds"):
    return Effect("x", mean, low, high, n=5, p=0.01, status=status)


@pytest.mark.parametrize(
    ("part", "measured", "said"),
    [
        (VALUE, (0.25, 0.25, 0.25), "0.25 nat"),
        (VALUE, (0.25, 0.2, 0.3), "0.25 nat [0.2, 0.3]"),
        (VALUE, (0.25, 0.24999, 0.25001), "0.25 nat"),
        (DIFFERENCE, (-0.00367, -0.0119, 0.00455), "0.00367 nat lower [-0.0119, +0.00455]"),
        (DIFFERENCE, (0.5, 0.25, 0.75), "0.5 nat higher [+0.25, +0.75]"),
        (RATIO, (1.069, 0.997, 1.146), "6.9 % higher [-0.3 %, +14.6 %]"),
        (RATIO, (0.8, 0.75, 0.86), "20.0 % lower [-25.0 %, -14.0 %]"),
        (RATIO, (2.5, 2, 3), "2.5 times as large [2, 3]"),
        (RATIO, (1.0, 0.9999, 1.0001), "unchanged on average [-0.01 %, +0.01 %]"),
        (RATIO, (1.0, 0.99998, 1.00002), "unchanged"),
        (RATIO, (0.9996, 0.9994, 0.9998), "0.04 % lower [-0.06 %, -0.02 %]"),
        (RATIO, (1.05, math.nan, math.nan), "5.0 % higher"),
        (DIFFERENCE, (0.5, math.nan, math.nan), "0.5 nat higher"),
        (DIFFERENCE, (0.0, -0.5, 0.5), "unchanged on average [-0.5, +0.5]"),
        (DIFFERENCE, (0.0, 0.0, 0.0), "unchanged"),
    ],
)
def test_an_effect_is_said_with_its_direction(part, measured, said):
    assert say(part, effect(*measured)) == said


def test_more_and_less_have_words_of_their_own():
    assert say(DIFFERENCE, effect(-2, -3, -1), "more", "fewer") == "2 nat fewer [-3, -1]"


@pytest.fixture
def known():
    parts = (DIFFERENCE, replace(VALUE, unit=""), replace(VALUE, unit=""))
    claim = Claim("a-b", "A", "text", "here", "01_x", "laptop", parts=parts)
    effects = (effect(0.5, 0.25, 0.75, "fails"), effect(0.9, 0.8, 1.1), effect(-0.02, -0.04, 0.01))
    return {"a-b": Verdict(claim, "not reproduced", effects)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{a-b!yes}: {a-b}", "No, not at this scale: not reproduced"),
        ("{a-b.1!yes}, {a-b.2!yes}", "No, Yes"),
        ("{a-b.1!more/fewer}", "0.5 nat more [+0.25, +0.75]"),
        ("{a-b.1!percent}", "50 points higher [+25, +75]"),
        ("{a-b.2!percent}", "90\u00a0% [80, 100]"),
        ("{a-b.2!10^}", "7.94 [6.31, 12.6]"),
        ("{a-b.2!2^}", "1.87 times [1.74, 2.14]"),
        ("{a-b.1!2^}", "41.4\u00a0% higher [+18.9\u00a0%, +68.2\u00a0%]"),
        ("{a-b.3!points}", "-2 points [-4, 1]"),
        ("{a-b.3!percent}", "-2\u00a0% [-4, 1]"),  # no share: nothing is cut off
        ("{a-b.2!points}", "90 points [80, 110]"),
    ],
)
def test_slots_are_filled(text, said, known):
    assert answer(text, known).split("\n")[0] == said


@pytest.mark.parametrize(
    ("text", "why"),
    [("{a-c}", "no such claim"), ("{a-b.4}", "3 parts"), ("{a-b.1!a/b/c}", "at most two words")],
)
def test_a_slot_that_means_nothing_is_named(text, why, known):
    with pytest.raises(BadInput, match=why):
        answer(text, known)


@pytest.mark.parametrize("name", read_answers(PAPER))
def test_the_words_of_an_answer_are_what_the_verdicts_say(name):
    known = {v.claim.id: v for v in read_verdicts(PAPER)[1]}
    said = read_answers(PAPER)[name]
    assert "{" not in answer(said["answer"], known)


def test_words_that_no_longer_hold_are_refused(tmp_path):
    for name in ("claims.yaml", "verdicts.json"):
        (tmp_path / name).write_text((PAPER / name).read_text())
    text = "01_x: {answer: all of them, says: {gqc-angle: reproduced}}"
    (tmp_path / "answers.yaml").write_text(text)
    with pytest.raises(BadInput, match="01_x: says gqc-angle reproduced, but it is refuted"):
        evidence("01_x", tmp_path)
    with pytest.raises(ValueError, match="no such notebook"):
        evidence("02_x", tmp_path)


def test_the_answer_comes_first_and_its_figure_is_of_committed_results():
    words, figure, verdicts = evidence("18_angle_paradox", PAPER)
    assert words.data.startswith("**No.** The angle")
    assert isinstance(figure, go.Figure)
    assert "gqc-angle" in verdicts.data


def test_a_run_of_a_batch_shows_its_own_numbers_alone(monkeypatch, capsys):
    monkeypatch.setenv("GQC_RUN_DIR", "somewhere")
    show_evidence("18_angle_paradox", PAPER)
    assert capsys.readouterr().out == ""


def test_the_answer_on_noise_scales_is_that_of_its_results():
    """Notebook 03 decides no claim, so its answer has no slots."""
    measured = load_frozen(PAPER / "results")["03_noise_scale"].results
    ours = measured[measured["measurement"] == "two-batch"]
    holds = (ours["low"] <= ours["truth"]) & (ours["truth"] <= ours["high"])
    assert holds.mean() >= 0.9
    assert ours["truth"].max() / ours["truth"].min() >= 1000
    published = measured[measured["measurement"] == "published"].groupby("dimension")["measured"]
    assert (published.max() / published.min()).max() < 2
    assert published.mean().max() > 50 * published.mean().min()
    assert published.max().max() < 0.01
    assert published.mean()[100] / published.mean()[10_000] == pytest.approx(100, rel=0.05)
    said = read_answers(PAPER)["03_noise_scale"]["answer"]
    assert f"{holds.sum()} of {len(ours)} streams" in said.replace("\n", " ")


def test_the_angle_of_pure_noise_is_what_notebook_18_says():
    """A gradient of unit noise, and Adam's momentum after it, whose other part is independent."""
    text = (PAPER.parent / "notebooks/18_angle_paradox.py").read_text("utf-8")
    angle = math.degrees(math.acos(0.1 / math.sqrt(0.1**2 / (1 - 0.9**2))))
    assert f"pure noise stands at {angle:.0f} degrees" in text.replace("\n# ", " ")
    assert f"takes noise from 90 to {angle:.0f} degrees" in text.replace("\n# ", " ")


def test_what_answers_say_of_figures_holds():
    """Words that no part of a claim decides: they are of the frames that the figures show."""
    frames = {name: frozen.results for name, frozen in load_frozen(PAPER / "results").items()}
    answers = read_answers(PAPER)
    batches = frames["02_all_wrappers"].query("method == 'gnts'")["mean_logical_batch_examples"]
    assert batches.max() < 1.1 * 4  # sequences of a microbatch: it steps on nearly every one
    losses = frames["17_anomaly_smoothing"].pivot(index="seed", columns="method", values="val_loss")
    lower = {m: (losses[f"{m}, replay"] - losses[m]).mean() for m in ("gns", "gnts")}
    assert lower["gns"] == pytest.approx(lower["gnts"], rel=0.2)  # due to the order of the text

    cost = frames["05_vgs_estimators"].query("kind == 'cost'")
    cost = cost.groupby("estimator")[["bytes_per_parameter", "error"]].max()
    ours = cost.loc[["elementwise", "sketch, k = 64"]]
    assert list(ours["bytes_per_parameter"].round(2)) == [4.0, 0.02]
    assert (ours["error"] < 0.01).all()

    first = load_frozen(PAPER / "results")["09_upgd_normalisation"].history.query("step == 1")
    ends = first.query("seed >= 1000").groupby("normalization")["at_ends_used"].min()
    assert (ends[["minmax_published", "max_published"]] > 0.5).all()

    change = summarize(frames["10_upgd_continual"], ["stream", "method"], "accuracy_change")
    assert (change.query("method == 'adamw'")["high"] < 0).all()
    assert (change.query("method == 'sgd'")["high"] > 0).all()

    accuracy = summarize(frames["11_upgd_vgs"], ["stream", "method"], "online_accuracy")
    accuracy = accuracy.set_index(["stream", "method"])
    both, plain = (("label_permuted", m) for m in ("upgd, adaptive noise, VGS", "upgd"))
    assert accuracy.loc[both, "high"] < accuracy.loc[plain, "low"]
    points = 100 * (accuracy.loc[plain, "mean"] - accuracy.loc[both, "mean"])
    assert f"about {points:.0f} points lower" in answers["11_upgd_vgs"]["answer"]

    explosion = frames["12_upt_explosion"]
    assert (explosion.query("variant == 'no norms, lr 0.1'")["num_not_finite"] > 0).all()
    drawn = explosion.query("variant in ['as published', 'no norms', 'lr 0.1']")
    large = drawn["max_grad_norm"] > 100
    assert (large == ((drawn["variant"] == "lr 0.1") & (drawn["inverse_weight"] == 50))).all()
    published = explosion.query("variant == 'as published' and inverse_weight <= 0.5")
    norms = published.groupby("seed")["max_grad_norm"].agg(["min", "max"])
    assert sum(norms["max"] < 1.05 * norms["min"]) == 4  # of five: "it is the same"

    runs = frames["19_scaling_fit"].query("kind == 'run'")
    losses = runs.pivot_table(index="tokens", columns="method", values="val_loss")
    higher = losses["gnts"] - losses["adamw"]
    assert (higher.loc[:65_536] > 0.01).all()
    assert (abs(higher.loc[131_072:]) < 0.005).all()  # "nearly the same"
    fits = {
        key: power_law(r["tokens"], r["val_loss"]) for key, r in runs.groupby(["method", "seed"])
    }
    exponents = pd.Series({key: fit.exponent for key, fit in fits.items()})
    assert exponents.max() < 0.35
    mean = exponents.groupby(level=0).mean()
    said = answers["19_scaling_fit"]["answer"]
    assert f"{mean['adamw']:.3f} for AdamW" in said
    assert f"{mean['gnts']:.3f} for GNTS" in said

    capped = frames["14_curricula"].query("name == 'cap of the share'")["largest_share"]
    assert capped.to_numpy() == pytest.approx(0.05)
