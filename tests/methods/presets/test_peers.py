"""peers: each rule on tokens small enough to follow it by hand."""

import pytest
import torch
from torch import Tensor

from vidsieve import VideoTokens
from vidsieve.methods import presets
from vidsieve.methods.presets.attention import OwnAttention
from vidsieve.methods.presets.dart import LeastDuplicate, dart
from vidsieve.methods.presets.evs import Change, evs
from vidsieve.methods.presets.flashvid import FlashVid, diverse, rooted
from vidsieve.methods.presets.vidcom2 import Uniqueness, closeness, vidcom2
from vidsieve.methods.presets.visionzip import VisionZip
from vidsieve.methods.relevance import Given
from vidsieve.methods.segment import PerFrame
from vidsieve.types.statistics import UNMEASURED

A, B, C, D = torch.eye(4).unbind()


def video(*frames: list[Tensor]) -> VideoTokens:
    return VideoTokens.from_grid(
        torch.stack([token for frame in frames for token in frame]), len(frames), 1, len(frames[0])
    )


def test_evs_keeps_the_first_frame_and_then_what_changed_most() -> None:
    tokens = video([A, B], [A, -B], [A + B, -B])
    turned = (1 - 2**-0.5) / 4  # the cosine of A and A + B is 1 / sqrt(2)
    torch.testing.assert_close(Change()(tokens, UNMEASURED, None), torch.tensor([1, 1, 0, 0.5, turned, 0]))
    assert evs(0.5).reduce(tokens).kept.tolist() == [0, 1, 3]
    assert evs(4 / 6).reduce(tokens).kept.tolist() == [0, 1, 3, 4]
    assert evs(1 / 6).reduce(tokens).kept.tolist() == [0]


def test_evs_refuses_frames_of_different_sizes() -> None:
    with pytest.raises(ValueError, match="same number of tokens"):
        evs(0.5).reduce(VideoTokens(torch.randn(5, 4), (2, 3)))


def test_vidcom2_measures_the_distance_to_both_means() -> None:
    # Features 2 and 3 never vary, so they are the calm half: two unit vectors, (1, 0) and (0.6, 0.8), decide.
    calm = torch.tensor([[1, 0.0], [1, 0], [1, 0], [1, 0]])
    wild = torch.tensor([[9.0, -9], [-9, 9], [5, 5], [-5, -5]])
    tokens = VideoTokens.from_grid(torch.cat((wild, calm), dim=1), 2, 1, 2)
    assert torch.equal(closeness(tokens)[0], torch.full((4,), 5.0))  # all at the mean: five Gaussians of 1
    moved = calm.clone()
    moved[3] = torch.tensor([0.6, 0.8])
    tokens = VideoTokens.from_grid(torch.cat((wild, moved), dim=1), 2, 1, 2)
    mean = torch.tensor([0.9, 0.2])
    expected = sum(torch.exp(-(moved - mean).square().sum(1) / (2 * a)) for a in (0.125, 0.25, 0.5, 1, 2))
    torch.testing.assert_close(closeness(tokens)[0], expected)
    frame = torch.tensor([[1, 0.0], [1, 0], [0.8, 0.4], [0.8, 0.4]])
    expected = sum(torch.exp(-(moved - frame).square().sum(1) / (2 * a)) for a in (0.125, 0.25, 0.5, 1, 2))
    torch.testing.assert_close(closeness(tokens)[1], expected)
    # The second frame stands out, and at this temperature takes all of the bonus: shares 0.5 and 1.5, of 2.
    assert Uniqueness()(tokens, UNMEASURED, PerFrame()(tokens), 2).tolist() == [1, 1]  # no frame goes without
    assert vidcom2(0.75).reduce(tokens).kept.tolist() == [0, 2, 3]


