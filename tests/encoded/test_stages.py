"""Stages inside the model reduce an encoded video as they do what a stage before the decoder has left of one."""

from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("torchvision", reason="transformers' video processors need torchvision")

from tests.encoded.worlds import GENERATE, QUESTIONS, Fixed, World, frames, side_by_side, world
from tests.engines.hf import processors, tiny
from tests.engines.hf.reducers import Loudest, MergeIntoLoudest
from tests.engines.hf.staged import attended
from tests.engines.hf.test_replay import blind, state
from vidsieve import Chain, Prune, Reducer, Staged
from vidsieve.encoded.at_once import encode_frames
from vidsieve.encoded.video import EncodedVideo
from vidsieve.engines.hf import attach
from vidsieve.engines.hf.loading import prepare, prepare_turns
from vidsieve.errors import UnsupportedCall
from vidsieve.methods import Flat, Proportional, SceneCuts, Uniform, Whole
from vidsieve.methods.merge import TemporalMerge
from vidsieve.methods.presets import vidsieve

# Processors of GLM and MiniCPM make numpy arrays of torch tensors, of which numpy 2 warns.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
__all__ = ["world"]  # a fixture
FIRST = Loudest(0.75)
STAGES: dict[int, Reducer] = {1: Loudest(0.5), 2: attended(0.25)}


inside = pytest.mark.parametrize(
    "world",
    [one for one in processors.EACH if tiny.served(one if isinstance(one, str) else one.values[0], inside=True)],
    indirect=True,
    scope="module",
)


@pytest.fixture(scope="module")
def stored(world: World) -> EncodedVideo:
    return encode_frames(*world.both(), world.frames, FIRST)


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def long(request: pytest.FixtureRequest) -> World:
    """A longer video, of which the order is known in which its tokens were picked: none is a mean of several."""
    world = World(request.param)
    world.frames = frames(count=24)
    encoded = encode_frames(*world.both(), world.frames, FIRST)
    order = torch.arange(len(encoded.selection)).int()
    world.encoded = replace(encoded, selection=replace(encoded.selection, step=order))
    return world


def hooked(world: World, inputs: Any, first: Reducer, stages: Any = STAGES, cost: float | None = None) -> Any:
    with attach(world.model, Staged({0: first, **stages}, cost)) as trace:
        out = world.model.generate(**inputs, **GENERATE)
    return out, trace


def asked(world: World, encoded: Any, question: str, stages: Any = STAGES, cost: float | None = None) -> Any:
    inputs = encoded.inputs(*world.both(), question)
    with attach(world.model, Staged(stages, cost)) as trace, encoded.on(world.model):
        out = world.model.generate(**inputs, **GENERATE)
    return out, trace


@inside
def test_every_family_gives_what_it_gives_with_the_first_stage_attached(world: World, stored: EncodedVideo) -> None:
    model, encoded = world.model, stored
    questions = QUESTIONS[:2]
    expected, texts = [], []
    for question in questions:
        inputs = prepare(world.processor, world.frames, question)
        out, trace = hooked(world, inputs, FIRST)
        expected.append((out, trace.videos[0]))
        texts.append(world.text(out.sequences[:, inputs["input_ids"].shape[1] :]))
    before = state(model)
    with blind(model):
        for question, (want, video) in zip(questions, expected, strict=True):
            got, trace = asked(world, encoded, question)
            torch.testing.assert_close(torch.stack(got.logits), torch.stack(want.logits), atol=1e-4, rtol=0)
            assert trace.videos[0].kept == video.kept
            assert [stage.layer for stage in trace.videos[0].stages] == [0, 1, 2]
            assert trace.totals["tokens_before"] == sum(encoded.tokens)
        with attach(model, Staged(STAGES)) as trace:
            one_by_one = [encoded.ask(model, world.processor, question, max_new_tokens=6) for question in questions]
            together = encoded.ask(model, world.processor, questions, max_new_tokens=6)
        assert [video.kept for video in trace.videos[-2:]] == [video.kept for _, video in expected]
        assert trace.videos[-1].at.ge(0).sum() == len(encoded.selection)
        with encoded.on(model), attach(model, Staged(STAGES)):  # the other way round
            later = model.generate(**encoded.inputs(*world.both(), QUESTIONS[0]), **GENERATE)
    torch.testing.assert_close(torch.stack(later.logits), torch.stack(expected[0][0].logits), atol=1e-4, rtol=0)
    assert one_by_one == together == texts
    assert state(model) == before


