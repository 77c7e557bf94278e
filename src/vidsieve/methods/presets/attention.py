"""A substitute for the attention of the vision tower, which a reducer before the language model does not get."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from vidsieve.types.statistics import TokenStatistics
from vidsieve.types.tokens import Prompt, VideoTokens


@dataclass(frozen=True)
class OwnAttention:
    """Scores a token by the attention it receives within its frame from a head without weights: (N,), 1 a frame.

    mean_j softmax_i(x_j . x_i / sqrt(D)), the tokens normalised to zero mean and unit variance, as a transformer layer
    does at the scale that it learnt. A substitute: the papers use the last layer of the vision tower. If you have that,
    pass it instead, as `relevance.Given(scores)`.
    """

    def __call__(self, tokens: VideoTokens, stats: TokenStatistics, prompt: Prompt | None) -> Tensor:
        x = tokens.features.float()
        # Not `layer_norm`, whose epsilon sets a scale, to which weights would have brought the features.
        x = F.normalize(x - x.mean(1, keepdim=True), dim=1, eps=1e-30) * math.sqrt(x.shape[1])
        bounds = [0]
        for n in tokens.frames:
            bounds.append(bounds[-1] + n)
        frames = (x[begin:end] for begin, end in pairwise(bounds))
        scale = math.sqrt(x.shape[1])
        return torch.cat([torch.softmax(frame @ frame.mT / scale, dim=1).mean(0) for frame in frames])
