"""Limits of threads hold for this thread, inside, and are taken back."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from vidsieve.ops import threads


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(threads._of_torch("omp_set_num_threads") is None, reason="torch has its loops from no OpenMP here")
def test_loops_are_kept_to_this_thread_and_given_back(three_threads: None) -> None:
    with ThreadPoolExecutor(1) as other:
        assert other.submit(torch.get_num_threads).result() == 3
        with threads.alone():
            assert torch.get_num_threads() == 1
            assert other.submit(torch.get_num_threads).result() == 3
        assert torch.get_num_threads() == 3
        with pytest.raises(ZeroDivisionError), threads.alone():
            _ = 1 // 0
        assert torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as fresh:  # a thread that has not been asked yet takes its number at its first loop
        assert fresh.submit(_alone_at_once).result() == (1, 3)


def _alone_at_once() -> tuple[int, int]:
    with threads.alone():
        torch.zeros(1 << 16).sum()
        within = torch.get_num_threads()
    return within, torch.get_num_threads()


def test_without_such_a_library_nothing_is_limited(three_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_of_torch", lambda name: None)
    monkeypatch.setattr(threads, "_loop_threads", threads._loop_threads.__wrapped__)
    assert threads.product_threads.__wrapped__()(1) == 0
    with threads.alone():
        assert torch.get_num_threads() == 3
