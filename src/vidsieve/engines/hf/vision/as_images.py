"""Find the frames of videos in a call of a tower that takes images, where a family hands frames over as such: InternVL.

`pixel_values` (N, 3, H, W) has a row for each frame and for each tile of an image, and only the prompt tells which is
which. A row becomes as many tokens as a frame has: so row n has the n-th so many placeholders of the batch.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from vidsieve.engines.hf import contract, prompt
from vidsieve.engines.hf.columns import Columns
from vidsieve.engines.hf.families import adapter_for
from vidsieve.engines.hf.intercept import Interceptions, OfOneModel
from vidsieve.engines.hf.vision.calls import TowerCalls
from vidsieve.errors import UnsupportedCall
from vidsieve.methods.pixels import PixelSelector


class _Prompts(OfOneModel, threading.local):
    """Holds, for each thread, the arguments with the prompt whose images are about to be encoded."""

    arguments: Mapping[str, Any] | None = None


class FramesAsImages:
    """Hooks on `model`, which note in `calls` where the frames of each video are while its images are encoded.

    frame_tokens: tokens of a frame.  pixels: the selector that asks, which errors name.
    """

    def __init__(
        self, model: Any, frame_tokens: int, pixels: PixelSelector, calls: TowerCalls, hooks: Interceptions
    ) -> None:
        self._body, self._config, self._adapter = model.base_model, model.config, adapter_for(model)
        self._frame_tokens, self._pixels, self._calls, self._prompts = frame_tokens, pixels, calls, _Prompts()
        hooks.before(self._body, self._before_body)
        hooks.after(self._body, self._after_body)
        hooks.wrap(model, "_maybe_prepare_encoder_kwargs_for_generation", self._generate)  # >= 5.18
        hooks.wrap(self._body, "get_image_features", self._encode)

    def _before_body(self, body: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = contract.by_name(body, args, kwargs)
        self._prompts.arguments = given if given.get("pixel_values") is not None else None

    def _after_body(self, body: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._prompts.arguments = None

    def _generate(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Note the prompt that `generate` encodes the images of, before it calls the body."""
        given = contract.by_name(inner, args, kwargs)
        arguments = {**given["model_kwargs"], given["model_input_name"]: given["inputs_tensor"]}
        cache = contract.cache_of(contract.with_new_names(arguments))
        if cache is not None and arguments.get("input_ids") is not None:  # of earlier turns, whose pictures came then
            arguments["input_ids"] = arguments["input_ids"][:, int(cache.get_seq_length()) :]
        self._prompts.arguments = arguments
        try:
            return inner(**given)
        finally:
            self._prompts.arguments = None

    def _encode(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = contract.by_name(inner, args, kwargs)
        # Taken, so that it is of one call: an interrupt runs no hook after it.
        arguments, self._prompts.arguments = self._prompts.arguments, None
        if arguments is None:
            raise UnsupportedCall(
                f"{self._pixels!r} cannot act in a call of get_image_features of {type(self._body).__name__}: nothing "
                "tells which images are frames of a video; call the model with input_ids, or detach"
            )
        self._calls.frames = self._find(arguments, given["pixel_values"])
        try:
            return inner(**given)
        finally:
            self._calls.frames = None

    def _find(self, arguments: Mapping[str, Any], pixels: Tensor) -> tuple[Columns, ...] | None:
        """Find the rows of `pixels` that are frames, of each video of a prompt; None where all are images."""
        size, token = self._frame_tokens, getattr(self._config, self._adapter.token)
        ids, placeholder = arguments.get("input_ids"), None
        if ids is None or not ids.shape[1]:
            ids, placeholder = None, prompt.placeholder_in(arguments["inputs_embeds"], self._body, token)
        host_inputs = prompt.read(self._adapter, ids, placeholder, arguments)
        found = prompt.find(self._adapter, self._config, host_inputs)
        if not found.spans:
            return None
        placed = host_inputs.ids == token if host_inputs.placeholder is None else host_inputs.placeholder
        place = np.cumsum(placed).reshape(placed.shape) - 1  # of each placeholder, among all
        begins = [place[span.row, span.at[::size]] for span in found.spans]
        if place[-1, -1] + 1 != len(pixels) * size or any((begin % size).any() for begin in begins):
            raise UnsupportedCall(
                f"{self._pixels!r} cannot act before this call of the vision tower: expected {size} placeholders for "
                f"each of {len(pixels)} images, frame by frame, got {place[-1, -1] + 1}"
            )
        return tuple(found.columns(begin // size, pixels.device) for begin in begins)
