"""Our subclass of a vLLM model, made from the class that vLLM resolved: no list of architectures, no scan.

What decides is which of a few roots a class derives from, for the root says how a video lies in the prompt and where
its tokens stand. A class that changes one of the methods behind that is not served: our positions might not be its own.
"""

import sys
from functools import cache
from inspect import getattr_static
from typing import Any

from vllm.multimodal import MULTIMODAL_REGISTRY

from vidsieve.engines.vllm.flat import FlatProcessor, PooledProcessor, SievedFlat, SievedPooled
from vidsieve.engines.vllm.framed import FramedProcessor, SievedFramed, SievedFramedGrid
from vidsieve.engines.vllm.models import SievedGrid, SievedInterleaved
from vidsieve.engines.vllm.processor import GridProcessor, check_hooks

_MODELS = "vllm.model_executor.models"
ROOTS: dict[str, tuple[type, type]] = {
    f"{_MODELS}.qwen2_5_vl.Qwen2_5_VLForConditionalGeneration": (SievedGrid, GridProcessor),
    f"{_MODELS}.qwen3_vl.Qwen3VLForConditionalGeneration": (SievedInterleaved, GridProcessor),
    f"{_MODELS}.glm4_1v.Glm4vForConditionalGeneration": (SievedFramedGrid, FramedProcessor),
    f"{_MODELS}.interns1.InternS1ForConditionalGeneration": (SievedFramed, FramedProcessor),
    f"{_MODELS}.llava_onevision.LlavaOnevisionForConditionalGeneration": (SievedFlat, FlatProcessor),
    f"{_MODELS}.llava_next_video.LlavaNextVideoForConditionalGeneration": (SievedPooled, PooledProcessor),
}


@cache
def derive(theirs: type) -> tuple[type | None, str]:
    """Our subclass of vLLM's model class, or None and the reason where one is known.

    Raises `UnsupportedModel` if this vLLM no longer calls what we override.
    """
    root = next((base for base in theirs.__mro__ if _name(base) in ROOTS), None)
    if root is None:
        return None, ""
    model, processor = ROOTS[_name(root)]
    factories: Any = theirs._processor_factory  # type: ignore[attr-defined]
    changed = [
        *_changed(theirs, root, model.settled),  # type: ignore[attr-defined]
        *_changed(factories.processor, root._processor_factory.processor, processor.settled),  # type: ignore[attr-defined]
    ]
    if changed:
        return None, f"it has its own {', '.join(changed)}, and its tokens may not stand as in {root.__name__}"
    if not _takes_video(theirs):
        return None, "it takes no video"
    for override in model.__mro__[:-1]:
        check_hooks(override, theirs, model.added)  # type: ignore[attr-defined]
    for override in processor.__mro__[:-1]:
        check_hooks(override, factories.processor)
    front_end = _subclass(processor, factories.processor)
    ours = _subclass(model, theirs)
    register = MULTIMODAL_REGISTRY.register_processor(
        front_end, info=factories.info, dummy_inputs=factories.dummy_inputs
    )
    return register(ours), ""


def _name(base: type) -> str:
    return f"{base.__module__}.{base.__qualname__}"


def _changed(theirs: type, root: type, names: tuple[str, ...]) -> list[str]:
    """Those of `names` that a subclass of `root` defines anew."""
    return [name for name in names if getattr_static(theirs, name, None) is not getattr_static(root, name, None)]


def _takes_video(theirs: Any) -> bool:
    try:
        return theirs.get_placeholder_str("video", 1) is not None
    except ValueError:  # which is how vLLM's models say no
        return False


def _subclass(ours: type, theirs: type) -> type:
    """`theirs` with `ours` before it, where pickle finds it."""
    made = type(f"Sieved{theirs.__name__}", (ours, theirs), {"__module__": __name__, "__doc__": theirs.__doc__})
    setattr(sys.modules[__name__], made.__name__, made)
    return made
