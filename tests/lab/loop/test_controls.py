"""Controls refuse wrong values whole, and apply right ones at the next microbatch."""

import math
import threading

import pytest

from gqc_lab.loop.controls import Controls, by_microbatch
from gqc_lab.loop.settings import Setting


def make():
    def check(values):
        if values["end"] > values["start"]:
            raise ValueError(f"end={values['end']}: expected at most start={values['start']}")

    specs = {
        "start": Setting(2.0, low=0),
        "end": Setting(1.0, low=0, high=10),
        "length": Setting(3, kind=int, low=1),
    }
    return Controls(specs, check)


def test_is_a_mapping_of_values():
    controls = make()
    assert dict(controls) == {"start": 2.0, "end": 1.0, "length": 3}
    assert repr(controls) == "Controls(start=2, end=1, length=3)"


def test_a_value_is_applied_when_the_experiment_asks():
    controls = make()
    controls["start"] = 5
    assert (controls["start"], controls.applied["start"]) == (5.0, 2.0)
    assert controls.advance(1) == {"start": 5.0}
    assert controls.applied["start"] == 5.0
    assert controls.advance(2) == {}


def test_set_and_set_back_is_no_change():
    controls = make()
    controls["start"] = 5
    controls["start"] = 2
    assert controls.advance(2) == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": math.nan}, r"start=nan: expected a number of at least 0"),
        ({"start": math.inf}, "start=inf"),
        ({"start": -0.1}, "start=-0.1"),
        ({"start": "2"}, "start='2'"),
        ({"start": None}, "start=None"),
        ({"start": True}, "start=True"),
        ({"end": 10.5}, "end=10.5: expected a number of at least 0 and at most 10"),
        ({"length": 2.5}, "length=2.5: expected an integer of at least 1"),
        ({"length": 0}, "length=0"),
        ({"end": 3.0}, r"end=3.0: expected at most start=2.0"),
        ({"strat": 1.0}, "control='strat': did you mean 'start'?"),
        ({"length": 4, "end": 3.0}, "end=3.0"),
    ],
)
def test_a_wrong_value_changes_nothing(changes, message):
    controls = make()
    with pytest.raises(ValueError, match=message):
        controls.update(changes)
    assert dict(controls) == {"start": 2.0, "end": 1.0, "length": 3}
    assert controls.advance(2) == {}


def test_values_that_fit_only_together():
    controls = make()
    controls.update(start=8, end=7)
    assert controls.advance(1) == {"start": 8.0, "end": 7.0}


def test_defaults_are_checked():
    with pytest.raises(ValueError, match="x=-1"):
        Controls({"x": Setting(-1.0, low=0)})
    with pytest.raises(ValueError, match="too much"):
        Controls({"x": Setting(1.0)}, lambda values: (_ for _ in ()).throw(ValueError("too much")))


def test_state_keeps_what_is_not_yet_applied():
    controls, other = make(), make()
    controls["start"] = 5
    other.load_state_dict(controls.state_dict())
    assert other["start"] == 5.0
    assert other.advance(1) == {"start": 5.0}


def test_pairs_set_from_another_thread_are_never_seen_torn():
    controls = Controls({"a": Setting(0.0), "b": Setting(0.0)})
    stop = threading.Event()

    def turn():
        value = 0
        while not stop.is_set():
            value += 1
            controls.update(a=value, b=value)

    thread = threading.Thread(target=turn)
    thread.start()
    try:
        seen = set()
        while len(seen) < 200:
            controls.advance(1)
            assert controls.applied["a"] == controls.applied["b"]
            seen.add(controls.applied["a"])
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize(
    "change",
    [
        {"microbatch": 2.5, "name": "lr_scale", "value": 0.5},
        {"microbatch": "3", "name": "lr_scale", "value": 0.5},
        {"microbatch": math.inf, "name": "lr_scale", "value": 0.5},
        {"name": "lr_scale", "value": 0.5},
        {"microbatch": 3, "value": 0.5},
        3,
    ],
)
def test_a_change_that_would_never_come_is_refused(change):
    with pytest.raises(ValueError, match=r"change=.*: expected name, value and microbatch"):
        by_microbatch([change])


def test_a_whole_number_of_another_type_is_a_microbatch():
    planned = by_microbatch([{"microbatch": 3.0, "name": "lr_scale", "value": 0.5}])
    assert planned == {3: {"lr_scale": 0.5}}
