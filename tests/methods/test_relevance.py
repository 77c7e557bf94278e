"""Relevances: what weighs most, and what is refused."""

import pytest
import torch

from tests.synthetic import independent
from vidsieve import Prompt, VideoTokens
from vidsieve.methods.measure import measure
from vidsieve.methods.relevance import Contrast, Given, Novelty, PromptSimilarity, min_max
from vidsieve.types.statistics import UNMEASURED


def test_prompt_similarity_prefers_tokens_along_the_question() -> None:
    question = independent(3, 16, 0, torch.float32)
    x = independent(10, 16, 1, torch.float32)
    x[4] = question.mean(0)
    tokens, prompt = VideoTokens(x, (10,)), Prompt(question)
    weights = PromptSimilarity()(tokens, measure(tokens, {"similarity"}, prompt), prompt)
    assert int(weights.argmax()) == 4
    assert float(weights[4]) == 1.0


def test_constant_scores_say_nothing() -> None:
    assert min_max(torch.full((5,), 0.3)).tolist() == [1.0] * 5


def test_relevance_refuses_what_it_cannot_use() -> None:
    tokens = VideoTokens(independent(4, 8, 0), (4,))
    with pytest.raises(ValueError, match="pass a Prompt, or use Flat"):
        PromptSimilarity()(tokens, UNMEASURED, None)
    with pytest.raises(ValueError, match="5 features in the prompt, 8 in the video"):
        PromptSimilarity()(tokens, UNMEASURED, Prompt(torch.ones(2, 5)))
    with pytest.raises(ValueError, match=r"expected one score a token, \(4,\), got \(3,\)"):
        Given(torch.ones(3))(tokens, UNMEASURED, None)
    for bad in (2.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"expected scores in \[0, 1\]"):
            Given(torch.tensor([0.1, 0.2, bad, 0.3]))(tokens, UNMEASURED, None)


def test_what_is_shown_for_a_moment_weighs_most() -> None:
    still, moment, lasts = independent(3, 8, 0, torch.float32)
    place = torch.stack([still] * 6)  # (T, D) at each of three places
    blink, begins = place.clone(), place.clone()
    blink[2], begins[3:] = moment, lasts
    x = torch.stack([place, blink, begins], dim=1)  # (T, 3, D)
    tokens = VideoTokens(x.flatten(0, 1), (3,) * 6)
    weight = Novelty(0.3)(tokens, measure(tokens, {"persistence"}), None).view(6, 3)
    seen = torch.zeros(6, 3, dtype=torch.bool)
    seen[range(6), [0, 1, 2, 0, 1, 2]] = True  # one token of every frame, whatever it shows
    assert (weight[seen] == 1).all()
    assert weight[2, 1] > 0.9
    rest = ~seen
    rest[2, 1] = False
    torch.testing.assert_close(weight[rest], torch.full_like(weight[rest], 0.3), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        Novelty(0)


def test_novelty_of_frames_of_different_sizes_looks_ahead_where_it_can() -> None:
    x = independent(11, 8, 1, torch.float32)
    x[5:8] = x[2:5]  # frames of 2, 3, 3 and 3 tokens; the second and third are alike
    tokens = VideoTokens(x, (2, 3, 3, 3))
    weight = Novelty(0.3)(tokens, measure(tokens, {"persistence"}), None)
    assert weight[[0, 3, 7, 8]].tolist() == [1, 1, 1, 1]  # one of each frame
    torch.testing.assert_close(weight[[2, 4, 5, 6]], torch.full((4,), 0.3), atol=1e-4, rtol=0)


def test_what_changes_in_a_frame_that_stands_still_weighs_more_and_nothing_else_does() -> None:
    still = independent(8, 16, 0, torch.float32)  # (P, D)
    one = torch.stack([still] * 6)
    one[:, 3] = independent(6, 16, 1, torch.float32)  # one place of eight never stays
    for x, novel in ((one, 3), (torch.stack([still] * 6), None), (independent(48, 16, 2, torch.float32), None)):
        tokens = VideoTokens(x.reshape(48, 16), (8,) * 6)
        weight = Contrast(0.8, spread=0)(tokens, measure(tokens, {"persistence"}), None).view(6, 8)
        diagonal = torch.eye(8, dtype=torch.bool)[:6]
        assert (weight[diagonal] == 1).all()
        rest = ~diagonal
        if novel is not None:
            rest[:, novel] = False
            assert (weight[:, novel] > 0.95).all()
            torch.testing.assert_close(weight[rest], torch.full_like(weight[rest], 0.8), atol=1e-4, rtol=0)
    # A moving camera: everything changes, and what changes by chance a little less is at most a little apart.
    assert weight[rest].mean() < 0.87
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        Contrast(0)
    with pytest.raises(ValueError, match=r"knee is a ratio above 0"):
        Contrast(0.8, 0)
    with pytest.raises(ValueError, match=r"spread is a part of the floor, in \[0, 1\]"):
        Contrast(spread=1.1)


def test_the_floor_of_contrast_is_spread_over_places_the_same_whenever_a_video_begins() -> None:
    still = independent(64, 16, 0, torch.float32)
    tokens = VideoTokens(still.repeat(6, 1), (64,) * 6)  # nothing changes, so every token weighs its floor
    weight = Contrast(0.8, spread=0.5)(tokens, measure(tokens, {"persistence"}), None).view(6, 64)
    assert weight.min() >= 0.4
    assert weight[:, 6:].max() <= 0.8
    for run in weight[:, 8:].reshape(-1, 8):  # of places next to one another
        assert run.min() < 0.5
        assert run.max() > 0.7
    later = VideoTokens(still.repeat(4, 1), (64,) * 4, first_frame=2)
    part = Contrast(0.8, spread=0.5)(later, measure(later, {"persistence"}), None).view(4, 64)
    torch.testing.assert_close(part[1:], weight[3:], atol=1e-5, rtol=0)
