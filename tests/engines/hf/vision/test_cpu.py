"""On a CPU a tower sees a few frames at a time, and gives the bits of a stock one, or runs as stock does."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vidsieve
from tests.engines.hf import tiny
from tests.engines.hf.vision.test_packed import SPLITTING, logits
from vidsieve import ops
from vidsieve.engines.hf.vision import cpu
from vidsieve.engines.hf.vision.calls import TowerCall
from vidsieve.engines.hf.vision.tower import packed_attentions, vision_tower
from vidsieve.methods import Pixels, RunLength, Staged
from vidsieve.ops.vision import eager

SOME = "glm4v", "qwen2_5_vl", "qwen3_vl", "video_llama_3"


def blocks(model: Any) -> list[nn.Module]:
    tower = vision_tower(model)
    found = set(packed_attentions(tower))
    return [module for module in tower.modules() if found & set(module.children())]


def frame(model: Any) -> int:
    """Patches of a frame of the tests' videos: of the segments of full attention, the longest."""
    lengths: list[int] = []

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        lengths.append(int(kwargs["cu_seqlens"].diff().max()))

    hooks = [block.register_forward_pre_hook(note, with_kwargs=True) for block in blocks(model)]
    family = model.config.model_type
    logits(model, tiny.prompt(family, frames=2))
    for hook in hooks:
        hook.remove()
    return max(lengths)


def rows_seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the rows of each call of the tower's attention."""
    seen: list[int] = []
    own = TowerCall.attend

    def attend(call: TowerCall, query: Tensor, *args: Any) -> Tensor:
        seen.append(len(query))
        return own(call, query, *args)

    monkeypatch.setattr(TowerCall, "attend", attend)
    return seen


