"""Settings of an experiment, each declared once: meaning, type, range, default, label and unit.

A study's config inherits from `Config` and makes its fields with `setting`.  That table checks the
config itself, live controls, and the parameters of notebooks and batches, for which neither this
module nor the settings of a study import torch.
"""

import csv
import json
import math
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from gqc_lab.errors import check_name

DEVICES = ("auto", "cpu", "cuda", "cuda:*", "mps")
DTYPES = ("float32", "bfloat16", "float64")
Pairs = tuple[tuple[float, float], ...]
Read = Callable[[str, Any], Any]
T = TypeVar("T", bound="Config")


@dataclass(frozen=True)
class Setting:
    """What one value may be and what it means.

    Args:
        default: where a control starts; a config's default stands in its dataclass.
        meaning: in a few words, with the unit; a widget's tooltip.
        kind: type of the value; float takes whole numbers, int takes floats without a fraction.
        low, high: bounds that are allowed themselves.
        above, below: bounds that are not.
        choices: allowed texts, or patterns such as ``"cuda:*"``; none: all.  A single text, such
            as ``"gqc.upgd.utility:NORMALIZATIONS"``, says where they stand.
        read: checks what a range cannot say; takes name and value, returns the value.
        is_optional: whether None is allowed.
        label: for axes and fields; unit: as it stands in brackets.
    """

    default: Any = None
    meaning: str = ""
    kind: type = float
    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    choices: tuple[str, ...] | str = ()
    read: Read | None = None
    is_optional: bool = False
    label: str = ""
    unit: str = ""

    def check(self, name: str, value: Any) -> Any:
        """Return ``value`` in the setting's own type.

        Raises: ValueError: another type, NaN or infinity, or out of range.
        """
        if value is None and self.is_optional:
            return None
        if self.read is not None:
            return self.read(name, value)
        if self.choices:
            if not any(fnmatchcase(str(value), choice) for choice in self.allowed):
                check_name(name, value, self.allowed)
            return str(value)
        if self.kind in (int, float):
            return self._check_number(name, value)
        if not isinstance(value, self.kind):
            raise ValueError(f"{name}={value!r}: expected {self.kind.__name__}")
        return value

    def _check_number(self, name: str, value: Any) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_inside = is_number and (
            math.isfinite(value)
            and self.low <= value <= self.high
            and self.above < value < self.below
        )
        if not is_inside or (self.kind is int and value != int(value)):
            raise ValueError(f"{name}={value!r}: expected {self.expected}")
        return self.kind(value)

    @property
    def allowed(self) -> tuple[str, ...]:
        """The choices; where they stand elsewhere, that module is imported."""
        if isinstance(self.choices, tuple):
            return self.choices
        module, _, name = self.choices.partition(":")
        return tuple(getattr(import_module(module), name))

    @property
    def axis(self) -> str:
        """The label of an axis or a field, with the unit in brackets."""
        return f"{self.label} [{self.unit}]" if self.unit else self.label

    @property
    def expected(self) -> str:
        """The range of a number in words, such as "a number above 0 and at most 1"."""
        bounds = {"above": self.above, "at least": self.low}
        bounds |= {"below": self.below, "at most": self.high}
        rules = [f"{word} {n:g}" for word, n in bounds.items() if math.isfinite(n)]
        noun = "an integer" if self.kind is int else "a number"
        if rules and rules[0].startswith("at "):
            noun += " of"
        return " ".join([noun, " and ".join(rules)]) if rules else noun


def setting(
    default: Any = MISSING, meaning: str = "", like: Setting | None = None, **rules: Any
) -> Any:
    """Return the dataclass field of a setting; the annotation says its type.

    Args:
        default: of the field; MISSING: it has to be given.
        like: a setting whose meaning and rules this one has, but for ``meaning`` and ``rules``.
        rules: further arguments of `Setting`.
    """
    if meaning:
        rules["meaning"] = meaning
    made = replace(like or Setting(), **rules)
    return field(default=default, metadata={"setting": made})


def settings_of(config: Any) -> Mapping[str, Setting]:
    """Return the settings of a dataclass whose fields were made with `setting`, by name."""
    return _table(config)


@cache
def _table(config: Any) -> Mapping[str, Setting]:
    hints = get_type_hints(config)
    table = {}
    for each in fields(config):
        hint, made = hints[each.name], each.metadata["setting"]
        kinds = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        kind = next(k for k in kinds if k is not type(None))
        table[each.name] = replace(
            made,
            default=None if each.default is MISSING else each.default,
            kind=kind if isinstance(kind, type) else tuple,
            is_optional=type(None) in kinds,
        )
    return table


