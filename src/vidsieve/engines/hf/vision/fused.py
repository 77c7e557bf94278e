"""Run the modules of a tower by fewer kernels: rotary positions, norms, gated MLPs, the patch embedding.

A module is replaced only if, on a few rows, it gives what the module itself gives: a release of transformers that
computes something else is noticed, and left as it is.
"""

from collections.abc import Callable
from functools import wraps
from operator import itemgetter
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from vidsieve import ops
from vidsieve.engines.hf.intercept import Interceptions
from vidsieve.engines.hf.vision.calls import TowerCall, TowerCalls
from vidsieve.engines.hf.vision.layout import TowerLayout
from vidsieve.engines.hf.vision.tower import weights_of

ALIGNED = 64  # columns; rows of other lengths make matrix products several times slower
AGREE = 2**-6  # the share of the norm of an output that rounding to bf16 may make differ, several operations long

Forward = Callable[..., Tensor]  # of a module; a fused one gets the call of the tower first
_ROWS = 16  # to try a module on
_TRIED = TowerCall(TowerLayout((), 1, {}, (_ROWS, _ROWS)), fused=True)
_WEIGHT_AND_BIAS = itemgetter("weight", "bias")


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
            make = _kind_of(module)
            if make is None or (exact and make not in _EXACT) or any(map(_is_hooked, module.children())):
                continue  # hooked by somebody who would see what it is tried on, or miss what it no longer calls
            with Interceptions() as own_hooks:  # undone at once where it is not replaced
                made = make(module, own_hooks)
                if made is None:
                    continue
                fused, inputs = made
                own = getattr(module.forward, "__func__", module.forward)  # of the class, or of this module alone
                key = (type(module), own, *(tuple(weight.shape) for weight in weights_of(module.modules())))
                if key not in agreed:
                    agreed[key] = _agree(module, fused, inputs(), self._agrees)
                    (self.replaced if agreed[key] else self.refused).add(type(module).__name__)
                if agreed[key]:
                    hooks.push(own_hooks.pop_all())
                    self._replace(module, fused)

    def _replace(self, module: nn.Module, fused: Forward) -> None:
        calls, inner = self._calls, module.forward

        @wraps(inner)  # and not `hooks.wrap`: each layer calls four of these
        def forward(*args: Any, **kwargs: Any) -> Tensor:
            call = calls.current
            if call is None or not call.fused or (torch.is_grad_enabled() and any(x.requires_grad for x in args)):
                return cast(Tensor, inner(*args, **kwargs))  # kernels have no gradients
            return fused(call, *args, **kwargs)

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
        return agrees(own, fused(_TRIED, *args, **kwargs))


def agree(own: Tensor, found: Tensor) -> bool:
    """Whether two outputs differ by rounding alone: at most `AGREE` of the norm of the module's own."""
    own, found = own.double(), found.double()
    return own.shape == found.shape and bool((own - found).norm() <= AGREE * own.norm())


def _noise(weight: Tensor, *shape: int) -> Tensor:
    generator = torch.Generator(weight.device).manual_seed(0)
    return torch.randn(*shape, generator=generator, device=weight.device).to(weight.dtype)


def _rms_norm(module: Any, hooks: Interceptions) -> Made:
    """`weight * x / rms(x)`, six kernels in transformers."""
    if not hasattr(module, "variance_epsilon"):
        return None
    weight = module.weight
    own: Forward = module.forward
    parameters = module._parameters  # torch looks for `module.weight` in Python

    def forward(call: TowerCall, x: Tensor) -> Tensor:
        weight = parameters.get("weight")
        if weight is None:  # somebody has it computed
            return own(x)
        return torch.rms_norm(x, x.shape[-1:], weight, module.variance_epsilon)

    return forward, lambda: ((_noise(weight, _ROWS, len(weight)),), {})


def _patch_projection(module: Any, hooks: Interceptions) -> Made:
    """A convolution whose kernel is its stride, on patches: a linear layer, which is some thirty times sooner."""
    if module.stride != module.kernel_size or module.groups != 1:
        return None
    weight = module.weight

    def forward(call: TowerCall, x: Tensor) -> Tensor:
        out = functional.linear(x.flatten(1), module.weight.flatten(1), module.bias)
        return out.view(*out.shape, 1, 1, 1)

    return forward, lambda: ((_noise(weight, _ROWS, *weight.shape[1:]),), {})


