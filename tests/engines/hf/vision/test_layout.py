"""A tower whose layout is computed by what is not known here is left as it is, and says so."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import vision_utils

import vidsieve
from tests.engines.hf import tiny
from tests.engines.hf.vision.test_before import repeating
from tests.engines.hf.vision.test_packed import SPLITTING, logits
from vidsieve.engines.hf.vision import layout
from vidsieve.engines.hf.vision.layout import REMEMBERED, Layouts
from vidsieve.engines.hf.vision.tower import vision_tower
from vidsieve.errors import UnsupportedCall
from vidsieve.methods import Pixels, RunLength, Staged


def check_left_alone(model: Any, name: str) -> None:
    """Check that `model` is attached to without its tower, where that is "auto", which says why with this `name`."""
    with vidsieve.attach(model) as trace:
        assert trace.tower.startswith("stock, because this release of transformers lays it out in a way that is not")
        assert name in trace.tower
        assert "tower: stock, because" in str(trace)
        assert "forward" not in vision_tower(model).__dict__
    for options in ({"vision": "packed"}, {"vision": "fused"}, {"method": Staged({Pixels(): RunLength(0.5)})}):
        with pytest.raises(UnsupportedCall, match="in a way that is not known here"):
            vidsieve.attach(model, **options)


def get_vision_spirals(grid_thw: Tensor) -> None:
    """What a later release may compute."""


@pytest.mark.parametrize("of_transformers", [True, False])
def test_a_function_that_is_not_known(of_transformers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if of_transformers:
        monkeypatch.setattr(vision_utils, "get_vision_spirals", get_vision_spirals, raising=False)
    model, inputs = tiny.fresh("qwen2_5_vl"), repeating("qwen2_5_vl")
    stock, tower = logits(model, inputs), vision_tower(model)

    class Spiral(type(tower)):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor, grid_thw: Tensor, **kwargs: Any) -> Any:
            get_vision_spirals(grid_thw)
            return super().forward(hidden_states, grid_thw, **kwargs)

    tower.__class__ = Spiral
    check_left_alone(model, "get_vision_spirals")
    with vidsieve.attach(model):
        assert torch.equal(logits(model, inputs), stock)


def test_a_tower_that_calls_no_function_of_these() -> None:
    model = tiny.fresh("qwen2_5_vl")
    tower = vision_tower(model)

    class Other(type(tower)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    tower.__class__ = Other
    check_left_alone(model, "by no function that is known")


@pytest.mark.parametrize("name", ["get_vision_cu_seqlens", "get_vision_position_ids", "get_vision_window_index"])
@pytest.mark.parametrize("more", [True, False])
def test_parameters_that_are_not_known(more: bool, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = getattr(vision_utils, name)
    parameters = list(inspect.signature(plain).parameters.values())
    other = inspect.Parameter("overlap", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=0)
    taken = [*parameters, other] if more else parameters[:-1]

    def changed(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **kwargs)

    changed.__signature__ = inspect.Signature(taken)  # type: ignore[attr-defined]
    monkeypatch.setattr(vision_utils, name, changed)
    check_left_alone(tiny.fresh("qwen2_5_vl"), name)


@pytest.mark.parametrize("family", SPLITTING)
def test_layouts_are_made_once_for_a_grid_and_forgotten(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts, made = Layouts(vision_tower(tiny.model(family))), []
    plain = vision_utils.get_vision_cu_seqlens
    monkeypatch.setattr(vision_utils, "get_vision_cu_seqlens", lambda *a, **k: made.append(a) or plain(*a, **k))
    grids = [torch.tensor([[t, 4, 6]]) for t in range(1, REMEMBERED + 2)]
    sizes = torch.tensor([2]) if family == "video_llama_3" else None
    for grid in (*grids, *grids[1:]):
        assert layouts.of(grid, torch.device("cpu"), sizes).patches == int(grid.prod())
    assert len(made) == len(grids)
    layouts.of(grids[0], torch.device("cpu"), sizes)
    assert len(made) == len(grids) + 1


def test_a_layout_is_waited_for_where_another_stream_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[Any] = []
    used: list[Tensor] = []
    monkeypatch.setattr(layout, "launched", lambda device: "mark")
    monkeypatch.setattr(layout, "wait_for", lambda mark, device: waited.append(mark))
    monkeypatch.setattr(layout, "in_use", used.extend)
    layouts, grid = Layouts(vision_tower(tiny.model("qwen2_5_vl"))), torch.tensor([[2, 4, 4]])
    for times in (1, 2):
        found = layouts.of(grid, torch.device("cpu"))
        assert waited == ["mark"] * times
        assert len(used) == len(found.arguments) * times
