"""Replayed reductions against those launched one by one: with a stand-in for the graph on CPU, with graphs on a GPU."""

import gc
import threading
from collections.abc import Callable
from typing import Any
from weakref import ref

import pytest
import torch
from torch import Tensor

from tests.engines.hf import tiny
from tests.synthetic import independent, video_like
from vidsieve import Chain, Prompt, Prune, VideoTokens, ops
from vidsieve.engines import graph
from vidsieve.engines.graph import TIMES, ReductionGraph
from vidsieve.engines.hf import attach
from vidsieve.errors import NonFiniteFeatures
from vidsieve.methods.base import Reducer, declares
from vidsieve.methods.budget import MarginalGain, Proportional
from vidsieve.methods.merge import NearestKept, TemporalMerge
from vidsieve.methods.relevance import Flat, Novelty, PromptSimilarity
from vidsieve.methods.segment import PerFrame, SceneCuts, Uniform, Whole, Within
from vidsieve.methods.selection import (
    MMR,
    ConditionalDPP,
    EvenlySpaced,
    Hybrid,
    LowRankDPP,
    MaxMin,
    Random,
    TopRelevance,
)
from vidsieve.types.reduction import Reduction

pytest.importorskip("vidsieve.ops.launch", reason="Triton is not installed")
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
FRAMES, ROWS, COLUMNS, DIM = 5, 1, 2, 16

METHODS: dict[str, Reducer] = {
    "per frame": Prune(0.3, PerFrame(), MarginalGain(), PromptSimilarity(), ConditionalDPP()),
    "scenes": Prune(0.3, SceneCuts(), MarginalGain(), Novelty(), MMR()),
    "uniform": Prune(0.3, Uniform(2), Proportional(), Flat(), ConditionalDPP()),
    "whole": Prune(0.3, Whole(), Proportional(), PromptSimilarity(), TopRelevance()),
    "within": Prune(0.3, Within(5), MarginalGain(), Novelty(), ConditionalDPP()),
    "hybrid": Prune(0.3, Whole(), Proportional(), Novelty(), Hybrid(4)),
    "evenly": Prune(0.3, Whole(), Proportional(), Flat(), EvenlySpaced()),
    "merge": TemporalMerge(0.5),
    "merge, whole": TemporalMerge(0.5, Whole()),
    "merge, of a size": TemporalMerge(keep=0.5),
    "merge, if it pays": TemporalMerge(0.9, least=0.9),
}
QUICK = Prune(0.3, PerFrame(), Proportional(), Flat(), EvenlySpaced())  # to reduce with in the interpreter


