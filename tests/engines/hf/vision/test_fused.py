"""Modules of a tower by fewer kernels, with the operations in eager torch: equal to the modules' own, and undone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from tests.engines.hf import tiny
from vidsieve.engines.hf.intercept import Interceptions
from vidsieve.engines.hf.vision.calls import TowerCall, TowerCalls
from vidsieve.engines.hf.vision.fused import FusedModules
from vidsieve.engines.hf.vision.layout import Layouts
from vidsieve.engines.hf.vision.tower import vision_tower

PARTS = [("MLP", "up_proj"), ("MLP", "down_proj"), ("Attention", "qkv"), ("Attention", "proj")]
FAMILIES = ("qwen2_5_vl", "qwen3_vl", "glm4v")
GRID = torch.tensor([[6, 4, 6]])


def new_tower(family: str) -> Any:
    return vision_tower(tiny.fresh(family)).requires_grad_(False)


@contextmanager
def fused(tower: nn.Module) -> Iterator[FusedModules]:
    """The fused modules of `tower`, in a call that is to be fused."""
    calls = TowerCalls()
    with Interceptions() as hooks:
        modules = FusedModules(tower, calls, hooks)
        calls.enter(TowerCall(Layouts(tower).of(GRID, torch.device("cpu")), fused=True))
        yield modules


def replaced(tower: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in tower.named_modules() if "forward" in module.__dict__}


def inputs_of(module: Any) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """Rows for a module, other than those that it was tried on, of all patches of GRID."""
    generator = torch.Generator().manual_seed(7)
    n = int(GRID.prod())
    if isinstance(module, nn.Conv3d):
        return (torch.randn(n, *module.weight.shape[1:], generator=generator),), {}
    if hasattr(module, "qkv"):
        angle = torch.randn(n, module.qkv.in_features // module.num_heads // 2, generator=generator).repeat(1, 2)
        bounds = torch.arange(0, n + 1, n // 6, dtype=torch.int32)
        given = {"cu_seqlens": bounds, "position_embeddings": (angle.cos(), angle.sin())}
        return (torch.randn(n, module.qkv.in_features, generator=generator),), given
    width = module.gate_proj.in_features if hasattr(module, "gate_proj") else len(module.weight)
    return (torch.randn(n, width, generator=generator),), {}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_fused_module_gives_what_it_gives_itself(family: str) -> None:
    tower = new_tower(family)
    with fused(tower) as modules:
        names = replaced(tower)
        assert not modules.refused
        assert {type(module).__name__ for module in names.values()} == modules.replaced
        assert any("Attention" in name for name in modules.replaced)
        assert "Conv3d" in modules.replaced
        for module in names.values():
            args, kwargs = inputs_of(module)
            own = type(module).forward(module, *args, **kwargs)
            torch.testing.assert_close(module(*args, **kwargs), own, atol=2e-5, rtol=1e-4)
    assert not replaced(tower)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_what_they_were_after_removal(family: str) -> None:
    tower = new_tower(family)
    before = {name: weight.clone() for name, weight in tower.named_parameters()}
    with fused(tower):
        moved = [name for name, weight in tower.named_parameters() if not weight.is_contiguous()]
        assert all(torch.equal(weight, before[name]) for name, weight in tower.named_parameters())
        assert bool(moved) == (family == "qwen2_5_vl")  # the others have no gate, or rows of 64 columns
    for name, weight in tower.named_parameters():
        assert torch.equal(weight, before[name])
        assert weight.is_contiguous()
        assert weight.untyped_storage().nbytes() == weight.nbytes


def other_class(module: nn.Module, forward: Any) -> None:
    module.__class__ = type(type(module).__name__, (type(module),), {"forward": forward})


@pytest.mark.parametrize("kind", ["more", "tuple", "argument"])
@pytest.mark.parametrize("part", ["Attention", "MLP", "RMSNorm"])
def test_a_module_that_computes_something_else_is_noticed_and_left(part: str, kind: str) -> None:
    tower = new_tower("qwen2_5_vl")
    changed = next(m for m in tower.modules() if part in type(m).__name__)
    own = cast(Any, type(changed)).forward

    def forward(self: Any, *args: Any, scale: Any = None, **kwargs: Any) -> Any:
        if kind == "argument":
            raise TypeError("takes another argument")
        out = own(self, *args, **kwargs)
        return out * 1.5 if kind == "more" else (out, None)

    other_class(changed, forward)
    same = [m for m in tower.modules() if part in type(m).__name__ and m is not changed]
    with fused(tower) as modules:
        assert modules.refused == {type(changed).__name__}
        assert "forward" not in changed.__dict__
        assert all(weight.is_contiguous() for weight in changed.parameters())
        assert all("forward" in module.__dict__ for module in same)


def test_an_error_while_a_module_is_tried_leaves_its_weights_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    tower = new_tower("qwen2_5_vl")

    def fail(module: nn.Module, *args: Any) -> bool:
        if "MLP" in type(module).__name__:
            raise RuntimeError("out of memory")
        return True

    monkeypatch.setattr("vidsieve.engines.hf.vision.fused._agree", fail)
    with pytest.raises(RuntimeError, match="out of memory"), fused(tower):
        pass
    assert all(weight.is_contiguous() for weight in tower.parameters())
    assert not replaced(tower)


def test_a_forward_that_one_module_alone_has_is_noticed() -> None:
    tower = new_tower("qwen2_5_vl")
    first, second = [m for m in tower.modules() if type(m).__name__.endswith("MLP")][:2]
    own = second.forward
    second.forward = lambda x: 2 * own(x)  # type: ignore[method-assign]
    with fused(tower):
        args, _ = inputs_of(first)
        torch.testing.assert_close(second(*args), 2 * own(*args))
        assert second.forward.__name__ == "<lambda>"
        assert "forward" in first.__dict__


def test_hooks_of_the_user_see_their_own_calls_and_no_others() -> None:
    tower, seen = new_tower("qwen2_5_vl"), []
    first, second = [m for m in tower.modules() if type(m).__name__.endswith("MLP")][:2]

    def note(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(len(args[0]))

    first.register_forward_hook(note)
    cast(Any, first).up_proj.register_forward_hook(note)
    with fused(tower):
        assert seen == []
        cast(Any, second).up_proj.register_forward_hook(note)
        for mlp in (first, second):
            mlp(*inputs_of(mlp)[0])
    assert seen == [144, 144, 144]


@pytest.mark.parametrize("move", ["dtype", "assigned"])
def test_weights_that_somebody_moved_are_those_that_count(move: str) -> None:
    tower = new_tower("qwen2_5_vl")
    mlp: Any = next(m for m in tower.modules() if type(m).__name__.endswith("MLP"))
    with fused(tower):
        if move == "dtype":
            tower.double()
        else:
            mlp.gate_proj.weight.data = mlp.gate_proj.weight.data * 2
        (x,), _ = inputs_of(mlp)
        x = x.to(mlp.gate_proj.weight)
        torch.testing.assert_close(mlp(x), type(mlp).forward(mlp, x))
        moved = mlp.gate_proj.weight.clone()
    assert torch.equal(mlp.gate_proj.weight, moved)


@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_a_part_that_somebody_replaced_is_the_one_that_counts(kind: str, part: str) -> None:
    tower = new_tower("qwen2_5_vl")
    module: Any = next(m for m in tower.modules() if type(m).__name__.endswith(kind))
    args, kwargs = inputs_of(module)
    with fused(tower), torch.no_grad():
        before = module(*args, **kwargs)
        setattr(module, part, nn.Sequential(getattr(module, part), nn.Tanh()))  # as an adapter wraps a layer
        expected = type(module).forward(module, *args, **kwargs)
        torch.testing.assert_close(module(*args, **kwargs), expected)
        assert not torch.allclose(before, expected)


class _Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


@pytest.mark.parametrize(
    ("kind", "part", "name"),
    [
        ("RMSNorm", "", "weight"),
        *((kind, part, name) for kind, part in PARTS for name in ("weight", "bias")),
    ],
)
def test_a_weight_that_somebody_has_computed_is_the_one_that_counts(kind: str, part: str, name: str) -> None:
    tower = new_tower("qwen2_5_vl")
    module: Any = next(m for m in tower.modules() if type(m).__name__.endswith(kind))
    owner = module.get_submodule(part)
    with torch.no_grad():
        getattr(owner, name).normal_(generator=torch.Generator().manual_seed(3))
    args, kwargs = inputs_of(module)
    with fused(tower), torch.no_grad():
        before = module(*args, **kwargs)
        register_parametrization(owner, name, _Doubled())
        expected = type(module).forward(module, *args, **kwargs)
        torch.testing.assert_close(module(*args, **kwargs), expected)
        assert not torch.allclose(before, expected)


def test_gradients_pass_through_the_modules_themselves() -> None:
    tower = new_tower("qwen2_5_vl")
    with fused(tower):
        for module in replaced(tower).values():
            args, kwargs = inputs_of(module)
            if "RMSNorm" in type(module).__name__ or isinstance(module, nn.Conv3d):
                continue
            x = args[0].requires_grad_(True)
            [true] = torch.autograd.grad(type(module).forward(module, x, **kwargs).sum(), x)
            [found] = torch.autograd.grad(module(x, **kwargs).sum(), x)
            torch.testing.assert_close(found, true)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_saved_meanwhile_is_the_model(family: str, tmp_path: Any) -> None:
    model = tiny.fresh(family)
    with fused(vision_tower(model)):
        model.save_pretrained(tmp_path)
    saved = type(model).from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(saved[name], weight) for name, weight in model.state_dict().items())
