"""Reducers for these tests: content decides, so that a mix-up of rows, videos or positions changes the answer."""

from dataclasses import dataclass

import torch

from vidsieve.methods.base import Reducer, kept_count
from vidsieve.types.reduction import Reduction
from vidsieve.types.tokens import Prompt, VideoTokens


@dataclass(frozen=True)
class Loudest(Reducer):
    """Keeps the tokens of largest norm."""

    keep: float = 0.25

    def reduce(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Reduction:
        loud = tokens.features.norm(dim=-1).topk(kept_count(self.keep, tokens.original_count)).indices
        return Reduction.select(loud.sort().values, len(tokens))


@dataclass(frozen=True)
class LouderThanMean(Reducer):
    """Keeps the tokens whose norm is above the mean: a different number in every video."""

    def reduce(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Reduction:
        norms = tokens.features.norm(dim=-1)
        return Reduction.select((norms > norms.mean()).nonzero().flatten(), len(tokens))


@dataclass(frozen=True)
class MergeIntoLoudest(Reducer):
    """Keeps the tokens of largest norm; each other one is folded into the kept one after it, the last ones dropped."""

    keep: float = 0.25

    def reduce(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Reduction:
        kept = Loudest(self.keep).reduce(tokens).kept
        source = torch.searchsorted(kept, torch.arange(len(tokens)))
        return Reduction(kept, source.where(source < len(kept), -1), merges=True)


@dataclass(frozen=True)
class NearestToQuestion(Reducer):
    """Keeps the tokens most like the mean of the question."""

    keep: float = 0.25

    def reduce(self, tokens: VideoTokens, prompt: Prompt | None = None) -> Reduction:
        if prompt is None:
            raise ValueError("NearestToQuestion needs a prompt, got none")
        near = (tokens.features @ prompt.embeddings.mean(0)).topk(kept_count(self.keep, len(tokens))).indices
        return Reduction.select(near.sort().values, len(tokens))
