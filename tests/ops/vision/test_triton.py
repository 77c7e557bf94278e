"""What a vision tower spends its time on, by kernels: in Triton's interpreter where there is no GPU, else on it."""

from typing import Any

import pytest
import torch

from tests.ops.inputs import DEVICE
from tests.ops.vision import problems
from vidsieve.ops.vision import reference

triton = pytest.importorskip("vidsieve.ops.vision.triton", reason="Triton is not installed")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}  # one rounding of values up to 4
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * (DEVICE != "cpu")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [{}, {"rows": 1}, {"heads": 1, "width": 2}, {"width": 80, "heads": 16}])
def test_rotation_equals_the_reference_and_leaves_values_alone(shape: Any, dtype: torch.dtype) -> None:
    problem = problems.rotary(**shape, dtype=dtype, device=DEVICE)
    true = problem._replace(qkv=problem.qkv.clone())
    values = problem.qkv[:, 2].clone()
    triton.rotate_(problem)
    reference.rotate_(true)
    torch.testing.assert_close(problem.qkv, true.qkv, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    assert torch.equal(problem.qkv[:, 2], values)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [{}, {"biased": False}, {"width": 32}, {"rows": 1, "width": 1}])
def test_the_gate_equals_the_reference_and_ends_in_zeros(shape: Any, dtype: torch.dtype) -> None:
    problem = problems.gate(**shape, dtype=dtype, device=DEVICE)
    found = triton.gate(problem)
    torch.testing.assert_close(found, reference.gate(problem), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    assert not found[:, problem.width :].any()


@pytest.mark.gpu
@pytest.mark.parametrize("more", [0, 3])
@pytest.mark.parametrize("name", problems.LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_attention_stays_within_segments(name: str, more: int, dtype: torch.dtype) -> None:
    problem = problems.attention(name, more=more, width=72, dtype=dtype, device="cuda")
    found, true = triton.segment_attention(problem), reference.segment_attention(problem)
    torch.testing.assert_close(found, true, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
