"""Stages that work ahead: all that they make is taken, and all of them end."""

import threading
from collections.abc import Iterator
from itertools import count

import pytest

from vidsieve.stages import Stages, Stopped


@pytest.mark.parametrize("waiting", [1, 2, 50])
def test_items_of_several_sources_are_taken_as_they_come(waiting: int) -> None:
    with Stages() as stages:
        taken = list(stages.ahead(range(20), range(20, 25), (), waiting=waiting))
    assert sorted(taken) == list(range(25))
    for numbers in (range(20), range(20, 25)):
        assert [x for x in taken if x in numbers] == list(numbers)


def test_an_error_in_one_of_them_ends_all() -> None:
    before = threading.active_count()
    ended: list[bool] = []

    def endless() -> Iterator[int]:
        try:
            yield from count()
        finally:
            ended.append(True)

    def failing() -> Iterator[int]:
        yield -1
        raise ZeroDivisionError("here")

    taken: list[int] = []
    with pytest.raises(ZeroDivisionError, match="here"), Stages() as stages:
        taken.extend(stages.ahead(endless(), failing(), waiting=2))
    assert -1 in taken
    assert ended == [True]
    assert threading.active_count() == before


def test_one_that_stops_leaves_the_others_alone() -> None:
    def stopped() -> Iterator[int]:
        yield -1
        raise Stopped

    with Stages() as stages:
        assert sorted(stages.ahead(stopped(), range(9))) == list(range(-1, 9))


def test_a_thread_that_cannot_be_started_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    before, start = threading.active_count(), threading.Thread.start
    left = iter([True])

    def starting(thread: threading.Thread) -> None:
        if not next(left, False):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", starting)
    with pytest.raises(RuntimeError, match="can't start new thread"), Stages() as stages:
        list(stages.ahead(count(), count()))
    assert threading.active_count() == before