def test_visionzip_gathers_what_the_dominant_tokens_leave() -> None:
    tokens = video([A, B, C, D, A + 0.1 * B, D + 0.1 * C])
    attention = Given(torch.tensor([0.1, 0.9, 0.8, 0.1, 0.1, 0.1]))
    found = VisionZip(4 / 6, contextual=0.5, attention=attention).reduce(tokens)
    # Dominant: 1 and 2. Of 0, 3, 4, 5, every second is a centre: 0 and 4. 3 and 5 are equally unlike both, 0 is first.
    assert found.kept.tolist() == [0, 1, 2, 4]
    assert found.assigned_to.tolist() == [0, 1, 2, 0, 3, 0]
    torch.testing.assert_close(found.apply(tokens.features)[0], (A + 2 * D + 0.1 * C) / 3)
    assert torch.equal(found.apply(tokens.features)[1], B)  # a dominant token absorbs nothing


def test_dart_takes_what_resembles_each_pivot_least() -> None:
    x = torch.stack((3 * A, 3 * A + 0.3 * B, 2 * B, 0.5 * A + 0.1 * C, -A, C))
    # Pivots by L1 norm: 1 (3.3), then 0 (3.0). Pivot 1 takes 4 (cosine -0.995), pivot 0 then 2 (0, and before 5).
    order = LeastDuplicate(pivots=2)._pick(x, 4)
    assert order.tolist() == [1, 0, 3, -1, 2, -1]
    assert LeastDuplicate(pivots=2)._pick(x, 1).tolist() == [-1, 0, -1, -1, -1, -1]
    assert LeastDuplicate(pivots=2)._pick(x, 5).tolist() == [1, 0, 4, -1, 2, 3]  # 5 is as unlike as 2 to pivot 0
    assert len(dart(0.5).reduce(VideoTokens.from_grid(x, 2, 1, 3))) == 3


def test_flashvid_picks_what_is_far_apart_and_attended_to() -> None:
    unit = torch.stack((A, (A + 0.1 * B) / 1.01**0.5, C, D))
    # 2 and 3 are the farthest from their nearest neighbours (1), 2 comes first; then 3 at 1, before 0 at the same.
    assert diverse(unit, torch.ones(4), 2).tolist() == [2, 0]
    weight = torch.tensor([0.1, 0.1, 1, 1])
    assert diverse(unit, weight, 2).tolist() == [2, 3]


def test_flashvid_grows_trees_and_keeps_the_largest() -> None:
    # 1 and 2 hang on 0, 4 on 3; 5 and 6 are alone; 6 was selected.
    parent = torch.tensor([0, 0, 1, 3, 3, 5, 6])
    kept = torch.tensor([False] * 6 + [True])
    found = rooted(parent, kept, 2)
    assert found.kept.tolist() == [0, 6]
    assert found.assigned_to.tolist() == [0, 0, 0, -1, -1, -1, 1]
    assert rooted(parent, kept, 3).kept.tolist() == [0, 3, 6]


def test_flashvid_joins_equal_tokens_of_a_scene_and_none_across_a_cut() -> None:
    still = [A, B, C]
    tokens = video(still, still, [-A, -B, -C], [-A, -B, -C])
    found = FlashVid(6 / 12, selected=0.0).reduce(tokens)
    assert found.kept.tolist() == [0, 1, 2, 6, 7, 8]
    assert found.assigned_to.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]


def test_own_attention_is_shared_out_within_each_frame() -> None:
    tokens = video([A, B, C], [A, A, D])
    received = OwnAttention()(tokens, UNMEASURED, None).view(2, 3)
    torch.testing.assert_close(received.sum(1), torch.ones(2))
    torch.testing.assert_close(received[0], torch.full((3,), 1 / 3))
    assert received[1, 0] > received[1, 2]  # two tokens look at what is there twice


@pytest.mark.parametrize("method", [presets.dart, presets.evs, presets.flashvid, presets.vidcom2, presets.visionzip])
def test_every_peer_names_its_paper(method: object) -> None:
    assert method.__doc__ is not None
    assert "What differs:" in method.__doc__
