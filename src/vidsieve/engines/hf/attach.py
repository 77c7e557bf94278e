"""Attach a reducer to a model, and detach it. The hooks that run in the calls of the model are in seams/.

    model      receives labels and `logits_to_keep`, returns a row per remaining token or per column   seams/output.py
    body       receives token ids and the arguments that describe the videos                           seams/input.py
    decoder    receives embeddings, positions, mask: videos are reduced, kept tokens gathered          seams/input.py
    layers     with `Staged` only: the same at the layer of each stage                                 seams/layers.py
    generate   runs code between the calls of the model                                                seams/generate.py

A `ForwardState` (forward.py) is handed from one to the next. Only the arguments of the decoder change. The prompt, its
mask and its positions, as `generate` counts them, are not shortened, so kept tokens keep their positions and
`out[:, prompt_length:]` is the answer. Which tokens of the prompt the cache lacks is stored on the cache (cache.py).
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
from vidsieve.engines.hf.seams.vision import Vision, VisionSeam, check_vision
from vidsieve.engines.hf.target import Target
from vidsieve.errors import AlreadyAttached, UnsupportedCall
from vidsieve.methods.base import Attachable, Reducer
from vidsieve.methods.compose import Staged
from vidsieve.telemetry.trace import Trace

_HANDLE = (
    "_vidsieve_attachment"  # the attribute of a model's body that holds its attachment, for `detach` without a handle
)
_STATES = "_vidsieve_states"
_attaching = threading.Lock()


def attach(
    model: Any,
    method: Attachable | str | None = None,
    keep: float | None = None,
    *,
    vision: Vision = "auto",
    outputs: Outputs = None,
    **options: Any,
) -> "Attachment":
    """Attach `method` to `model`, a Hugging Face video LLM: from now on it reduces the videos in its prompts.

        with attach(model, "vidsieve", keep=0.1) as trace:
            model.generate(**inputs)
        handle = attach(model, Prune(0.1)); ...; handle.remove()
        attach(model, vision="auto")                # every token, from a faster tower

    method: a reducer or stages, or the name of one in the table (registry.py), made of `keep` (its own default if
    None) and its `options`; None for a faster vision tower alone.
    vision: how the vision tower runs: "auto" as fast as it can with the same result, "packed" with one attention call
    a layer, "fused" with fused kernels too, "stock" as it is (docs/vision.md). `trace.tower` says how it ran, and why.
    outputs: "left", a forward pass returns a row for each remaining token; or "prompt", one for each token of the
    prompt, as trainers and scores that count columns expect. None is "left", but a training pass that drops tokens and
    gets neither `labels` nor `logits_to_keep` raises `UnsupportedCall` (docs/attached.md).
    A model wrapped by PEFT, or a pipeline, may be passed as it is. Raises `UnsupportedModel` if no adapter serves it,
    `AlreadyAttached` if a reducer is attached, `UnsupportedCall` if the model is compiled: a compiled model ignores
    hooks that are added later, so attach first.
    """
    return Attachment(model, arguments.named(method, keep, options), vision=vision, outputs=outputs)


def detach(model: Any) -> bool:
    """Detach what is attached to `model`, as `remove()` of its handle does. Returns whether something was attached."""
    model = arguments.unwrap_model(model)
    adapter_for(model)
    handle = attachment_of(model.base_model)
    if handle is None:
        return False
    handle.remove()
    return True


def attachment_of(body: Any) -> "Attachment | None":
    """Get what is attached to the model of this body; None if nothing is."""
    handle: Attachment | None = body.__dict__.get(_HANDLE)
    return handle


class Attachment:
    """Keeps a reducer or a `Staged` attached until `remove()` or the end of the `with` block; `trace` records it."""

    def __init__(
        self, model: Any, reducer: Attachable | None, *, vision: Vision = "auto", outputs: Outputs = None
    ) -> None:
        model, reducer = arguments.unwrap_model(model), None if reducer is None else arguments.method(reducer)
        arguments.check_outputs(outputs)
        check_vision(vision)
        self.model, self.reducer, self.trace = model, reducer, Trace()
        self.target = Target.of(model)
        stages: dict[int, Reducer] = {}
        if isinstance(reducer, Staged):
            stages = reducer.layers(len(self.target.costs))
        elif reducer is not None:
            stages = {0: reducer}
        first = stages.pop(0, None)
        self.trace.reduces = first is not None or bool(stages)
        refuse_attention(first)
        arguments.refuse_compiled(model, self.target.body, self.target.decoder)
        pixels = reducer.pixels if isinstance(reducer, Staged) else None
        arguments.check_served(self.target.adapter, model, inside=bool(stages), before_tower=pixels is not None)
        contract.check(model, self.target.adapter, layers=bool(stages))
        self._removed = False
        with Interceptions() as hooks:
            self._turn_on(hooks, at_layers=bool(stages))
            hooks.callback(self.target.states.clear)
            self.vision = VisionSeam(model, vision, pixels, self.trace, hooks)
            if reducer is not None and self.trace.reduces:
                self._install(reducer, first, stages, outputs, hooks)
            hooks.put(self.target.body, _HANDLE, self)
            self._hooks = hooks.pop_all()

    def _install(
        self,
        reducer: Reducer | Staged,
        first: Reducer | None,
        stages: dict[int, Reducer],
        outputs: Outputs,
        hooks: Interceptions,
    ) -> None:
        """Install the seams of a reducer. first: what acts before the language model.  stages: within it, by layer."""
        replay = None if first is None else ReductionGraph(first)
        if replay is not None:
            hooks.callback(replay.clear)
        output = OutputSeam(self.target, outputs, hooks)
        share = reducer.cost if isinstance(reducer, Staged) else None
        layers = LayersSeam(self.target, stages, share, hooks) if stages else None
        self.input = InputSeam(self.target, replay, layers, output, self.trace, hooks)
        GenerateSeam(self.target, hooks)

    def _turn_on(self, hooks: Interceptions, at_layers: bool) -> None:
        """Mark the model as attached. Raises `AlreadyAttached` if it is, by any handle."""
        attach_state = self.target.attach_state
        with _attaching:
            if attach_state.on:
                raise AlreadyAttached(
                    f"this {type(self.model).__name__} already has a reducer, or a fast vision tower; remove() that "
                    "one first, or vidsieve.detach(model) where its handle is lost, or combine two reducers: "
                    "Chain(first, second)"
                )
            hooks.put(attach_state, "on", True)
        hooks.put(attach_state, "at_layers", at_layers)
        # A copy of the model comes to this, which refuses, before it comes to functions, which it would share.
        hooks.put(self.target.body, _STATES, self.target.states)

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
