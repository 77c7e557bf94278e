"""Hook or replace parts of objects of other libraries, and undo it. vidsieve changes such objects here only."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import Any

from torch import nn

from vidsieve.errors import UnsupportedCall


class Interceptions(ExitStack):
    """Hooks on modules and replacements on instances, for as long as this is open; classes are never touched.

        with Interceptions() as hooks:
            hooks.before(model, look)
            hooks.wrap(model, "_prefill", prefill)

    Each method registers how it is undone. `close` undoes all of them, the last first; doing so twice is harmless.
    `pop_all` returns them all, to be closed later.
    """

    def before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Call `hook(module, args, kwargs)` before each call of `module`; it may return other `args, kwargs`."""
        self.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def after(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Call `hook(module, args, kwargs, output)` after each call of `module`, also one that fails: output None."""
        self.callback(module.register_forward_hook(hook, with_kwargs=True, always_call=True).remove)

    def put(self, owner: Any, name: str, value: Any) -> None:
        """Set the attribute `name` of the instance `owner` to `value`."""
        self._restore(owner.__dict__, name)
        owner.__dict__[name] = value

    def wrap(self, owner: Any, name: str, wrapper: Callable[..., Any], default: Any = None) -> None:
        """Replace the function `name` of `owner` by `wrapper`, which gets the function first; do nothing without one.

        default: the function if `owner` has none of this name.
        """
        inner = getattr(owner, name, default)
        if inner is None:
            return

        @wraps(inner)  # transformers reads signatures: `generate` gives `get_video_features` the arguments it names
        def call(*args: Any, **kwargs: Any) -> Any:
            return wrapper(inner, *args, **kwargs)

        self.put(owner, name, call)

    def attention(self, name: str, function: Callable[..., Any]) -> None:
        """Let `function` be the attention that configs call `name`: of all models, so take a name of your own."""
        from transformers import AttentionInterface  # loaded with any model

        self._restore(AttentionInterface._global_mapping, name)
        AttentionInterface.register(name, function)

    def _restore(self, owned: dict[str, Any], name: str) -> None:
        """Restore, at the end, what `owned` has by this `name` now."""
        self.callback(owned.__setitem__ if name in owned else owned.pop, name, owned.get(name))


class OfOneModel:
    """What hooks hold, and so what a copy of their model would share with it."""

    def __reduce_ex__(self, protocol: object) -> Any:
        raise UnsupportedCall(
            "a model cannot be copied or pickled with a reducer attached, a fast vision tower, or an encoded video on "
            "it, whose hooks know this model alone; remove() it first, or leave the `with` block"
        )
