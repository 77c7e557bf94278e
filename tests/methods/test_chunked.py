"""Selection chunk after chunk: the tokens of one shot, however the video is cut."""

import random
import weakref
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import pytest
import torch
from torch import Tensor

from tests.synthetic import independent, video_like
from vidsieve import VideoTokens
from vidsieve.errors import BudgetError, NonFiniteFeatures, WrongArgument
from vidsieve.methods import (
    MMR,
    ChunkedPrune,
    ConditionalDPP,
    Contrast,
    DistinctFirst,
    Flat,
    Given,
    Hybrid,
    LowRankDPP,
    MarginalGain,
    MaxMin,
    NearestKept,
    Novelty,
    PerFrame,
    Proportional,
    Prune,
    Reducer,
    SceneCuts,
    SceneRuns,
    SelectionProblem,
    TopRelevance,
    Uniform,
    Within,
    in_chunks,
    presets,
)
from vidsieve.methods import chunked as module
from vidsieve.methods.chunked import at_most, within_held
from vidsieve.methods.measure import measure
from vidsieve.ops.definitions import ApportionProblem, ContrastProblem, GreedyProblem, MeasureProblem, NoveltyProblem
from vidsieve.ops.greedy import reference as greedy
from vidsieve.ops.measurement import reference as measurement
from vidsieve.ops.partition import reference as partition
from vidsieve.types.segments import Segments
from vidsieve.types.selection import Rows, Selection, kept_count

MOST = 40  # tokens of a segment


def default(keep: float) -> Prune:
    return Prune(keep, SceneRuns(max_tokens=MOST))


def cut(frames: Sequence[int], seed: int) -> list[tuple[int, ...]]:
    """The frames in chunks of one to seven."""
    rng, chunks, begin = random.Random(seed), [], 0
    while begin < len(frames):
        chunks.append(tuple(frames[begin : begin + rng.randint(1, 7)]))
        begin += len(chunks[-1])
    return chunks


def chunked(
    method: Prune, x: Tensor, frames: Sequence[int], seed: int, hold: float = 50.0, centre: Tensor | None = None
) -> Selection:
    """Select of the video x, cut by `seed`; what is carried beside it says which token it was."""
    selector, begin = ChunkedPrune(method, len(x), hold, centre), 0
    names = torch.arange(len(x), dtype=torch.float32).view(1, -1, 1).expand(2, -1, 3)
    for chunk in cut(frames, seed):
        end = begin + sum(chunk)
        selector.add(x[begin:end], chunk, {"deepstack": names[:, begin:end]})
        begin = end
    found = selector.finish()
    assert torch.equal(found.features, x[found.kept])
    assert torch.equal(found.others["deepstack"], names[:, found.kept])
    assert len(found) == kept_count(method.keep, len(x))
    return found


def expected(x: Tensor, frames: tuple[int, ...], keep: float) -> Tensor:
    """The tokens of the default with the running centre, in float64."""
    ends, total = list(accumulate(frames)), kept_count(keep, len(x))
    centre = torch.stack([x[:end].double().mean(0) for end in ends])
    measures = measurement.measure(MeasureProblem(x, frames, persistence=True, centre=centre))
    p, bounds = measures.persistence, [0]
    assert p is not None
    for begin, end in pairwise(ends):
        if p[begin:end].double().mean() < 0.5 or end - bounds[-1] > MOST:
            bounds.append(begin)
    offsets = torch.tensor([*bounds, len(x)])
    gains = partition.novelty(NoveltyProblem(p, offsets))
    budget = partition.apportion(ApportionProblem(gains, offsets, total, 0.6))
    r = measurement.contrast(ContrastProblem(p, frames, 0.9, 0.5, 0.3))
    problem = GreedyProblem(x, r, offsets, budget, int(offsets.diff().max()), total, measures)
    return (greedy.conditional_dpp(problem) >= 0).nonzero()[:, 0]


