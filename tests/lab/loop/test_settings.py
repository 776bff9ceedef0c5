"""Settings say once what a value may be; configs, controls and scales follow them."""

import math
from dataclasses import dataclass, replace

import pytest

from gqc_lab.loop.settings import (
    Config,
    Setting,
    control,
    make_config,
    of_scale,
    read_scales,
    setting,
)
from gqc_lab.studies.continual.settings import ContinualConfig
from gqc_lab.studies.operator_learning.settings import OperatorLearningConfig
from gqc_lab.studies.pretraining.inner_optimizers import InnerConfig
from gqc_lab.studies.vgs.settings import VGSTrainingConfig

SCALES = {"smoke": {"size": 8}, "laptop": {"size": 64, "rate": 0.1}}


@dataclass(frozen=True, kw_only=True)
class Study(Config):
    scale: str = setting("smoke", choices=tuple(SCALES))
    size: int = setting(meaning="units", low=1, high=100)
    rate: float = setting(0.5, "share", above=0, below=1)
    cap: float | None = setting(9.0, above=0)
    is_fast: bool = setting(False)

    def check_together(self):
        if self.is_fast and self.size > 64:
            raise ValueError(f"size={self.size}: expected at most 64 with is_fast")


def make(scale="smoke", tuned=lambda values: {}, **overrides):
    return make_config(Study, SCALES, scale, overrides, tuned)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({}, "a number"),
        ({"kind": int, "low": 1}, "an integer of at least 1"),
        ({"above": 0, "high": 1}, "a number above 0 and at most 1"),
        ({"low": 0, "below": 1}, "a number of at least 0 and below 1"),
        ({"kind": int, "high": 9}, "an integer of at most 9"),
    ],
)
def test_a_range_is_said_in_words(rules, words):
    assert Setting(**rules).expected == words


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "1", None, [1]])
def test_no_number_is_refused_whatever_the_range(value):
    for kind in (int, float):
        with pytest.raises(ValueError, match="x="):
            Setting(kind=kind).check("x", value)


def test_numbers_get_the_type_of_the_field():
    config = make(size=4.0, rate=0.25)
    assert (config.size, type(config.size)) == (4, int)
    assert type(Setting().check("x", 1)) is float


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"size": 0}, "size=0: expected an integer of at least 1 and at most 100"),
        ({"size": 2.5}, "size=2.5: expected an integer"),
        ({"rate": 1}, "rate=1: expected a number above 0 and below 1"),
        ({"cap": 0.0}, "cap=0.0: expected a number above 0"),
        ({"is_fast": 1}, "is_fast=1: expected bool"),
        ({"size": 65, "is_fast": True}, "size=65: expected at most 64 with is_fast"),
        ({"scale": "lap"}, "scale='lap'"),
        ({"sise": 1}, "field='sise': did you mean 'size'"),
        ({"dtype": "float16"}, "dtype='float16': did you mean 'bfloat16'"),
        ({"device": "cuda0"}, "device='cuda0'"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_expected(overrides, message):
    with pytest.raises(ValueError, match=message):
        make(**overrides)


def test_overrides_win_over_tuned_values_and_those_over_the_scale():
    assert make("laptop") == Study(scale="laptop", size=64, rate=0.1)
    tuned = make("laptop", lambda values: {"rate": values["size"] / 100})
    assert tuned.rate == 0.64
    assert make("laptop", lambda values: {"rate": 0.2}, rate=0.3, device="cuda:1").rate == 0.3


def test_none_is_the_scales_value_unless_the_field_may_be_none():
    config = make("laptop", rate=None, size=None, cap=None)
    assert (config.size, config.rate, config.cap) == (64, 0.1, None)
    assert of_scale(SCALES, "laptop", rate=None, size=7) == {"size": 7, "rate": 0.1}
    with pytest.raises(ValueError, match="scale='labtop': did you mean 'laptop'"):
        of_scale(SCALES, "labtop")


def test_a_table_of_scales_has_a_column_for_each(tmp_path):
    table = tmp_path / "scales.csv"
    rows = ["# why", "field,smoke,laptop", "size,8,64", "rate,,0.1", "sizes,,'[1, 2]'", "data,kjv,"]
    table.write_text("\n".join(rows).replace("'", '"'))
    expected = {"smoke": {"size": 8, "data": "kjv"}}
    assert read_scales(table) == expected | {"laptop": {"size": 64, "rate": 0.1, "sizes": [1, 2]}}
    assert type(read_scales(table)["laptop"]["size"]) is int


def test_a_control_has_the_range_of_the_field_and_starts_at_its_value():
    spec = control(make(rate=0.25), "rate", low=0.1)
    assert (spec.default, spec.meaning) == (0.25, "share")
    assert spec.expected == "a number above 0 and at least 0.1 and below 1"
    with pytest.raises(ValueError, match="rate=2"):
        replace(make(), rate=2)


@pytest.mark.parametrize(
    "config", [InnerConfig, ContinualConfig, VGSTrainingConfig, OperatorLearningConfig]
)
def test_every_setting_of_every_study_says_what_it_means(config):
    from gqc_lab.loop.settings import settings_of

    table = settings_of(config)
    assert {"seed", "device", "dtype", "scale"} <= table.keys()
    assert [name for name, each in table.items() if not each.meaning] == []
