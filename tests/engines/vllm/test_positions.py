"""Positions of pruned prompts, against a walk over the tokens of the unpruned one. Needs no vLLM."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from vidsieve.engines.vllm import positions
from vidsieve.engines.vllm.positions import Medium

START, END, PAD, WORD = 1, 2, 3, 9


def walk(leads: list[int], rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Positions (n, 3) of a whole video as Qwen3-VL counts them, and which are patches."""
    out, patches, at = [], [], 0
    for lead in leads:
        for _ in range(lead):
            out.append((at, at, at))
            patches.append(False)
            at += 1
        for row in range(rows):
            for column in range(columns):
                out.append((at, at + row, at + column))
                patches.append(True)
        at += max(rows, columns)
        out.append((at, at, at))
        patches.append(False)
        at += 1
    return torch.tensor(out), torch.tensor(patches)


def some(count: int, total: int, seed: int = 0) -> Tensor:
    """`count` indices out of `total`, sorted."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].sort().values


@pytest.mark.parametrize(
    ("leads", "rows", "columns", "kept"),
    [
        pytest.param([4, 4, 5], 3, 2, some(7, 18), id="tall"),
        pytest.param([4, 4, 5], 2, 5, some(30, 30), id="all"),
        pytest.param([1], 1, 1, some(1, 1), id="one token"),
        pytest.param([3, 3, 3, 3], 2, 2, torch.tensor([14]), id="empty frames"),
        pytest.param([3, 3, 3, 3], 2, 2, torch.tensor([0, 1, 2, 3]), id="first frame alone"),
    ],
)
def test_between_text_what_stays_keeps_its_position(leads: list[int], rows: int, columns: int, kept: Tensor) -> None:
    whole, is_patch = walk(leads, rows, columns)
    stays = ~is_patch
    stays[is_patch.nonzero()[kept, 0]] = True
    assert torch.equal(positions.interleaved(leads, kept, rows, columns), whole[stays])
    assert positions.interleaved_span(leads, rows, columns) == int(whole.max()) + 1


@pytest.mark.parametrize("step", [1.0, 2.0, 0.5, 3.7])
@pytest.mark.parametrize("size", [(1, 1, 1), (4, 3, 2), (1, 5, 7)])
def test_a_grid_counts_like_its_indices(size: tuple[int, int, int], step: float) -> None:
    expected = [(int(t * step), h, w) for t in range(size[0]) for h in range(size[1]) for w in range(size[2])]
    assert positions.grid(*size, step).tolist() == [list(place) for place in expected]
    assert positions.grid_span(*size, step) == max(map(max, expected)) + 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_channels_are_exact_in_every_dtype(dtype: torch.dtype) -> None:
    where = torch.tensor([[0, 0, 0], [1, 255, 256], [257, 1001, 65535], [65536, 131071, 4_000_003]])
    rows = positions.unpack(positions.pack(where, lead=300, index=torch.tensor([0, 255, 70000, 3])).to(dtype))
    assert torch.equal(rows[:, :3], where)
    assert rows[:, 3].tolist() == [0, 255, 70000, 3]
    assert rows[:, 4].tolist() == [300] * 4


def test_the_text_before_each_frame_is_counted() -> None:
    placeholder = [WORD, WORD, START, PAD, PAD, END, WORD, START, END, START, END]
    assert positions.leads(placeholder, START, END) == [3, 2, 1]


@pytest.mark.parametrize("size", [(3, 3, 2), (1, 1, 4), (5, 2, 2)])
def test_frames_between_texts_stand_as_they_do_in_qwen3_vl(size: tuple[int, int, int]) -> None:
    frames, rows, columns = size
    leads = [3 + frame % 2 for frame in range(frames)]
    is_frame = torch.tensor([entry for n in leads for entry in (*[False] * n, True, False)])
    for count in (1, rows * columns, frames * rows * columns):
        kept = some(count, frames * rows * columns)
        expected = positions.interleaved(leads, kept, rows, columns)
        assert torch.equal(positions.framed_positions(is_frame, kept, rows, columns), expected)
        text, patches = positions.framed(is_frame, torch.bincount(kept // (rows * columns), minlength=frames))
        assert sorted([*text.tolist(), *patches.tolist()]) == list(range(len(expected)))


# A prompt: three words, a grid, a word, a video with text between its frames, an image right behind it, two words.
GRID = positions.grid(4, 2, 3, 2.0)[some(9, 24)]
LEADS = [3, 3, 4]
VIDEO = positions.interleaved(LEADS, some(5, 18), 3, 2)
IMAGE = positions.grid(1, 3, 3)
PLACEHOLDER = [WORD, WORD, START, *[PAD] * 5, END, WORD, WORD, START, END, WORD, WORD, WORD, START, END]
IDS = [*[WORD] * 3, *[PAD] * 9, WORD, *PLACEHOLDER, *[PAD] * 9, *[WORD] * 2]
MEDIA = [
    (Medium(3, 9, positions.grid_span(4, 2, 3, 2.0)), positions.pack(GRID)),
    (Medium(13, len(PLACEHOLDER), positions.interleaved_span(LEADS, 3, 2)), positions.pack(VIDEO, lead=3)),
    (Medium(13 + len(PLACEHOLDER), 9, positions.grid_span(1, 3, 3)), positions.pack(IMAGE)),
]


def expected() -> Tensor:
    """(3, N) of the prompt above, part after part."""
    parts, at = [], 0
    for part, span in ((3, 3), (GRID, 7), (1, 1), (VIDEO, MEDIA[1][0].span), (IMAGE, 3), (2, 2)):
        relative = torch.arange(part)[:, None].expand(-1, 3) if isinstance(part, int) else part
        parts.append(relative + at)
        at += span
    return torch.cat(parts).T


def read(positions_of_prompt: Tensor, cuts: list[int]) -> None:
    """Read the prompt in steps that end at `cuts`, as a runner would."""
    for begin, end in pairwise([0, *cuts, len(IDS)]):
        step = []
        for medium, channels in MEDIA:
            low, high = max(begin, medium.offset), min(end, medium.offset + medium.length)
            if low < high:
                step.append(positions.unpack(channels[low - medium.offset : high - medium.offset]))
        if step:
            positions.fill(positions_of_prompt, IDS, (PAD,), begin, step)


def test_everything_but_the_media_is_known_at_once() -> None:
    where, delta = positions.initial(len(IDS), [medium for medium, _ in MEDIA])
    media = torch.zeros(len(IDS), dtype=torch.bool)
    for medium, _ in MEDIA:
        media[medium.offset : medium.offset + medium.length] = True
    assert torch.equal(where[:, ~media], expected()[:, ~media])
    assert (where[:, media] < 0).all()
    assert delta == int(expected().max()) + 1 - len(IDS)


@pytest.mark.parametrize("size", [len(IDS), 1, 2, 5, 7, 11, 16])
def test_a_prompt_read_in_pieces_is_the_same_prompt(size: int) -> None:
    where, _ = positions.initial(len(IDS), [medium for medium, _ in MEDIA])
    read(where, list(range(size, len(IDS), size)))
    assert torch.equal(where, expected())


def test_reading_a_prompt_again_changes_nothing() -> None:
    """A request that was put off starts again, perhaps behind a cached prefix."""
    where, _ = positions.initial(len(IDS), [medium for medium, _ in MEDIA])
    positions.fill(where, IDS, (PAD,), 8, [positions.unpack(MEDIA[0][1][5:])])
    assert (where[:, 3:8] < 0).all()
    read(where, [5, 20])
    read(where, [17])
    assert torch.equal(where, expected())


def test_a_step_may_bring_nothing_of_a_medium() -> None:
    where, _ = positions.initial(len(IDS), [medium for medium, _ in MEDIA])
    nothing = torch.zeros(0, 5, dtype=torch.long)
    positions.fill(where, IDS, (PAD,), 0, [nothing, *(positions.unpack(channels) for _, channels in MEDIA), nothing])
    assert torch.equal(where, expected())


def test_a_medium_that_is_not_there_is_an_error() -> None:
    where, _ = positions.initial(4, [])
    with pytest.raises(ValueError, match="expected a medium after token 0"):
        positions.fill(where, [WORD] * 4, (PAD,), 0, [positions.unpack(MEDIA[0][1])])