SHAPES = {
    "regular": (9,) * 30,
    "tokens alone": (1,) * 70,
    "one frame": (12,),
    "one token": (1,),
    "one frame above the bound": (3, 50, 3, 3),
    "irregular": (7, 7, 3, 12, 12, 12, 5, 1, 1, 30, 45, 2, 9, 9, 9, 9, 9),
}


@pytest.mark.parametrize("frames", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", ["scenes", "independent", "equal"])
def test_the_running_centre_gives_the_tokens_of_the_reference_however_the_video_is_cut(
    frames: tuple[int, ...], kind: str
) -> None:
    n = sum(frames)
    x = independent(n, 16, n, torch.float32)
    if kind == "scenes":
        x = video_like(n, 1, 16, 3, torch.float32, cuts=(20, 90)) + x * 0.02
    if kind == "equal":
        x = x[:1].expand(n, -1) + 0.0
    for keep in (1e-9, 0.3, 1.0):  # K = 1, ..., K = N
        true = expected(x, frames, keep)
        for seed in range(2):
            assert torch.equal(chunked(default(keep), x, frames, seed).kept, true)


METHODS = [
    (SceneRuns(max_tokens=40), MarginalGain(), Contrast(), ConditionalDPP()),
    (SceneRuns(0.3, max_frames=3), MarginalGain(0), Novelty(), MMR()),
    (PerFrame(), Proportional(), Flat(), ConditionalDPP()),
    (PerFrame(), MarginalGain(), Novelty(), MaxMin()),
    (Uniform(4), Proportional(), Contrast(), MaxMin()),
    (Uniform(5), MarginalGain(), Flat(), Hybrid(30)),
    (Within(60), Proportional(), Novelty(), TopRelevance()),
    (Within(60), MarginalGain(), Contrast(), ConditionalDPP()),
]


@pytest.mark.parametrize("parts", METHODS, ids=repr)
def test_the_true_centre_gives_the_tokens_of_one_shot(parts: tuple[object, ...]) -> None:
    frames = (8,) * 40
    x = video_like(40, 8, 16, 5, torch.float32, cuts=(7, 11, 30))
    for keep in (0.05, 0.1, 0.25):
        method = Prune(keep, *parts)  # type: ignore[arg-type]
        true = method.reduce(VideoTokens(x, frames)).kept
        found = chunked(method, x, frames, int(100 * keep), centre=x.mean(0))
        assert torch.equal(found.kept, true)
        assert found.capped == 0


def test_a_half_precision_video_is_cut_alike() -> None:
    x = video_like(60, 9, 64, 2, torch.bfloat16, cuts=(20, 44))
    kept = [chunked(default(0.1), x, (9,) * 60, seed).kept for seed in range(4)]
    assert all(torch.equal(some, kept[0]) for some in kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("selector", [ConditionalDPP(), MMR(), MaxMin(), TopRelevance(), Hybrid(25)], ids=repr)
def test_picks_do_not_depend_on_the_budget_not_even_beyond_the_rank(selector: object, dtype: torch.dtype) -> None:
    x = independent(60, 8, 0, dtype)  # rank 8
    x[10:14], x[30] = x[3], 0
    tokens, segments = VideoTokens(x, (1,) * 60), Segments(torch.tensor([0, 40, 60]), 40)
    stats, r = measure(tokens), 0.5 + 0.5 * torch.rand(60, generator=torch.Generator().manual_seed(0))
    pick = lambda a, b: selector(  # type: ignore[operator]  # noqa: E731
        SelectionProblem(tokens, stats, segments, torch.tensor([a, b]), r, a + b)
    )
    every = pick(40, 20)
    for a, b in ((0, 1), (1, 20), (7, 3), (9, 9), (23, 0), (39, 13)):
        few = torch.where(every < torch.tensor([a] * 40 + [b] * 20), every, -1)
        assert torch.equal(pick(a, b), few)


def test_what_is_not_held_goes_to_others_and_is_counted() -> None:
    """One segment of five changes; of the others little is new, so it is due far more than its length."""
    x = video_like(50, 8, 32, 1, torch.float32)
    x[:80] = independent(80, 32, 4, torch.float32)
    method = Prune(0.2, Uniform(10), MarginalGain(0.1))
    free, tight = (chunked(method, x, (8,) * 50, 0, hold) for hold in (50, 1))
    counts = torch.bincount(tight.segment, minlength=5)
    assert free.capped == 0
    assert tight.capped == int(torch.bincount(free.segment)[0]) - 17  # 16 are its share by length, and one
    assert counts[0] == 17
    assert counts.sum() == 80


def test_no_more_is_held_than_promised() -> None:
    x = video_like(200, 9, 16, 3, torch.float32, cuts=tuple(range(5, 200, 13)))
    selector = ChunkedPrune(default(0.1), len(x), hold=2.0)
    for i, part in enumerate(x.split(18)):
        selector.add(part, (9, 9))
        held, segments = sum(len(rows.kept) for rows in selector._rows), sum(map(len, selector._lengths))
        assert held <= 2 * 0.1 * 18 * (i + 1) + 2 * segments
        waiting = selector._chunks._tokens
        assert waiting is not None
        assert len(waiting) <= MOST
    assert len(selector.finish()) == 180


def test_picks_that_can_stay_no_more_are_dropped_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART", 1)
    frames, x = (9,) * 200, video_like(200, 9, 16, 3, torch.float32, cuts=tuple(range(5, 200, 13)))
    method = default(0.3)
    selector, most = ChunkedPrune(method, len(x)), 0
    for part in x.split(18):
        selector.add(part, (9, 9))
        most = max(most, sum(len(rows.kept) for rows in selector._rows))
    assert 540 < most < 1.4 * 540  # of 2 * 540
    selection = selector.finish()
    monkeypatch.setattr(module, "at_most", lambda *arguments: arguments[-1])  # nothing is dropped
    whole = chunked(method, x, frames, 0, 2.0)
    assert torch.equal(selection.kept, whole.kept)
    assert torch.equal(selection.step, whole.step)
    for name in ("kept", "features", "step", "segment"):
        assert torch.equal(getattr(selection.spare, name), getattr(whole.spare, name))


@pytest.mark.parametrize("weighed", [False, True], ids=["by length", "by gain"])
def test_no_segment_gets_more_than_its_bound_whatever_follows(weighed: bool) -> None:
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    for _ in range(100):
        count = rng.randint(1, 25)
        lengths = torch.randint(1, rng.choice([2, 10, 60, 400]) + 1, (count,), generator=generator)
        gains = None
        if weighed:
            gains = torch.rand(count, generator=generator).pow(rng.choice([0.5, 1, 4, 12])) * lengths
            gains[torch.rand(count, generator=generator) < rng.choice([0, 0, 0.5, 1])] = 0
        n, floor = int(lengths.sum()), rng.choice([0.0, 0.3, 0.6, 1.0]) if weighed else 0.0
        total = kept_count(rng.choice([0.01, 0.05, 0.1, 0.3, 0.6, 0.9, 1.0]), n)
        share = rng.choice([1, 1.3, 2, 5, 50]) * total / n * lengths.double()
        held = torch.minimum(share.ceil().long() + 1, lengths)
        budget, _ = within_held(total, lengths, gains, floor, held)
        for end in range(1, count + 1):
            known = None if gains is None else gains[:end]
            bound = at_most(total, n, lengths[:end], known, floor, held[:end])
            assert (budget[:end] <= bound).all()
            assert (bound <= held[:end]).all()


def test_what_is_held_is_freed_while_the_selection_is_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART", 1)
    monkeypatch.setattr(module, "at_most", lambda *arguments: arguments[-1])  # nothing is dropped before
    x = video_like(200, 9, 16, 3, torch.float32, cuts=tuple(range(5, 200, 13)))
    selector = ChunkedPrune(default(0.1), len(x))
    for part in x.split(18):
        selector.add(part, (9, 9))
    selector._hold_ended(everything=True)
    made = [(len(rows.kept), weakref.ref(rows.features)) for rows in selector._rows]
    alive = []

    def watched(name: str) -> None:
        make = getattr(Rows, name)

        def making(*args: object) -> Rows:
            alive.append(sum(count for count, there in made if there() is not None))
            rows: Rows = make(*args)
            made.append((len(rows.kept), weakref.ref(rows.features)))
            return rows

        monkeypatch.setattr(Rows, name, making)

    for name in ("take", "join", *(("new",) if hasattr(Rows, "new") else ())):
        watched(name)
    assert len(selector.finish()) == 180
    assert alive[0] >= 1.9 * 180  # what was held
    assert alive[-1] < 1.6 * 180  # the selection, and the last part


def test_a_smaller_selection_is_that_of_one_shot_at_every_count() -> None:
    frames = (9,) * 30
    x = video_like(30, 9, 16, 6, torch.float32, cuts=(5, 17))
    selection = chunked(default(0.4), x, frames, 0, centre=x.mean(0))
    segments = len(selection.lengths)
    stored = selection
    for total in range(len(selection) - 1, segments - 1, -1):
        keep = total / len(x)
        true = default(keep).reduce(VideoTokens(x, frames)).kept
        for found in (selection.at(keep), stored := stored.at(keep)):  # from the first, and from the one before
            assert torch.equal(found.kept, true)
            assert torch.equal(found.features, x[true])
            assert torch.equal(found.others["deepstack"][0, :, 0], true.float())
    assert selection.at(0.4) is selection


def test_a_smaller_total_may_round_up_what_a_larger_one_rounded_down() -> None:
    """Largest remainders of 6 : 6 : 2 are 5, 5, 1 of eleven and 4, 4, 2 of ten: the paradox of Alabama."""
    frames, x = (60, 60, 20), independent(140, 16, 0, torch.float32)
    method = Prune(11 / 140, PerFrame(), Proportional(), Flat())
    selection = chunked(method, x, frames, 0)
    assert torch.bincount(selection.segment).tolist() == [5, 5, 1]
    fewer = selection.at(10 / 140)
    assert torch.bincount(fewer.segment).tolist() == [4, 4, 2]
    assert torch.equal(fewer.kept, replace(method, keep=10 / 140).reduce(VideoTokens(x, frames)).kept)
    with pytest.raises(BudgetError, match=r"of the 10 tokens .* of 3 segments, 1 are not held"):
        replace(selection, spare=None).at(10 / 140)


def test_a_smaller_selection_is_refused_where_it_would_not_be_that_of_one_shot() -> None:
    x = independent(80, 16, 0, torch.float32)
    x[8:] = x[8:16].repeat(9, 1)
    selection = chunked(Prune(0.25, PerFrame(), MarginalGain(0), Flat()), x, (8,) * 10, 0)
    with pytest.raises(BudgetError, match=r"keep=0\.3 of 80 tokens is 24, and 20 are held"):
        selection.at(0.3)
    # Of fewer tokens than segments not each gets one, so those that change get more than before.
    small = selection.at(10 / 80)
    with pytest.raises(BudgetError, match=r"of 10 segments, . are not held; select with that keep"):
        small.at(9 / 80)
    with pytest.raises(ValueError, match="keep is the fraction"):
        selection.at(0)


REFUSED: dict[str, tuple[Reducer, str]] = {
    "cdpruner": (presets.cdpruner(0.1), r"PromptSimilarity\(\)"),
    "divprune": (presets.divprune(0.1), r"Whole\(\)"),
    "uniform": (presets.uniform(0.1), r"Whole\(\)"),
    "fewer frames": (presets.fewer_frames(0.1), r"WholeFrames\(\)"),
    "vidcom2": (presets.vidcom2(0.1), r"Uniqueness\(\)"),
    "framefusion": (presets.framefusion(0.5), "Staged"),
    "flashvid": (presets.flashvid(0.1), "FlashVid"),
    "given": (Prune(0.1, PerFrame(), relevance=Given(torch.ones(4))), "Given"),
    "low rank": (Prune(0.1, PerFrame(), selector=LowRankDPP()), "LowRankDPP"),
    "of all scenes": (Prune(0.1, PerFrame(), selector=DistinctFirst()), "DistinctFirst"),
    "merger": (Prune(0.1, PerFrame(), merger=NearestKept()), "NearestKept"),
}


@pytest.mark.parametrize(("method", "named"), REFUSED.values(), ids=REFUSED)
def test_what_needs_the_whole_video_is_refused_by_name(method: Reducer, named: str) -> None:
    with pytest.raises(WrongArgument, match=named) as refused:
        in_chunks(method)
    assert "expected" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_part_of_ones_own_declares_that_it_needs_no_look_at_the_rest() -> None:
    class Mine(MMR):
        pass

    with pytest.raises(WrongArgument, match="Mine"):
        in_chunks(Prune(0.1, PerFrame(), selector=Mine()))
    Mine.chunks = True  # type: ignore[misc]
    assert in_chunks(Prune(0.1, PerFrame(), selector=Mine())).selector == Mine()


def test_the_default_fills_its_scenes_instead_of_splitting_them_evenly() -> None:
    method = in_chunks(presets.vidsieve(0.1))
    assert method == Prune(0.1, SceneRuns(), MarginalGain(0.6), Contrast(0.9), ConditionalDPP())
    assert in_chunks(method) == method
    assert in_chunks(Prune(0.1, SceneCuts(0.2, 5, 90))).segmenter == SceneRuns(0.2, 5, 90)
    with pytest.raises(WrongArgument, match=r"SceneCuts.* splits a long scene evenly"):
        ChunkedPrune(presets.vidsieve(0.1), 10)  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused_and_adds_nothing() -> None:
    frames, x = (9,) * 12, video_like(12, 9, 16, 0, torch.float32, cuts=(4,))
    selector = ChunkedPrune(default(0.2), len(x), 50.0)
    more = {"deepstack": torch.zeros(2, 27, 3)}
    selector.add(x[:27], (9,) * 3, more)
    bad = x[27:54].clone()
    bad[5, 3] = float("nan")
    with pytest.raises(NonFiniteFeatures, match="1 of 27 video tokens hold NaN"):
        selector.add(bad, (9,) * 3, more)
    with pytest.raises(WrongArgument, match="expected features like the float32"):
        selector.add(x[27:54].double(), (9,) * 3, more)
    with pytest.raises(WrongArgument, match=r"expected \['deepstack'\] beside the features as before, got \[\]"):
        selector.add(x[27:54], (9,) * 3)
    with pytest.raises(WrongArgument, match=r"expected deepstack \(layers, 27, D\)"):
        selector.add(x[27:54], (9,) * 3, {"deepstack": torch.zeros(2, 26, 3)})
    with pytest.raises(ValueError, match="expected tokens per frame"):
        selector.add(x[27:54], (9,) * 4, more)
    with pytest.raises(BudgetError, match="expected 108 tokens, got 135"):
        selector.add(x, frames, {"deepstack": torch.zeros(2, 108, 3)})
    with pytest.raises(BudgetError, match="expected 108 tokens, got 27; add the rest"):
        selector.finish()
    selector.add(x[27:], (9,) * 9, {"deepstack": torch.zeros(2, 81, 3)})
    assert torch.equal(selector.finish().kept, expected(x, frames, 0.2))
    for late in (selector.finish, lambda: selector.add(x, frames)):
        with pytest.raises(WrongArgument, match="the selection is finished"):
            late()


def test_arguments_that_make_no_sense() -> None:
    for total, hold in ((0, 2.0), (2.5, 2.0), (10, 0.9)):
        with pytest.raises(ValueError, match="at least 1"):
            ChunkedPrune(default(0.1), total, hold)  # type: ignore[arg-type]
    x = independent(12, 8, 0, torch.float32)
    with pytest.raises(WrongArgument, match=r"expected a centre \(8,\), got float32\(7,\)"):
        ChunkedPrune(default(0.1), 12, centre=torch.zeros(7)).add(x, (4, 4, 4))
    for sizes in ((3, 3, 6), (5, 5, 2)):
        with pytest.raises(WrongArgument, match="Within needs the number of frames, of equal size"):
            ChunkedPrune(Prune(0.5, Within(8)), 12).add(x, sizes)