@dataclass(frozen=True)
class Checked:
    """Settings that are checked when they are made, and given their types.

    Raises: ValueError: a value out of its range, in one line that names it.
    """

    def __post_init__(self) -> None:
        for name, each in settings_of(type(self)).items():
            object.__setattr__(self, name, each.check(name, getattr(self, name)))
        self.check_together()

    def check_together(self) -> None:
        """Raise ValueError where values do not fit each other."""


@dataclass(frozen=True, kw_only=True)
class Config(Checked):
    """What every study has: a seed, and where and in which number format it computes."""

    seed: int = setting(0, "seed of weights, data and noise", low=0)
    device: str = setting("auto", "where to compute", choices=DEVICES)
    dtype: str = setting("float32", "number format of the parameters", choices=DTYPES)


def control(config: Any, name: str, **changes: Any) -> Setting:
    """Return the setting of a live control that starts at the value of ``config``."""
    return replace(settings_of(type(config))[name], default=getattr(config, name), **changes)


def make_config(
    kind: type[T],
    scales: Mapping[str, Mapping[str, Any]],
    scale: str,
    overrides: Mapping[str, Any],
    tuned: Callable[[dict[str, Any]], Mapping[str, Any]] = lambda values: {},
) -> T:
    """Return a config from a scale's values, the tuned ones, and ``overrides``, which win.

    Args:
        overrides: fields; None stands for the scale's value, unless it is one of the field's own.
        tuned: takes the scale's values and the overrides, returns the tuned values that fit them.
    Raises: ValueError: unknown scale or field, or a value out of its range.
    """
    check_name("scale", scale, scales)
    table = settings_of(kind)
    for name in overrides:
        check_name("field", name, table)
    overrides = {
        name: value
        for name, value in overrides.items()
        if value is not None or table[name].is_optional or table[name].choices
    }
    values = {"scale": scale, **scales[scale], **overrides}
    for name, value in values.items():
        if table[name].choices:  # before tuned values are looked up by them
            table[name].check(name, value)
    return kind(**{**values, **tuned(values), **overrides})


def of_scale(scales: Mapping[str, Mapping[str, Any]], scale: str, **given: Any) -> dict[str, Any]:
    """Return the scale's values, and ``given`` instead where it is not None.

    Raises: ValueError: unknown scale.
    """
    check_name("scale", scale, scales)
    return {**scales[scale], **{n: v for n, v in given.items() if v is not None}}


def read_scales(path: Path) -> dict[str, dict[str, Any]]:
    """Return the values of each scale from a table: a row per field, a column per scale.

    Args:
        path: CSV as of `read_tuned`; a cell is JSON or a text, an empty one no value of the scale.
    """
    scales: dict[str, dict[str, Any]] = {}
    for row in _rows(path):
        name = row.pop("field")
        for scale, text in row.items():
            values = scales.setdefault(scale, {})
            if text:
                values[name] = json.loads(text) if text[0] in "[-.0123456789" else text
    return scales


def read_tuned(
    path: Path, keys: Sequence[str], metric: str, is_larger_better: bool = False
) -> dict[tuple[str, ...], dict[str, Any]]:
    """Return the best trial of each group in a file of trials, without its metric.

    Args:
        path: CSV; lines that begin with "#" are comments, empty cells settings that it lacks.
        keys: columns that name a group; the first row of several equally good ones counts.
        metric: column that decides; a row without it is taken as it is.
    """
    best: dict[tuple[str, ...], tuple[float, dict[str, Any]]] = {}
    for row in _rows(path):
        key = tuple(row.pop(name) for name in keys)
        found = float(row.pop(metric, "") or "nan")  # empty: of a trial that diverged
        rank = (-found if is_larger_better else found) if math.isfinite(found) else math.inf
        if key not in best or rank < best[key][0]:
            best[key] = rank, {n: float(text) for n, text in row.items() if text}
    return {key: values for key, (_, values) in best.items()}


def _rows(path: Path) -> Iterator[dict[str, str]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    yield from csv.DictReader(line for line in lines if not line.startswith("#"))


def read_pairs(name: str, value: Any) -> Pairs:
    """Return (share of the run, value) pairs, to be joined by straight lines; none is allowed too.

    Raises: ValueError: other things, shares outside [0, 1] or not increasing, or negative values.
    """
    share, height = Setting(low=0, high=1), Setting(low=0)
    expected = f"{name}={value!r}: expected pairs (share of the run, value)"
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(expected)
    pairs = []
    for pair in value:
        if isinstance(pair, str) or not isinstance(pair, Iterable) or len(both := [*pair]) != 2:
            raise ValueError(expected)
        at, norm = both
        pairs.append((share.check(f"{name}: share", at), height.check(f"{name}: value", norm)))
    for (before, _), (after, _) in pairwise(pairs):
        if not after > before:
            raise ValueError(f"{name}: shares {before:g}, {after:g}: expected them to increase")
    return tuple(pairs)
