"""What vLLM's own tests ask of a pruning model, `tests/multimodal/test_evs.py` and `test_vidcom2.py`, asked of ours.

Positions come from `recompute_mrope_positions` on a stand-in, without an engine. The rule is ours: a pruned prompt's
positions are those of the unpruned prompt at the tokens that stay.
"""

import importlib.util
import itertools
import random
from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed; `make test-vllm` sets it up beside this environment", allow_module_level=True)

import torch
from torch import Tensor
from vllm.multimodal.video_prune import evs, vidcom2

from vidsieve import Prompt, VideoTokens
from vidsieve.engines.vllm import positions, settings
from vidsieve.engines.vllm.models import SievedGrid
from vidsieve.engines.vllm.positions import Medium

pytestmark = pytest.mark.vllm
TEXT, STAMP, START, END, VIDEO, IMAGE = 1, 2, 777, 778, 888, 999
WIDTH = 8  # of an embedding

Prompted = tuple[list[int], list[Medium], list[Tensor]]  # ids, media, the channels of each


def recompute(ids: Any, embeds: list[Tensor], where: Tensor, computed: int) -> tuple[Sequence[Tensor], Tensor, int]:
    model: Any = SimpleNamespace(sieves=True, config=SimpleNamespace(image_token_id=IMAGE, video_token_id=VIDEO))
    return SievedGrid.recompute_mrope_positions(model, ids, embeds, where, computed)


def wrap(channels: Tensor) -> Tensor:
    """Embeddings of a medium as the encoder sends them, in bfloat16."""
    return torch.cat([torch.zeros(len(channels), WIDTH), channels], dim=1).bfloat16()


def image(rows: int, columns: int) -> Tensor:
    return positions.pack(positions.grid(1, rows, columns))


def images(*sizes: tuple[int, int], before: int = 3, gap: int = 2) -> Prompted:
    """A prompt of images of so many rows and columns."""
    ids, media, channels = [TEXT] * before, [], []
    for rows, columns in sizes:
        ids.append(START)
        media.append(Medium(len(ids), rows * columns, positions.grid_span(1, rows, columns)))
        ids += [IMAGE] * (rows * columns) + [END] + [TEXT] * gap
        channels.append(image(rows, columns))
    return ids, media, channels


def video(frames: int, rows: int, columns: int, kept: Tensor, stamps: int = 2) -> tuple[list[int], Tensor, int]:
    """Placeholder of a video of Qwen3-VL as vLLM lumps it, its channels in the order of embeddings, its span."""
    frame = [*[STAMP] * stamps, START, END]
    leads = positions.leads(frame * frames, START, END)
    ids = [*frame[:-1], *[VIDEO] * len(kept), END, *frame * (frames - 1)]
    channels = positions.pack(positions.interleaved(leads, kept, rows, columns), leads[0])
    return ids, channels, positions.interleaved_span(leads, rows, columns)


def truth(length: int, media: list[Medium], channels: list[Tensor]) -> tuple[Tensor, int]:
    """Positions (3, N) and delta, one token after the other."""
    where: list[tuple[int, ...]] = []
    at = 0
    for medium, packed in zip(media, channels, strict=True):
        text = medium.offset - len(where)
        where += [(place,) * 3 for place in range(at, at + text)]
        at += text
        where += [tuple(place) for place in (positions.unpack(packed)[:, :3] + at).tolist()]
        at += medium.span
    where += [(at + place,) * 3 for place in range(length - len(where))]
    return torch.tensor(where).T, int(torch.tensor(where).max()) + 1 - length


def serve(prompted: Prompted, cuts: Sequence[int], on_device: bool = False) -> tuple[Tensor, int]:
    """Positions and delta after a prompt was read in steps that begin and end at `cuts`."""
    ids, media, channels = prompted
    where, delta = positions.initial(len(ids), media)
    for begin, end in pairwise(cuts):
        embeds = []
        for medium, packed in zip(media, channels, strict=True):
            low, high = max(begin, medium.offset), min(end, medium.offset + medium.length)
            if low < high:
                embeds.append(wrap(packed[low - medium.offset : high - medium.offset]))
        clean, where, delta = recompute(torch.tensor(ids) if on_device else ids, embeds, where, begin)
        assert all(embed.shape[1] == WIDTH for embed in clean)
    return where, delta


