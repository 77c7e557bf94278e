"""Centres of blocks of groups, in batched torch, against the reference."""

import pytest
import torch

from tests.ops.k_center.videos import KINDS, SHAPES, check_near, counts, video
from vidsieve.ops import Blocks, KCenterProblem
from vidsieve.ops.k_center import eager, reference


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_reference(shape: tuple[int, int, int]) -> None:
    x = video(*shape)
    for total in counts(x):
        problem = KCenterProblem(x, total)
        for ours, true in zip(eager.k_center(problem), reference.k_center(problem), strict=True):
            assert torch.equal(ours, true), total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_group_is_farther_from_its_centre_than_in_the_reference(shape: tuple[int, int, int], kind: str) -> None:
    x = video(*shape, kind)
    for total in counts(x):
        problem = KCenterProblem(x, total)
        check_near(problem, eager.k_center(problem), reference.k_center(problem))


def test_pieces_of_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = KCenterProblem(video(37, 11, 24), 120)
    whole = eager.k_center(problem)
    monkeypatch.setattr(eager, "PIECE_BYTES", 2 * 4 * (8 * 11) ** 2)
    assert len(eager.pieces_of(Blocks(37, 11), 88, eager.PIECE_BYTES)) == 3
    for ours, true in zip(eager.k_center(problem), whole, strict=True):
        assert torch.equal(ours, true)


def test_blocks_hold_every_group_once() -> None:
    for frames, places in ((1, 1), (8, 256), (9, 257), (17, 600), (64, 196), (3, 2600)):
        blocks = Blocks(frames, places)
        found = reference.blocks_of(blocks)
        assert sorted(i for block in found for i in block) == list(range(frames * places))
        assert [len(block) for block in found] == [blocks.size(i) for i in range(blocks.count)]
        assert max(map(len, found)) == blocks.largest <= 2048
        for total in (blocks.count, frames * places // 3, frames * places):
            if total >= blocks.count:
                assert sum(blocks.most(len(block), total) for block in found) >= total
