"""Run the modules of a tower by fewer kernels: rotary positions, norms, gated MLPs, the patch embedding.

A module is replaced only if, on a few rows, it gives what the module itself gives: a release of transformers that
computes something else is noticed, and left as it is.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from vidsieve import ops
from vidsieve.engines.hf.intercept import Interceptions
from vidsieve.engines.hf.vision.calls import TowerCalls

ALIGNED = 64  # columns; rows of other lengths make matrix products several times slower
AGREE = 2**-6  # the share of the norm of an output that rounding to bf16 may make differ, several operations long

Forward = Callable[..., Tensor]
_ROWS = 16  # to try a module on


class FusedModules:
    """Fused forwards of the modules of `tower` that have one, used in the calls of `calls` that are to be fused.

    exact: only those that give the bits of the module's own, on any device; the others are kernels for half precision.
    replaced: names of the types of modules that are replaced.  refused: of those that gave something else.
    """

    def __init__(self, tower: nn.Module, calls: TowerCalls, hooks: Interceptions, exact: bool = False) -> None:
        self._agrees = torch.equal if exact else agree
        self.replaced: set[str] = set()
        self.refused: set[str] = set()
        self._calls, self._hooks = calls, hooks
        agreed: dict[tuple[object, ...], bool] = {}
        for module in tower.modules():
            if any(map(_is_hooked, module.children())):
                continue  # by somebody who would see what it is tried on, or miss what it no longer calls
            for kind in (_attention, _rms_norm) if exact else (_attention, _gated_mlp, _rms_norm, _patch_projection):
                own_hooks = Interceptions()
                made = kind(module, calls, own_hooks)
                if made is None:
                    continue
                fused, inputs = made
                own = getattr(module.forward, "__func__", module.forward)  # of the class, or of this module alone
                key = (type(module), own, *(tuple(weight.shape) for weight in module.parameters()))
                if key not in agreed:
                    agreed[key] = _agree(module, fused, inputs(), self._agrees)
                    (self.replaced if agreed[key] else self.refused).add(type(module).__name__)
                if agreed[key]:
                    hooks.callback(own_hooks.close)
                    self._replace(module, fused)
                else:
                    own_hooks.close()

    def _replace(self, module: nn.Module, fused: Forward) -> None:
        calls, inner = self._calls, module.forward

        @wraps(inner)  # and not `hooks.wrap`: each layer calls four of these
        def forward(*args: Any, **kwargs: Any) -> Tensor:
            call = calls.current
            if call is None or not call.fused or (torch.is_grad_enabled() and any(x.requires_grad for x in args)):
                return cast(Tensor, inner(*args, **kwargs))  # kernels have no gradients
            return fused(*args, **kwargs)

        self._hooks.put(module, "forward", forward)


Made = tuple[Forward, Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]] | None


def _agree(
    module: Any,
    fused: Forward,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    agrees: Callable[[Tensor, Tensor], bool],
) -> bool:
    """Whether `fused` gives what `module` gives."""
    args, kwargs = inputs
    with torch.no_grad():
        try:
            own = module.forward(*args, **kwargs)  # and no hook of the user, who did not call it
        except TypeError:  # arguments that this release takes no more
            return False
        if not isinstance(own, Tensor):
            return False
        return agrees(own, fused(*args, **kwargs))


def agree(own: Tensor, found: Tensor) -> bool:
    """Whether two outputs differ by rounding alone: at most `AGREE` of the norm of the module's own."""
    own, found = own.double(), found.double()
    return own.shape == found.shape and bool((own - found).norm() <= AGREE * own.norm())


def _noise(weight: Tensor, *shape: int) -> Tensor:
    generator = torch.Generator(weight.device).manual_seed(0)
    return torch.randn(*shape, generator=generator, device=weight.device).to(weight.dtype)


def _rms_norm(module: Any, calls: TowerCalls, hooks: Interceptions) -> Made:
    """`weight * x / rms(x)`, six kernels in transformers."""
    if not type(module).__name__.endswith("RMSNorm") or not hasattr(module, "variance_epsilon"):
        return None
    weight = module.weight

    def forward(x: Tensor) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:], module.weight, module.variance_epsilon)

    return forward, lambda: ((_noise(weight, _ROWS, len(weight)),), {})


def _patch_projection(module: Any, calls: TowerCalls, hooks: Interceptions) -> Made:
    """A convolution whose kernel is its stride, on patches: a linear layer, which is some thirty times sooner."""
    if type(module) is not nn.Conv3d or module.stride != module.kernel_size or module.groups != 1:
        return None
    weight = module.weight

    def forward(x: Tensor) -> Tensor:
        out = functional.linear(x.flatten(1), module.weight.flatten(1), module.bias)
        return out.view(*out.shape, 1, 1, 1)

    return forward, lambda: ((_noise(weight, _ROWS, *weight.shape[1:]),), {})


