"""The runs that are set side by side differ in one thing, and their numbers are what they say."""

from dataclasses import asdict

import pytest

from gqc_lab.models.gpt import count_parameters
from gqc_lab.studies import pretraining
from gqc_lab.studies.pretraining import equal_tokens

SMALL = {"tokens": 2**13, "evaluation_tokens": 2**11, "evaluation_sequences": 4, "device": "cpu"}
DIFFER = {
    "control": {
        "adamw": {"method", "lr", "start_norm", "end_norm", "norm_warmup"},
        "adamw, untuned": {
            *("method", "lr", "start_norm", "end_norm", "norm_warmup", "beta2", "weight_decay")
        },
    },
    "size": {
        "adamw": {"method", "lr", "start_norm", "end_norm", "norm_warmup"},
        "adamw, 16x": {"method", "lr", "start_norm", "end_norm", "norm_warmup", "width"},
    },
    "microbatch": {
        f"microbatch {n}": {"microbatch_size", "max_draws", "start_norm", "end_norm"}
        for n in (1, 2, 4, 8, 16)
    },
    "warmup": {label: {"norm_warmup_multiplier"} for label in ("inverted", "upright", "none")},
    "repeated": {
        "gnts": {"train_tokens"},
        "adamw": {"method", "lr", "start_norm", "end_norm", "norm_warmup", "train_tokens"},
    },
}


@pytest.mark.parametrize("name", equal_tokens.COMPARISONS)
@pytest.mark.parametrize("scale", ["smoke", "laptop", "paper"])
def test_configs_differ_in_what_is_compared(name, scale):
    configs = equal_tokens.comparison(name, scale, train_tokens=2**15, seed=3)
    plain = asdict(pretraining.config(scale, method="gnts", seed=3))
    for label, allowed in DIFFER[name].items():
        found = asdict(configs[label])
        assert {key for key in plain if plain[key] != found[key]} <= allowed
    assert len({(c.tokens, c.seed, c.evaluation_tokens) for c in configs.values()}) == 1


def test_the_large_control_has_16_times_the_parameters_of_the_blocks():
    configs = equal_tokens.comparison("size", "laptop", device="cpu")
    small, large = (
        count_parameters(pretraining.build(configs[n]).model.blocks)
        for n in ("adamw", "adamw, 16x")
    )
    assert large / small == pytest.approx(16, rel=0.01)  # norms have 4 times as many
    assert configs["adamw, 16x"].lr == configs["adamw"].lr / 4


def test_the_threshold_and_the_largest_logical_batch_are_the_same_for_every_microbatch():
    configs = equal_tokens.comparison("microbatch", "laptop")
    assert {c.max_draws * c.microbatch_size for c in configs.values()} == {256}
    assert {(c.start_norm, c.end_norm) for c in configs.values()} == {(0.6, 0.6)}


def test_an_unknown_comparison_is_named():
    with pytest.raises(ValueError, match="comparison='warmpu': did you mean 'warmup'"):
        equal_tokens.comparison("warmpu")


def test_run_all_trains_every_run_and_labels_it():
    config = equal_tokens.comparison("repeated", train_tokens=500, **SMALL)["adamw"]
    compared = {"one": {"a": config}, "two": {"b": config}}
    history, results, data_hash = equal_tokens.run_all(compared)
    run = pretraining.build(config)
    for _ in run:
        pass
    assert data_hash == run.data_hash
    assert list(zip(results["comparison"], results["method"], strict=True)) == [
        ("one", "a"),
        ("two", "b"),
    ]
    for name, rows in history.groupby("comparison"):
        label = rows["method"].iloc[0]
        assert rows["loss"].tolist() == equal_tokens.labelled(run, label, name)["loss"].tolist()


@pytest.mark.filterwarnings("ignore:10 windows in a row ran to max_draws=4:UserWarning")
def test_numbers_are_those_of_the_history():
    config = equal_tokens.comparison(
        "repeated", train_tokens=500, microbatch_size=2, norm_warmup=0.25, max_draws=4, **SMALL
    )["gnts"]
    run = pretraining.build(config)
    for _ in run:
        pass
    history = equal_tokens.labelled(run, "gnts", "repeated")
    assert history["is_warmup"].tolist() == [t < 16 for t in range(64)]
    assert set(history["comparison"]) == {"repeated"}
    row = equal_tokens.numbers(run, "gnts", "repeated")
    losses, stepped = history["loss"].tolist(), history["stepped"].tolist()
    assert row["final_train_loss"] == pytest.approx(sum(losses[57:]) / 7)
    assert row["warmup_loss"] == pytest.approx(sum(losses[8:16]) / 8)
    assert row["warmup_steps"] == sum(stepped[:16])
    assert row["best_val_loss"] == history["val_loss"].min()
    assert row["epochs"] == 2**13 / 500
    assert row["parameters"] == count_parameters(run.model)
