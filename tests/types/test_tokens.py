"""Tokens, prompts and reductions refuse what they cannot be."""

import pytest
import torch

from vidsieve import Prompt, Reduction, VideoTokens


def test_nouns_are_validated_at_birth() -> None:
    with pytest.raises(ValueError, match=r"floating-point features \(N, D\), got int64\(4, 2\)"):
        VideoTokens(torch.ones(4, 2, dtype=torch.int64), (4,))
    with pytest.raises(ValueError, match="summing to N = 4"):
        VideoTokens(torch.ones(4, 2), (3,))
    with pytest.raises(ValueError, match="2 x 2 tokens in each frame"):
        VideoTokens(torch.ones(6, 2), (3, 3), grid=(2, 2))
    with pytest.raises(ValueError, match="sorted, unique"):
        Reduction.select(torch.tensor([2, 1]), 4)
    with pytest.raises(ValueError, match="its own source"):
        Reduction(torch.tensor([0, 1]), torch.tensor([1, 1, 0]))
    with pytest.raises(ValueError, match="at least one token"):
        Prompt(torch.ones(0, 4))
