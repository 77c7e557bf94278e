"""measure: one pass over the features for all that the parts require, and none for what they do not."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import vidsieve
from tests.methods.kept import kept
from tests.synthetic import video_like
from vidsieve import Chain, Prompt, Prune, Reduction, VideoTokens, ops
from vidsieve.errors import WrongArgument
from vidsieve.methods.budget import Budget, MarginalGain, Proportional
from vidsieve.methods.merge import TemporalMerge
from vidsieve.methods.relevance import Flat, Novelty, PromptSimilarity, Relevance
from vidsieve.methods.segment import PerFrame, SceneCuts, Segmenter, Uniform, Whole, Within
from vidsieve.methods.selection import Hybrid, SelectionProblem


@dataclass(frozen=True)
class Newest:
    """A selector of one's own."""

    requires: ClassVar[frozenset[str]] = frozenset({"persistence"})

    def __call__(self, problem: SelectionProblem) -> Tensor:
        persistence = problem.tokens.from_original(problem.stats.required("persistence"))
        return ops.top(ops.TopProblem(-persistence, problem.segments.offsets, problem.budget))


class Silent(Newest):
    requires: ClassVar[frozenset[str]] = frozenset()


class Misspelt(Newest):
    requires: ClassVar[frozenset[str]] = frozenset({"persistance"})


def measures(method: vidsieve.Reducer, tokens: VideoTokens) -> int:
    """How many passes over features it makes."""
    with ops.spy() as calls:
        method.reduce(tokens, Prompt(tokens.features[:3]))
    return [operation for operation, _ in calls].count("measure")


@pytest.mark.parametrize("relevance", [Flat(), Novelty(), PromptSimilarity()], ids=repr)
@pytest.mark.parametrize("budget", [Proportional(), MarginalGain()], ids=repr)
@pytest.mark.parametrize("segmenter", [Whole(), PerFrame(), Uniform(2), Within(30), SceneCuts()], ids=repr)
def test_features_are_read_once(segmenter: Segmenter, budget: Budget, relevance: Relevance) -> None:
    tokens = VideoTokens(video_like(6, 10, 16, seed=1, dtype=torch.float32, cuts=(2,)), (10,) * 6)
    first, later = Prune(0.5, segmenter, budget, relevance), Prune(0.2, segmenter, budget, relevance)
    assert measures(first, tokens) == 1
    left = tokens.reduced(first.reduce(tokens, Prompt(tokens.features[:3])))
    assert measures(later, left) == 1  # of what is left: what it needs of the video as it came was handed on
    assert measures(Chain(first, later, TemporalMerge(keep=0.1, segmenter=segmenter)), tokens) == 3


def test_what_nobody_handed_on_is_measured_of_the_video_as_it_came() -> None:
    tokens = VideoTokens(video_like(6, 10, 16, seed=1, dtype=torch.float32, cuts=(2,)), (10,) * 6)
    left = tokens.reduced(Reduction.select(torch.arange(0, 60, 2), 60))
    for method, passes in ((Prune(0.2, SceneCuts()), 2), (Prune(0.2, Whole(), Proportional(), Flat()), 1)):
        assert measures(method, left) == passes
    assert Prune(0.2, SceneCuts()).reduce(left).original_statistics is not None


def test_a_part_gets_what_it_declares_also_within_another() -> None:
    tokens = VideoTokens(video_like(6, 10, 16, seed=1, dtype=torch.float32, cuts=(2,)), (10,) * 6)
    plain = Prune(0.5, Whole(), Proportional(), Flat(), Newest())
    left = tokens.reduced(Prune(0.8, Whole()).reduce(tokens))
    for video in (tokens, left):
        inner = Prune(0.5, Whole(), Proportional(), Flat(), Hybrid(0, large=Newest()))
        assert kept(inner, video) == kept(plain, video)
    with pytest.raises(WrongArgument, match=r"not measured.* requires = frozenset\(\{'persistence'\}\)"):
        Prune(0.5, Whole(), Proportional(), Flat(), Silent()).reduce(tokens)


def test_a_part_can_only_require_what_is_measured() -> None:
    with pytest.raises(WrongArgument, match=r"the selector can require norm, .* got \['persistance'\]"):
        Prune(0.5, selector=Misspelt())
    like_the_question = type("LikeTheQuestion", (SceneCuts,), {"requires": frozenset({"similarity"})})()
    for make in (lambda: Prune(0.5, like_the_question), lambda: TemporalMerge(0.5, like_the_question)):
        with pytest.raises(WrongArgument, match=r"the segmenter can require norm, persistence of the features"):
            make()
