"""Published methods against their published code: transformers' own, or the rule written out again from it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.synthetic import video_like
from vidsieve import VideoTokens
from vidsieve.methods.presets.evs import evs
from vidsieve.methods.presets.flashvid import diverse
from vidsieve.methods.presets.vidcom2 import vidcom2


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
    # 1 is picked for its weight; 0 is nearly the same, and its being attended to half as much makes it no farther.
    unit = F.normalize(torch.tensor([[1, 0.3, 0], [1, 0, 0], [0, 0, 1], [0.0, 1, 0.2]]), dim=1)
    assert diverse(unit, torch.tensor([0.5, 1, 0.4, 0.3]), 3).tolist()[-1] != 0


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
