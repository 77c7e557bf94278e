"""Merging along time: hand-worked cases, the float64 truth, and true counts through every later merge."""

import pytest
import torch

from tests.synthetic import independent, never_waiting, video_like
from vidsieve import Chain, Prune, Reduction, VideoTokens, ops
from vidsieve.methods.budget import MarginalGain, Proportional
from vidsieve.methods.measure import cut, measure
from vidsieve.methods.merge import NearestKept, TemporalMerge
from vidsieve.methods.segment import PerFrame, SceneCuts, Segmenter, Uniform, Whole
from vidsieve.types.segments import Segments
from vidsieve.types.tokens import Provenance


def line(*values: float) -> torch.Tensor:
    """One token a frame, at these angles in degrees: (T, 2)."""
    angles = torch.deg2rad(torch.tensor(values))
    return torch.stack([angles.cos(), angles.sin()], 1)


def test_a_run_becomes_its_mean_and_ends_where_a_token_differs() -> None:
    x = line(0, 10, 20, 90, 95, 0)
    reduction = TemporalMerge(0.9, Whole()).reduce(VideoTokens(x, (1,) * 6))
    assert reduction.kept.tolist() == [0, 3, 5]
    assert reduction.assigned_to.tolist() == [0, 0, 0, 1, 1, 2]
    torch.testing.assert_close(reduction.apply(x), torch.stack([x[:3].mean(0), x[3:5].mean(0), x[5]]))


@pytest.mark.parametrize("frames", range(2, 34))
def test_a_run_of_any_length_is_one_token(frames: int) -> None:
    tokens = VideoTokens(torch.ones(frames, 2), (1,) * frames)
    assert TemporalMerge(1.0, Whole()).reduce(tokens).assigned_to.tolist() == [0] * frames  # a cosine of 1 is enough


def test_what_it_does_by_default() -> None:
    assert TemporalMerge() == TemporalMerge(0.6, SceneCuts(0.5, max_tokens=None), least=0.0)
    assert len(TemporalMerge().reduce(VideoTokens(torch.ones(20, 2), (1,) * 20))) == 1


def test_keep_is_a_share_of_the_video_as_it_came() -> None:
    tokens = VideoTokens(torch.randn(10, 4), (1,) * 10)
    left = tokens.reduced(Reduction.select(torch.arange(0, 10, 2), 10))
    assert len(TemporalMerge(keep=0.4, segmenter=Whole()).reduce(left)) == 4


def test_least_is_a_share_of_what_is_left() -> None:
    tokens = VideoTokens(line(0, 90, 0, 0, 90, 0, 90, 0, 90, 0), (1,) * 10)
    left = tokens.reduced(Reduction.select(torch.tensor([0, 1, 2, 3, 4]), 10))
    assert len(TemporalMerge(0.9, Whole(), least=0.2).reduce(left)) == 4  # one of five joins
    assert len(TemporalMerge(0.9, Whole(), least=0.21).reduce(left)) == 5


def test_counts_outlast_a_pruning_between_merges() -> None:
    tokens = VideoTokens(torch.randn(6, 4), (1,) * 6)
    merged = tokens.reduced(Reduction(torch.tensor([0, 3, 4]), torch.tensor([0, 0, 0, 1, 2, 2]), merges=True))
    pruned = merged.reduced(Reduction.select(torch.tensor([0, 2]), 3))
    assert pruned.multiplicity is not None
    assert pruned.multiplicity.tolist() == [3, 2]


def test_neighbours_in_a_run_are_compared_and_not_its_ends() -> None:
    x = line(0, 40, 80, 120)  # each within 40 degrees of the one before, the last opposite to the first
    assert len(TemporalMerge(0.7, Whole()).reduce(VideoTokens(x, (1,) * 4))) == 1


def test_no_merge_across_a_segment_border() -> None:
    x = line(0, 0, 0, 0, 0, 0)
    assert TemporalMerge(0.6, Uniform(4)).reduce(VideoTokens(x, (1,) * 6)).assigned_to.tolist() == [0, 0, 0, 0, 1, 1]
    tokens = VideoTokens.from_grid(video_like(8, 9, 64, seed=0, cuts=(3,), motion=0.01), 8, 3, 3)
    reduction = TemporalMerge(0.6).reduce(tokens)
    assert reduction.kept.tolist() == [*range(9), *range(27, 36)]


