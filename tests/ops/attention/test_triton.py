"""The attention received, by kernels: in Triton's interpreter where there is no GPU, on the device where there is."""

import pytest
import torch

from tests.ops.inputs import DEVICE, attention
from vidsieve.ops.attention import reference
from vidsieve.ops.definitions import AttentionProblem

triton = pytest.importorskip("vidsieve.ops.attention.triton", reason="Triton is not installed")


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(
    ("past", "width", "queries"), [(0, 8, 1), (5, 24, 20), (500, 80, 100), (9, 256, 40), (4500, 16, 3)]
)
def test_attention_received_equals_the_reference(
    past: int, width: int, queries: int, softcap: float | None, dtype: torch.dtype
) -> None:
    query, key, columns, seen = attention(past, width, queries, seed=past)
    strided = query.to(DEVICE, dtype).transpose(0, 1).contiguous().transpose(0, 1)  # as attention has it
    for padding in (None, seen.to(DEVICE)):
        problem = AttentionProblem(strided, key.to(DEVICE, dtype), columns.to(DEVICE), padding, 0.5, softcap)
        ours, true = (m.received_attention(problem) for m in (triton, reference))
        torch.testing.assert_close(ours, true, atol=1e-6, rtol=1e-4)
