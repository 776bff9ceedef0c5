"""Fine-tuning: from the same pretrained weights, with settings of pretraining and with its own."""

import pytest
import torch
from same_runs import run, weights

from gqc_lab.studies.pretraining import annealing, build, fine_tuning
from gqc_lab.studies.pretraining.fine_tuning import ARMS, RETUNED, TUNED, config

PLACE = {"device": "cpu", "dtype": "float32"}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Pretrain for 16 microbatches, and forget the weights that other tests were given."""
    monkeypatch.setitem(annealing.RUNGS, "smoke", {"tokens": 2**11, "max_draws": 4})
    fine_tuning.pretrained.cache_clear()
    yield
    fine_tuning.pretrained.cache_clear()


def test_it_starts_from_what_pretraining_left():
    first = annealing.config("adamw, cosine", "smoke", seed=3, tokenizer="byte", **PLACE)
    expected = weights(run(build(first)))
    untrained = weights(build(first))
    for arm in ARMS:
        fine = fine_tuning.build(config(arm, seed=3, **PLACE))
        assert torch.equal(weights(fine), expected)
    assert not torch.equal(expected, untrained)
    other = fine_tuning.build(config(ARMS[0], seed=4, **PLACE))
    assert not torch.equal(weights(other), expected)


def test_training_one_arm_leaves_the_weights_of_the_next_alone():
    first, second = (config(arm, seed=3, tokens=2**10, **PLACE) for arm in ARMS[:2])
    before = weights(fine_tuning.build(second))
    trained = run(fine_tuning.build(first))
    assert not torch.equal(weights(trained), before)
    assert torch.equal(weights(fine_tuning.build(second)), before)


def test_arms_differ_in_what_was_tuned_alone():
    """And before: the settings that pretraining has at the same size."""
    for method, source in fine_tuning.SOURCES.items():
        before, again = (config(f"{method}, {w}", "laptop") for w in ("as before", "retuned"))
        names = {"lr", "accumulation", "start_norm", "end_norm"}
        differing = {k for k, v in vars(before).items() if v != vars(again)[k]}
        assert differing <= names
        assert before.corpus == again.corpus == "pydoc"
        pretraining = annealing.config(source, "0.16M")
        assert all(vars(before)[k] == vars(pretraining)[k] for k in (*names, "lr_curve"))


def test_what_is_retuned_is_the_best_of_its_trials():
    assert {arm for _, arm in TUNED} == set(RETUNED)


def test_tuning_measures_both_methods_alike(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(annealing, "BUDGET", 2)
    monkeypatch.setattr(annealing, "CLOSE_BUDGET", 1)
    short = {**annealing.RUNGS["smoke"], "evaluation_sequences": 4, "width": 16}
    monkeypatch.setitem(annealing.RUNGS, "0.16M", short)
    monkeypatch.setitem(fine_tuning.TOKENS, "laptop", 2**10)
    fine_tuning.main(str(tmp_path / "trials.jsonl"))
    shown = capsys.readouterr()
    assert [shown.out.count(f'"{arm}"') for arm in ARMS] == [3 * (arm in RETUNED) for arm in ARMS]


def test_unknown_names_are_named():
    with pytest.raises(ValueError, match=r"arm='gnts, retund'.*did you mean 'gnts, retuned'"):
        config("gnts, retund")
    with pytest.raises(ValueError, match="scale='lap'"):
        config(ARMS[0], "lap")