def test_each_place_has_its_own_runs() -> None:
    left, right = line(0, 0, 90), line(45, 45, 45)
    x = torch.stack([left, right], 1).reshape(-1, 2)  # three frames of two tokens
    reduction = TemporalMerge(0.9, Whole()).reduce(VideoTokens(x, (2,) * 3))
    assert reduction.assigned_to.tolist() == [0, 1, 0, 1, 2, 1]


def test_frames_of_another_size_share_no_place() -> None:
    x = torch.ones(9, 2)
    assert (
        TemporalMerge(0.6, Whole()).reduce(VideoTokens(x, (2, 3, 2, 2))).assigned_to.tolist()
        == [0, 1, 2, 3, 4] + [0, 1] * 2
    )


def test_zero_vectors_are_alike_and_unlike_anything_else() -> None:
    x = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert TemporalMerge(0.6, Whole()).reduce(VideoTokens(x, (1,) * 4)).assigned_to.tolist() == [0, 0, 1, 2]


def test_nothing_alike_is_the_identity_and_so_is_too_little() -> None:
    x = line(0, 90, 0, 90, 0, 90, 0, 90, 91, 0)
    tokens = VideoTokens(x, (1,) * 10)
    assert not TemporalMerge(0.9, Whole()).reduce(VideoTokens(x[:8], (1,) * 8)).merges
    assert len(TemporalMerge(0.9, Whole(), least=0.1).reduce(tokens)) == 9
    assert len(TemporalMerge(0.9, Whole(), least=0.11).reduce(tokens)) == 10


def test_a_fixed_size_merges_the_most_alike_and_drops_late_runs_only_when_it_must() -> None:
    x = line(0, 1, 30, 32, 120)  # to the one before: 1, 29, 2, 88 degrees
    tokens = VideoTokens(x, (1,) * 5)
    for keep, source in ((0.8, [0, 0, 1, 2, 3]), (0.6, [0, 0, 1, 1, 2]), (0.4, [0, 0, 0, 0, 1]), (0.2, [0] * 5)):
        assert TemporalMerge(keep=keep, segmenter=Whole()).reduce(tokens).assigned_to.tolist() == source
    assert TemporalMerge(keep=0.4, segmenter=Uniform(2)).reduce(tokens).assigned_to.tolist() == [0, 0, 1, 1, -1]


