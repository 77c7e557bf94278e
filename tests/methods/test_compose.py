"""Chain and Staged: what a later reducer counts from, and at which layer a stage is."""

import pytest
import torch

from tests.engines.hf.reducers import Loudest
from tests.methods.kept import kept
from tests.synthetic import video_like
from vidsieve import Chain, Prune, Staged, VideoTokens
from vidsieve.methods.budget import Proportional
from vidsieve.methods.merge import TemporalMerge
from vidsieve.methods.relevance import Given, PromptAttention
from vidsieve.methods.segment import PerFrame, Whole
from vidsieve.methods.selection import TopRelevance


def test_in_a_chain_attention_follows_the_tokens_that_are_left() -> None:
    x = torch.tensor([[1.0, 0], [3, 0], [2, 0], [0, 4], [1, 0], [9, 0]])
    mass = torch.tensor([0.9, 0.1, 0.3, 0.2, 0.5, 0.2])
    tokens = VideoTokens(x, (2, 2, 2), attended={"question": mass})
    attended = Prune(1 / 3, Whole(), Proportional(), PromptAttention(), TopRelevance())
    loudest = Prune(2 / 3, Whole(), Proportional(), Given(x.norm(dim=1) / 9), TopRelevance())  # 1, 2, 3, 5
    assert kept(Chain(loudest, attended), tokens) == [2, 3]
    # The first place is alike in all frames: 0, 2 and 4 become one that received (0.9 + 0.3 + 0.5) / 3 = 0.57, not 0.9.
    merged = TemporalMerge(0.9, Whole()).reduce(tokens)
    left = tokens.reduced(merged)
    assert merged.kept.tolist() == [0, 1, 3, 5]
    assert left.attended is not None
    torch.testing.assert_close(left.attended["question"], torch.tensor([1.7 / 3, 0.1, 0.2, 0.2]))


def test_a_fraction_of_the_depth_is_inside_the_model() -> None:
    method = Prune(0.3)
    for place, depth, layer in ((0.01, 28, 1), (1e-9, 80, 1), (0.5, 28, 14), (0.99, 28, 27), (0.0, 28, 0), (0, 28, 0)):
        assert Staged({place: method}).layers(depth) == {layer: method}
    with pytest.raises(ValueError, match=r"two stages at layer 1 of 28, the later one at 0.02"):
        Staged({0.01: method, 0.02: method}).layers(28)
    with pytest.raises(ValueError, match=r"two stages at layer 1 of 28, the later one at 0.01"):
        Staged({1: method, 0.01: method}).layers(28)
    with pytest.raises(ValueError, match="no layer 1 to stage at: this model has 1"):
        Staged({0.5: method}).layers(1)


def test_a_later_stage_counts_from_the_original_video() -> None:
    tokens = VideoTokens(video_like(4, 25, 16, seed=0), (25,) * 4)
    assert len(Chain(Prune(0.5, PerFrame()), Prune(0.1)).reduce(tokens)) == 10


def test_fractions_of_the_depth() -> None:
    stages = Staged({0: Loudest(0.9), 0.25: Loudest(0.8), 0.5: Loudest(0.7), 0.75: Loudest(0.6)})
    assert [tuple(stages.layers(depth)) for depth in (4, 28, 80)] == [(0, 1, 2, 3), (0, 7, 14, 21), (0, 20, 40, 60)]
    assert stages.layers(28)[21] == Loudest(0.6)
    assert [*Staged({0.99: Loudest()}).layers(28)] == [27]
