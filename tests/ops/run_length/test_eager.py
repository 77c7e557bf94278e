"""Groups that repeat one before them: hand-worked ones, and batched torch against the reference."""

import pytest
import torch

from tests.ops.run_length.groups import KINDS, SHAPES, groups, totals
from vidsieve.ops import RunLengthProblem
from vidsieve.ops.run_length import eager, reference

BOTH = pytest.mark.parametrize("operation", [reference, eager], ids=["reference", "eager"])


def of_values(*values: float) -> torch.Tensor:
    """One place whose group has one value in each frame."""
    return torch.tensor(values).view(-1, 1, 1)


@BOTH
def test_a_group_is_compared_with_the_last_kept_one(operation: object) -> None:
    x = of_values(0, 1, 2, 2.5, 4, 4, 3)
    kept, source, nonfinite = operation.run_length(RunLengthProblem(x, threshold=1.5))  # type: ignore[attr-defined]
    assert kept.tolist() == [0, 2, 4]  # 2 against 0, 4 against 2; frame by frame nothing but 4 against 2.5 would be
    assert source.tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert nonfinite.tolist() == [0] * 7
    assert kept.dtype == source.dtype == torch.int64
    assert nonfinite.dtype == torch.int32


@BOTH
def test_places_are_apart(operation: object) -> None:
    x = torch.tensor([[0.0, 0], [0, 5], [3, 5], [3, 0]])[..., None]
    kept, source, _ = operation.run_length(RunLengthProblem(x, threshold=1))  # type: ignore[attr-defined]
    assert kept.tolist() == [0, 1, 3, 4, 7]
    assert source.tolist() == [0, 1, 0, 2, 3, 2, 3, 4]


@BOTH
def test_what_a_total_leaves_goes_to_the_largest_differences_and_the_earlier_of_equals(operation: object) -> None:
    x = of_values(0, 1, 1, 1, 9, 9)  # kept whatever the threshold below 1: 0, 1 and 4; all others repeat exactly
    for total, kept in ((1, [0]), (2, [0, 4]), (3, [0, 1, 4]), (4, [0, 1, 2, 4]), (5, [0, 1, 2, 3, 4])):
        assert operation.run_length(RunLengthProblem(x, total))[0].tolist() == kept  # type: ignore[attr-defined]


@BOTH
def test_more_groups_need_not_be_a_superset(operation: object) -> None:
    x = of_values(0, 2, 3, 0)
    # Three exceed 2, the last kept of them 3 that is compared with 0; so for two the threshold is 3, and the largest
    # difference below is that of 3 to 0. Three exceed 1 as well, but others: 2 against 0, and 0 against 2.
    found = [operation.run_length(RunLengthProblem(x, total))[0].tolist() for total in (2, 3)]  # type: ignore[attr-defined]
    assert found == [[0, 2], [0, 1, 3]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batched_torch_equals_the_reference(shape: tuple[int, int, int], kind: str) -> None:
    x = groups(*shape, kind)
    for problem in totals(x):
        for ours, true in zip(eager.run_length(problem), reference.run_length(problem), strict=True):
            assert torch.equal(ours, true), problem[1:]


def test_pieces_of_places_and_blocks_of_frames_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = groups(37, 5, 24, "drifting")
    problems = totals(x)
    whole = [eager.run_length(problem) for problem in problems]
    monkeypatch.setattr("vidsieve.ops.pieces.PIECE_BYTES", 2 * 37 * 24 * 4)
    monkeypatch.setattr(eager, "BLOCK", 3)
    for problem, true in zip(problems, whole, strict=True):
        for ours, expected in zip(eager.run_length(problem), true, strict=True):
            assert torch.equal(ours, expected)
