"""What spares the host waits around the tower gives what transformers gives."""

import inspect
from typing import Any

import pytest
import torch

from tests.engines.hf import tiny
from vidsieve.engines.hf import attach
from vidsieve.engines.hf.vision.waits import GRIDS


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "glm4v"])
def test_positions_of_grids_that_come_again_are_those_of_transformers(family: str) -> None:
    model = tiny.fresh(family)
    body = model.base_model
    names = inspect.signature(body.get_rope_index).parameters
    prompts = [tiny.prompt(family, videos=2, images=1), tiny.prompt(family, seed=3, text=9)]
    prompts.append(tiny.batch(*(tiny.prompt(family, text=text) for text in (4, 9))))
    calls = [{name: x for name, x in prompt.items() if name in names} for prompt in prompts]
    expected = [body.get_rope_index(**call) for call in calls]
    own = type(body).get_vision_position_ids
    with attach(model, vision="packed"):
        for call, true in zip(calls * 2, expected * 2, strict=True):
            for found, one in zip(body.get_rope_index(**call), true, strict=True):
                assert found.dtype == one.dtype
                assert torch.equal(found, one)
        grids = [torch.tensor([2, 4 + 2 * i, 4]) for i in range(GRIDS + 2)]
        for start, grid in enumerate(grids + grids):
            found = body.get_vision_position_ids(start, grid, 1, 2, device=grid.device)
            assert torch.equal(found, own(body, start, grid, 1, 2, device=grid.device))


def test_a_grid_is_laid_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.fresh("qwen3_vl")
    asked: list[int] = []
    own = type(model.base_model).get_vision_position_ids

    def counted(self: Any, start_position: int, *args: Any, **kwargs: Any) -> Any:
        asked.append(int(start_position))
        return own(self, start_position, *args, **kwargs)

    counted.__signature__ = inspect.signature(own)  # type: ignore[attr-defined]
    monkeypatch.setattr(type(model.base_model), "get_vision_position_ids", counted)
    with attach(model, vision="packed"):
        model.generate(**tiny.prompt("qwen3_vl", frames=8), max_new_tokens=1)
    assert asked == [0]
