"""Before the language model: the video tokens are dropped between the vision tower and the decoder.

Two hooks on one model instance do it, for every family, with no model code copied:

    body      sees the token ids, and brings them to the host.                                 layout.py
    decoder   sees embeddings, positions, mask. Where are the videos, their frames, the        layout.py
              question? Reduce each video, gather what stays.                                  gather.py
    layers    for `Staged` only: the same again where a stage says so.                         seam_layers.py

Only the decoder's own arguments change. The prompt, its mask and its positions as `generate` counts them stay whole, so
kept tokens keep their positions and `out[:, prompt_length:]` still is the answer. What the cache holds of the prompt
is remembered on the cache (cache.py). Hand-over between the hooks is per thread; detaching leaves nothing behind.
"""

import threading
import warnings
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from functools import reduce
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_masks_for_generate

from vidsieve.errors import AlreadyAttached, UnsupportedCall
from vidsieve.models import arguments, contract, layout
from vidsieve.models.attention import kinds, refuse_attention
from vidsieve.models.cache import (
    Prefix,
    Switch,
    check_length,
    continued,
    physical_length,
    prefix_of,
    prefixes_of,
    remember,
    restore,
)
from vidsieve.models.families import adapter_for
from vidsieve.models.flops import LayerCost, layer_costs
from vidsieve.models.gather import Fold, Kept, left_by, reduce_arguments
from vidsieve.models.remains import Video
from vidsieve.models.seam_layers import CONTEXT, Layers, Pass
from vidsieve.models.trace import Trace
from vidsieve.reducer import Attachable, Staged
from vidsieve.replay import Replay
from vidsieve.timeline import Timeline, stage
from vidsieve.tokens import Prompt, VideoTokens

Arguments = dict[str, Any]
_attached: "weakref.WeakKeyDictionary[nn.Module, Switch]" = weakref.WeakKeyDictionary()
_handles: "weakref.WeakKeyDictionary[nn.Module, weakref.ref[Attachment]]" = weakref.WeakKeyDictionary()
_attaching = threading.Lock()