@inside
def test_the_question_is_not_what_stands_beside_frames_that_are_gone(world: World) -> None:
    total = sum(world.encoded.tokens)
    first = Fixed(torch.arange(total // 2))  # the last frames have no token left, and may have words
    encoded = encode_frames(*world.both(), world.frames, first)
    inputs = prepare(world.processor, world.frames, QUESTIONS[0])
    stages = {2: attended(0.3, "question")}
    want, expected = hooked(world, inputs, first, stages)
    got, trace = asked(world, encoded, QUESTIONS[0], stages)
    assert trace.videos[0].kept == expected.videos[0].kept
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(want.logits), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "stages",
    [
        {1: Prune(0.4, Uniform(2), Proportional(), Flat()), 2: attended(0.2)},
        {1: TemporalMerge(-1.0, Uniform(3)), 2: attended(0.1)},
        {1: MergeIntoLoudest(0.4), 2: MergeIntoLoudest(0.2)},
        {2: Chain(Loudest(0.4), attended(0.2))},
        {1: Loudest(0.4), 2: Loudest(0.01)},
    ],
    ids=["segments", "along time", "merges", "chain", "one"],
)
def test_stages_of_other_kinds(long: World, stages: dict[int, Reducer]) -> None:
    encoded = long.encoded.at(0.5)
    inputs = prepare(long.processor, long.frames, QUESTIONS[0])
    want, expected = hooked(long, inputs, Fixed(encoded.selection.kept), stages)
    got, trace = asked(long, encoded, QUESTIONS[0], stages)
    assert trace.videos[0].kept == expected.videos[0].kept
    assert trace.videos[0].after < len(encoded.selection)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(want.logits), atol=1e-4, rtol=0)


@inside
def test_several_videos_are_reduced_each_by_itself(world: World, stored: EncodedVideo) -> None:
    other = frames(seed=1, count=12 if world.model.config.model_type.startswith("qwen") else 8)
    both = stored + encode_frames(*world.both(), other, FIRST)
    inputs = prepare_turns(world.processor, [world.frames, other], QUESTIONS[:1])
    got, trace = asked(world, both, QUESTIONS[0])
    counts = [sum(video.tokens) for video in both.videos]
    assert [video.before for video in trace.videos] == counts
    assert [video.after for video in trace.videos] == [round(0.25 * count) for count in counts]
    if not side_by_side(world.model):
        want, expected = hooked(world, inputs, FIRST)
        assert [video.kept for video in trace.videos] == [video.kept for video in expected.videos]
        torch.testing.assert_close(torch.stack(got.logits), torch.stack(want.logits), atol=1e-4, rtol=0)


@pytest.mark.parametrize("stage", [vidsieve(0.1), Prune(0.1, Whole()), TemporalMerge(), Prune(0.1, SceneCuts())])
def test_what_measures_the_whole_video_is_refused(long: World, stage: Reducer) -> None:
    before = state(long.model)
    with pytest.raises(UnsupportedCall, match="only the tokens that were kept are stored"):
        asked(long, long.encoded, QUESTIONS[0], {1: stage})
    assert state(long.model) == before


def test_means_of_unknown_weights_are_not_merged_further(long: World) -> None:
    first = MergeIntoLoudest(0.5)
    encoded = encode_frames(*long.both(), long.frames, first)
    with pytest.raises(UnsupportedCall, match=r"was not encoded by vidsieve\.encode"):
        asked(long, encoded, QUESTIONS[0], {1: MergeIntoLoudest(0.1)})
    stages = {1: Loudest(0.3), 2: attended(0.2)}
    want, _ = hooked(long, prepare(long.processor, long.frames, QUESTIONS[0]), first, stages)
    got, _ = asked(long, encoded, QUESTIONS[0], stages)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(want.logits), atol=1e-4, rtol=0)


def test_a_stage_that_would_keep_more_than_is_stored_keeps_all(long: World) -> None:
    expected = long.encoded.ask(*long.both(), QUESTIONS[0], max_new_tokens=6)
    with attach(long.model, Staged({1: attended(0.9)})) as trace:
        assert long.encoded.ask(*long.both(), QUESTIONS[0], max_new_tokens=6) == expected
    assert trace.videos[0].after == len(long.encoded.selection)


def test_a_trace_tells_of_the_whole_video(long: World) -> None:
    encoded = long.encoded
    with attach(long.model, Staged(STAGES)) as trace:
        encoded.ask(*long.both(), QUESTIONS[0], max_new_tokens=2)
    total = sum(encoded.tokens)
    assert f"{total} video tokens -> {round(0.25 * total)} kept" in str(trace)
    [video] = trace.videos
    assert (video.frames, video.grid) == (encoded.tokens, encoded.grid)
    shown = video.at >= 0
    assert shown.nonzero().flatten().tolist() == encoded.selection.kept.tolist()
    assert set(video.kept) < set(encoded.selection.kept.tolist())
