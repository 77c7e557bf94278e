"""Published methods against their published code: transformers' own, or the rule written out again from it."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.synthetic import video_like
from vidsieve import VideoTokens
from vidsieve.methods import presets
from vidsieve.methods.merge import TemporalMerge
from vidsieve.methods.presets.evs import evs
from vidsieve.methods.presets.flashvid import diverse
from vidsieve.methods.presets.vidcom2 import vidcom2
from vidsieve.methods.segment import Whole


def drawn(kind: str, frames: int, per_frame: int, seed: int) -> Tensor:
    """Features (T, P, 32)."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(frames, per_frame, 32, generator=g)
    if kind == "equal frames":
        return x[:1].expand_as(x).clone()
    if kind == "pairs of equal frames":
        x[1::2] = x[::2][: len(x[1::2])]
    if kind == "slow":
        x = torch.randn(1, per_frame, 32, generator=g) + 0.1 * x.cumsum(0)
    if kind == "turned round":
        x[1::2] = -x[::2][: len(x[1::2])]
    if kind == "louder":
        x = x[:1] * (1 + torch.arange(frames)[:, None, None]) + 0.01 * x
    if kind == "one frame stands out":
        x = x * 0.1 + torch.randn(32, generator=g)
        x[0] += torch.randn(per_frame, 32, generator=g)
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["noise", "equal frames", "pairs of equal frames", "slow", "turned round", "louder"])
def test_evs_keeps_what_that_of_transformers_keeps(kind: str, dtype: torch.dtype) -> None:
    nemotron = pytest.importorskip(
        "transformers.models.nemotron_h_omni.modeling_nemotron_h_omni", reason="transformers has EVS from 5.23"
    )
    for seed, (frames, height, width) in enumerate([(1, 2, 3), (2, 1, 1), (2, 3, 4), (5, 4, 4), (8, 3, 5), (16, 6, 7)]):
        x = drawn(kind, frames, height * width, seed).flatten(0, 1).to(dtype)
        n = len(x)
        for count in sorted({height * width, *range(height * width, n + 1, max(1, n // 12)), n}):
            rate = 1 - (count + 0.5) / n if count < n else 0.0
            # In float32, as ours compares whatever the features are in; in theirs the cosines are rounded to it.
            expected = nemotron.compute_retention_mask(x.float(), frames, rate).nonzero()[:, 0]
            found = evs(count / n).reduce(VideoTokens.from_grid(x, frames, height, width)).kept
            assert torch.equal(found, expected)


def calibrated_max_min(x: Tensor, weight: Tensor, k: int) -> list[int]:
    """The selection of FlashVID's published code: a distance counts as much as the candidate is attended to."""
    n = len(x)
    cosine = F.cosine_similarity(x[:, None], x[None], dim=2)

    def away(candidate: int, others: list[int]) -> float:
        return min(float((1 - cosine[candidate, other]) * weight[candidate]) for other in others)

    picks: list[int] = []
    for _ in range(k):
        scores = {i: away(i, picks or [j for j in range(n) if j != i]) for i in range(n) if i not in picks}
        picks.append(max(scores, key=scores.__getitem__))
    return picks


def test_flashvid_weighs_a_distance_by_the_candidate_alone() -> None:
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        x, weight = torch.randn(16, 8, generator=g).double(), torch.rand(16, generator=g).double()
        assert diverse(F.normalize(x, dim=1), weight, 7).tolist() == calibrated_max_min(x, weight, 7)


def vidcom2_scores(x: Tensor, keep: float) -> tuple[Tensor, Tensor]:
    """Closeness (T, P) and unrounded counts (T,), by VidCom2's published code for frames x (T, P, D)."""
    rows = x.flatten(0, 1)
    calm = rows.var(0, unbiased=False).topk(x.shape[2] // 2, largest=False).indices
    unit = F.normalize(x[..., calm], dim=2)
    video, frame = (
        sum(torch.exp(-(unit - mean).square().sum(2) / (2 * 2.0**k)) for k in range(-3, 2))
        for mean in (unit.mean((0, 1)), unit.mean(1, keepdim=True))
    )
    assert isinstance(video, Tensor)
    share = torch.softmax(-video.mean(1) / 0.01, 0)
    return video + frame, (keep * (1 + share - share.mean())).clamp(max=1) * x.shape[1]


@pytest.mark.parametrize("kind", ["noise", "slow", "one frame stands out", "scenes"])
def test_vidcom2_keeps_what_the_published_code_keeps_where_its_rounded_counts_add_up(kind: str) -> None:
    equal = 0
    for seed in range(3):
        for frames, per_frame in ((1, 12), (4, 12), (8, 16), (16, 49)):
            x = drawn(kind, frames, per_frame, seed)
            if kind == "scenes" and frames > 1:
                x = video_like(frames, per_frame, 32, seed, torch.float32, cuts=(frames // 2,)).view_as(x)
            for keep in (0.125, 0.25, 0.5, 0.75):
                closeness, quota = vidcom2_scores(x, keep)
                rounded = quota.round().long().clamp(min=1)
                kept = vidcom2(keep).reduce(VideoTokens.from_grid(x.flatten(0, 1), frames, 1, per_frame)).kept
                counts = torch.bincount(kept // per_frame, minlength=frames)
                if int(rounded.sum()) == len(kept):
                    assert torch.equal(counts, rounded)
                    equal += 1
                elif quota.max() < per_frame:  # else the others also get what a full frame cannot take
                    assert (counts - quota).abs().max() < 1
                lowest = [closeness[t].topk(int(k), largest=False).indices.sort().values for t, k in enumerate(counts)]
                assert torch.equal(kept, torch.cat([t * per_frame + i for t, i in enumerate(lowest)]))
    assert equal >= 8


def framefusion_step(x: Tensor, cost: float) -> tuple[list[int], bool]:
    """The first step of FrameFusion's published code on frames x (T, P, D), at its defaults.

    Of each token the one that takes it in, itself if none; and whether the budget ended the merging, and all pruning.
    """
    frames, per_frame, _ = x.shape
    cosine = F.cosine_similarity(x[1:], x[:-1], dim=2).flatten()  # of a token from the second frame on
    joins = cosine >= 0.6
    at_budget = int(joins.sum()) / (frames * per_frame) >= 1 - cost
    if at_budget:
        joins = torch.zeros_like(joins).index_fill_(0, cosine.topk(int((1 - cost) * frames * per_frame)).indices, True)
    head = list(range(frames * per_frame))
    for i in range(per_frame, frames * per_frame):
        if joins[i - per_frame]:
            head[i] = head[i - per_frame]
    return head, at_budget


def drifting(drift: float, seed: int) -> Tensor:
    """8 frames of 16 tokens (T, P, 32), each the one before it and up to `drift` times as much of something new."""
    g = torch.Generator().manual_seed(seed)
    frames = [torch.randn(16, 32, generator=g)]
    for _ in range(7):
        new = drift * torch.rand(16, 1, generator=g) * torch.randn(16, 32, generator=g)
        frames.append(F.normalize(frames[-1] + new, dim=1) * 32**0.5)
    return torch.stack(frames)


@pytest.mark.parametrize("drift", [3.0, 6.0])
def test_framefusion_merges_what_the_published_code_merges_within_the_budget(drift: float) -> None:
    for seed in range(5):
        x = drifting(drift, seed)
        head, at_budget = framefusion_step(x, cost=0.3)
        assert not at_budget
        reduction = framefusion_merge().reduce(VideoTokens.from_grid(x.flatten(0, 1), 8, 4, 4))
        assert reduction.kept[reduction.assigned_to].tolist() == head


@pytest.mark.parametrize("drift", [0.1, 0.5, 1.0])
def test_framefusion_merges_on_where_the_published_code_stops_at_the_budget(drift: float) -> None:
    for seed in range(5):
        x = drifting(drift, seed)
        tokens = VideoTokens.from_grid(x.flatten(0, 1), 8, 4, 4)
        head, at_budget = framefusion_step(x, cost=0.3)
        assert at_budget
        assert len(set(head)) == 39  # of 128, 70 % join
        assert set(framefusion_merge().reduce(tokens).kept.tolist()) < set(head)
        stopped = TemporalMerge(keep=39 / 128, segmenter=Whole()).reduce(tokens)  # what to write to stop there
        assert stopped.kept[stopped.assigned_to].tolist() == head


def test_framefusion_leaves_what_the_published_code_merges_last() -> None:
    x = drifting(60.0, seed=0)
    head, _ = framefusion_step(x, cost=0.3)
    assert 0.9 * 128 < len(set(head)) < 128
    assert len(framefusion_merge().reduce(VideoTokens.from_grid(x.flatten(0, 1), 8, 4, 4))) == 128


def framefusion_merge() -> TemporalMerge:
    merge = presets.framefusion(0.3).stages[0]
    assert isinstance(merge, TemporalMerge)
    return replace(merge, segmenter=Whole())  # the published code knows no cuts
