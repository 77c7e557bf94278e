"""The memory of a stream: never above its bound, the same however the stream is cut."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tests.methods.test_chunked import cut
from tests.synthetic import independent, video_like
from vidsieve import VideoTokens
from vidsieve.errors import NonFiniteFeatures, WrongArgument
from vidsieve.methods import (
    Flat,
    MarginalGain,
    PerFrame,
    Proportional,
    Prune,
    SceneRuns,
    StreamMemory,
    Uniform,
    Within,
    presets,
)
from vidsieve.ops.definitions import ApportionProblem, GreedyProblem, MeasureProblem, NoveltyProblem
from vidsieve.ops.greedy import reference as greedy
from vidsieve.ops.measurement import reference as measurement
from vidsieve.ops.partition import reference as partition


def shares(total: int, lengths: list[int], gains: list[float], held: list[int]) -> list[int]:
    """Eq. 3 where no segment gets more than is held of it."""
    full: set[int] = set()
    if total < len(held):
        offsets = torch.tensor([0, *held]).cumsum(0)
        return partition.apportion(ApportionProblem(torch.tensor(gains), offsets, total)).tolist()
    while True:
        left = [s for s in range(len(held)) if s not in full]
        offsets = torch.tensor([0, *(lengths[s] for s in left)]).cumsum(0)
        rest = total - sum(held[s] for s in full)
        budget = dict(enumerate(held))
        weights = torch.tensor([gains[s] for s in left])
        budget |= dict(
            zip(left, partition.apportion(ApportionProblem(weights, offsets, rest, 0.6)).tolist(), strict=True)
        )
        over = {s for s in left if budget[s] > held[s]}
        if not over:
            return [budget[s] for s in range(len(held))]
        full |= over


def expected(x: Tensor, size: int, frames: int, most: int) -> Tensor:
    """What is remembered of segments of `frames` frames of `size` tokens, one segment after another, in float64."""
    ends = range(size, len(x) + 1, size)
    centre = torch.stack([x[:end].double().mean(0) for end in ends])
    measures = measurement.measure(MeasureProblem(x, (size,) * len(ends), persistence=True, centre=centre))
    bounds = [*range(0, len(x), size * frames), len(x)]
    offsets = torch.tensor(bounds)
    assert measures.persistence is not None
    gains = partition.novelty(NoveltyProblem(measures.persistence, offsets)).tolist()
    order = greedy.conditional_dpp(GreedyProblem(x, None, offsets, offsets.diff(), size * frames, len(x), measures))
    live: list[int] = []
    held: dict[int, int] = {}
    for s, (begin, end) in enumerate(pairwise(bounds)):
        live, held[s] = [*live, s], end - begin
        if sum(held.values()) > most:
            lengths = [bounds[i + 1] - bounds[i] for i in live]
            found = shares(most, lengths, [gains[i] for i in live], [held[i] for i in live])
            held = {i: n for i, n in zip(live, found, strict=True) if n}
            live = list(held)
    kept = [begin + i for s, begin in enumerate(bounds[:-1]) for i in range(bounds[s + 1] - begin)
            if order[begin + i] < held.get(s, 0)]  # fmt: skip
    return torch.tensor(kept)


@pytest.mark.parametrize(("size", "frames", "count", "most"), [(6, 4, 61, 50), (1, 3, 70, 12), (4, 1, 34, 21)])
def test_what_is_remembered_is_that_of_the_reference_however_the_stream_is_cut(
    size: int, frames: int, count: int, most: int
) -> None:
    x = video_like(count, size, 16, 3, torch.float32, cuts=(7, 20, 33)) + 0.2 * independent(count * size, 16, 1).float()
    method = Prune(1.0, Uniform(frames), MarginalGain(), Flat())
    names = torch.arange(len(x), dtype=torch.float32)[None, :, None]
    middles: dict[int, Tensor] = {}
    for seed in range(3):
        memory, end = StreamMemory(most, method), 0
        for chunk in cut((size,) * count, seed):
            begin, end = end, end + sum(chunk)
            memory.add(x[begin:end], chunk, {"deepstack": names[:, begin:end]})
            found = memory.selection()
            assert len(memory) <= most
            assert len(found) == min(most, end)
            assert found.original_count == memory.original_count == end
            assert len(found.lengths) <= most
            assert torch.equal(found.features, x[found.kept])
            assert torch.equal(found.others["deepstack"][0, :, 0], found.kept.float())
            assert torch.equal(middles.setdefault(end, found.kept), found.kept)
        assert torch.equal(found.kept, expected(x, size, frames, most))


def test_a_stream_that_fits_is_remembered_whole() -> None:
    x = independent(40, 8, 0, torch.float32)
    memory = StreamMemory(40)
    for part in x.split(8):
        memory.add(part, (4, 4))
    assert memory.selection().kept.tolist() == list(range(40))
    assert len(memory) < 40  # the last segment goes on


def test_a_stream_of_one_length_keeps_what_a_video_keeps_where_no_share_was_smaller_on_the_way() -> None:
    x = independent(400, 16, 0, torch.float32)
    memory = StreamMemory(80, Prune(1.0, Uniform(5), Proportional(), Flat()))
    for part in x.split(40):
        memory.add(part, (8,) * 5)
    found = memory.selection()
    true = Prune(0.2, Uniform(5), Proportional(), Flat()).reduce(VideoTokens(x, (8,) * 50))
    assert torch.equal(found.kept, true.kept)
    assert found.capped == 0
    assert torch.equal(
        found.at(0.1).kept, Prune(0.1, Uniform(5), Proportional(), Flat()).reduce(VideoTokens(x, (8,) * 50)).kept
    )


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="tokens is how many the memory holds, at least 1"):
        StreamMemory(0)
    with pytest.raises(WrongArgument, match="Within needs the length of the video"):
        StreamMemory(9, Prune(0.1, Within()))
    with pytest.raises(WrongArgument, match=r"PromptSimilarity\(\) needs the whole video or a prompt"):
        StreamMemory(9, presets.cdpruner(0.1))  # type: ignore[arg-type]
    memory = StreamMemory(9, Prune(0.1, PerFrame()))
    with pytest.raises(WrongArgument, match="nothing was added to this memory yet"):
        memory.selection()
    x = independent(20, 8, 0, torch.float32)
    memory.add(x, (5,) * 4)
    before = memory.selection().kept
    with pytest.raises(NonFiniteFeatures, match="5 of 5 video tokens hold NaN"):
        memory.add(x[:5] * torch.nan, (5,))
    assert torch.equal(memory.selection().kept, before)
    assert memory.original_count == 20


def test_the_default_parts_are_those_of_the_default_method() -> None:
    assert StreamMemory(9)._chunks.method == Prune(1.0, SceneRuns())
