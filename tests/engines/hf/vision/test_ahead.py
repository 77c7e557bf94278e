"""Features that were made while a video was decoded are those that the tower makes of all of its pixels."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("torchvision", reason="transformers' video processors need torchvision")
pytest.importorskip("av", reason="reading a video file needs av")

import vidsieve
from tests.clips import write
from tests.engines.hf import processors, tiny
from tests.engines.hf.test_coming import QUESTION, OneByOne, frames_of, in_turns
from vidsieve.engines.hf import loading
from vidsieve.engines.hf.attach import attachment_of
from vidsieve.engines.hf.loading import prepare
from vidsieve.engines.hf.vision.ahead import _tensors
from vidsieve.errors import WrongArgument
from vidsieve.methods import Pixels, RunLength, Staged
from vidsieve.video import begin_video, plan_video, read_video

# Processors of GLM make numpy arrays of torch tensors, of which numpy 2 warns.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

AHEAD = ("qwen2_5_vl", "qwen3_vl", "glm4v")
OTHERS = (
    "llava_onevision",
    "internvl",
    "video_llama_3",
)  # whose frames are one batch, or whose merge comes with a call


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many this machine has, some are left."""
    monkeypatch.setattr(loading, "cores_are_left", lambda: True)


@pytest.fixture
def make() -> Callable[[str], tuple[Any, Any]]:
    def made(family: str) -> tuple[Any, Any]:
        processor = processors.processor(family)
        processors.skip_unless_told_of_frames(processor)
        if family == "video_llama_3":
            processor.video_processor.use_token_compression = False
        return tiny.model(family), processor

    return made


class Calls:
    """Rows of pixels of each call of the tower."""

    def __init__(self, model: Any) -> None:
        body = model.base_model
        tower = next(x for name in ("visual", "vision_tower", "vision_model") if (x := getattr(body, name, None)))
        self.rows: list[int] = []
        self._hook = tower.register_forward_hook(self._note, with_kwargs=True)

    def _note(self, tower: Any, args: Any, kwargs: Any, output: Any) -> None:
        self.rows.append(len(next(x for x in (*args, *kwargs.values()) if torch.is_tensor(x))))

    def taken(self) -> list[int]:
        rows, self.rows = self.rows, []
        return rows

    def __enter__(self) -> "Calls":
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()


def logits(model: Any, inputs: Any) -> list[torch.Tensor]:
    out = model.generate(
        **inputs, do_sample=False, max_new_tokens=3, output_logits=True, return_dict_in_generate=True, pad_token_id=0
    )
    return list(out.logits)


@pytest.fixture
def prepared(make: Callable[[str], tuple[Any, Any]]) -> Iterator[tuple[Any, Any, Calls, Any]]:
    """A model with nothing but its tower attached, inputs whose features it has, calls of the tower, and the trace."""
    model, processor = make("qwen2_5_vl")
    with vidsieve.attach(model) as trace, Calls(model) as calls:
        inputs = prepare(processor, OneByOne(frames_of(23), order=in_turns), QUESTION, model=model)
        assert len(calls.taken()) > 1
        yield model, inputs, calls, trace