@pytest.mark.parametrize("more", [False, True])
def test_a_chunk_that_begins_with_a_medium(more: bool) -> None:
    ids, media, channels = images(*[(2, 2)] * (1 + more), before=1, gap=1)
    where, _ = positions.initial(len(ids), media)
    _, where, delta = recompute(ids, [wrap(channels[0])], where, 2)
    assert where[:, 2:6].tolist() == [[2, 2, 2, 2], [2, 2, 3, 3], [2, 3, 2, 3]]
    assert delta == (-4 if more else -2)  # final at once, where vLLM's changes as media come


@pytest.mark.parametrize("start", [0, 2])
def test_two_media_in_one_chunk(start: int) -> None:
    ids, media, channels = images((2, 3), (2, 2), before=1, gap=1)
    where, _ = positions.initial(len(ids), media)
    _, where, _ = recompute(ids, [wrap(one) for one in channels], where, start)
    assert torch.equal(where[:, 2:8], positions.grid(1, 2, 3).T + 2)
    assert torch.equal(where[:, 11:15], positions.grid(1, 2, 2).T + 8)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 8, 16, 64, 4096])
def test_chunks_of_any_size_come_to_the_same(chunk: int) -> None:
    prompted = images(*[(2, 4)] * 22)
    length = len(prompted[0])
    where, delta = serve(prompted, [*range(0, length, chunk), length])
    expected, expected_delta = truth(length, *prompted[1:])
    assert torch.equal(where, expected)
    assert delta == expected_delta


def test_embeddings_of_no_rows_are_passed_over() -> None:
    ids, media, channels = images((2, 2))
    where, _ = positions.initial(len(ids), media)
    nothing = torch.zeros(0, WIDTH + positions.CHANNELS)
    _, where, _ = recompute(ids, [nothing, wrap(channels[0]), nothing], where, 0)
    assert torch.equal(where, truth(len(ids), media, channels)[0])


def test_a_step_without_media_changes_nothing() -> None:
    ids, media, channels = images((2, 2))
    expected, expected_delta = truth(len(ids), media, channels)
    _, where, delta = recompute(ids, [], expected.clone(), 0)
    assert torch.equal(where, expected)
    assert delta == expected_delta


def anything(seed: int) -> Prompted:
    """A prompt of some images and videos of Qwen3-VL, with and without text and markers around them."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    ids, media, channels = [TEXT] * draw.randint(0, 4), [], []
    for _ in range(draw.randint(1, 4)):
        frames, rows, columns = draw.randint(1, 6), draw.randint(1, 5), draw.randint(1, 5)
        marked = draw.random() < 0.6
        ids += [START] * marked
        if draw.random() < 0.4:
            more, packed, span = [IMAGE] * (rows * columns), image(rows, columns), positions.grid_span(1, rows, columns)
        else:
            total = frames * rows * columns
            kept = torch.randperm(total, generator=generator)[: draw.randint(1, total)].sort().values
            more, packed, span = video(frames, rows, columns, kept, draw.randint(0, 5))
        media.append(Medium(len(ids), len(more), span))
        channels.append(packed)
        ids += more + [END] * marked + [TEXT] * draw.randint(0, 3)
    return [*ids, TEXT], media, channels


@pytest.mark.parametrize("seed", range(40))
def test_any_prompt_cut_anywhere(seed: int) -> None:
    """Also inside a time stamp, where vLLM's own test pins what goes wrong there."""
    prompted, draw = anything(seed), random.Random(seed)
    length = len(prompted[0])
    expected, expected_delta = truth(length, *prompted[1:])
    for pieces in range(13):
        cuts = sorted({0, length, *(draw.randrange(length) for _ in range(pieces))})
        where, delta = serve(prompted, cuts, on_device=bool(pieces % 2))
        assert torch.equal(where, expected)
        assert delta == expected_delta


@pytest.mark.parametrize("start", [1, 2, 3])
def test_a_chunk_that_begins_in_a_time_stamp_behind_a_cached_prefix(start: int) -> None:
    placeholder, channels, span = video(1, 2, 2, torch.arange(4))
    ids, media = [TEXT, *placeholder, TEXT], [Medium(1, len(placeholder), span)]
    where, _ = positions.initial(len(ids), media)
    _, where, _ = recompute(ids, [wrap(channels[start - 1 :])], where, start)
    assert torch.equal(where[:, start:], truth(len(ids), media, [channels])[0][:, start:])


