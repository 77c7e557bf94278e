"""How much each token matters to the question, in [0, 1]. High is kept.

Every source normalises per video: (s - min + eps) / (max - min + eps), so that constant scores say nothing (all 1) and
no token is ruled out by a relevance of exactly 0.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from vidsieve import ops
from vidsieve.checks import check_number
from vidsieve.types.statistics import TokenStatistics
from vidsieve.types.tokens import Prompt, VideoTokens

EPSILON = 1e-6


class Relevance(Protocol):
    """Weighs every token: float32 (N,) in [0, 1]."""

    def __call__(self, tokens: VideoTokens, stats: TokenStatistics, prompt: Prompt | None) -> Tensor: ...


def min_max(scores: Tensor, videos: int = 1) -> Tensor:
    """Scores (N,) of each video brought to (0, 1], the highest to 1; constant scores all to 1. method.md, eq. 4."""
    return ops.min_max(ops.MinMaxProblem(scores, EPSILON, videos))


@dataclass(frozen=True)
class Flat:
    """Every token matters alike: the selection is of the video alone, whatever the question."""

    batches: ClassVar[bool] = True
    captures: ClassVar[bool] = True
    chunks: ClassVar[bool] = True

    def __call__(self, tokens: VideoTokens, stats: TokenStatistics, prompt: Prompt | None) -> Tensor:
        return torch.ones(len(tokens), device=tokens.features.device)


@dataclass(frozen=True)
class PromptSimilarity:
    """Mean cosine of a visual token to the question's tokens, in the language model's input space.

    Cheap, and only as good as that space is aligned: input embeddings of text are not trained to be comparable with
    projected visual tokens, and where CDPruner uses this score (with CLIP's text tower) they are.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"similarity"})
    batches: ClassVar[bool] = True
    captures: ClassVar[bool] = True

    def __call__(self, tokens: VideoTokens, stats: TokenStatistics, prompt: Prompt | None) -> Tensor:
        if prompt is None:
            raise ValueError("PromptSimilarity weighs tokens by the question; pass a Prompt, or use Flat()")
        if prompt.embeddings.shape[1] != tokens.features.shape[1]:
            raise ValueError(
                f"prompt and video must share a space: {prompt.embeddings.shape[1]} features in the prompt, "
                f"{tokens.features.shape[1]} in the video"
            )
        return min_max(stats.required("similarity"), tokens.videos)


@dataclass(frozen=True)
class Novelty:
    """What is shown for a moment weighs 1, what stays at its place for longer weighs `floor`: of the video alone.

    r = 1 - (1 - floor) * max(0, p, p'), where p is the persistence of a token, its centred cosine to the one at its
    place in the previous frame, and p' the same for the next frame: method.md eq. 4b. One token of every frame weighs 1
    in any case, along a diagonal, so that no stretch of time goes unseen. Ours, chosen on the synthetic needle suite.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"persistence"})
    batches: ClassVar[bool] = True
    captures: ClassVar[bool] = True
    chunks: ClassVar[bool] = True

    floor: float = 0.3

    def __post_init__(self) -> None:
        check_number("floor is the weight of what stays, in (0, 1]", self.floor, 0, 1, exclusive_low=True)

    def __call__(self, tokens: VideoTokens, stats: TokenStatistics, prompt: Prompt | None) -> Tensor:
        persistence, whole = stats.required("persistence"), tokens.original
        problem = ops.TransienceProblem(persistence, tuple(whole.frames), self.floor, whole.first_frame)
        return tokens.from_original(ops.transience(problem))


@dataclass(frozen=True)
class Contrast:
    """What changes while its frame stands still weighs 1, what stays as its frame does weighs `floor`.

    r = 1 - (1 - floor) * min(1, ratio / knee), where ratio compares how much a token stays at its place (as in
    `Novelty`) with the mean of its own frame: method.md eq. 4c. Under a moving camera, where everything changes, and
    in a still scene all weigh nearly alike, so a token that stands still beside no motion loses nothing. One token of
    every frame weighs 1 in any case, as in `Novelty`. Ours, chosen on the development halves of both suites.

    The floor differs from place to place by up to `spread` of it, in a fixed pattern: what a selection by diversity
    picks is then less often what is least like all else, and what there is much of keeps more of its tokens.

    floor: in (0, 1].  knee: the ratio from which a token weighs `floor`, above 0.  spread: in [0, 1].
    """

    requires: ClassVar[frozenset[str]] = frozenset({"persistence"})
    batches: ClassVar[bool] = True
    captures: ClassVar[bool] = True
    chunks: ClassVar[bool] = True

    floor: float = 0.9
    knee: float = 0.5
    spread: float = 0.3

    def __post_init__(self) -> None:
        check_number(
            "floor is the weight of what stays as its frame does, in (0, 1]", self.floor, 0, 1, exclusive_low=True
        )
        check_number("knee is a ratio above 0", self.knee, 0, exclusive_low=True)
        check_number("spread is a part of the floor, in [0, 1]", self.spread, 0, 1)

    def __call__(self, tokens: VideoTokens, stats: TokenStatistics, prompt: Prompt | None) -> Tensor:
        persistence, whole = stats.required("persistence"), tokens.original
        frames, first = tuple(whole.frames), whole.first_frame
        problem = ops.ContrastProblem(persistence, frames, self.floor, self.knee, self.spread, first)
        return tokens.from_original(ops.contrast(problem))


@dataclass(frozen=True, eq=False)
class Given:
    """One's own scores (N,) in [0, 1]; bring others there with `relevance.min_max`."""

    scores: Tensor

    def __call__(self, tokens: VideoTokens, stats: TokenStatistics, prompt: Prompt | None) -> Tensor:
        scores = self.scores.to(tokens.features.device, torch.float32)
        if scores.shape != (len(tokens),):
            raise ValueError(f"expected one score a token, ({len(tokens)},), got {tuple(self.scores.shape)}")
        if not ((scores >= 0) & (scores <= 1)).all():  # NaN fails both
            raise ValueError("expected scores in [0, 1]; bring them there with vidsieve.methods.relevance.min_max")
        return scores


@dataclass(frozen=True)
class PromptAttention:
    """The attention a token receives from the question in the layer before, averaged over queries and heads.

    Only inside the model, in a stage of `Staged` at layer 1 or later: at layer k, the mass that the softmax of layer
    k - 1 puts on the token. Attended tokens are kept. Some code has it with a minus sign, which is right for one CLIP
    tower and keeps the least attended tokens of a language model. method.md, eq. 16.

    queries: "question", the text after the video up to the end of its turn, or "last", the last token of the prompt
    alone (as FastV, Chen et al., ECCV 2024, and FrameFusion, Fu et al., ICCV 2025). In assisted decoding the prompt
    comes with the first candidates, and the last of those is the last token.
    """

    queries: Literal["question", "last"] = "question"

    def __post_init__(self) -> None:
        if self.queries not in ("question", "last"):
            raise ValueError(f'queries are those of the "question" or the "last" token, got {self.queries!r}')

    def __call__(self, tokens: VideoTokens, stats: TokenStatistics, prompt: Prompt | None) -> Tensor:
        if tokens.attended is None or self.queries not in tokens.attended:
            raise ValueError(
                "PromptAttention reads the attention of the layer before, and here is none; use it in a stage of "
                "Staged at layer 1 or later, with a prompt that asks a question, which labels do not call the answer"
            )
        return min_max(tokens.attended[self.queries])
