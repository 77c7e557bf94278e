"""Run a model up to its decoder, and take what that would be given."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from vidsieve.engines.hf.intercept import Interceptions
from vidsieve.errors import VidsieveError


class _Given(Exception):
    """Ends a forward pass once the decoder's arguments are known."""


def decoder_arguments(
    model: Any, inputs: Mapping[str, Any], before_end: Callable[[Any, Any, dict[str, Any]], object] = lambda *_: None
) -> dict[str, Any]:
    """Get the keyword arguments that `model` calls its decoder with on `inputs`. The decoder does not run.

    before_end: called with the decoder and its arguments, after the hooks of whatever is attached.
    Raises `VidsieveError` if the model answers without its decoder.
    """
    given: dict[str, Any] = {}

    def stop(decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given.update(kwargs)
        before_end(decoder, args, kwargs)
        raise _Given

    with suppress(_Given), Interceptions() as hooks:
        hooks.before(model.get_decoder(), stop)
        model(**inputs, use_cache=False)
    if not given:
        raise VidsieveError(f"{type(model).__name__} answered without calling its decoder; nothing could be encoded")
    return given


def reduced_arguments(attachment: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Get the decoder's arguments for a prompt, reduced by what is attached, whose trace records the videos."""

    def record(decoder: Any, args: Any, arguments: dict[str, Any]) -> None:
        attachment.input.after_decoder(decoder, args, arguments, {})

    return decoder_arguments(attachment.model, inputs, record)