@pytest.mark.parametrize("family", SPLITTING)
def test_few_frames_at_a_time_give_the_bits_of_stock(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = tiny.fresh(family), tiny.prompt(family, frames=3, videos=2)
    stock = logits(model, inputs)
    monkeypatch.setattr(cpu, "ROWS", 2 * frame(model))
    with vidsieve.attach(model, vision="packed"):
        first, second = logits(model, inputs), logits(model, inputs)
    assert torch.equal(first, stock)  # tried
    assert torch.equal(second, stock)  # and taken, where the bits are the same


@pytest.mark.parametrize("family", SPLITTING)
def test_a_way_that_gives_the_bits_is_taken_from_the_second_call_on(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = tiny.fresh(family), tiny.prompt(family, frames=6)
    stock, rows = logits(model, inputs), frame(model)
    monkeypatch.setattr(cpu, "ROWS", rows)
    seen, told = rows_seen(monkeypatch), []

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        told.append(isinstance(kwargs.get("position_embeddings"), tuple))

    for block in blocks(model):
        block.register_forward_pre_hook(note, with_kwargs=True)
    monkeypatch.setattr(torch, "equal", lambda a, b: torch.allclose(a, b, atol=1e-4))  # as on any processor
    for _ in range(2):
        with vidsieve.attach(model, vision="packed"):  # the second knows what the first saw
            seen.clear()
            found = logits(model, inputs)
    assert max(seen) == (rows if all(told) else 6 * rows)  # 5.14 hands some towers one tensor
    torch.testing.assert_close(found, stock, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", SOME)
def test_a_way_that_gives_other_bits_is_not_taken(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = tiny.fresh(family), tiny.prompt(family, frames=6)
    stock = logits(model, inputs)
    monkeypatch.setattr(cpu, "ROWS", frame(model))
    monkeypatch.setattr(cpu, "_joined", lambda parts: torch.cat(parts) * (1 + 2**-20))
    with vidsieve.attach(model, vision="packed"):
        assert torch.equal(logits(model, inputs), stock)
        assert torch.equal(logits(model, inputs), stock)


@pytest.mark.parametrize("family", SOME)
def test_a_module_of_ours_that_gives_other_bits_is_not_taken(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = tiny.fresh(family), tiny.prompt(family, frames=6)
    stock, rotate_ = logits(model, inputs), eager.rotate_

    def rotate(problem: ops.RotaryProblem) -> None:
        rotate_(problem)
        problem.qkv.mul_(1 + 2**-20)

    monkeypatch.setattr(eager, "rotate_", rotate)
    with vidsieve.attach(model, vision="packed"):
        assert torch.equal(logits(model, inputs), stock)


@pytest.mark.parametrize("family", ["glm4v", "qwen2_5_vl"])
def test_modules_that_were_tried_in_another_precision_are_not_taken(family: str) -> None:
    model, inputs = tiny.fresh(family), tiny.prompt(family, frames=6)
    tower = vision_tower(model)
    with torch.no_grad():
        for weight in tower.parameters():
            if weight.ndim == 1:  # of ones nobody sees where a norm rounds
                weight.add_(torch.randn_like(weight), alpha=0.3)
    converted = {**inputs, "pixel_values_videos": inputs["pixel_values_videos"].bfloat16()}
    with vidsieve.attach(model, vision="packed"):
        model.bfloat16()
        found = logits(model, converted)
    assert torch.equal(found, logits(model, converted))


@pytest.mark.parametrize("family", SOME[:3])
def test_pixels_of_zeros_decide_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = tiny.fresh(family), tiny.prompt(family, frames=6)
    stock = logits(model, inputs)
    monkeypatch.setattr(cpu, "_channels_last", lambda x: x.flatten(1))  # another order, by which zeros are zeros too
    with vidsieve.attach(model, vision="packed"):
        logits(model, {**inputs, "pixel_values_videos": torch.zeros_like(inputs["pixel_values_videos"])})
        tried = cpu._same_bits[vision_tower(model)]
        assert not any(nn.Conv3d in key for key in tried)
        assert torch.equal(logits(model, inputs), stock)
        assert any(nn.Conv3d in key for key in tried)


@pytest.mark.parametrize("family", SOME[:3])
def test_where_a_product_adds_up_otherwise_patches_are_laid_out_for_the_convolution(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = tiny.fresh(family), tiny.prompt(family, frames=6)
    stock, laid_out = logits(model, inputs), []
    forward = nn.Conv3d._conv_forward

    def noted(conv: nn.Conv3d, x: Tensor, *args: Any) -> Tensor:
        laid_out.append(x.is_contiguous(memory_format=torch.channels_last_3d))
        return forward(conv, x, *args)

    monkeypatch.setattr(nn.Conv3d, "_conv_forward", noted)
    monkeypatch.setattr(cpu, "_channels_last", lambda x: x.flatten(1) * (1 + 2**-20))
    with vidsieve.attach(model, vision="packed"):
        assert torch.equal(logits(model, inputs), stock)
        chosen = [way for key, way in cpu._same_bits[vision_tower(model)].items() if nn.Conv3d in key]
        assert set(chosen) <= {0, 2}  # never the product
        laid_out.clear()
        assert torch.equal(logits(model, inputs), stock)
    assert laid_out == [way == 2 for way in chosen]


@pytest.mark.parametrize("holds_keys", [True, False])
@pytest.mark.parametrize("family", SOME)
def test_fewer_groups_give_the_bits_that_they_give_at_once(
    family: str, holds_keys: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = tiny.fresh(family), tiny.prompt(family, frames=6)
    pixels = Staged({Pixels(): RunLength(0.6, holds_keys=holds_keys)})
    with vidsieve.attach(model, pixels):
        whole = logits(model, inputs)
    monkeypatch.setattr(cpu, "ROWS", frame(model))
    with vidsieve.attach(model, pixels):
        assert torch.equal(logits(model, inputs), whole)
        assert torch.equal(logits(model, inputs), whole)


def test_somebody_who_watches_a_part_sees_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = tiny.fresh("qwen2_5_vl"), tiny.prompt("qwen2_5_vl", frames=6)
    rows = frame(model)
    monkeypatch.setattr(cpu, "ROWS", rows)
    seen: list[int] = []
    with vidsieve.attach(model, vision="packed"):
        logits(model, inputs)
        hook = blocks(model)[0].mlp.register_forward_hook(lambda module, args, output: seen.append(len(output)))
        logits(model, inputs)
        hook.remove()
    assert seen == [6 * rows]


def test_segments_that_are_longer_are_a_part_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "ROWS", 5)
    assert cpu._parts([0, 2, 4, 4, 12, 13, 18]) == [
        (0, 3, slice(0, 4)),
        (3, 4, slice(4, 12)),
        (4, 5, slice(12, 13)),
        (5, 6, slice(13, 18)),
    ]
