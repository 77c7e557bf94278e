"""Before the language model: the video tokens are dropped between the vision tower and the decoder.

Two hooks on one model instance do it, for every family, with no model code copied:

    body      sees the token ids, and brings them to the host. What it gives back.              prompt.py, outputs.py
    decoder   sees embeddings, positions, mask. Where are the videos, their frames, the        prompt.py
              question? Reduce each video, gather what stays.                                  sequence.py
    layers    for `Staged` only: the same again where a stage says so.                         layers.py

`generate` is told what changes around them (generate.py).
Only the decoder's own arguments change. The prompt, its mask and its positions as `generate` counts them stay whole, so
kept tokens keep their positions and `out[:, prompt_length:]` still is the answer. What the cache holds of the prompt
is remembered on the cache (cache.py). Hand-over between the hooks is per thread; detaching leaves nothing behind.
"""

import threading
import warnings
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vidsieve.engines.graph import ReductionGraph
from vidsieve.engines.hf import arguments, contract, prompt
from vidsieve.engines.hf.attention import kinds, refuse_attention
from vidsieve.engines.hf.cache import (
    Prefix,
    Switch,
    check_length,
    continued,
    held_mask,
    physical_length,
    prefix_of,
    prefixes_of,
    remember,
    restore,
)
from vidsieve.engines.hf.families import adapter_for
from vidsieve.engines.hf.outputs import Rows
from vidsieve.engines.hf.seams.generate import Generation, wrap
from vidsieve.engines.hf.seams.layers import CONTEXT, PACKING, Layers, Pass
from vidsieve.engines.hf.sequence import Fold, left_by, reduce_arguments
from vidsieve.engines.hf.tracked import Video
from vidsieve.errors import AlreadyAttached, UnsupportedCall
from vidsieve.methods.base import Attachable
from vidsieve.methods.compose import Staged
from vidsieve.telemetry.flops import LayerCost, layer_costs
from vidsieve.telemetry.timing import StageTimer, timed
from vidsieve.telemetry.trace import Trace
from vidsieve.types.tokens import Prompt, VideoTokens

Arguments = dict[str, Any]
_attached: "weakref.WeakKeyDictionary[nn.Module, Switch]" = weakref.WeakKeyDictionary()
_handles: "weakref.WeakKeyDictionary[nn.Module, weakref.ref[Attachment]]" = weakref.WeakKeyDictionary()
_attaching = threading.Lock()