@pytest.mark.parametrize("keep", [None, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("segmenter", [Whole(), Uniform(3), SceneCuts()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_equals_the_truth(
    segmenter: Segmenter, keep: float | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, motion in ((0, 0.3), (1, 0.8), (2, 0.0)):
        check_against_the_truth("eager", segmenter, keep, video_like(9, 6, 32, seed, dtype, (4,), motion), monkeypatch)


@pytest.mark.skipif(bool(ops.available()["triton"]), reason="Triton cannot run here")
@pytest.mark.parametrize(("segmenter", "keep"), [(SceneCuts(), None), (Uniform(3), 0.5)], ids=repr)
def test_on_kernels_too(segmenter: Segmenter, keep: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    x = video_like(9, 6, 32, 0, torch.bfloat16, (4,), 0.6).to("cuda" if torch.cuda.is_available() else "cpu")
    check_against_the_truth("triton", segmenter, keep, x, monkeypatch)


def check_against_the_truth(
    implementation: str, segmenter: Segmenter, keep: float | None, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge, and another of what it left, as the reference has them."""
    method = TemporalMerge(0.9 if keep is None else None, segmenter, keep)
    again = TemporalMerge(0.8 if keep is None else None, segmenter, None if keep is None else keep / 2)
    found = []
    for name in ("reference", implementation):
        monkeypatch.setenv("VIDSIEVE_OPS", name)
        tokens = VideoTokens.from_grid(x, 9, 2, 3)
        once = method.reduce(tokens)
        found.append((once, once.then(again.reduce(tokens.reduced(once)))))
    for true, ours in zip(*found, strict=True):
        assert torch.equal(ours.kept, true.kept)
        assert torch.equal(ours.assigned_to, true.assigned_to)
        torch.testing.assert_close(ours.apply(x), true.apply(x))


def test_a_later_merge_weighs_tokens_by_what_they_stand_for() -> None:
    x = independent(12, 4, 0, torch.float32)
    tokens = VideoTokens(x, (1,) * 12)
    first = Reduction(torch.tensor([0, 5, 9]), torch.tensor([0] * 5 + [1] * 4 + [2, -1, 2]), merges=True)
    second = Reduction(torch.tensor([0, 2]), torch.tensor([0, 0, 1]), merges=True)
    left = tokens.reduced(first)
    assert left.multiplicity is not None
    assert left.multiplicity.tolist() == [5, 4, 2]
    torch.testing.assert_close(second.apply(left.features, left.multiplicity)[0], x[:9].mean(0))
    last = left.reduced(second)
    assert last.multiplicity is not None
    assert last.multiplicity.tolist() == [9, 2]
    torch.testing.assert_close(last.features, first.then(second).apply(x))


def test_what_was_dropped_leaves_a_gap_that_a_later_merge_reaches_over() -> None:
    x = line(0, 90, 0, 45)
    tokens = VideoTokens(x, (1,) * 4).reduced(Reduction.select(torch.tensor([0, 2, 3]), 4))
    assert TemporalMerge(0.9, Whole()).reduce(tokens).assigned_to.tolist() == [0, 0, 1]


def test_segments_of_a_reduced_video_are_those_of_the_video_as_it_came() -> None:
    tokens = VideoTokens.from_grid(video_like(12, 8, 64, seed=0, cuts=(5,)), 12, 2, 4)
    left = tokens.reduced(TemporalMerge(0.9).reduce(tokens))
    assert len(left) < 24
    stats = measure(tokens, {"persistence"})
    segments, _ = cut(left, SceneCuts(), stats)
    whole = SceneCuts()(tokens, stats)
    origin = left.provenance
    assert isinstance(origin, Provenance)
    for s in range(len(segments)):
        a, b = int(segments.offsets[s]), int(segments.offsets[s + 1])
        held = origin.original_index[a:b]
        assert ((held >= whole.offsets[s]) & (held < whole.offsets[s + 1])).all()
    persistence = stats.required("persistence")
    assert torch.equal(measure(left, {"persistence"}).required("persistence"), persistence)
    assert torch.equal(left.from_original(persistence), persistence[origin.original_index])


def test_in_a_chain_every_token_still_counts_once() -> None:
    x = video_like(6, 10, 16, seed=3, dtype=torch.float32)
    tokens = VideoTokens.from_grid(x, 6, 2, 5)
    chain = Chain(TemporalMerge(0.99), Prune(0.1, PerFrame(), Proportional(), merger=NearestKept()))
    reduction = chain.reduce(tokens)
    assert len(reduction) == 6
    for row, mean in enumerate(reduction.apply(x)):
        torch.testing.assert_close(mean, x[reduction.assigned_to == row].mean(0))
    stats = measure(tokens, {"persistence"})
    assert MarginalGain()(tokens, stats, SceneCuts()(tokens, stats), 6).sum() == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [({"threshold": 1.5}, "is a cosine"), ({"keep": 0.0}, r"in \(0, 1\]"), ({"least": 2}, "is a share")],
)
def test_it_refuses_what_makes_no_sense(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TemporalMerge(**options)


@pytest.mark.gpu
def test_a_fixed_size_never_waits_for_the_device() -> None:
    x = video_like(8, 196, 256, seed=0, dtype=torch.bfloat16, cuts=(3,), motion=0.5)
    method = TemporalMerge(keep=0.3)
    expected = method.reduce(VideoTokens.from_grid(x, 8, 14, 14))
    x = x.to("cuda")
    Chain(method, Prune(0.1, SceneCuts(), MarginalGain())).reduce(VideoTokens.from_grid(x, 8, 14, 14))  # compiles
    with never_waiting():
        tokens = VideoTokens.from_grid(x, 8, 14, 14)
        found = method.reduce(tokens)
        Prune(0.1, SceneCuts(), MarginalGain()).reduce(tokens.reduced(found))
    assert len(found) == len(expected)
    same = torch.isin(found.kept.cpu(), expected.kept).float().mean()
    assert same > 0.99  # the rest are ties to bf16


def test_merging_takes_the_true_mean() -> None:
    x = torch.tensor([[2.0, 0.0], [4.0, 0.1], [0.0, 1.0], [6.0, -0.1]])
    reduction = NearestKept()(
        VideoTokens(x, (4,)), Segments(torch.tensor([0, 4]), 4), Reduction.select(torch.tensor([0, 2]), 4)
    )
    assert reduction.assigned_to.tolist() == [0, 0, 1, 0]
    torch.testing.assert_close(reduction.apply(x), torch.tensor([[4.0, 0.0], [0.0, 1.0]]))
    assert reduction.gather(x).tolist() == [[2.0, 0.0], [0.0, 1.0]]
