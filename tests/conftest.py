"""Settings that hold before torch is imported, and what no test may do: be skipped, hurry."""

import gc
import os
import threading

import pytest
from hypothesis import HealthCheck, settings

# The suite runs in as many processes as there are cores: two threads in each would wait for each
# other in turns, and sums that are split over threads differ in their last bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples at every run: what lands must not hang on chance.  To look for more:
# pytest --hypothesis-profile explore.
settings.register_profile(
    "any machine", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", settings.get_profile("any machine"), derandomize=False)
settings.load_profile("any machine")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Where every tool is installed (GQC_NO_SKIPS=1, set by .ci/run), a skipped test has failed.

    Only what needs a GPU may be skipped there.
    """
    report = yield
    if report.skipped and os.environ.get("GQC_NO_SKIPS") == "1" and "gpu" not in item.path.parts:
        report.outcome = "failed"
        report.longrepr = f"skipped, where every tool is installed: {report.longrepr}"
    return report


@pytest.hookimpl(tryfirst=True)  # xdist, which is registered later, reads the marks
def pytest_collection_modifyitems(items):
    """Keep the tests of a file in one process, which shares its fixtures (xdist's loadgroup)."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.split("::")[0]))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    """Spare the collector what lives until the end: a pytest in a test calls it five times."""
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish():
    """Let what was spared go in order, or some libraries warn of leaks at the exit."""
    gc.unfreeze()


@pytest.fixture
def no_thread_is_left():
    """Every thread of a live run has ended after the test, or ends when it is told to."""
    from gqc_lab.loop.gate import stop_all

    before = set(threading.enumerate())
    yield
    stop_all()
    assert set(threading.enumerate()) == before
