"""Attach a reducer to a model, and detach it: what installs and removes. What runs in the model's calls is in seams/.

    whole model   is asked for labels and rows, and gives a row for each token that is left, or all   seams/output.py
    body          has the token ids, and what describes the videos                                    seams/input.py
    decoder       has embeddings, positions, mask: each video is reduced, what stays is gathered      seams/input.py
    layers        for `Staged` only: the same again where a stage says so                             seams/layers.py
    generate      what it does between the model's calls                                              seams/generate.py

What one knows, the next is handed in a `ForwardState` (forward.py). Only the decoder's own arguments change. The
prompt, its mask and its positions as `generate` counts them stay whole, so kept tokens keep their positions and
`out[:, prompt_length:]` still is the answer. What the cache holds of the prompt is remembered on the cache (cache.py).
"""

import threading
from types import TracebackType
from typing import Any

from vidsieve.engines.graph import ReductionGraph
from vidsieve.engines.hf import arguments, contract
from vidsieve.engines.hf.families import adapter_for
from vidsieve.engines.hf.intercept import Interceptions
from vidsieve.engines.hf.seams.attention import refuse_attention
from vidsieve.engines.hf.seams.generate import GenerateSeam
from vidsieve.engines.hf.seams.input import InputSeam
from vidsieve.engines.hf.seams.layers import LayersSeam
from vidsieve.engines.hf.seams.output import Outputs, OutputSeam
from vidsieve.engines.hf.target import Target
from vidsieve.errors import AlreadyAttached, UnsupportedCall
from vidsieve.methods.base import Attachable
from vidsieve.methods.compose import Staged
from vidsieve.telemetry.trace import Trace

_HANDLE = "_vidsieve_attachment"  # the attribute by which a model's body has its attachment, which may be lost else
_attaching = threading.Lock()


def attach(
    model: Any,
    method: Attachable | str,
    keep: float | None = None,
    *,
    outputs: Outputs = None,
    **options: Any,
) -> "Attachment":
    """Let `method` reduce the videos that `model`, a Hugging Face video LLM, is shown from now on.

        with attach(model, "vidsieve", keep=0.1) as trace:
            model.generate(**inputs)
        handle = attach(model, Prune(0.1)); ...; handle.remove()

    method: a reducer or stages, or the name of one in the table (registry.py), made of `keep` (its own default if
    None) and its `options`.
    outputs: "left", a forward pass returns a row for each token that is left; or "prompt", one for each of the prompt,
    as trainers and scores that count columns expect. None is "left", but a training pass that drops tokens and was
    given neither `labels` nor `logits_to_keep` raises `UnsupportedCall` (docs/attached.md).
    A model wrapped by PEFT may be passed as it is. Raises `UnsupportedModel` where no adapter knows the model,
    `AlreadyAttached` where a reducer is attached, `UnsupportedCall` where the model is compiled: a compiled model does
    not look at its hooks again, so attach first.
    """
    return Attachment(model, arguments.named(method, keep, options), outputs=outputs)


def detach(model: Any) -> bool:
    """Remove what is attached to `model`, as the `remove()` of its handle does, which may be lost.

    Whether there was anything; that there was nothing is no error.
    """
    model = arguments.whole_model(model)
    adapter_for(model)
    handle: Attachment | None = model.base_model.__dict__.get(_HANDLE)
    if handle is None:
        return False
    handle.remove()
    return True


class Attachment:
    """A reducer, or a `Staged`, on a model until `remove()` or the end of its `with` block; `trace` records it."""

    def __init__(self, model: Any, reducer: Attachable, *, outputs: Outputs = None) -> None:
        model, reducer = arguments.whole_model(model), arguments.method(reducer)
        arguments.check_outputs(outputs)
        self.model, self.reducer, self.trace = model, reducer, Trace()
        self.target = Target.of(model)
        stages = reducer.layers(len(self.target.costs)) if isinstance(reducer, Staged) else {0: reducer}
        first = stages.pop(0, None)
        self._replay = None if first is None else ReductionGraph(first)
        refuse_attention(first)
        arguments.refuse_compiled(model, self.target.body, self.target.decoder)
        contract.check(model, self.target.adapter, layers=bool(stages))
        share = reducer.cost if isinstance(reducer, Staged) else None
        self._removed = False
        with Interceptions() as hooks:
            self._turn_on(hooks, at_layers=bool(stages))
            hooks.callback(self.target.states.clear)
            if self._replay is not None:
                hooks.callback(self._replay.clear)
            output = OutputSeam(self.target, outputs, hooks)
            layers = LayersSeam(self.target, stages, share, hooks) if stages else None
            self.input = InputSeam(self.target, self._replay, layers, output, self.trace, hooks)
            GenerateSeam(self.target, hooks)
            hooks.put(self.target.body, _HANDLE, self)
            self._hooks = hooks.pop_all()

    def _turn_on(self, hooks: Interceptions, at_layers: bool) -> None:
        """Note that a reducer is attached. Raises `AlreadyAttached` where one is, by whatever handle."""
        attach_state = self.target.attach_state
        with _attaching:
            if attach_state.on:
                raise AlreadyAttached(
                    f"this {type(self.model).__name__} already has a reducer; remove() that one first, "
                    "or vidsieve.detach(model) where its handle is lost, or combine the two: Chain(first, second)"
                )
            hooks.put(attach_state, "on", True)
        hooks.put(attach_state, "at_layers", at_layers)

    def __enter__(self) -> Trace:
        if self._removed:
            raise UnsupportedCall("this attachment was removed, and would reduce nothing; attach again")
        return self.trace

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"Attachment({type(self.model).__name__}, {self.reducer!r})"

    def remove(self) -> None:
        """Detach: the model is as it was before. Doing so twice is harmless."""
        self._hooks.close()
        self._removed = True
