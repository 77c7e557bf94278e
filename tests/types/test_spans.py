"""When kept tokens are shown, and where most of them are."""

import pytest
import torch

from vidsieve.errors import WrongArgument
from vidsieve.types.spans import GROUPS, Span, seconds_of, spans


def kept_of(counts: list[int], size: int) -> torch.Tensor:
    """The first `counts[t]` tokens of each frame t of `size` tokens."""
    return torch.tensor([frame * size + i for frame, count in enumerate(counts) for i in range(count)])


def test_a_token_is_shown_when_the_first_of_its_frames_is() -> None:
    kept = torch.tensor([0, 3, 4, 8])
    # Five frames, two a token frame: the last is repeated to fill up.
    assert seconds_of(kept, (4, 4, 4), (0.0, 0.5, 1.0, 1.5, 2.0)).tolist() == [0.0, 0.0, 1.0, 2.0]
    assert seconds_of(torch.tensor([1]), (1, 1), (7.0,)).tolist() == [7.0]  # a lone frame may be two of tokens
    for count in (5, 8):  # Kimi makes one of four; of nine frames the third is of the last alone
        assert seconds_of(torch.tensor([0, 1]), (1, 1), [float(i) for i in range(count)]).tolist() == [0.0, 4.0]
    assert seconds_of(torch.tensor([2]), (1, 1, 1), [float(i) for i in range(9)]).tolist() == [8.0]


@pytest.mark.parametrize("count", [0, 2, 7, 8, 13])
def test_times_of_other_frames_are_refused(count: int) -> None:
    seconds = [float(i) for i in range(count)]
    for of in (seconds_of, spans):
        with pytest.raises(WrongArgument, match=f"3 token frames are made of, .* got {count} times"):
            of(torch.tensor([0, 5]), (2, 2, 2), seconds)


def test_the_fullest_part_comes_first_and_neighbours_are_one() -> None:
    counts = [0, 3, 4, 0, 0, 8, 9, 8, 0, 1]
    found = spans(kept_of(counts, 16), (16,) * 10, [10.0 * i for i in range(20)])
    assert found == (Span(100.0, 150.0, 25 / 33),)
    counts[5:8] = [3, 9, 3]
    found = spans(kept_of(counts, 16), (16,) * 10, [10.0 * i for i in range(20)])
    assert found == (Span(120.0, 130.0, 9 / 23), Span(40.0, 50.0, 4 / 23))


def test_equally_many_of_all_frames_are_one_span() -> None:
    for count in (1, 7, GROUPS, 2 * GROUPS, 3 * GROUPS + 1):
        found = spans(kept_of([2] * count, 4), (4,) * count, [float(i) for i in range(count)])
        assert [(span.start, span.end) for span in found] == [(0.0, count - 1.0)]
        assert abs(found[0].share - 1) < 1e-9


def test_a_span_does_not_cover_what_was_not_sampled() -> None:
    seconds = [0.0, 1.0, 2.0, 500.0, 501.0]
    found = spans(kept_of([2] * 5, 4), (4,) * 5, seconds)
    assert [(span.start, span.end) for span in found] == [(0.0, 2.0), (500.0, 501.0)]


def test_a_small_frame_that_is_kept_whole_is_dense() -> None:
    found = spans(torch.tensor([0, 1, 2, 10]), (2, 8, 8), (0.0, 1.0, 2.0))
    assert found == (Span(0.0, 0.0, 0.5),)