@pytest.mark.parametrize(("frames", "rows", "columns"), [(640, 4, 7), (320, 14, 26), (2000, 1, 1)])
def test_long_videos_in_bfloat16(frames: int, rows: int, columns: int) -> None:
    kept = torch.arange(0, frames * rows * columns, 3)
    placeholder, channels, span = video(frames, rows, columns, kept, stamps=8)
    grid = positions.pack(positions.grid(frames, rows, columns, 2.5)[kept])
    for more, packed, length in (
        (placeholder, channels, span),
        ([VIDEO] * len(kept), grid, positions.grid_span(frames, rows, columns, 2.5)),
    ):
        ids = [*[TEXT] * 5, START, *more, END, TEXT]
        prompted = ids, [Medium(6, len(more), length)], [packed]
        where, delta = serve(prompted, [0, *(cut for cut in (2048, 6151) if cut < len(ids)), len(ids)])
        expected, expected_delta = truth(len(ids), *prompted[1:])
        assert torch.equal(where, expected)
        assert delta == expected_delta


def embeddings(frames: int, tokens: int = 48, seed: int = 0) -> Tensor:
    """vLLM's: a direction of its own for each frame, with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(frames, 1, 64, generator=generator) * (0.1 + 0.05 * torch.arange(frames)[:, None, None])
    return (base + 0.01 * torch.randn(frames, tokens, 64, generator=generator)).flatten(0, 1)


def kept_of(name: str, x: Tensor, count: int) -> Tensor:
    method = settings.Method.named(name)
    tokens = VideoTokens.from_grid(x, len(x) // 48, 6, 8)
    return method.reduce(tokens, count, Prompt(x[:3]) if method.asks else None).kept


@pytest.mark.parametrize("name", ["vidsieve", "divprune", "uniform", "random", "cdpruner"])
@pytest.mark.parametrize("rate", [0.25, 0.5, 0.75, 0.9, 0.999, 1e-9])
@pytest.mark.parametrize("frames", [1, 4, 16])
def test_exactly_so_many_are_retained_in_order(name: str, rate: float, frames: int) -> None:
    count = settings.retained(frames * 48, rate)
    kept = kept_of(name, embeddings(frames), count)
    assert len(kept) == count
    assert (kept.diff() > 0).all()
    assert 0 <= int(kept[0]) <= int(kept[-1]) < frames * 48


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_retains_as_many(dtype: torch.dtype) -> None:
    for count in (1, 2, 77, 767, 768):
        assert len(kept_of("vidsieve", embeddings(16).to(dtype), count)) == count


def test_a_frame_that_stands_out_retains_more() -> None:
    generator = torch.Generator().manual_seed(0)
    bland = 0.01 * torch.randn(48, 64, generator=generator)
    others = [bland + 0.001 * torch.randn(48, 64, generator=generator) for _ in range(7)]
    kept = kept_of("vidsieve", torch.cat([torch.randn(48, 64, generator=generator), *others]), 192)
    per_frame = torch.bincount(kept // 48, minlength=8)
    assert per_frame[0] > per_frame[1:].float().mean()


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.75])
def test_the_first_frame_is_not_privileged(rate: float) -> None:
    generator = torch.Generator().manual_seed(1)
    others = [torch.randn(48, 64, generator=generator) * (1 + 0.1 * frame) for frame in range(7)]
    x = torch.cat([0.01 * torch.randn(48, 64, generator=generator), *others])
    kept = kept_of("vidsieve", x, settings.retained(8 * 48, rate))
    assert torch.bincount(kept // 48, minlength=8)[0] < len(kept) / 4


def test_every_frame_retains_something_where_the_budget_allows() -> None:
    kept = kept_of("vidsieve", embeddings(8), settings.retained(8 * 48, 0.25))
    assert (torch.bincount(kept // 48, minlength=8) >= 1).all()


def test_counts_are_vllms_without_the_floors_of_its_methods() -> None:
    rates = (1e-17, 0.1, 0.3, 0.5, 0.7, 0.75, 0.9, 0.95, 0.99)
    for frames, tokens, rate in itertools.product((1, 2, 3, 8, 64, 384), (1, 4, 77, 192, 1024), rates):
        count = settings.retained(frames * tokens, rate)
        assert count == max(1, int(frames * tokens * (1 - rate)))
        assert count <= evs.compute_retained_tokens_count(tokens, frames, rate)
        assert count <= vidcom2.compute_retained_tokens_count(tokens, frames, rate)
