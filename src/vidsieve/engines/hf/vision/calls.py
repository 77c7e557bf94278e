"""What the parts of a fast tower know of the call that they are in."""

import threading
from dataclasses import dataclass
from typing import Any

from vidsieve.engines.hf.vision.layout import TowerLayout
from vidsieve.errors import UnsupportedCall


@dataclass(frozen=True, eq=False)
class TowerCall:
    """A call of a tower that is not stock.  fused: whether its modules run as kernels of ours."""

    layout: TowerLayout
    fused: bool


class TowerCalls:
    """Holds the current call of each thread."""

    def __init__(self) -> None:
        self._threads = threading.local()

    @property
    def current(self) -> TowerCall | None:
        """The call of this thread; None outside of one, and in one that is to be stock."""
        call: TowerCall | None = self._threads.__dict__.get("call")
        return call

    @property
    def fused(self) -> bool:
        """Whether the modules of the current call run as kernels of ours."""
        call = self.current
        return call is not None and call.fused

    def enter(self, call: TowerCall | None) -> None:
        """Begin a call; None for one that is to be stock."""
        self._threads.__dict__["call"] = call

    def leave(self) -> None:
        """End the call."""
        self._threads.__dict__.pop("call", None)

    def __reduce_ex__(self, protocol: object) -> Any:  # every hook holds these
        raise UnsupportedCall(
            "a model cannot be copied or pickled with a fast vision tower attached, whose hooks know this model alone; "
            "remove() it first"
        )
