"""What is measured of tokens, in batched torch, against the reference."""

import pytest
import torch
from torch import Tensor

from tests.ops.inputs import features
from tests.synthetic import independent
from vidsieve.ops.definitions import ContrastProblem, MeasureProblem, TransienceProblem
from vidsieve.ops.measurement import eager, reference


def persistence(x: Tensor, frames: tuple[int, ...]) -> Tensor:
    found = eager.measure(MeasureProblem(x, frames, persistence=True)).persistence
    assert found is not None
    return found


@pytest.mark.parametrize("frames", [(12,) * 5, (10, 14, 12, 12, 12), (60,), (1,) * 60])
@pytest.mark.parametrize("small_pieces", [False, True])
def test_persistence(frames: tuple[int, ...], small_pieces: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if small_pieces:
        monkeypatch.setattr(eager, "STREAM_BYTES", 12 * 24 * 4 * 2)  # of 24 rows, in strips of 6 places
    for kind in ("independent", "video-like", "degenerate"):
        x = features(kind, 2, torch.float32)
        torch.testing.assert_close(persistence(x, frames), reference._persistence(x, frames), atol=2e-6, rtol=0)


@pytest.mark.parametrize("frames", [(12,) * 5, (10, 14, 12, 12, 12), (60,), (1,) * 60])
def test_persistence_about_a_centre_of_each_frame(frames: tuple[int, ...]) -> None:
    for kind in ("independent", "video-like", "degenerate"):
        x = features(kind, 2, torch.float32)
        centre = x[: len(frames)].mean(0) * torch.arange(len(frames))[:, None]
        ours, true = (m.measure(MeasureProblem(x, frames, persistence=True, centre=centre)) for m in (eager, reference))
        torch.testing.assert_close(ours.persistence, true.persistence, atol=2e-6, rtol=0)
        same = x.mean(0).expand(len(frames), -1)
        ours = eager.measure(MeasureProblem(x, frames, persistence=True, centre=same)).persistence
        torch.testing.assert_close(ours, reference._persistence(x, frames), atol=2e-6, rtol=0)


def test_persistence_of_equal_tokens_is_one() -> None:
    for value in (0.0, 3.3):
        x = torch.full((40, 7), value)
        assert persistence(x, (10,) * 4).tolist() == [0.0] * 10 + [1.0] * 30
        assert reference._persistence(x, (10,) * 4).tolist() == [0.0] * 10 + [1.0] * 30


@pytest.mark.parametrize("frames", [(6, 6, 6), (6, 4, 6), (6, 6, 4)])
@pytest.mark.parametrize("small_pieces", [False, True])
def test_what_centring_leaves_of_the_mean_counts_as_zero(
    frames: tuple[int, ...], small_pieces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small_pieces:
        monkeypatch.setattr(eager, "STREAM_BYTES", 1)
    x = independent(sum(frames), 24, 5, torch.float64) + 100.0
    still = [1, 3, 7, 9, 10, 13]
    x[still] = 0
    moving = [i for i in range(len(x)) if i not in still]
    # A 500 000th of the mean is left, less than what counts and more than what the comparison would overlook.
    x[still] = x[moving].mean(0) * (1 + 2e-6)
    torch.testing.assert_close(persistence(x, frames), reference._persistence(x, frames), atol=1e-6, rtol=0)


def test_the_cosine_to_a_prompt_equals_the_reference() -> None:
    for seed in range(4):
        x = features("degenerate", seed, torch.float32)
        y = independent(3, 24, seed + 100, torch.float32)
        torch.testing.assert_close(
            eager.measure(MeasureProblem(x, (len(x),), y)).cosine, reference._cosine_to(x, y), atol=1e-6, rtol=0
        )


@pytest.mark.parametrize("frames", [(4,) * 15, (3, 3, 5, 3, 3, 5, 5, 1, 1, 31), (60,)])
def test_transience_equals_the_reference(frames: tuple[int, ...]) -> None:
    for first in (0, 1, 7):
        problem = TransienceProblem(torch.rand(60) * 2.4 - 1.2, frames, 0.3, first)
        torch.testing.assert_close(eager.transience(problem), reference.transience(problem), atol=1e-6, rtol=0)
        kneed = ContrastProblem(problem.persistence, frames, 0.3, 0.6, 0.4, first)
        torch.testing.assert_close(eager.contrast(kneed), reference.contrast(kneed), atol=2e-6, rtol=0)
