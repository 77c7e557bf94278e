"""The attention received, in batched torch, against the reference."""

import pytest
import torch

from tests.ops.inputs import attention
from vidsieve.ops.attention import eager, reference
from vidsieve.ops.definitions import AttentionProblem


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(("past", "width", "queries"), [(0, 8, 1), (5, 24, 20), (70, 16, 80)])
def test_attention_received_equals_the_reference(past: int, width: int, queries: int, softcap: float | None) -> None:
    query, key, columns, seen = attention(past, width, queries)
    for padding in (None, seen):
        problem = AttentionProblem(query, key, columns, padding, 0.5, softcap)
        torch.testing.assert_close(eager.received_attention(problem), reference.received_attention(problem))
