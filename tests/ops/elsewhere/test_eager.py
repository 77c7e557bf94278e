"""What other segments have too: the reference in float64, and blocks of any size against it."""

import pytest
import torch

from tests.ops.inputs import DEVICE, OFFSETS, features
from vidsieve import ops
from vidsieve.ops import ElsewhereProblem
from vidsieve.ops.elsewhere import eager, reference


def test_a_token_that_is_there_again_is_alike_and_one_that_is_not_is_not() -> None:
    """Worked out by hand: centred, the tokens are +-e1 and +-e2."""
    x = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [1, 0], [0, -1], [-1, 0]], dtype=torch.float64) + 5
    for op in (reference, eager):
        found = op.alike_elsewhere(ElsewhereProblem(x, torch.tensor([0, 3, 6])))
        torch.testing.assert_close(found, torch.tensor([1.0, 0, 1, 1, 0, 1], dtype=torch.float64))
        one = op.alike_elsewhere(ElsewhereProblem(x, torch.tensor([0, 3, 6]), torch.tensor([3])))
        torch.testing.assert_close(one, torch.tensor([1.0, 0, 0, 0, 0, 0], dtype=torch.float64))
        assert not op.alike_elsewhere(ElsewhereProblem(x, torch.tensor([0, 6]))).any()


def test_what_centring_leaves_of_a_token_that_equals_the_mean_is_no_direction() -> None:
    e = torch.randn(24, generator=torch.Generator().manual_seed(0))
    x = torch.full((60, 24), 0.7)
    x[:10], x[10:20] = x[:10] + e, x[10:20] - e
    for op in (reference, eager):
        assert not op.alike_elsewhere(ElsewhereProblem(x, torch.tensor([0, 20, 60]))).any()
        assert not op.alike_elsewhere(ElsewhereProblem(x[20:], torch.tensor([0, 20, 40]))).any()


@pytest.mark.parametrize("layout", OFFSETS)
@pytest.mark.parametrize("kind", ["independent", "video-like", "degenerate"])
@pytest.mark.parametrize("block", [7, 60])
def test_cosines_are_those_of_the_reference(
    kind: str, layout: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eager, "BLOCK", block)
    offsets = torch.tensor(OFFSETS[layout], device=DEVICE)
    seed = int(torch.randint(1 << 30, ()))
    for dtype, off in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        x = features(kind, seed, dtype).to(DEVICE)
        for among in (None, torch.randperm(60)[:13].to(DEVICE)):
            asked = ElsewhereProblem(x, offsets, among)
            found, true = eager.alike_elsewhere(asked), reference.alike_elsewhere(asked)
            torch.testing.assert_close(found.double(), true, atol=off, rtol=0)


def test_no_gradient_goes_through_it_and_what_ran_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    x = features("video-like", 0, torch.float32).requires_grad_()
    asked = ElsewhereProblem(x, torch.tensor(OFFSETS["ragged"]))
    for name in ("eager", "reference"):
        monkeypatch.setenv("VIDSIEVE_OPS", name)
        with ops.spy() as calls:
            assert not ops.alike_elsewhere(asked).requires_grad
        assert calls == [("alike_elsewhere", name)]
