"""What a parameters cell declares, and what it lets through."""

import datetime
import itertools
import math
import re

import pytest

from gqc_lab.errors import BadInput
from gqc_lab.loop.settings import Setting
from gqc_lab.runs.parameters import (
    parse_cell,
    parse_option,
    parse_yaml,
    read_mapping,
    resolve,
)

CELL = """
scale = "smoke"  # one of smoke, laptop, hf:*; how much of it
methods = ["gnts", "adamw"]  # one of gnts, adamw
lr = 1e-3  # above 0
rounds: int = 3  # at least 1, at most 64
width = 4  # at least 1, below 9; its unit
limit = None
budget: int | None = None  # above 0
sizes: list | None = None  # at least 2
corpus: str | None = "kjv"  # what to read
is_fast = True
"""


@pytest.fixture
def declared():
    return parse_cell(CELL)


def test_defaults_rules_and_order_come_from_the_cell(declared):
    values = resolve(declared, {})
    assert list(values) == [
        "scale",
        "methods",
        "lr",
        "rounds",
        "width",
        "limit",
        "budget",
        "sizes",
        "corpus",
        "is_fast",
    ]
    assert values["methods"] == ["gnts", "adamw"]
    assert declared["rounds"].rules == (Setting(kind=int, low=1, high=64),)
    assert declared["corpus"].rules == ()


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("scale", "hf:wiki", "hf:wiki"),
        ("methods", ["adamw"], ["adamw"]),
        ("lr", 1, 1.0),
        ("rounds", 64, 64),
        ("limit", [1, {"a": 2}], [1, {"a": 2}]),
        ("corpus", None, None),
        ("sizes", [2, 64], [2, 64]),
    ],
)
def test_allowed_values_get_the_declared_type(declared, name, given, value):
    got = resolve(declared, {name: given})[name]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("scale", "huge", "scale='huge': expected one of smoke, laptop, hf:*"),
        ("methods", ["gnts", "sgd"], "methods='sgd': expected one of gnts, adamw"),
        ("methods", "gnts", "methods='gnts': expected list"),
        ("methods", [1], "methods=1: expected str"),
        ("lr", math.nan, "lr=nan: expected a number"),
        ("lr", -1.0, "lr=-1.0: expected a number above 0"),
        ("lr", 0, "expected a number above 0"),
        ("lr", True, "lr=True: expected float"),
        ("lr", None, "lr=None: expected float"),
        ("rounds", 65, "expected an integer of at least 1 and at most 64"),
        ("rounds", 2.0, "rounds=2.0: expected int"),
        ("rounds", True, "rounds=True: expected int"),
        ("width", 9, "width=9: expected an integer of at least 1 and below 9"),
        ("is_fast", 1, "is_fast=1: expected bool"),
        ("budget", "1000x", "budget='1000x': expected int"),
        ("sizes", 64, "sizes=64: expected list"),
        ("sizes", [64, 1], "sizes=1: expected a number of at least 2"),
        ("limit", math.nan, "limit=nan: expected a number"),
        ("limit", [1, {"a": [math.nan]}], "a=nan: expected a number"),
        ("limit", {1: 2}, "limit={1: 2}: expected a number, text"),
        ("limit", datetime.date(2019, 1, 1), "expected a number, text, .* got date"),
        ("limit", b"x", "got bytes"),
        ("limit", "\ud800", "expected a text that UTF-8 can hold"),
        ("rounds", 2**64, "an integer of 65 bits: expected at most 64"),
        ("mehtods", [], "unknown parameter 'mehtods'=.*did you mean 'methods'?"),
        ("zzz", 1, "unknown parameter 'zzz'=1; known: budget, corpus, is_fast"),
    ],
)
def test_anything_else_is_refused_by_name_value_and_range(declared, name, given, message):
    with pytest.raises(BadInput, match=message):
        resolve(declared, {name: given})


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("x = 1  # size; at least 2; at most 4", None),
        ("x = 3  # at least 2; at most 4", 30),
        ("x = 3  # at least 2; at most 4", 1),
        ("x = 0.1  # at most .5", 3.0),
        ("x = 0.1  # at least -.5e1, at most +5.", -6.0),
        ("x = -5  # above 0", None),
        ("x = 'lapto'  # one of smoke, laptop", None),
    ],
)
def test_each_rule_of_a_comment_holds_and_for_the_default_too(line, value):
    with pytest.raises(BadInput, match="x="):
        resolve(parse_cell(line), {} if value is None else {"x": value})


@pytest.mark.parametrize(
    "line", ["x = 1 + n", "import os", "a, b = 1, 2", "x: int", "f()", "x = ("]
)
def test_a_cell_holds_nothing_but_literals(line):
    with pytest.raises(BadInput, match=r"expected only|never closed"):
        parse_cell(line)