def attach(model: Any, reducer: Attachable) -> "Attachment":
    """Let `reducer` reduce the videos that `model`, a Hugging Face video LLM, is shown from now on.

        with attach(model, reducer) as trace:       # or: handle = attach(model, reducer); ...; handle.remove()
            model.generate(**inputs)

    A model wrapped by PEFT may be passed as it is. Raises `UnsupportedModel` where no adapter knows the model,
    `AlreadyAttached` where a reducer is attached, `UnsupportedCall` where the model is compiled: a compiled model does
    not look at its hooks again, so attach first.
    """
    return Attachment(model, reducer)


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

    def __init__(self, model: Any, reducer: Attachable) -> None:
        model, reducer = arguments.whole_model(model), arguments.method(reducer)
        self.adapter = adapter_for(model)
        self.model, self.reducer, self.trace = model, reducer, Trace()
        self.token: int = getattr(model.config, self.adapter.token)
        self._marks = layout.marks_of(model.config)
        self.body: nn.Module = model.base_model
        self.decoder: nn.Module = model.get_decoder()
        self.costs: tuple[LayerCost, ...] = layer_costs(self.decoder) if hasattr(self.decoder, "layers") else ()
        stages = reducer.layers(len(self.costs)) if isinstance(reducer, Staged) else {0: reducer}
        self.share = reducer.cost if isinstance(reducer, Staged) else None
        self.first = stages.pop(0, None)
        self._replay = None if self.first is None else Replay(self.first)
        refuse_attention(self.first)
        self._asks_last = any("last" in kinds(reducer) for reducer in stages.values())
        self.stages = stages
        for module in (self.model, self.body, self.decoder):
            if _is_compiled(module):
                raise UnsupportedCall(
                    f"{type(module).__name__} is compiled, and a compiled model never looks at hooks added later; "
                    "attach to the plain model first, then compile"
                )
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
                self._wrap("_deepstack_process", self._deepstack, owner=self.decoder)
            self._wrap("create_masks_for_generate", self._masks_for_generate, create_masks_for_generate)
            self._wrap("_prefill", self._prefill)
            self._wrap("_prepare_multimodal_encoder_kwargs_for_generation", self._encode)  # transformers >= 5.18
            self._wrap("_loss_function", self._loss, model.loss_function)
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

    def _wrap(self, name: str, wrapper: Callable[..., Any], default: Any = None, owner: Any = None) -> None:
        """Call `wrapper` in place of the model's (or `owner`'s) function `name`, which it gets first, until removal."""
        owner = self.model if owner is None else owner
        inner = getattr(owner, name, default)
        if inner is None:
            return
        own = owner.__dict__
        self._undo.callback(own.__setitem__ if name in own else own.pop, name, own.get(name))
        own[name] = lambda *args, **kwargs: wrapper(inner, *args, **kwargs)

    # What follows runs inside the model's calls, in their order.

    def _prefill(self, inner: Callable[..., Any], ids: Tensor, generation_config: Any, *args: Any, **kw: Any) -> Any:
        if generation_config.prefill_chunk_size is not None and (ids == self.token).any():
            raise UnsupportedCall(
                "prefill_chunk_size shows the reducer one piece of a video at a time, and a budget cannot be set on "
                "pieces; generate without it (a reduced prompt is short), or detach"
            )
        return inner(ids, generation_config, *args, **kw)

    def _encode(self, inner: Callable[..., Any], arguments: Arguments) -> Any:
        # generate() runs the vision tower itself, and the body never sees what described the videos.
        described = layout.description(arguments)
        arguments = inner(arguments)
        self._here.described = described, layout.encodings(arguments)
        return arguments

    def _masks_for_generate(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # generate() prepares 4D masks ahead of the call for static caches, which would not survive a reduction.
        if kwargs["inputs_embeds"].shape[1] > 1:
            return kwargs["attention_mask"]  # the decoder builds it, once reduced
        return inner(*args, **continued(kwargs))

    def _before_model(self, model: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> None:
        labels = kwargs.get("labels")
        self._here.answer = None if labels is None else labels != -100

    def _before_body(self, body: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)  # (B, L)
        given = ids if ids is not None else kwargs.get("inputs_embeds")
        if given is None or given.shape[1] == 1:
            return
        here = self._here.__dict__
        here.pop("left", None)
        answer = here.pop("answer", None)
        if answer is not None and answer.shape != given.shape[:2]:
            answer = None  # of a model whose labels are no tokens of its prompt
        here["reading"] = self._read(body, ids, kwargs, answer)

    def _read(
        self, body: Any, ids: Tensor | None, kwargs: Arguments, answer: Tensor | None
    ) -> tuple[layout.Reading, int]:
        """What says where the videos are, and how many rows share each. The host looks when the device is busy."""
        placeholder = None
        if ids is None:
            embeds = kwargs["inputs_embeds"]  # (B, L, D)
            embedding = body.get_input_embeddings()(torch.tensor(self.token, device=embeds.device))  # (D,)
            placeholder = (embeds == embedding).all(-1)
        described, once = self._here.__dict__.get("described", ({}, 0))
        encoded = layout.encodings(kwargs)
        given, copies = (described, encoded // once) if encoded and once else ({}, 1)
        reading = layout.read(self.adapter, ids, placeholder, kwargs, given, answer)
        if reading.placeholder is not None and not reading.placeholder.any():
            warnings.warn(
                "inputs_embeds without a video placeholder: if video features were already merged into them, "
                "nothing tells which they are, and none is dropped; pass input_ids and pixels instead",
                stacklevel=2,
            )
        return reading, copies

    def _after_body(self, *_: Any) -> None:
        self._here.__dict__.pop("reading", None)  # which the decoder did not come to ask for

    def _find(self, reading: layout.Reading, copies: int) -> layout.Layout:
        end = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        ends = frozenset(end if isinstance(end, list) else () if end is None else (end,))
        return layout.find(self.adapter, self.model.config, reading, copies, ends, self._marks)

    def _before_decoder(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> Any:
        kwargs = contract.with_new_names(kwargs)
        embeds = kwargs["inputs_embeds"]  # (B, L, D)
        here = self._here.__dict__
        here.pop("current", None)
        if embeds.shape[1] > 1:
            reading = here.pop("reading", None)
            found = None if reading is None else self._find(*reading)
            if found is not None and found.clips and found.real.shape == embeds.shape[:2]:
                with Timeline(embeds.device) as timeline:
                    return args, self._reduce(found, kwargs, timeline)
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

    def _reduce(self, found: layout.Layout, kwargs: Arguments, timeline: Timeline) -> Arguments:
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
            if mask is not None:
                before = (prefix.physical(mask) if prefix else mask)[:, :past]
            else:
                before = prefix.filled(past, batch) if prefix else torch.ones(batch, past, device=embeds.device)
            before = before.to(embeds.device, torch.long)
        full = (length,) * batch if found.whole else found.counts
        tail = found.tail
        current = self._pass(
            kwargs,
            timeline=timeline,
            full=full,
            tail=tail,
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
            with stage("gather"):
                folds = [Fold(v.clip.row, v.at, v.stages[0].reduction) for v in videos]
                kept = left_by(folds, found.valid_on(embeds.device), length, now)
                kwargs = reduce_arguments(self.adapter, self.decoder.config, kwargs, folds, kept, before, start)
        self._here.current = current
        uneven = len(set(now)) > 1 or (before is not None and not before.all())
        current.real, current.padded = tuple(now), uneven or set(full) != {length}
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
            self._here.left = current.left()
            if cache is None:
                cache = getattr(output, contract.CACHE, None)  # the decoder's own
                if cache is not None and current.begins is not None:
                    remember(cache, current.begins)
            record = current.record(cache)
            current.check()
            failed.pop_all()
        self.trace.add(record)

    def _videos(
        self, found: layout.Layout, embeds: Tensor, asked: dict[int, layout.Columns]
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
        left: tuple[Kept, ...] = self._here.__dict__.pop("left", ())
        labels = kwargs.get("labels")
        if left and labels is not None and labels.shape[1] == left[0].length:
            kwargs["labels"] = reduce(lambda x, kept: kept.labels(x), left, labels)
        return inner(*args, **kwargs)


def _is_compiled(module: nn.Module) -> bool:
    forward = getattr(module, "forward", None)
    return (
        "_orig_mod" in module._modules
        or getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(forward, "_torchdynamo_orig_callable")
    )