def attach(
    model: Any,
    method: Attachable | str,
    keep: float | None = None,
    *,
    outputs: Literal["left", "prompt"] = "left",
    **options: Any,
) -> "Attachment":
    """Let `method` reduce the videos that `model`, a Hugging Face video LLM, is shown from now on.

        with attach(model, "vidsieve", keep=0.1) as trace:
            model.generate(**inputs)
        handle = attach(model, Prune(0.1)); ...; handle.remove()

    method: a reducer or stages, or the name of one in the table (registry.py), made of `keep` (its own default if
    None) and its `options`.
    outputs: "left", a forward pass returns a row for each token that is left; or "prompt", one for each of the prompt,
    as trainers and scores that count columns expect (docs/attached.md).
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
    handle = _handles.pop(model.base_model, lambda: None)()
    if handle is None or handle._removed:
        return False
    handle.remove()
    return True


class Attachment:
    """A reducer, or a `Staged`, on a model until `remove()` or the end of its `with` block; `trace` records it."""

    def __init__(self, model: Any, reducer: Attachable, *, outputs: Literal["left", "prompt"] = "left") -> None:
        model, reducer = arguments.whole_model(model), arguments.method(reducer)
        arguments.check_outputs(outputs)
        self.adapter = adapter_for(model)
        self.model, self.reducer, self.trace, self.outputs = model, reducer, Trace(), outputs
        self.token: int = getattr(model.config, self.adapter.token)
        self._marks = prompt.marks_of(model.config)
        self.body: nn.Module = model.base_model
        self.decoder: nn.Module = model.get_decoder()
        self.costs: tuple[LayerCost, ...] = layer_costs(self.decoder) if hasattr(self.decoder, "layers") else ()
        stages = reducer.layers(len(self.costs)) if isinstance(reducer, Staged) else {0: reducer}
        self.share = reducer.cost if isinstance(reducer, Staged) else None
        self.first = stages.pop(0, None)
        self._replay = None if self.first is None else ReductionGraph(self.first)
        refuse_attention(self.first)
        self._asks_last = any("last" in kinds(reducer) for reducer in stages.values())
        self.stages = stages
        arguments.refuse_compiled(self.model, self.body, self.decoder)
        contract.check(self.model, self.adapter, layers=bool(self.stages))
        self._here, self._removed = threading.local(), False
        with _attaching:
            self._attached = _attached.setdefault(self.body, Switch())
            if self._attached.on:
                raise AlreadyAttached(
                    f"this {type(model).__name__} already has a reducer; remove() that one first, "
                    "or vidsieve.detach(model) where its handle is lost, or combine the two: Chain(first, second)"
                )
            self._attached.on = True
        with ExitStack() as self._undo:
            self._undo.callback(setattr, self._attached, "on", False)
            if self._replay is not None:
                self._undo.callback(self._replay.clear)
            self._hook(self.model, self._before_model)
            self._hook(self.body, self._before_body)
            self._hook(self.decoder, self._before_decoder)
            for module, hook in ((self.body, self._after_body), (self.decoder, self.after_decoder)):
                again = module.register_forward_hook(hook, with_kwargs=True, always_call=True)  # if it fails, too
                self._undo.callback(again.remove)
            if self.stages:
                self._attached.at_layers = True
                self._undo.callback(setattr, self._attached, "at_layers", False)
                Layers(self.decoder, self.stages, self._undo)
                wrap(self.decoder, "_deepstack_process", self._deepstack, self._undo)
            Generation(self.model, self.adapter, self._here, self._undo)
            wrap(self.model, "_loss_function", self._loss, self._undo, model.loss_function)
            self._undo = self._undo.pop_all()
        _handles[self.body] = weakref.ref(self)

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

    def __reduce_ex__(self, protocol: object) -> Any:
        raise UnsupportedCall(
            "a model cannot be copied or pickled with a reducer attached, whose hooks know this model alone; "
            "remove() it first"
        )

    def remove(self) -> None:
        """Detach: the model is as it was before. Doing so twice is harmless."""
        self._undo.close()
        self._here, self._removed = threading.local(), True

    def _hook(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Call `hook` before each call of `module`, until removal."""
        self._undo.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

    # What follows runs inside the model's calls, in their order.

    def _before_model(self, model: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> None:
        here, given = self._here.__dict__, contract.by_name(model, args, kwargs)
        labels, asked = given.get("labels"), given.get("logits_to_keep")
        here["answer"] = None if labels is None else labels != -100
        here["asked"] = None if isinstance(asked, int) and asked == 0 else asked
        judges = isinstance(asked, int) and asked == here.get("proposed", 0) + 1
        if "proposed" in here and not judges and self.model._supports_logits_to_keep():
            here.pop("proposed", None)  # of a generation that failed before it came to this

    def _before_body(self, body: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> None:
        kwargs = contract.by_name(body, args, kwargs)
        here = self._here.__dict__
        here.pop("rows", None)
        answer, proposed = here.pop("answer", None), here.pop("proposed", 0)
        ids = kwargs.get("input_ids")  # (B, L)
        given = ids if ids is not None else kwargs.get("inputs_embeds")
        if given is None or given.shape[1] == 1:
            return
        shows = prompt.shows(self.adapter, kwargs)
        if not shows and ids is not None:
            return
        if answer is not None and answer.shape != given.shape[:2]:
            answer = None  # of a model whose labels are no tokens of its prompt
        reading = self._read(body, ids, kwargs, answer, proposed)
        if shows:
            here["reading"] = reading

    def _read(
        self, body: Any, ids: Tensor | None, kwargs: Arguments, answer: Tensor | None, proposed: int
    ) -> tuple[prompt.Reading, int]:
        """What says where the videos are, and how many rows share each. The host looks when the device is busy."""
        placeholder = None
        if ids is None:
            embeds = kwargs["inputs_embeds"]  # (B, L, D)
            embedding = body.get_input_embeddings()(torch.tensor(self.token, device=embeds.device))  # (D,)
            placeholder = (embeds == embedding).all(-1)
        described, once = self._here.__dict__.get("described", ({}, 0))
        encoded = prompt.encodings(kwargs)
        given, copies = (described, encoded // once) if encoded and once else ({}, 1)
        reading = prompt.read(self.adapter, ids, placeholder, kwargs, given, answer, proposed)
        if reading.placeholder is not None and not reading.placeholder.any():
            warnings.warn(
                "inputs_embeds without a video placeholder: if video features were already merged into them, "
                "nothing tells which they are, and none is dropped; pass input_ids and pixels instead",
                stacklevel=2,
            )
        return reading, copies

    def _after_body(self, body: nn.Module, args: tuple[Any, ...], kwargs: Arguments, output: Any) -> Any:
        """The output with a row for each column of the prompt, where that is wanted."""
        here = self._here.__dict__
        here.pop("reading", None)  # which the decoder did not come to ask for
        asked, rows = here.pop("asked", None), here.get("rows")
        here["spread"] = False
        if rows is not None and rows.steps and getattr(output, "router_logits", None) is not None:
            raise UnsupportedCall(
                "router_logits are of the tokens that are left, and transformers would weigh them by the mask of the "
                "whole prompt; call the model with output_router_logits=False, or detach"
            )
        if output is None or rows is None or not rows.steps or rows.ends(asked):
            return output
        if asked is None and self.outputs == "left":
            return output
        here["spread"] = True
        hidden = rows.spread(output[0])  # (B, L, D)
        if isinstance(output, tuple):
            return hidden, *output[1:]
        output.last_hidden_state = hidden
        return output

    def _find(self, reading: prompt.Reading, copies: int) -> prompt.Layout:
        end = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        ends = frozenset(end if isinstance(end, list) else () if end is None else (end,))
        return prompt.find(self.adapter, self.model.config, reading, copies, ends, self._marks)

    def _before_decoder(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> Any:
        kwargs = contract.with_new_names(kwargs)
        embeds = kwargs["inputs_embeds"]  # (B, L, D)
        here = self._here.__dict__
        here.pop("current", None)
        if embeds.shape[1] > 1:
            reading = here.pop("reading", None)
            found = None if reading is None else self._find(*reading)
            if found is not None and found.clips and found.real.shape == embeds.shape[:2]:
                with StageTimer(embeds.device) as timer:
                    return args, self._reduce(found, kwargs, timer)
        new = continued(kwargs)
        if self.stages and any(layer > 0 for layer in prefixes_of(contract.cache_of(kwargs))):
            new = {**new, CONTEXT: self._pass(kwargs)}
        return args, new

    def _pass(self, kwargs: Arguments, **more: Any) -> Pass:
        """What the layers need to know of a call of the decoder with these arguments."""
        mask, cache = kwargs.get("attention_mask"), contract.cache_of(kwargs)
        if mask is not None and mask.ndim != 2:
            raise UnsupportedCall(
                "a static cache has its masks made before the call, for layers of one length; inside the model each "
                "stage shortens the layers after it, so use a dynamic cache (the default)"
            )
        prefix, held = prefix_of(cache), physical_length(cache)
        start = held + (prefix.removed if prefix else 0)
        length = kwargs["inputs_embeds"].shape[1]
        return Pass(self.decoder.config, mask, start, length, held, dict(prefixes_of(cache)), self._attached, **more)

    def _reduce(self, found: prompt.Layout, kwargs: Arguments, timer: StageTimer) -> Arguments:
        """The decoder's arguments without the dropped tokens, and the memory of them on the cache."""
        embeds, mask, cache = kwargs["inputs_embeds"], kwargs.get("attention_mask"), contract.cache_of(kwargs)
        asked = {
            kind: {row: found.columns(at, embeds.device) for row, at in enumerate(rows) if len(at)}
            for kind, rows in (("question", found.questions), ("last", found.lasts if self._asks_last else ()))
        }
        videos, settle = self._videos(found, embeds, asked["question"])
        # The device is busy now, so what the host can say without it is said here.
        if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
            raise UnsupportedCall("a prompt with video needs a 2D attention_mask (B, L), no custom one can be reduced")
        if packing := [name for name in (*PACKING, "seq_idx") if kwargs.get(name) is not None]:
            raise UnsupportedCall(
                f"{', '.join(packing)} say where packed samples are in a row as it was; "
                "pass the samples of a prompt with video as rows, padded, or detach"
            )
        if self.stages and getattr(cache, "is_compileable", False):
            raise UnsupportedCall(
                "a static cache gives every layer the same room, and stages inside the model leave every layer another "
                "length; use a dynamic cache (the default), or reduce before the language model"
            )
        batch, length = embeds.shape[:2]
        prefix, past = prefix_of(cache), physical_length(cache)
        start = past + (prefix.removed if prefix else 0)
        if mask is not None:
            check_length(mask, start + length)
        before = None  # (B, past)
        if past:
            before = held_mask(prefix, mask, past, batch, embeds.device).to(embeds.device, torch.long)
        full, tail = found.counts, found.tail
        current = self._pass(
            kwargs,
            timer=timer,
            prompt=found,
            videos=videos,
            asked=asked,
            stages=self.stages,
            costs=self.costs,
            share=self.share,
            past=tuple(physical_length(cache, i) if self.stages and past else past for i in range(len(self.costs))),
        )

        settle()
        now, folds, kept = list(full), [], None
        for video in videos:
            now[video.clip.row] -= len(video.whole) - video.after
        if now != list(full):
            with timed("gather"):
                folds = [Fold(v.clip.row, v.at, v.stages[0].reduction) for v in videos]
                kept = left_by(folds, found.valid_on(embeds.device), length, now, found.holes)
                kwargs = reduce_arguments(self.adapter, self.decoder.config, kwargs, folds, kept, before, start)
        self._here.current = current
        uneven = len(set(now)) > 1 or any(found.holes) or (before is not None and not before.all())
        current.real, current.padded = tuple(now), uneven or not found.whole
        if kept is None:
            kwargs = continued(kwargs)
        else:
            whole = kwargs["attention_mask"]
            begins = Prefix(start + length - tail, whole[:, : whole.shape[1] - tail], uneven, self._attached)
            current.enters(kept, folds, begins)
            if cache is not None:
                remember(cache, begins)
        if not self.stages:
            current.look()
        return {**kwargs, CONTEXT: current} if self.stages else kwargs

    def after_decoder(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: Arguments, output: Any) -> None:
        """Record a pass that saw video; one that failed leaves nothing behind."""
        current: Pass | None = self._here.__dict__.pop("current", None)
        if current is None:
            return
        cache = contract.cache_of(kwargs)
        with ExitStack() as failed:
            failed.callback(restore, cache, current.prefixes, current.past)
            if output is None:
                return
            rows = current.rows()
            if self.outputs == "left":
                rows.check(self._here.__dict__.get("asked"))
            if cache is None:
                cache = getattr(output, contract.CACHE, None)  # the decoder's own
                if cache is not None and current.begins is not None:
                    remember(cache, current.begins)
            record = current.record(cache, rows)
            current.check()
            failed.pop_all()
        self._here.rows = rows
        self.trace.add(record)

    def _videos(
        self, found: prompt.Layout, embeds: Tensor, asked: dict[int, prompt.Columns]
    ) -> tuple[tuple[Video, ...], Callable[[], None]]:
        """Every video of the call, which the second sees reduced on its own if a reducer is before the model."""
        embeds = embeds.detach()
        videos = []
        for clip in found.clips:
            at = found.columns(clip.at, embeds.device)
            whole = VideoTokens(at.take(embeds[clip.row]), clip.frames, clip.grid)
            videos.append(Video(clip, whole, at))
        if self._replay is None:
            return tuple(videos), lambda: None
        questions = {row: Prompt(columns.take(embeds[row])) for row, columns in asked.items()}
        settle = Video.reduce_each(videos, self._replay, [questions.get(clip.row) for clip in found.clips])
        return tuple(videos), settle

    def _deepstack(self, inner: Callable[..., Any], hidden: Tensor, visual: Tensor, rows: Tensor) -> Any:
        # Qwen3-VL adds features to the visual tokens after its first layers, by the mask of the decoder's input.
        current = self._here.__dict__.get("current")
        return inner(hidden, *((visual, rows) if current is None else current.stacked(visual, rows)))

    def _loss(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        rows: Rows | None = self._here.__dict__.pop("rows", None)
        labels = kwargs.get("labels")
        if rows is not None and rows.steps and labels is not None and labels.shape == rows.real.shape:
            if self._here.spread:
                kwargs["labels"] = labels.masked_fill(rows.gone.to(labels.device), -100)
            else:
                kwargs["labels"] = rows.of(labels)
        return inner(*args, **kwargs)