def test_path_rule_takes_files_that_exist(tmp_path):
    file = tmp_path / "corpus.txt"
    file.touch()
    parameter = parse_cell('corpus = "kjv"  # one of kjv, PATH')["corpus"]
    assert parameter.check(str(file)) == str(file)
    with pytest.raises(BadInput):
        parameter.check(str(file) + "x")


def test_options_are_yaml_but_texts_stay_texts(declared):
    assert parse_option(declared, "scale", "1e3") == "1e3"
    assert parse_option(declared, "lr", "1e-3") == 1e-3
    assert parse_option(declared, "methods", "[gnts]") == ["gnts"]
    assert parse_option(declared, "limit", "null") is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("-2E+4", -2e4),
        (".5e1", 5.0),
        ("010", 10),
        ("0o17", 15),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("yes", "yes"),
        ("True", True),
        ("2019-01-01", "2019-01-01"),
        ("-.inf", -math.inf),
        ("", None),
        ("a: &b {x: 1, y: 2}\nc: {<<: *b, y: 3}", {"a": {"x": 1, "y": 2}, "c": {"x": 1, "y": 3}}),
    ],
)
def test_yaml_follows_version_1_2(text, value):
    got = parse_yaml(text, "here")
    assert got == value
    assert type(got) is type(value)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in itertools.pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "its aliases stand for 4.9e"),
        ("&a [*a]", "its aliases stand for inf values"),
        ("!!timestamp 2019-01-01", "could not determine a constructor"),
        ("!!int abc", "not valid YAML"),
        ("{1: 2}", "key 1: expected a text; put it in quotes"),
        ("? [1]\n: 2", "expected a text"),
        ("[" * 5000, "not valid YAML"),
        ("1" * 5000, "not valid YAML"),
        ("[.nan, 1]", "nan: expected a number"),
    ],
)
def test_what_json_lacks_is_refused(text, message):
    with pytest.raises(BadInput, match=message):
        parse_yaml(text, "here")


def test_yaml_mistakes_are_one_line(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("lr: [1\nb: 2")
    with pytest.raises(BadInput, match="not valid YAML") as error:
        read_mapping(file)
    assert "\n" not in str(error.value)
    file.write_text("lr: 1\nlr: 2")
    with pytest.raises(BadInput, match="'lr' is given twice"):
        read_mapping(file)
    file.write_text("[1, 2]")
    with pytest.raises(BadInput, match="expected a mapping"):
        read_mapping(file)
    with pytest.raises(BadInput, match=r"b\.yaml: no such file; here are: a\.yaml"):
        read_mapping(tmp_path / "b.yaml")


STUDY = """
from dataclasses import dataclass
from gqc_lab import Config, setting

@dataclass(frozen=True, kw_only=True)
class Study(Config):
    method: str = setting("gnts", choices=("gnts", "adamw"))
    lr: float = setting(1e-3, above=0, below=1)
    points: tuple = setting((), read=lambda name, value: value[0])
"""
STUDIED = """# settings: study.Study
methods = ["gnts"]
lr: float | None = None  # peak
seed = 0
points: list = [0]
device = "auto"
num_seeds = 1  # at least 1
"""


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("methods", ["gtns"], "methods='gtns': did you mean 'gnts'?"),
        ("lr", 1, "lr=1.0: expected a number above 0 and below 1"),
        ("lr", "1", "lr='1': expected float"),
        ("seed", -1, "seed=-1: expected an integer of at least 0"),
        ("device", "gpu", "device='gpu': did you mean 'cpu'?"),
        ("num_seeds", 0, "num_seeds=0: expected an integer of at least 1"),
    ],
)
def test_a_parameter_has_the_rules_of_the_studys_field(tmp_path, name, given, message):
    (tmp_path / "study.py").write_text(STUDY)
    declared = parse_cell(STUDIED, folder=tmp_path)
    allowed = {"methods": ["adamw", "gnts"], "lr": 0.5, "points": [1], "device": "cuda:1"}
    assert resolve(declared, allowed)["methods"] == ["adamw", "gnts"]
    with pytest.raises(BadInput, match=re.escape(message)):
        resolve(declared, {name: given})


@pytest.mark.parametrize("table", ["study.Stuyd", "no_such_module.Study", "study.BROKEN"])
def test_settings_that_are_not_there_are_named(tmp_path, table):
    (tmp_path / "study.py").write_text(STUDY)
    with pytest.raises(BadInput, match=rf"here: # settings: {table}: "):
        parse_cell(f"# settings: {table}\nseed = 0", "here", tmp_path)
