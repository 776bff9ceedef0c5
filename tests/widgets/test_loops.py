"""Loops of one's own and trainers without a page: edited and stopped from another thread."""

import threading
import time

import pytest
from steered_loops import DATA, LOOPS

from gqc_lab.loop.live import Live, steered


def find(names: dict) -> Live | None:
    found = names.get("live") or getattr(names.get("callback"), "live", None)
    return found if isinstance(found, Live) else None


def steer(names: dict, control: str) -> None:
    while (live := find(names)) is None or live.experiment.microbatch < 2:
        time.sleep(0.01)
    live.experiment.controls[control] = 0.03
    while not live.changes or live.experiment.microbatch < live.changes[0]["microbatch"] + 1:
        time.sleep(0.01)
    live.stop()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the trainers are not ours
@pytest.mark.parametrize("name", LOOPS)
def test_an_edit_acts_and_stop_ends_the_loop(name):
    code, control = LOOPS[name]
    names: dict = {}
    exec(DATA, names)
    person = threading.Thread(target=steer, args=(names, control))
    person.start()
    exec(code, names)
    person.join()
    live = find(names)
    assert live.state == "stopped"
    ((change),) = live.changes
    assert (change["name"], change["value"]) == (control, 0.03)
    history = live.history
    assert len(history) == live.experiment.microbatch
    at = change["microbatch"] - 1
    # the Trainer's schedule lowers it a little with each step
    assert history[control][at : at + 2].tolist() == pytest.approx([0.03] * 2, rel=1e-4)
    assert history[control][at - 1] != 0.03
    logged = [column for column in history if column.endswith("loss")]
    assert history[logged].notna().any().any()
    assert any(each is live for each in steered.values())
