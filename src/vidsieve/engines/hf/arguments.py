"""Check what `attach` is given: a model, and a method that was made. Everything else is refused, with what it is."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from vidsieve import registry
from vidsieve.checks import describe
from vidsieve.engines.hf.families import Adapter
from vidsieve.errors import UnsupportedCall, UnsupportedModel, WrongArgument
from vidsieve.methods.base import Attachable, Reducer
from vidsieve.methods.compose import Staged
from vidsieve.methods.framefusion import FrameFusion


def unwrap_model(model: Any) -> Any:
    """Get the model out of a PEFT wrapper or a pipeline of transformers.

    Raises `WrongArgument` or `UnsupportedModel` for what is not a model.
    """
    if hasattr(model, "get_base_model"):  # PEFT
        model = model.get_base_model()
    if isinstance(model, Attachable):
        raise WrongArgument(f"expected the model first, then the method; got the method {describe(model)} first")
    if isinstance(model, Mapping):
        raise WrongArgument(f"expected the model first; got {describe(model)}, as a processor gives it")
    if not isinstance(model, nn.Module) and isinstance(inner := getattr(model, "model", None), nn.Module):
        from transformers import Pipeline  # takes a second to import, which only those wait for who give one

        if isinstance(model, Pipeline):
            return unwrap_model(inner)
        raise UnsupportedModel(
            f"expected a model, got {describe(model)} around {describe(inner)}; give its .model instead, "
            "and what it is then asked is reduced too"
        )
    return model


def named(method: Any, keep: float | None, options: Mapping[str, Any]) -> Any:
    """Make the method of this name. Anything but a name is returned as it is.

    Raises `WrongArgument` for `keep` or `options` without a name.
    """
    if isinstance(method, str):
        return registry.method(method)(keep, **options)
    if keep is not None or options:
        names = ", ".join((*(["keep"] if keep is not None else []), *options))
        raise WrongArgument(
            f"{names} goes with the name of a method, as attach(model, 'vidsieve', keep=0.1); "
            f"{describe(method)} is made, so make it with what it is to have"
        )
    return method


def method(reducer: Any) -> Reducer | Staged:
    """Get the reducer or the stages of a method. Raises `WrongArgument` for what is neither, as an uncalled preset."""
    if isinstance(reducer, FrameFusion):
        return reducer.method
    if isinstance(reducer, Reducer | Staged):
        return reducer
    hint = ""
    if isinstance(reducer, nn.Module | Mapping):
        hint = "; the order is model, then what else there is, the method last"
    elif callable(getattr(reducer, "select", None)):
        hint = "; it acts before the vision tower, as Staged({Pixels(): " + type(reducer).__name__ + "(...)})"
    elif callable(reducer) and (name := getattr(reducer, "__name__", None)):
        hint = f", which makes one: call it first, as {name}(keep=0.1)"
    raise WrongArgument(f"expected a Reducer or a Staged to attach, got {describe(reducer)}{hint}")


def check_outputs(outputs: Any) -> None:
    """Raise `ValueError` unless `outputs` names a layout, or is None."""
    if outputs not in (None, "left", "prompt"):
        raise ValueError(f"expected outputs to be 'left' or 'prompt', got {describe(outputs)}")


def check_served(adapter: Adapter, model: nn.Module, inside: bool, before_tower: bool) -> None:
    """Raise `UnsupportedCall` for stages inside the model, or before its tower, if `adapter` says why not."""
    name = type(model).__name__
    if inside and adapter.not_inside:
        raise UnsupportedCall(
            f"stages inside {name} are not served: {adapter.not_inside}; reduce before the language model"
        )
    if before_tower and adapter.not_before_tower:
        raise UnsupportedCall(
            f"a selector cannot act before the vision tower of {name}: {adapter.not_before_tower}; "
            "reduce after the tower"
        )


def refuse_compiled(*modules: nn.Module) -> None:
    """Raise `UnsupportedCall` if one of the modules of a model is compiled."""
    for module in modules:
        if _is_compiled(module):
            raise UnsupportedCall(
                f"{type(module).__name__} is compiled, and a compiled model never looks at hooks added later; "
                "attach to the plain model first, then compile"
            )


def _is_compiled(module: nn.Module) -> bool:
    forward = getattr(module, "forward", None)
    return (
        "_orig_mod" in module._modules
        or getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(forward, "_torchdynamo_orig_callable")
    )
