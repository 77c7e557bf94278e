"""Hook or replace parts of objects of other libraries, and undo it. vidsieve changes such objects here only."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn


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
        own = owner.__dict__
        self.callback(own.__setitem__ if name in own else own.pop, name, own.get(name))
        own[name] = value

    def wrap(self, owner: Any, name: str, wrapper: Callable[..., Any], default: Any = None) -> None:
        """Replace the function `name` of `owner` by `wrapper`, which gets the function first; do nothing without one.

        default: the function if `owner` has none of this name.
        """
        inner = getattr(owner, name, default)
        if inner is not None:
            self.put(owner, name, lambda *args, **kwargs: wrapper(inner, *args, **kwargs))
