"""The table of habits says what is measured, and nothing in it is wrong."""

from __future__ import annotations

import pytest
from wrappers import habits


@pytest.mark.parametrize("accumulate", ["buffer", "grad"])
@pytest.mark.parametrize("habit", habits.HABITS, ids=lambda habit: habit.run.__name__)
def test_a_habit_is_right_or_refused_by_name(habit, accumulate):
    assert "wrong" not in habits.outcome(habit, accumulate)


def test_readme_has_the_table_that_is_measured():
    """To renew it: ``python tests/wrappers/habits.py --write``."""
    assert habits.of_page() == habits.table()