def _gated_mlp(module: Any, calls: TowerCalls, hooks: Interceptions) -> Made:
    """`down(silu(gate(x)) * up(x))`, with weights and intermediate values whose rows are aligned."""
    linears: list[Any] = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if {name for name, _ in module.named_children()} != {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        return None  # as a merger of patches, which projects and normalises too
    if not all(type(linear) is nn.Linear and _owns_its_memory(linear.weight) for linear in linears):
        return None
    if "SiLU" not in type(getattr(module, "act_fn", None)).__name__:
        return None
    gate, up, down = linears
    width = gate.out_features
    columns = -(-width // ALIGNED) * ALIGNED
    halves = [_aligned(linear, columns, linear.in_features, hooks) for linear in (gate, up)]
    back = _aligned(down, down.out_features, columns, hooks)
    own: Forward = module.forward
    children = list(module.children())
    hooked = [x for child in children for x in (child._forward_hooks, child._forward_pre_hooks)]
    at = [weight.data_ptr() for weight in (*halves, back)]

    def forward(x: Tensor) -> Tensor:
        moved = at != [linear.weight.data_ptr() for linear in linears]
        if moved or any(hooked) or list(module._modules.values()) != children:
            return own(x)  # somebody moved the weights, replaced a part, or wants to know what comes through it
        both = x.new_empty(len(x), 2, columns)
        for half, weight in enumerate(halves):
            torch.mm(x, weight.T, out=both[:, half])
        bias = None if gate.bias is None else (gate.bias, up.bias)
        return functional.linear(ops.gate(ops.GateProblem(both.view(len(x), -1), width, bias)), back, down.bias)

    return forward, lambda: ((_noise(gate.weight, _ROWS, gate.in_features),), {})


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _owns_its_memory(weight: Tensor) -> bool:
    """Whether nothing else lies in the memory of a weight, as where it is a shard of a larger one."""
    data = weight.data
    return type(data) is Tensor and data.storage_offset() == 0 and data.untyped_storage().nbytes() == data.nbytes


def _aligned(linear: Any, rows: int, columns: int, hooks: Interceptions) -> Tensor:
    """Move the weight of `linear` into a matrix (rows, columns) of zeros, of which it is a view until the end."""
    weight = linear.weight
    if tuple(weight.shape) == (rows, columns):
        return cast(Tensor, weight.data)
    matrix = weight.data.new_zeros(rows, columns)
    matrix[: len(weight), : weight.shape[1]] = weight.data
    weight.data = matrix[: len(weight), : weight.shape[1]]

    def restore() -> None:
        if weight.data_ptr() == matrix.data_ptr():
            weight.data = weight.data.clone(memory_format=torch.contiguous_format)

    hooks.callback(restore)
    return cast(Tensor, matrix)


def _attention(module: Any, calls: TowerCalls, hooks: Interceptions) -> Made:
    """Attention with one product for queries, keys and values, rotated in place."""
    qkv, project = getattr(module, "qkv", None), getattr(module, "proj", None)
    if type(qkv) is not nn.Linear or type(project) is not nn.Linear:
        return None
    heads, scale = getattr(module, "num_heads", None), getattr(module, "scaling", None)
    if not isinstance(heads, int) or not isinstance(scale, float) or qkv.out_features % (6 * heads):
        return None
    width = qkv.out_features // 3 // heads
    if project.in_features != heads * width:
        return None

    def forward(
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        **_: Any,
    ) -> Tensor:
        n = len(hidden_states)
        rotated = module.qkv(hidden_states).view(n, 3, heads, width)
        cos, sin = position_embeddings
        ops.rotate_(ops.RotaryProblem(rotated, cos.float().contiguous(), sin.float().contiguous()))
        query, key, value = rotated.unbind(1)
        call = calls.current
        if call is None:  # tried
            problem = ops.SegmentAttentionProblem(query, key, value, cu_seqlens, n, scale)
            return cast(Tensor, module.proj(ops.segment_attention(problem).reshape(n, -1)))
        return cast(Tensor, module.proj(call.attend(query, key, value, cu_seqlens, scale).reshape(n, -1)))

    def inputs() -> tuple[tuple[Any, ...], dict[str, Any]]:
        angle = _noise(qkv.weight, _ROWS, width // 2).float().repeat(1, 2)
        bounds = torch.tensor([0, _ROWS // 2, _ROWS], dtype=torch.int32, device=angle.device)
        given = {"cu_seqlens": bounds, "position_embeddings": (angle.cos(), angle.sin())}
        return (_noise(qkv.weight, _ROWS, qkv.in_features),), given

    return forward, inputs
