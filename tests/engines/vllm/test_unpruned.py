"""Embeddings that a second question finds again. Needs no vLLM."""

import torch

from vidsieve.engines.vllm.unpruned import Unpruned


def test_what_was_not_used_for_longest_goes_first() -> None:
    held = Unpruned(limit=3 * 40)
    videos = {name: torch.randn(5, 2) for name in (b"a", b"b", b"c", b"d")}
    for name in (b"a", b"b", b"c"):
        held.put(name, videos[name])
    held.get(b"a")
    held.put(b"d", videos[b"d"])
    assert held.get(b"b") is None
    for name in (b"a", b"c", b"d"):
        found = held.get(name)
        assert found is not None
        assert torch.equal(found, videos[name])
    assert held.bytes == 120


def test_what_is_held_does_not_change_with_what_was_given() -> None:
    held, video = Unpruned(), torch.zeros(4, 2)
    held.put(b"a", video)
    video += 1
    found = held.get(b"a")
    assert found is not None
    assert not found.any()


def test_without_a_name_or_room_nothing_is_held() -> None:
    held = Unpruned(limit=100)
    held.put(None, torch.zeros(2, 2))
    held.put(b"large", torch.zeros(100, 2))
    assert held.get(None) is None
    assert held.get(b"large") is None
    assert held.bytes == 0
