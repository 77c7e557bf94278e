"""How a graph is captured, with a stand-in for the device: in which memory, when it is too large, when it fails."""

import inspect
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from vidsieve.engines import graph

pytest.importorskip("vidsieve.ops.launch", reason="Triton is not installed")
GPU = torch.cuda.is_available()


class Cuda:
    """In place of the device while it captures: `calls` are what it was asked for, `free` the bytes it has."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[object] = []
        self.free, self.freed = 1 << 30, 0  # and what emptying torch's cache adds
        self.allocated = 0
        begin = inspect.signature(torch.cuda.CUDAGraph.capture_begin)

        def capture_begin(graph: object, *args: Any, **kwargs: Any) -> None:
            given = begin.bind(graph, *args, **kwargs).arguments
            self.calls.append((given["pool"], given["capture_error_mode"]))

        members = {"capture_begin": capture_begin, "capture_end": lambda graph: self.calls.append("end")}
        monkeypatch.setattr(torch.cuda, "CUDAGraph", type("Graph", (), members))
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: self.calls.append("wait"))
        monkeypatch.setattr(torch.cuda, "empty_cache", self.empty)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (self.free, 1 << 40))
        name = "allocated_bytes.all.allocated"
        monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: {name: self.allocated})
        monkeypatch.setattr(graph, "stream_for", lambda purpose, device: None)

    def empty(self) -> None:
        self.calls.append("empty")
        self.free += self.freed

    def ask(self, size: int = 1 << 20) -> str:
        self.calls.append("ask")
        self.allocated += size
        return "answer"


@pytest.mark.skipif(GPU, reason="the other tests capture on the device itself")
def test_a_capture_is_of_the_second_time_and_in_the_memory_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    _, answer = graph.capture(cuda.ask, torch.device("cuda:0"), (0, 7))
    assert answer == "answer"
    assert cuda.calls == ["ask", "wait", ((0, 7), "thread_local"), "ask", "end"]


@pytest.mark.skipif(GPU, reason="the other tests capture on the device itself")
def test_a_capture_makes_room_and_leaves_what_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, device = Cuda(monkeypatch), torch.device("cuda:0")
    cuda.free, cuda.freed = 1 << 10, 1 << 20
    graph.capture(cuda.ask, device, None)
    assert cuda.calls[:3] == ["ask", "wait", "empty"]
    cuda.free, cuda.freed = 1 << 10, 0
    with pytest.raises(graph.TooLarge, match="1 MiB"):
        graph.capture(cuda.ask, device, None)
    cuda.free, cuda.calls = 1 << 40, []
    with pytest.raises(graph.TooLarge, match="1024 MiB"):
        graph.capture(lambda: cuda.ask(1 << 30), device, None)
    assert cuda.calls == ["ask", "wait"]


@pytest.mark.skipif(GPU, reason="the other tests capture on the device itself")
def test_a_capture_that_fails_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)

    def ask() -> None:
        cuda.ask()
        if cuda.calls.count("ask") == 2:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        graph.capture(ask, torch.device("cuda:0"), None)
    assert cuda.calls[-1] == "end"
    assert not graph._capturing.locked()