@pytest.mark.parametrize("count", [1, 9, 23])
@pytest.mark.parametrize("family", AHEAD)
def test_answers_are_those_of_all_pixels_at_once(family: str, count: int, make: Callable[[str], Any]) -> None:
    model, processor = make(family)
    frames = frames_of(count)
    with vidsieve.attach(model, "vidsieve", keep=0.5) as trace, Calls(model) as calls:
        whole = prepare(processor, frames, QUESTION, model=model)
        expected, kept = logits(model, whole), trace.videos[-1].kept
        calls.taken()
        coming = prepare(processor, OneByOne(frames, order=in_turns), QUESTION, model=model)
        parts = calls.taken()
        for _ in range(2):  # as often as these pixels are asked about
            assert not calls.taken()
            for ours, true in zip(logits(model, coming), expected, strict=True):
                torch.testing.assert_close(ours, true, rtol=0, atol=1e-4)
            assert torch.equal(torch.as_tensor(trace.videos[-1].kept), torch.as_tensor(kept))
    assert len(parts) == -(-count // 16)
    assert sum(parts) == len(whole["pixel_values_videos"])
    for name, value in whole.items():
        assert torch.equal(torch.as_tensor(coming[name]), torch.as_tensor(value)), name


@pytest.mark.parametrize("family", OTHERS)
def test_other_towers_run_when_the_model_asks(family: str, make: Callable[[str], Any]) -> None:
    model, processor = make(family)
    frames = frames_of(9)
    with vidsieve.attach(model, "vidsieve", keep=0.5), Calls(model) as calls:
        expected = logits(model, prepare(processor, frames, QUESTION, model=model))
        calls.taken()
        inputs = prepare(processor, OneByOne(frames), QUESTION, model=model)
        assert not calls.taken()
        for ours, true in zip(logits(model, inputs), expected, strict=True):
            assert torch.equal(ours, true)
        assert calls.taken()


@pytest.mark.parametrize("case", ["nothing attached", "a stock tower", "fewer pixels", "inference mode", "autocast"])
def test_what_cannot_be_known_ahead_is_left_to_the_model(case: str, make: Callable[[str], Any]) -> None:
    model, processor = make("qwen2_5_vl")
    coming = OneByOne(frames_of(9))
    with Calls(model) as calls:
        if case == "nothing attached":
            prepare(processor, coming, QUESTION, model=model)
        elif case == "fewer pixels":
            with Staged({Pixels(): RunLength(0.5)})(model):
                prepare(processor, coming, QUESTION, model=model)
        else:
            within = torch.inference_mode(case == "inference mode"), torch.autocast("cpu", enabled=case == "autocast")
            with vidsieve.attach(model, vision="stock" if case == "a stock tower" else "auto"), within[0], within[1]:
                prepare(processor, coming, QUESTION, model=model)
        assert not calls.taken()


def test_pixels_that_were_changed_are_encoded_anew(prepared: Any) -> None:
    model, inputs, calls, _ = prepared
    before = logits(model, inputs)
    assert not calls.taken()
    inputs["pixel_values_videos"].neg_()
    after = logits(model, inputs)
    assert calls.taken() == [len(inputs["pixel_values_videos"])]
    assert not torch.allclose(before[0], after[0])


def _scaled_in_place(model: Any) -> None:
    with torch.no_grad():
        model.base_model.visual.merger.mlp[0].weight.mul_(2)


def _loaded(model: Any) -> None:
    model.load_state_dict({name: 2 * weight for name, weight in model.state_dict().items()})


def _rounded(model: Any) -> None:
    model.base_model.visual.to(torch.bfloat16).float()


def _hooked(model: Any) -> None:
    model.base_model.visual.blocks[0].register_forward_hook(lambda block, args, output: 2 * output)


def _replaced(model: Any) -> None:
    model.base_model.visual.blocks[1] = model.base_model.visual.blocks[0]


@pytest.mark.parametrize("change", [_scaled_in_place, _loaded, _rounded, _hooked, _replaced])
def test_features_of_a_tower_that_was_changed_are_made_anew(
    change: Callable[[Any], None], make: Callable[[str], tuple[Any, Any]]
) -> None:
    model, (_, processor) = tiny.fresh("qwen2_5_vl"), make("qwen2_5_vl")
    with vidsieve.attach(model):
        inputs = prepare(processor, OneByOne(frames_of(9)), QUESTION, model=model)
        change(model)
        copied = {name: value.clone() for name, value in inputs.items()}
        for ours, true in zip(logits(model, inputs), logits(model, copied), strict=True):
            assert torch.equal(ours, true)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_tower_that_is_asked_in_parts_gives_what_it_gives_at_once(family: str) -> None:
    model, inputs = tiny.fresh(family), tiny.prompt(family, frames=8)
    with vidsieve.attach(model), torch.no_grad():
        ahead = attachment_of(model.base_model).vision.ahead
        if ahead is None:
            pytest.skip("its features are not made ahead")
        pixels, grid = inputs["pixel_values_videos"], inputs["video_grid_thw"]
        patches = pixels.unflatten(0, (int(grid[0, 0]), -1))
        with Calls(model) as calls:
            growing = ahead.begin(len(patches), grid)
            for at in torch.arange(len(patches)).flip(0).split(3):
                growing.add(patches[at].flatten(0, 1), at)
            ahead.keep(growing, pixels, grid)
            assert len(calls.taken()) == 3
            found = model(**inputs).logits
            assert not calls.taken()
        true = model(**{name: value.clone() for name, value in inputs.items()}).logits
        torch.testing.assert_close(found, true, rtol=0, atol=1e-4)


def test_other_pixels_and_grids_are_encoded(prepared: Any) -> None:
    model, inputs, calls, _ = prepared
    copied = {**inputs, "pixel_values_videos": inputs["pixel_values_videos"].clone()}
    for ours, true in zip(logits(model, copied), logits(model, inputs), strict=True):
        torch.testing.assert_close(ours, true, rtol=0, atol=1e-4)
    assert len(calls.taken()) == 1
    ask = model.base_model.get_video_features
    pixels, grid = inputs["pixel_values_videos"], inputs["video_grid_thw"]
    with torch.no_grad():
        assert ask(pixels, grid.clone(), return_dict=True).pooler_output[0].shape[0] == int(grid.prod()) // 4
        assert not calls.taken()
        turned = grid[:, [0, 2, 1]]
        assert not torch.equal(turned, grid)
        ask(pixels, turned, return_dict=True)
        assert len(calls.taken()) == 1
        grid += 0  # in place: as if it had been changed
        ask(pixels, grid, return_dict=True)
        assert len(calls.taken()) == 1


def test_what_is_asked_otherwise_is_computed(prepared: Any) -> None:
    model, inputs, calls, _ = prepared
    ask, asked = model.base_model.get_video_features, (inputs["pixel_values_videos"], inputs["video_grid_thw"])
    with torch.no_grad():
        with torch.autocast("cpu"):
            ask(*asked, return_dict=True)
        assert len(calls.taken()) == 1
        assert ask(*asked, output_hidden_states=True, return_dict=True).hidden_states
        assert len(calls.taken()) == 1


def test_gradients_are_those_of_the_tower(prepared: Any) -> None:
    model, inputs, calls, _ = prepared
    weight = next(model.base_model.visual.parameters())
    weight.requires_grad_(True)
    model(**inputs).logits.sum().backward()
    assert calls.taken()
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0
    weight.grad = None
    weight.requires_grad_(False)


def test_features_go_with_their_pixels(prepared: Any) -> None:
    model, inputs, _, _ = prepared
    held = attachment_of(model.base_model).vision.ahead._known
    assert len(held) == 1
    del inputs["pixel_values_videos"]
    gc.collect()
    assert not held


def test_features_go_with_what_is_attached(make: Callable[[str], Any]) -> None:
    model, processor = make("qwen2_5_vl")
    with vidsieve.attach(model):
        inputs = prepare(processor, OneByOne(frames_of(9)), QUESTION, model=model)
        held = attachment_of(model.base_model).vision.ahead._known
        assert len(held) == 1
    assert not held
    with vidsieve.attach(model), Calls(model) as calls:
        logits(model, inputs)
        assert calls.taken()


def test_a_tower_whose_adapters_may_be_switched_runs_when_the_model_asks(make: Callable[[str], Any]) -> None:
    model, (_, processor) = tiny.fresh("qwen2_5_vl"), make("qwen2_5_vl")
    model.base_model.visual.merger.active_adapter = "default"  # as PEFT's wrapper of a module that is trained whole
    with vidsieve.attach(model), Calls(model) as calls:
        prepare(processor, OneByOne(frames_of(9)), QUESTION, model=model)
        assert not calls.taken()


@pytest.mark.filterwarnings("ignore")  # of torch's own making
def test_a_model_that_is_compiled_after_attaching(make: Callable[[str], Any]) -> None:
    model, (_, processor) = tiny.fresh("qwen3_vl"), make("qwen3_vl")
    torch._dynamo.reset()
    with torch.no_grad(), vidsieve.attach(model):
        known, others = (prepare(processor, OneByOne(frames_of(n)), QUESTION, model=model) for n in (9, 10))
        others["pixel_values_videos"].neg_()
        asked = (known, others, known)
        expected = [model(**{name: value.clone() for name, value in inputs.items()}).logits for inputs in asked]
        model.base_model.compile(backend="eager")
        for inputs, true in zip(asked, expected, strict=True):
            torch.testing.assert_close(model(**inputs).logits, true, rtol=0, atol=1e-4)
    torch._dynamo.reset()


def test_two_videos_are_known_at_once(make: Callable[[str], Any]) -> None:
    model, processor = make("qwen3_vl")
    videos = [frames_of(9), frames_of(10)]
    with vidsieve.attach(model), Calls(model) as calls:
        every = [prepare(processor, OneByOne(frames), QUESTION, model=model) for frames in videos]
        calls.taken()
        ours = [logits(model, inputs) for inputs in every]
        assert not calls.taken()
        for found, frames in zip(ours, videos, strict=True):
            for one, true in zip(found, logits(model, prepare(processor, frames, QUESTION, model=model)), strict=True):
                torch.testing.assert_close(one, true, rtol=0, atol=1e-4)


def test_a_file_is_answered_from(tmp_path: Path, make: Callable[[str], Any]) -> None:
    model, processor = make("qwen3_vl")
    clip = write(tmp_path / "clip.mp4", count=60)
    with vidsieve.attach(model, "vidsieve", keep=0.3):
        inputs = prepare(processor, begin_video(clip, num_frames=16), QUESTION, model=model)
        expected = logits(model, prepare(processor, read_video(clip, num_frames=16), QUESTION, model=model))
        for ours, true in zip(logits(model, inputs), expected, strict=True):
            torch.testing.assert_close(ours, true, rtol=0, atol=1e-4)


def test_what_a_model_cannot_be_given_with_is_refused(tmp_path: Path, make: Callable[[str], Any]) -> None:
    model, processor = make("qwen3_vl")
    with pytest.raises(WrongArgument, match="expected device or model, not both; got 'cpu'"):
        prepare(processor, frames_of(4), QUESTION, "cpu", model=model)
    with pytest.raises(WrongArgument, match="expected the model first"):
        prepare(processor, frames_of(4), QUESTION, model={})
    planned = plan_video(write(tmp_path / "clip.mp4"), num_frames=4)
    with pytest.raises(WrongArgument, match="expected frames with pixels for a model"):
        prepare(processor, planned, QUESTION, model=model)
    with pytest.raises(WrongArgument, match="expected a model with its weights in place, got one that is offloaded"):
        prepare(processor, frames_of(4), QUESTION, model=tiny.fresh("qwen3_vl").to("meta"))


@pytest.mark.gpu
@pytest.mark.parametrize("family", AHEAD)
def test_on_cuda_features_are_as_near_as_those_of_all_pixels(family: str) -> None:
    model, processor = tiny.fresh(family).to("cuda", torch.bfloat16), processors.processor(family)
    frames = frames_of(64)
    with vidsieve.attach(model), Calls(model) as calls:
        for _ in range(3):  # memory of one is that of the next
            inputs = prepare(processor, OneByOne(frames, order=in_turns), QUESTION, model=model)
            assert len(calls.taken()) == 4
            with torch.no_grad():
                found = model.base_model.get_video_features(
                    inputs["pixel_values_videos"], inputs["video_grid_thw"], return_dict=True
                )
                assert not calls.taken()
                true = model.base_model.get_video_features(
                    inputs["pixel_values_videos"].clone(), inputs["video_grid_thw"], return_dict=True
                )
            for ours, whole in zip(
                *(_tensors(list(x.values())) for x in (found, {name: true[name] for name in found})), strict=True
            ):
                assert (ours - whole).float().norm() <= 0.02 * whole.float().norm()
            calls.taken()
