"""Check what vidsieve relies on in transformers. All differences between its releases are handled here.

`attach` checks every model. A release that renamed or added an argument that might follow the sequence is refused, with
the name of the argument. The differences, by the release that introduced them:

    5.15   `Cache.crop` takes a number of tokens to remove. A negative one means that in every release (cache.py).
    5.17   Qwen2-VL's rotary positions (3, B, L, d) are one (B, L, d): both are read from the right.
    5.18   `generate` runs the vision tower itself and hands `mm_encoder_outputs` to the body (seams/input.py).
    5.24   the cache is an argument and an output `cache`, before `past_key_values`.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from vidsieve.checks import pip_install, require
from vidsieve.engines import torchvision
from vidsieve.errors import MissingExtra, UnsupportedCall, UnsupportedVersion

if TYPE_CHECKING:
    from vidsieve.engines.hf.families import Adapter

_transformers = require("transformers", "hf")
if not hasattr(_transformers.Cache, "get_query_offset"):
    raise MissingExtra(
        f"this needs transformers >= 5.14, found {_transformers.__version__}; "
        f"install it with: {pip_install('hf', '-U')}"
    )

torchvision.define()  # before transformers imports it

from transformers import masking_utils  # noqa: E402  # after a missing or old transformers was refused

TESTED = ("5.14.1", "5.17.0", "5.24.0")  # releases that all tests of hooks ran on

_OLD_CACHE = "past_key_values"
# The name of a decoder's cache, as an argument and in its output.
CACHE = "cache" if "cache" in inspect.signature(masking_utils.create_causal_mask).parameters else _OLD_CACHE

# Of these, before 5.17: they count positions by a mask that is no mask in a static cache, fail, or answer by chance.
_NO_STATIC_CACHE = {"qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"}

_REST = {"self", "args", "kwargs"}
_SWITCHES = {"use_cache", "output_attentions", "output_hidden_states", "return_dict"}  # follow no sequence
_DECODER = {"inputs_embeds", "attention_mask", "position_ids", CACHE}
_LAYER = {"attention_mask", "position_ids", "position_embeddings", CACHE}
_BUILDER = {"config", "inputs_embeds", "attention_mask", CACHE}  # what masks are built from
_BUILDER_OPTIONS = {
    *("position_ids", "or_mask_function", "and_mask_function", "block_sequence_ids", "layer_idx"),
    "allow_is_causal_skip",
}
_BODY = {
    "grid": {"input_ids", "inputs_embeds"},
    "parts": {"input_ids", "inputs_embeds"},
    "frames": {"input_ids", "inputs_embeds", "pixel_values_videos", "video_position_ids"},
    "clips": {"input_ids", "inputs_embeds", "pixel_values_videos"},
    "runs": {"input_ids", "inputs_embeds", "pixel_values"},
    "slices": {"input_ids", "inputs_embeds", "pixel_values_videos", "target_sizes_videos"},
}
_OF_GRIDS = ("grid", "parts")
_CACHE_METHODS = {
    "get_seq_length": ("layer_idx",),
    "get_query_offset": ("layer_idx",),
    "get_mask_sizes": ("query_length", "layer_idx"),
    "crop": (),
    "reset": (),
    "reorder_cache": (),
    "batch_select_indices": (),
    "batch_repeat_interleave": (),
}


def cache_of(arguments: Mapping[str, Any]) -> Any:
    """Get the cache from the arguments of a decoder or of one of its layers; None without one."""
    return arguments.get(CACHE)


def with_new_names(arguments: dict[str, Any]) -> dict[str, Any]:
    """Rename those `arguments` whose old name transformers still accepts to what it passes on."""
    if CACHE == _OLD_CACHE or _OLD_CACHE not in arguments:
        return arguments
    renamed = {name: value for name, value in arguments.items() if name != _OLD_CACHE}
    return {CACHE: arguments[_OLD_CACHE], **renamed}


def by_name(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Collect all arguments of a call of `module`, or of a function, by their names."""
    called = module.forward if isinstance(module, nn.Module) else module
    return {**dict(zip(_parameters(called), args, strict=False)), **kwargs} if args else kwargs


def accepted(module: nn.Module, names: Iterable[str]) -> tuple[str, ...]:
    """Select those of `names` that are arguments of `module`."""
    return tuple(name for name in names if name in _parameters(_forward(module)))