def _gated_mlp(module: Any, hooks: Interceptions) -> Made:
    """`down(silu(gate(x)) * up(x))`, with weights and intermediate values whose rows are aligned."""
    linears: list[Any] = [module._modules[name] for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(type(linear) is nn.Linear and _owns_its_memory(linear.weight) for linear in linears):
        return None
    if "SiLU" not in type(module.act_fn).__name__:
        return None
    gate, up, down = linears
    width = gate.out_features
    columns = -(-width // ALIGNED) * ALIGNED
    gate_columns, up_columns = (_aligned(linear, columns, linear.in_features, hooks).T for linear in (gate, up))
    back = _aligned(down, down.out_features, columns, hooks)
    own: Forward = module.forward
    children, parameters = dict(module._modules), [linear._parameters for linear in linears]
    hooked = [x for child in children.values() for x in (child._forward_hooks, child._forward_pre_hooks)]
    at = gate_columns.data_ptr(), up_columns.data_ptr(), back.data_ptr()

    def forward(call: TowerCall, x: Tensor) -> Tensor:
        if any(hooked) or module._modules != children:
            return own(x)  # somebody replaced a part, or wants to know what comes through it
        try:  # torch looks for `gate.weight` in Python
            (first, gate_bias), (second, up_bias), (last, bias) = map(_WEIGHT_AND_BIAS, parameters)
        except KeyError:  # somebody has it computed
            return own(x)
        if at != (first.data_ptr(), second.data_ptr(), last.data_ptr()):  # somebody moved it
            return own(x)
        both = x.new_empty(x.shape[0], 2 * columns)
        gated, raised = both.chunk(2, 1)
        torch.mm(x, gate_columns, out=gated)
        torch.mm(x, up_columns, out=raised)
        biases = None if gate_bias is None else (gate_bias, up_bias)
        return functional.linear(call.operations.gate(ops.GateProblem(both, width, biases)), back, bias)

    return forward, lambda: ((_noise(gate.weight, _ROWS, gate.in_features),), {})


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _owns_its_memory(weight: Tensor) -> bool:
    """Whether nothing else lies in the memory of a weight, as where it is a shard of a larger one."""
    data = weight.data
    return type(data) is Tensor and data.storage_offset() == 0 and data.untyped_storage().nbytes() == data.nbytes


def _aligned(linear: Any, rows: int, columns: int, hooks: Interceptions) -> Tensor:
    """Move the weight of `linear` into a matrix (rows, columns) of zeros, of which it is a view until the end."""
    weight: nn.Parameter = linear.weight
    high, wide = weight.shape
    if (high, wide) == (rows, columns):
        return weight.data
    matrix = functional.pad(weight.data, (0, columns - wide, 0, rows - high))
    weight.data = matrix[:high, :wide]

    def restore() -> None:
        if weight.data_ptr() == matrix.data_ptr():
            weight.data = weight.data.clone(memory_format=torch.contiguous_format)

    hooks.callback(restore)
    return matrix


def _attention(module: Any, hooks: Interceptions) -> Made:
    """Attention with one product for queries, keys and values, rotated in place."""
    qkv, project = module._modules["qkv"], module._modules.get("proj")
    if type(qkv) is not nn.Linear or type(project) is not nn.Linear:
        return None
    heads, scale = getattr(module, "num_heads", None), getattr(module, "scaling", None)
    if not isinstance(heads, int) or not isinstance(scale, float) or qkv.out_features % (6 * heads):
        return None
    width = qkv.out_features // 3 // heads
    if project.in_features != heads * width:
        return None

    parts = module._modules  # torch looks for `module.qkv` in Python

    def forward(
        call: TowerCall,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        **_: Any,
    ) -> Tensor:
        n = hidden_states.shape[0]
        rotated = parts["qkv"](hidden_states).view(n, 3, heads, width)
        cos, sin = position_embeddings
        if cos.dtype is not torch.float32 or sin.dtype is not torch.float32:
            cos, sin = cos.float(), sin.float()
        call.operations.rotate_(ops.RotaryProblem(rotated, cos.contiguous(), sin.contiguous()))
        query, key, value = rotated.unbind(1)
        out: Tensor = parts["proj"](call.attend(query, key, value, cu_seqlens, scale).reshape(n, -1))
        return out

    def inputs() -> tuple[tuple[Any, ...], dict[str, Any]]:
        angle = _noise(qkv.weight, _ROWS, width // 2).float().repeat(1, 2)
        bounds = torch.tensor([0, _ROWS // 2, _ROWS], dtype=torch.int32, device=angle.device)
        given = {"cu_seqlens": bounds, "position_embeddings": (angle.cos(), angle.sin())}
        return (_noise(qkv.weight, _ROWS, qkv.in_features),), given

    return forward, inputs


_EXACT = (_attention, _rms_norm)
_GATED_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}  # a merger of patches projects and normalises too


def _kind_of(module: nn.Module) -> Callable[[Any, Interceptions], Made] | None:
    """Choose by what a module is made of how it would be fused, if it can be; None for most modules of a tower."""
    if "qkv" in module._modules:
        return _attention
    if module._modules.keys() == _GATED_MLP:
        return _gated_mlp
    if type(module) is nn.Conv3d:
        return _patch_projection
    return _rms_norm if type(module).__name__.endswith("RMSNorm") else None
