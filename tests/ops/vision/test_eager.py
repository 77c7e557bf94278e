"""What a vision tower spends its time on, in batched torch, against the reference."""

from typing import Any

import pytest
import torch

from tests.ops.vision import problems
from vidsieve.ops import SegmentAttentionProblem
from vidsieve.ops.vision import eager, reference


@pytest.mark.parametrize("more", [0, 3])
@pytest.mark.parametrize("name", problems.LENGTHS)
def test_attention_stays_within_segments(name: str, more: int) -> None:
    problem = problems.attention(name, more=more)
    torch.testing.assert_close(eager.segment_attention(problem), reference.segment_attention(problem))


def test_a_segment_gets_the_bits_it_has_alone() -> None:
    problem = problems.attention("windows")
    together = eager.segment_attention(problem)
    for begin, end in zip(problem.bounds.tolist(), problem.bounds.tolist()[1:], strict=False):
        part = [x[begin:end] for x in (problem.query, problem.key, problem.value)]
        alone = problem._replace(
            query=part[0], key=part[1], value=part[2], bounds=torch.tensor([0, end - begin], dtype=torch.int32)
        )
        assert torch.equal(together[begin:end], eager.segment_attention(alone))


def test_segments_of_one_length_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = torch.randn(3, 4, 24, 8).transpose(1, 2)  # as a tower gives them: heads first
    seen: list[list[int]] = []
    attend = eager.scaled_dot_product_attention
    monkeypatch.setattr(
        eager,
        "scaled_dot_product_attention",
        lambda *rows, scale: (seen.append([x.data_ptr() for x in rows]), attend(*rows, scale=scale))[1],
    )
    for ends in ([6, 12, 18, 24], [6, 12, 18, 21, 24]):  # of all rows, and of most
        bounds = torch.tensor([0, *ends], dtype=torch.int32)
        problem = SegmentAttentionProblem(query, key, value, bounds, 6, 0.5, None)
        seen.clear()
        torch.testing.assert_close(eager.segment_attention(problem), reference.segment_attention(problem))
        assert seen[0] == [x.data_ptr() for x in (query, key, value)]


@pytest.mark.parametrize("shape", [{}, {"rows": 1}, {"heads": 1, "width": 2}, {"width": 80, "heads": 16}])
def test_rotation_equals_the_reference_and_leaves_values_alone(shape: Any) -> None:
    problem = problems.rotary(**shape)
    true = problem._replace(qkv=problem.qkv.clone())
    values = problem.qkv[:, 2].clone()
    eager.rotate_(problem)
    reference.rotate_(true)
    torch.testing.assert_close(problem.qkv, true.qkv)
    assert torch.equal(problem.qkv[:, 2], values)


@pytest.mark.parametrize("shape", [{}, {"biased": False}, {"width": 32}, {"rows": 1, "width": 1}])
def test_the_gate_equals_the_reference_and_ends_in_zeros(shape: Any) -> None:
    problem = problems.gate(**shape)
    found = eager.gate(problem)
    torch.testing.assert_close(found, reference.gate(problem))
    assert not found[:, problem.width :].any()