def check(model: Any, adapter: "Adapter", layers: bool) -> None:
    """Raise `UnsupportedVersion` unless `model` takes the arguments listed here, and no others.

    layers: whether the layers of the decoder will be hooked, too.
    """
    check_library()
    body, decoder = model.base_model, model.get_decoder()
    _require(body, _forward(body), _BODY[adapter.layout] | ({adapter.grids} if adapter.layout in _OF_GRIDS else set()))
    if adapter.mask_kinds is not None:
        _require(body, _forward(body), {adapter.mask_kinds, "inputs_embeds", "attention_mask", "position_ids", CACHE})
    if "mm_encoder_outputs" in _parameters(_forward(body)):
        _require_attributes(model, ("_prepare_multimodal_encoder_kwargs_for_generation",))
    _require_attributes(model, ("_prefill", "_get_candidate_generator", "_supports_logits_to_keep", "loss_function"))
    named = {*adapter.per_token, *adapter.per_visual, *adapter.unchanged}
    _require(decoder, _forward(decoder), _DECODER)
    _refuse_others(decoder, _forward(decoder), _DECODER | _SWITCHES | named | {"input_ids"})
    if layers:
        _require_attributes(_transformers.AttentionInterface, ("register", "_global_mapping"))
        for layer in {type(plain := _compiled_from(layer)): plain for layer in decoder.layers}.values():
            forward = _forward(layer)
            hidden = list(_parameters(forward))[1]
            if hidden != "hidden_states":
                raise unknown(f"{_name(layer)} takes {hidden} first, not hidden_states")
            _require(layer, forward, _LAYER)
            _refuse_others(layer, forward, _LAYER | _SWITCHES | {hidden})


def check_replay(model: Any, adapter: "Adapter") -> None:
    """Raise `UnsupportedVersion` unless stored rows can be written into the calls of `model`."""
    check(model, adapter, layers=False)
    names = ("_prepare_position_ids_for_generation", "_expand_inputs_for_generation", "prepare_inputs_for_generation")
    _require_attributes(model, names)
    _require(model, type(model)._prepare_position_ids_for_generation, ("inputs_tensor", "model_kwargs"))
    check_positions(model)


def check_positions(model: Any) -> None:
    """Raise `UnsupportedVersion` for a model of this release that does not tell the positions of a prompt.

    Before 5.17, the thinkers of Qwen-Omni count them in their forward alone.
    """
    counted = _transformers.GenerationMixin._prepare_position_ids_for_generation
    if hasattr(model.base_model, "get_rope_index") and type(model)._prepare_position_ids_for_generation is counted:
        raise UnsupportedVersion(
            f"{type(model).__name__} of transformers {_transformers.__version__} does not tell positions before it is "
            "called, which answers from stored videos need; use a newer transformers, or attach a method"
        )


def check_library() -> None:
    """Raise `UnsupportedVersion` unless mask builders and caches take the arguments listed here. Needs no model."""
    for builder in (masking_utils.create_causal_mask, masking_utils.create_masks_for_generate):
        _require(builder, builder, _BUILDER)
        _refuse_others(builder, builder, _BUILDER | _BUILDER_OPTIONS)
    _require(masking_utils.create_causal_mask, masking_utils.create_causal_mask, ("layer_idx",))
    _require_attributes(_transformers.Cache, _CACHE_METHODS)
    for name, arguments in _CACHE_METHODS.items():
        method = getattr(_transformers.Cache, name)
        _require(method, method, arguments)


def _compiled_from(module: nn.Module) -> nn.Module:
    """Get the module that `torch.compile` wrapped, or the module itself."""
    return cast(nn.Module, getattr(module, "_orig_mod", module))


def _forward(module: nn.Module) -> Callable[..., Any]:
    """Find the `forward` that names its arguments; a subclass may take `*args, **kwargs` and pass them on."""
    anything = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for kind in type(module).__mro__:
        forward = vars(kind).get("forward")
        if forward is not None and any(p.kind not in anything for p in list(_parameters(forward).values())[1:]):
            return cast(Callable[..., Any], forward)
    return type(module).forward


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _require(owner: Any, function: Callable[..., Any], names: Iterable[str]) -> None:
    missing = sorted(set(names) - set(_parameters(function)))
    if missing:
        raise unknown(f"{_name(owner)} takes no {', '.join(missing)}")


def _refuse_others(owner: Any, function: Callable[..., Any], known: set[str]) -> None:
    others = [name for name in _parameters(function) if name not in known | _REST]
    if others:
        raise unknown(
            f"{_name(owner)} takes {', '.join(others)}, of which nothing says whether it follows the sequence "
            "(an adapter can: per_token, per_visual, unchanged)"
        )


def _require_attributes(owner: Any, names: Iterable[str]) -> None:
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        raise unknown(f"{_name(owner)} has no {', '.join(missing)}")


def _name(owner: Any) -> str:
    return str(getattr(owner, "__qualname__", type(owner).__name__))


def unknown(what: str) -> UnsupportedVersion:
    """Make the error that says `what` is not known of this release."""
    return UnsupportedVersion(
        f"transformers {_transformers.__version__} differs from what vidsieve knows: {what}. Use a newer vidsieve, or "
        f"a release that this one was tested with: pip install 'transformers=={TESTED[-1]}'"
    )


def refuse_static_cache(model: Any, cache: Any) -> None:
    """Raise `UnsupportedCall` for a static cache where the release of transformers has none that works."""
    release = tuple(int(part) for part in _transformers.__version__.split(".")[:2])
    of = model.config.model_type
    if isinstance(cache, _transformers.StaticCache) and of in _NO_STATIC_CACHE and release < (5, 17):
        raise UnsupportedCall(
            f"transformers {_transformers.__version__} has no static cache that works for {of}; use a dynamic one (the "
            "default), or transformers 5.17"
        )
