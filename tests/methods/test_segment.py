"""Segmenters: where a video is cut, worked by hand and on a real clip."""

import os
from pathlib import Path

import pytest
import torch

from tests.synthetic import independent, video_like
from vidsieve import VideoTokens
from vidsieve.methods import presets
from vidsieve.methods.measure import measure
from vidsieve.methods.segment import PerFrame, SceneCuts, SceneRuns, Uniform, Within
from vidsieve.types.segments import Segments
from vidsieve.video.decode import read_video


def bounds(segments: Segments) -> list[int]:
    return sorted(set(segments.offsets.tolist()))


def test_scene_cuts_finds_cuts_and_splits_long_scenes_evenly() -> None:
    tokens = VideoTokens.from_grid(video_like(20, 8, 64, seed=0, cuts=(3, 12)), 20, 2, 4)
    stats = measure(tokens, {"persistence"})
    assert bounds(SceneCuts(max_tokens=None)(tokens, stats)) == [0, 24, 96, 160]
    # 3 + 9 + 8 frames in parts of at most 4: 3, 3 + 3 + 3, 4 + 4
    assert bounds(SceneCuts(max_frames=4)(tokens, stats)) == [8 * t for t in (0, 3, 6, 9, 12, 16, 20)]


def test_uniform_segments_end_with_the_rest() -> None:
    tokens = VideoTokens(independent(14, 4, 0), (2,) * 7)
    assert bounds(Uniform(3)(tokens)) == [0, 6, 12, 14]
    assert bounds(Uniform(100)(tokens)) == [0, 14]


def test_frames_of_different_sizes() -> None:
    tokens = VideoTokens(independent(10, 4, 0), (2, 3, 5))
    assert bounds(PerFrame()(tokens)) == [0, 2, 5, 10]
    assert tokens.frame.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2, 2]
    assert not tokens.regular
    assert len(presets.vidsieve(0.5).reduce(tokens)) == 5


@pytest.mark.skipif("VIDSIEVE_CLIPS" not in os.environ, reason="VIDSIEVE_CLIPS names no folder of real clips")
def test_scene_cuts_finds_the_cuts_of_a_real_clip() -> None:
    frames = read_video(Path(os.environ["VIDSIEVE_CLIPS"]) / "cuts_60s_480p.mp4", num_frames=64, size=(224, 224))
    patches = frames.pixels.float().reshape(64, 14, 16, 14, 16, 3).permute(0, 1, 3, 2, 4, 5).reshape(64 * 196, -1)
    tokens = VideoTokens.from_grid(patches, 64, 14, 14)
    found = bounds(SceneCuts(max_tokens=None)(tokens, measure(tokens, {"persistence"})))[1:-1]
    true = [5.0, 10.0, 25.04, 31.04, 43.04, 55.04]
    seconds = torch.tensor(frames.seconds)
    expected = [196 * int((seconds < cut - 1e-3).sum()) for cut in true]
    assert len(found) == len(expected)
    assert all(abs(a - b) <= 196 for a, b in zip(found, expected, strict=True))


def test_runs_of_frames_within_a_bound_of_tokens() -> None:
    video = VideoTokens(independent(130, 8, 0, torch.float32), (10,) * 13)
    for bound, frames in ((1000, 13), (130, 13), (129, 7), (50, 5), (9, 1)):
        segments = Within(bound)(video)
        assert segments.longest == 10 * frames
        assert int(segments.lengths.max()) == 10 * frames
        assert int(segments.lengths.sum()) == 130
    with pytest.raises(ValueError, match="at least 1 a segment"):
        Within(0)


def test_scene_runs_fill_one_segment_after_another() -> None:
    tokens = VideoTokens.from_grid(video_like(20, 8, 64, seed=0, cuts=(3, 12)), 20, 2, 4)
    stats = measure(tokens, {"persistence"})
    # 3 + 9 + 8 frames in runs of at most 4: 3, 4 + 4 + 1, 4 + 4
    for runs in (SceneRuns(max_frames=4), SceneRuns(max_tokens=39), SceneRuns(max_frames=4, max_tokens=None)):
        assert bounds(runs(tokens, stats)) == [8 * t for t in (0, 3, 7, 11, 12, 16, 20)]
        assert runs(tokens, stats).longest == 32
    with pytest.raises(ValueError, match="a run needs a bound"):
        SceneRuns(max_tokens=None)


def test_scene_runs_of_frames_of_different_sizes() -> None:
    frames = (5, 5, 9, 2, 2, 2, 2, 20, 1, 1)
    tokens = VideoTokens(independent(1, 8, 0).expand(sum(frames), -1), frames)  # one scene after the first frame
    stats = measure(tokens, {"persistence"})
    assert bounds(SceneRuns(-1, max_tokens=12)(tokens, stats)) == [0, 10, 21, 27, 47, 49]
    assert bounds(SceneRuns(-1, max_frames=3, max_tokens=12)(tokens, stats)) == [0, 10, 21, 27, 47, 49]
    assert bounds(SceneRuns(-1, max_frames=2)(tokens, stats)) == [0, 10, 21, 25, 47, 49]
    assert SceneRuns(-1, max_tokens=12)(tokens, stats).longest == 20
