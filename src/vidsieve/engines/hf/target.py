"""The model that a reducer is attached to, as the seams know it."""

import threading
import weakref
from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from vidsieve.engines.hf.cache import AttachState
from vidsieve.engines.hf.families import Adapter, adapter_for
from vidsieve.engines.hf.forward import ForwardStates
from vidsieve.telemetry.flops import LayerCost, layer_costs

_attach_states: "weakref.WeakKeyDictionary[nn.Module, AttachState]" = weakref.WeakKeyDictionary()
_looking = threading.Lock()


@dataclass(frozen=True, eq=False)
class Target:
    """One model while a reducer is attached.

    model: with its head.  body: writes video features over placeholders.  decoder: called by the body after that.
    adapter: of its family.  token: the id of the placeholder.  costs: of each layer of the decoder, () if not known.
    attach_state: on while attached.  states: of its current calls.
    """

    model: Any
    body: Any
    decoder: Any
    adapter: Adapter
    token: int
    costs: tuple[LayerCost, ...]
    attach_state: AttachState
    states: ForwardStates

    @classmethod
    def of(cls, model: Any) -> Self:
        """Find the parts of `model`. Raises `UnsupportedModel` where no adapter serves it."""
        adapter, decoder = adapter_for(model), model.get_decoder()
        costs = layer_costs(decoder) if hasattr(decoder, "layers") else ()
        token: int = getattr(model.config, adapter.token)
        with _looking:
            attach_state = _attach_states.setdefault(model.base_model, AttachState())
        return cls(model, model.base_model, decoder, adapter, token, costs, attach_state, ForwardStates())