class FirstFrame(Prune):
    """Keeps the first frame."""

    def reduce(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Reduction:
        return Reduction.select(torch.arange(tokens.frames[0], device=tokens.features.device), len(tokens))


class Counting(MaxMin):
    """Stands for a selector that asks the device something of its own."""


OTHERS: dict[str, Reducer] = {
    "of a class of its own": FirstFrame(0.3),
    "with a part of a class of its own": Prune(0.3, Whole(), selector=Hybrid(4, large=Hybrid(9, large=Counting()))),
    "max-min": Prune(0.3, Whole(), Proportional(), Flat(), MaxMin()),
    "low rank": Prune(0.3, Within(5), MarginalGain(), Novelty(), LowRankDPP(rank=2, above=3)),
    "with a merger": Prune(0.3, PerFrame(), merger=NearestKept()),
    "random": Prune(0.3, selector=Random(1)),
    "hybrid of max-min": Prune(0.3, Whole(), selector=Hybrid(4, ConditionalDPP(), MaxMin())),
    "hybrid of others": Prune(0.3, selector=Hybrid(4, large=Random(1))),
    "chain": Chain(TemporalMerge(0.5), Prune(0.3)),
    "all": Prune(1.0),
}


class Again:
    """In place of a graph: asks again, and leaves the answer where a graph would."""

    def __init__(self, ask: Callable[[], tuple[Any, Any, Tensor]], answer: Tensor) -> None:
        self.ask, self.answer = ask, answer

    def pool(self) -> None:
        return None

    def replay(self) -> None:
        self.answer.copy_(self.ask()[-1])


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run beside threads of pytest's, with which older releases of torch capture nothing."""
    monkeypatch.setattr(threading, "active_count", lambda: 1)


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[ref[Any]]:
    """The graphs that were captured so far."""
    made: list[ref[Any]] = []
    real = graph.capture

    def capture(ask: Any, device: torch.device, pool: Any) -> Any:
        if GPU:
            captured, found = real(ask, device, pool)
        else:
            found = ask()
            captured = Again(ask, found[-1])
        made.append(ref(captured))
        return captured, found

    monkeypatch.setattr(graph, "capture", capture)
    monkeypatch.setenv("VIDSIEVE_OPS", "triton")
    if not GPU:
        monkeypatch.setattr(graph, "suits", lambda video: video.regular and video.provenance is None)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    return made


def video(seed: int, frames: int = FRAMES) -> VideoTokens:
    x = video_like(frames, ROWS * COLUMNS, DIM, seed=seed, dtype=torch.float32, cuts=(1 + seed % 3,)).to(DEVICE)
    return VideoTokens.from_grid(x, frames, ROWS, COLUMNS)


def prompt(seed: int, words: int = 3) -> Prompt:
    return Prompt(independent(words, DIM, 90 + seed, torch.float32).to(DEVICE))


def like(x: VideoTokens) -> VideoTokens:
    return VideoTokens(x.features, x.frames, x.grid)


def same(a: Reduction, b: Reduction) -> bool:
    names = ("kept", "assigned_to", "offsets", "budget", "nonfinite", "next_member", "row")
    pairs = [(getattr(a, name), getattr(b, name)) for name in names]
    return a.merges == b.merges and all(x is y if x is None or y is None else torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_replayed_is_what_would_have_been_launched(method: str, captures: list[ref[Any]]) -> None:
    reducer = METHODS[method]
    again, answers = ReductionGraph(reducer), []
    for seed in range(TIMES + 1):
        given, asked = video(seed), prompt(seed)
        [ours] = again.reduce_each([given], [asked])()
        if seed < TIMES - 1:
            continue  # it was launched
        true = reducer.reduce(like(given), asked)
        answers.append((ours, true))
        assert all(same(*pair) for pair in answers)  # no answer is touched by later ones
        mine, theirs = ours.original_statistics, true.original_statistics
        assert mine is not None
        assert theirs is not None
        if mine.persistence is None or theirs.persistence is None:
            assert mine.persistence is theirs.persistence
        else:
            assert torch.equal(mine.persistence, theirs.persistence)
        assert [by for by, _ in mine.segments] == [by for by, _ in theirs.segments]
        for (_, one), (_, other) in zip(mine.segments, theirs.segments, strict=True):
            assert torch.equal(one.offsets, other.offsets)
            assert one.longest == other.longest
    assert len(captures) == 1


@pytest.mark.parametrize("method", OTHERS)
def test_what_cannot_be_captured_is_launched(method: str, captures: list[ref[Any]]) -> None:
    again = ReductionGraph(OTHERS[method])
    for seed in range(TIMES + 1):
        [ours] = again.reduce_each([video(seed)], [prompt(seed)])()
    assert same(ours, OTHERS[method].reduce(video(seed), prompt(seed)))
    assert not captures


def test_what_is_known_of_a_video_is_not_asked_again(captures: list[ref[Any]]) -> None:
    again = ReductionGraph(TemporalMerge(0.5))
    for seed in range(TIMES + 1):
        given = video(seed)
        [ours] = again.reduce_each([given], [None])()
    with ops.spy() as calls:
        left = given.reduced(ours)
        Prune(0.2, SceneCuts(max_tokens=None)).reduce(left, None)
    assert "scene_cuts" not in [operation for operation, _ in calls]
    assert [operation for operation, _ in calls].count("measure") == 1  # of what the merge made


class Declared(MaxMin):
    """Stands for a selector of one's own that a graph can repeat, and that says so."""

    batches = captures = True


def test_a_class_of_ones_own_is_captured_where_it_says_that_it_can_be() -> None:
    for selector, batches, captures in (
        (ConditionalDPP(), True, True),
        (MaxMin(), True, False),
        (Counting(), False, False),
        (Declared(), True, True),
        (Hybrid(4, large=Declared()), True, True),
        (Hybrid(4, large=Hybrid(9, large=Counting())), False, False),
        (Random(), False, False),
    ):
        for part in (selector, Prune(0.3, selector=selector)):
            assert (declares(part, "batches"), declares(part, "captures")) == (batches, captures)


def test_a_layout_is_captured_when_it_comes_some_times_in_a_row(captures: list[ref[Any]]) -> None:
    asking = Prune(0.3, PerFrame(), Proportional(), PromptSimilarity(), TopRelevance())
    again, numbers = ReductionGraph(asking), []
    usual, other = (5, 3), (4, 3)
    in_turn = [usual, other] * TIMES
    for frames, words in [*in_turn, *[usual] * TIMES, *in_turn, *[(5, 4)] * (TIMES + 1)]:
        again.reduce_each([video(0, frames)], [prompt(0, words)])()
        numbers.append(len(captures))
    assert numbers == [0] * (3 * TIMES - 1) + [1] * (3 * TIMES) + [2, 2]


def test_frames_grid_and_type_are_part_of_a_layout(captures: list[ref[Any]]) -> None:
    again, x = ReductionGraph(QUICK), video(0, 4).features
    layouts: list[Any] = [(x, (2,) * 4), (x, (4,) * 2), (x.bfloat16(), (2,) * 4)]
    layouts += [(x, (2,) * 4, grid) for grid in ((1, 2), (2, 1))]
    for n, layout in enumerate(layouts):
        for _ in range(TIMES):
            [ours] = again.reduce_each([VideoTokens(*layout)], [None])()
        assert same(ours, QUICK.reduce(VideoTokens(*layout)))
        assert len(captures) == n + 1


def test_detaching_lets_go_of_what_is_captured(captures: list[ref[Any]]) -> None:
    model, inputs = tiny.fresh("qwen2_5_vl").to(DEVICE), tiny.prompt("qwen2_5_vl")
    handle = attach(model, QUICK)
    with torch.no_grad():
        for _ in range(TIMES):
            model(**{name: x.to(DEVICE) for name, x in inputs.items()})
    [captured] = captures
    assert captured() is not None
    handle.remove()
    gc.collect()
    assert captured() is None


def test_before_torch_2_12_nothing_is_captured_beside_other_threads(
    captures: list[ref[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for version, threads, may in ("2.11.0+cu130", 2, False), ("2.11.0", 1, True), ("2.13.0a0+git", 2, True):
        monkeypatch.setattr(torch, "__version__", version)
        monkeypatch.setattr(threading, "active_count", lambda threads=threads: threads)
        again, before = ReductionGraph(QUICK), len(captures)
        for _ in range(TIMES):
            again.reduce_each([video(0)], [None])()
        assert len(captures) - before == may


def test_the_length_of_a_question_nobody_asks_about_does_not_matter(captures: list[ref[Any]]) -> None:
    again = ReductionGraph(QUICK)
    for words in range(2, 3 + TIMES):
        again.reduce_each([video(0)], [prompt(0, words)])()
    assert len(captures) == 1


def test_several_videos_go_together_without_a_capture(captures: list[ref[Any]]) -> None:
    reducer, again = QUICK, ReductionGraph(QUICK)
    for _ in range(TIMES + 1):
        ours = again.reduce_each([video(0), video(1)], [None, None])()
    assert not captures
    assert all(same(x, y) for x, y in zip(ours, reducer.reduce_each([video(0), video(1)]), strict=True))


def failing(error: Exception) -> Any:
    def capture(ask: Any, device: torch.device, pool: Any) -> Any:
        tried.append(device)
        raise error

    tried: list[object] = []
    capture.tried = tried  # type: ignore[attr-defined]
    return capture


@pytest.mark.parametrize("error", [graph.TooLarge("1 MiB"), torch.OutOfMemoryError("no")], ids=["large", "no memory"])
def test_a_layout_too_large_is_launched_until_another_has_been(
    error: Exception, captures: list[ref[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    again, given = ReductionGraph(QUICK), video(0)
    with monkeypatch.context() as crowded:
        crowded.setattr(graph, "capture", short := failing(error))
        for _ in range(TIMES + 2):
            [ours] = again.reduce_each([like(given)], [None])()
            assert same(ours, QUICK.reduce(like(given)))
        assert len(short.tried) == 1
        for _ in range(TIMES):
            again.reduce_each([video(0, 3)], [None])()
        assert len(short.tried) == 2
    for frames in (4, FRAMES):
        for _ in range(TIMES):
            again.reduce_each([video(0, frames)], [None])()
    assert len(captures) == 2


def test_a_capture_that_fails_is_told_and_is_the_last(
    captures: list[ref[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    again, given = ReductionGraph(QUICK), video(0)
    monkeypatch.setattr(graph, "capture", broken := failing(RuntimeError("CUDA says no")))
    for _ in range(TIMES - 1):
        again.reduce_each([like(given)], [None])()
    with pytest.warns(UserWarning, match="not replayed: CUDA says no"):
        [ours] = again.reduce_each([like(given)], [None])()
    assert same(ours, QUICK.reduce(like(given)))
    for frames in (5, *[4] * (TIMES + 1)):
        again.reduce_each([video(0, frames)], [None])()
    assert len(broken.tried) == 1


def test_a_replay_in_inference_mode_and_one_outside_it(captures: list[ref[Any]]) -> None:
    again, true = ReductionGraph(QUICK), QUICK.reduce(video(1))
    for mode in (*[True] * TIMES, False, True):
        with torch.inference_mode(mode), torch.no_grad():
            [ours] = again.reduce_each([video(1)], [None])()
            assert same(ours, true)
    assert len(captures) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("method", [Prune(0.3), TemporalMerge(0.5)], ids=["prune", "merge"])
def test_bad_features_are_told_after_a_replay_too(method: Reducer, captures: list[ref[Any]]) -> None:
    again = ReductionGraph(method)
    for seed in range(TIMES + 1):
        [ours] = again.reduce_each([video(seed)], [None])()
        ours.check()
    features = video(0).features.clone()
    features[5, 5] = float("inf")
    [ours] = again.reduce_each([VideoTokens.from_grid(features, FRAMES, ROWS, COLUMNS)], [None])()
    with pytest.raises(NonFiniteFeatures):
        ours.check()


@pytest.mark.gpu
def test_one_layout_after_another_is_captured_in_the_same_memory() -> None:
    def big(frames: int) -> VideoTokens:
        return VideoTokens(torch.randn(frames * 196, 512, device="cuda", dtype=torch.bfloat16), (196,) * frames)

    again, reducer, held = ReductionGraph(Prune(0.1)), Prune(0.1), []
    for frames in (32, 31, 30, 29, 28, 27):
        for _ in range(TIMES + 1):
            given = big(frames)
            [ours] = again.reduce_each([given], [None])()
            assert same(ours, reducer.reduce(like(given)))
        torch.cuda.synchronize()
        held.append(torch.cuda.memory_reserved())
    assert held[-1] - held[0] < 2 * given.features.nbytes + (32 << 20)


@pytest.mark.gpu
def test_threads_on_streams_of_their_own_do_not_mix_videos_up(captures: list[ref[Any]]) -> None:
    again, reducer, wrong = ReductionGraph(Prune(0.3)), Prune(0.3), []
    true = [reducer.reduce(video(seed)).kept.tolist() for seed in range(4)]

    def work(seed: int, own: bool) -> None:
        with torch.cuda.stream(torch.cuda.Stream() if own else torch.cuda.current_stream()):
            for _ in range(40):
                [ours] = again.reduce_each([video(seed)], [None])()
                if ours.kept.tolist() != true[seed]:
                    wrong.append(seed)

    for own in (False, True):
        threads = [threading.Thread(target=work, args=(seed, own)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.gpu
@pytest.mark.parametrize("method", [Prune(0.3), TemporalMerge(0.2)], ids=["prune", "merge"])
def test_an_attached_model_answers_alike_once_it_replays_and_gives_all_memory_back(method: Reducer) -> None:
    model, given = tiny.fresh("qwen2_5_vl").to("cuda"), tiny.prompt("qwen2_5_vl")
    given = {name: x.to("cuda") for name, x in given.items()}

    def answer() -> Tensor:
        out: Tensor = model(**given, use_cache=False).logits
        return out

    with torch.no_grad():
        answer()
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        with method(model) as trace:
            logits = [answer() for _ in range(TIMES + 2)]
            assert ["replay" in call.stages_ms for call in trace.calls] == [False] * (TIMES - 1) + [True] * 3
        assert all(torch.equal(logits[0], others) for others in logits[1:])
        del logits, trace
        torch.cuda.synchronize()
        assert torch.cuda.memory_allocated() == held
