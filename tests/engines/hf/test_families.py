"""Which tokens are video, in which frames: the rules of each layout, and models nobody knows."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.engines.hf import newer, tiny
from tests.engines.hf.reducers import Loudest
from vidsieve.checks import pip_install
from vidsieve.engines.hf import Adapter, adapter_for, attach, families, model_types, prompt, register
from vidsieve.engines.hf.families import Adapter as Entry
from vidsieve.errors import UnsupportedCall, UnsupportedModel


def find(family: str, ids: list[int], **arguments: Any) -> prompt.PromptLayout:
    model, rows = tiny.model(family), torch.tensor([ids])
    adapter: Entry = adapter_for(model)
    placeholder = rows == getattr(model.config, adapter.token)
    return prompt.find(adapter, model.config, prompt.read(adapter, rows, placeholder, arguments))


def frame(tokens: int, before: int = 6) -> list[int]:
    return [7] * before + [tiny.IMAGE] * tokens


@tiny.every_family
def test_frames_and_grid(family: str) -> None:
    model = tiny.model(family)
    with attach(model, Loudest()) as trace:
        model.generate(**tiny.prompt(family), max_new_tokens=1)
    [video] = trace.videos
    expected = {"video_llava": ((17,) * 8, None)} | dict.fromkeys(
        ("internvl", "smolvlm", "llava_onevision", "llava_next_video", "perception_lm"), ((4,) * 4, (2, 2))
    )
    assert (video.frames, video.grid) == expected.get(family, ((6,) * 4, (2, 3)))


def test_an_unknown_model_is_told_what_is_known() -> None:
    class Unknown(nn.Module):
        config = SimpleNamespace(model_type="gpt_9")

    with pytest.raises(UnsupportedModel, match=r"qwen2_5_vl.*'gpt_9'.*docs/adding_a_model.md"):
        attach(Unknown(), Loudest())
    with pytest.raises(UnsupportedModel, match=r"Linear, which has no config.model_type"):
        attach(nn.Linear(1, 1), Loudest())


def test_without_transformers_the_extra_is_named() -> None:
    code = "import sys; sys.modules['transformers'] = None; import vidsieve.engines.hf"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingExtra: this needs transformers" in done.stderr
    assert f"install it with: {pip_install('hf')}" in done.stderr


def test_a_registered_adapter_serves_its_model_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "_ADAPTERS", dict(families._ADAPTERS))
    entry = Adapter(("gpt_9",), layout="runs")
    register(entry)
    model = nn.Module()
    model.config = SimpleNamespace(model_type="gpt_9")
    assert adapter_for(model) is entry
    assert "gpt_9" in model_types()


def test_every_tiny_model_is_known_and_every_known_model_is_tested() -> None:
    here = {name for name in model_types() if name in tiny.FIRST or newer.exists(name)}  # in this release
    assert here == set(tiny.FAMILIES)
    assert set(model_types()) == {*tiny.FIRST, *newer.NEWER}


@pytest.mark.parametrize("family", ["internvl", "smolvlm"])
def test_one_run_is_an_image_and_several_are_frames(family: str) -> None:
    assert not find(family, frame(4)).spans
    [span] = find(family, frame(4) * 3 + [7]).spans
    assert span.frames == (4, 4, 4)


def test_an_image_of_several_tiles_is_no_frame_of_internvl() -> None:
    ids = frame(12) + frame(4) * 2 + [7]
    [span] = find("internvl", ids).spans
    assert span.at.tolist() == [*range(24, 28), *range(34, 38)]


def test_the_tiles_of_an_image_are_no_frames_of_smolvlm() -> None:
    assert not find("smolvlm", [7, 7, 7] + frame(4, before=2) * 4 + frame(4, before=4) + [7]).spans


def test_token_types_tell_where_they_are_given() -> None:
    ids = frame(4) * 3
    kinds = torch.tensor([[0] * 6 + [1] * 4 + ([0] * 6 + [2] * 4) * 2])
    [span] = find("internvl", ids, mm_token_type_ids=kinds).spans
    assert span.frames == (4, 4)
    [span] = find("glm4v", ids, mm_token_type_ids=kinds, video_grid_thw=torch.tensor([[2, 4, 4]])).spans
    assert span.at.tolist() == [*range(16, 20), *range(26, 30)]
    assert not find("glm4v", ids, mm_token_type_ids=kinds.clamp(max=1)).spans
    assert not find("glm4v", ids).spans


def test_frames_that_the_processor_of_videollama3_compressed() -> None:
    survives = torch.tensor([1, 1, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0], dtype=torch.bool)
    ids = [7, *[tiny.VIDEO] * 4, 7, tiny.VIDEO, 7, 7]
    [span] = find(
        "video_llama_3",
        ids,
        video_grid_thw=torch.tensor([[3, 4, 4]]),
        video_merge_sizes=torch.tensor([2]),
        video_compression_mask=survives,
    ).spans
    assert (span.frames, span.grid) == ((4, 1), None)


def test_frames_of_videos_of_different_sizes_and_lengths() -> None:
    """Each frame is laid out by the place of its last patch, whatever stands between frames."""
    last = {2: torch.tensor([[5, 3]]), 3: torch.tensor([[3, 1]])}  # column and row: 3 by 2 tokens, 2 by 1
    places = torch.cat([last[2].expand(2, 2), last[3].expand(3, 2)])[:, None]
    counts = torch.tensor([2, 3])
    ids = [*[tiny.VIDEO] * 6, 7, *[tiny.VIDEO] * 6, 7, 7, *[tiny.VIDEO] * 6, 7]
    first, second = find("gemma4", ids, video_position_ids=places, num_frames_per_video=counts).spans
    assert (first.frames, first.grid, first.at.tolist()) == ((6, 6), (2, 3), [*range(6), *range(7, 13)])
    assert (second.frames, second.grid, second.at.tolist()) == ((2, 2, 2), (1, 2), [*range(15, 21)])
    stacked = last[3][None, None].expand(2, 1, 1, 2)  # as in older releases
    ids = [*[tiny.VIDEO] * 8, 7, *[tiny.VIDEO] * 8]
    assert [span.grid for span in find("gemma4_unified", ids, video_position_ids=stacked).spans] == [(2, 4)] * 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "no video_position_ids"),
        ({"video_position_ids": torch.zeros(1, 1, 2, dtype=torch.long)}, "no video_position_ids and num_frames"),
        (
            {"video_position_ids": torch.full((2, 1, 2), 3), "num_frames_per_video": torch.tensor([2])},
            r"row 0 has 7 .* video_position_ids of \[2\] frames describes",
        ),
    ],
)
def test_placeholders_that_no_places_describe(given: dict[str, torch.Tensor], said: str) -> None:
    with pytest.raises(UnsupportedCall, match=said):
        find("gemma4", [7, *[tiny.VIDEO] * 7, 7], **given)


SLICE = tiny.SPARE  # begins a slice, as START begins a frame


def run(tokens: int, begin: int = tiny.START) -> list[int]:
    return [begin, *[tiny.VIDEO] * tokens, tiny.END]


def test_slices_belong_to_the_frame_before_them() -> None:
    """A frame as a whole and two rows of two slices, of another size; then another video, without any."""
    row = run(2, SLICE) * 2
    sliced = [*run(6), *row, 7, *row]
    ids = [7, *sliced * 2, 7, 8, *run(6), *run(6), 9]
    sizes = [*[[8, 12], *[[4, 8]] * 4] * 2, [8, 12], [8, 12]]
    first, second = find("minicpmv4_6", ids, target_sizes_videos=torch.tensor(sizes)).spans
    assert (first.frames, first.grid) == ((14, 14), None)
    assert (second.frames, second.grid) == ((6, 6), (2, 3))
    assert [*first.at, *second.at] == [column for column, token in enumerate(ids) if token == tiny.VIDEO]


def test_frames_of_slices_that_are_composed_have_sizes_of_their_own() -> None:
    sizes = torch.tensor([[8, 12], [8, 8]] * 2)
    [span] = find("minicpmv4_6", [7, *[*run(6), *run(4)] * 2], target_sizes_videos=sizes).spans
    assert (span.frames, span.grid) == ((6, 4, 6, 4), None)
    [span] = find("minicpmv4_6", [7, *run(24) * 2], target_sizes_videos=sizes[:1].expand(2, 2)).spans
    assert (span.frames, span.grid) == ((24, 24), (4, 6))  # downsample_mode="4x"


@pytest.mark.parametrize(
    ("tokens", "sizes", "said"),
    [
        ([6, 6], None, "no target_sizes_videos to lay them out"),
        ([6, 6], [[8, 12]], "6 video placeholders in a row, .* a slice of 0 by 0 patches; .* describes 1"),
        ([6, 5], [[8, 12]] * 2, "5 video placeholders in a row, .* a slice of 8 by 12 patches"),
        ([12], [[8, 12]], "12 video placeholders in a row, .* a slice of 8 by 12 patches"),
    ],
)
def test_placeholders_that_no_slices_describe(tokens: list[int], sizes: list[list[int]] | None, said: str) -> None:
    given = {} if sizes is None else {"target_sizes_videos": torch.tensor(sizes)}
    with pytest.raises(UnsupportedCall, match=said):
        find("minicpmv4_6", [7, *run(tokens[0]), *[token for n in tokens[1:] for token in run(n)]], **given)


def test_frames_of_slices_are_found_by_ids_alone() -> None:
    model, sizes = tiny.model("minicpmv4_6"), torch.tensor([[8, 12]])
    placeholder = torch.tensor([[7, *run(6)]]) == tiny.VIDEO
    read = prompt.read(adapter_for(model), None, placeholder, {"target_sizes_videos": sizes})
    with pytest.raises(UnsupportedCall, match="expected input_ids, in which a mark begins each frame, got"):
        prompt.find(adapter_for(model), model.config, read)


@pytest.mark.parametrize("grid", [None, [[4, 4, 6]], [[1, 4, 6]]])
def test_placeholders_that_no_grid_describes(grid: list[list[int]] | None) -> None:
    arguments = {} if grid is None else {"video_grid_thw": torch.tensor(grid)}
    with pytest.raises(UnsupportedCall, match="video_grid_thw"):
        find("qwen2_5_vl", [7, *[tiny.VIDEO] * 10, 7], **arguments)


def test_placeholders_that_no_pixels_describe() -> None:
    ids = [7, *[tiny.VIDEO] * 10, 7]
    with pytest.raises(UnsupportedCall, match="pixel_values_videos"):
        find("llava_onevision", ids)
    with pytest.raises(UnsupportedCall, match="1 videos of 4 frames"):
        find("llava_onevision", ids, pixel_values_videos=torch.zeros(1, 4, 3, 8, 8))


def test_the_question_ends_with_its_turn_and_leaves_markers_out() -> None:
    model = tiny.model("qwen2_5_vl")
    before, video = [1, 2, tiny.START], [tiny.VIDEO] * 6
    grid = {"video_grid_thw": torch.tensor([[1, 4, 6]])}

    def asked(*after: int) -> list[int]:
        rows = torch.tensor([[*before, *video, *after]])
        placeholder = rows == tiny.VIDEO
        marks = {"end_of_turn": frozenset({tiny.END_OF_TURN}), "marks": prompt.marks_of(model.config)}
        reading = prompt.read(adapter_for(model), rows, placeholder, grid)
        [columns] = prompt.find(adapter_for(model), model.config, reading, **marks).questions
        return rows[0, columns].tolist()

    assert asked(tiny.END, 5, 6, tiny.END_OF_TURN, 9, 9) == [5, 6]
    assert asked(8, 9, tiny.IMAGE, tiny.IMAGE, 5, tiny.IMAGE, 6, 7) == [6, 7]  # after the last image, too
    assert asked(tiny.END, tiny.END_OF_TURN, 9, 9) == [1, 2, 9, 9]  # the question stands before the video
