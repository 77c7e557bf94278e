"""Budgets: how many tokens each segment gets."""

from itertools import pairwise

import pytest
import torch

from tests.synthetic import video_like
from vidsieve import VideoTokens, ops
from vidsieve.methods.budget import MarginalGain, Proportional
from vidsieve.methods.measure import cut, measure
from vidsieve.methods.merge import TemporalMerge
from vidsieve.methods.segment import Uniform, Whole
from vidsieve.types.segments import Segments


def test_a_still_scene_gets_little_more_than_its_first_frame() -> None:
    tokens = VideoTokens.from_grid(video_like(20, 8, 64, seed=0, cuts=(10,), motion=0.0), 20, 2, 4)
    moving = tokens.features.clone()
    moving[80:] = video_like(10, 8, 64, seed=1, cuts=tuple(range(10)))
    tokens = VideoTokens.from_grid(moving, 20, 2, 4)
    segments = Segments(torch.tensor([0, 80, 160]), 80)
    stats = measure(tokens, {"persistence"})
    still, busy = MarginalGain(0)(tokens, stats, segments, 40).tolist()
    assert still + busy == 40
    assert busy > 4 * still
    for floor in (0.25, 0.6, 1.0):  # of its share by length, 20, less what every segment gets
        with_floor, _ = MarginalGain(floor)(tokens, stats, segments, 40).tolist()
        assert with_floor == max(still, round(19 * floor))
    with pytest.raises(ValueError, match=r"floor is a part .* got 1.5"):
        MarginalGain(1.5)
    assert Proportional()(tokens, stats, segments, 40).tolist() == [20, 20]


def test_after_a_merge_a_segment_adds_what_its_tokens_added_to_the_video_as_it_came() -> None:
    """By what is left, all that is left is new to its place: the still scene would count as much as the other."""
    x = video_like(20, 8, 64, seed=0, cuts=(10,), motion=0.0)
    x[80:] = video_like(10, 8, 64, seed=1, motion=0.8)
    tokens = VideoTokens.from_grid(x, 20, 2, 4)
    left = tokens.reduced(TemporalMerge(keep=0.4, segmenter=Whole()).reduce(tokens))
    assert left.original_index is not None
    segments, _ = cut(left, Uniform(10))
    persistence = measure(tokens, {"persistence"}).required("persistence")
    kept = [int(n) for n in segments.offsets]
    gain = [float((1 - persistence[left.original_index[a:b]]).sum()) for a, b in pairwise(kept)]
    expected = ops.apportion(ops.ApportionProblem(torch.tensor(gain), segments.offsets, 25)).tolist()
    assert MarginalGain(0)(left, measure(left, {"persistence"}), segments, 25).tolist() == expected
    anew = measure(VideoTokens(left.features, (len(left),)), {"persistence"}).required("persistence")
    for wrong in (anew, persistence[: len(left)], torch.zeros(len(left))):
        gains = ops.novelty(ops.NoveltyProblem(wrong, segments.offsets))
        assert ops.apportion(ops.ApportionProblem(gains, segments.offsets, 25)).tolist() != expected
