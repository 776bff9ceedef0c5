"""What a thread keeps of the processor when it has computed in parallel."""

import sys
import threading
from pathlib import Path

import pytest
import torch

from gqc_lab.loop.openmp import _find_pause, release_threads

is_linux = pytest.mark.skipif(sys.platform != "linux", reason="counts threads under /proc")


def num_threads():
    return len(list(Path("/proc/self/task").iterdir()))


def count_in_a_thread(*acts):
    """Threads of the process after each act, all of them in one new thread with two processors."""
    counts = []

    def work():
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        for act in acts:
            act()
            counts.append(num_threads())
        torch.set_num_threads(before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return counts


def compute():
    """Large enough to be done in parallel."""
    assert torch.ones(1 << 20).mul(2).sum() == 1 << 21


@is_linux
def test_the_pool_of_a_thread_is_given_back_and_made_again():
    if _find_pause() is None:
        pytest.skip("torch computes without GNU's OpenMP here")
    alone, computed, released, again = count_in_a_thread(
        lambda: None, compute, release_threads, compute
    )
    assert computed > alone
    assert released == alone
    assert again == computed


def test_a_thread_without_a_pool_has_nothing_to_give_back():
    release_threads()
    compute()
