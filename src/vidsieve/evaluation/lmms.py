"""lmms-eval's own Hugging Face models with a reducer attached: its entry point `lmms_eval.models` finds them here.

    python -m lmms_eval --model vidsieve_qwen2_5_vl --tasks videomme \\
        --model_args pretrained=Qwen/Qwen2.5-VL-7B-Instruct,keep=0.1,method=vidsieve

Nothing of lmms-eval is copied or patched: each is a subclass made of lmms-eval's class, which takes three arguments
more. keep=1 runs the model as it is, for the unreduced row. pixels=0.5 lets the vision tower compute half of the groups
of pixels (docs/vision.md), with every keep. After each task the counts are logged, and a run in which the
method was not shown a video for every request, or kept every token, fails: its scores would be of something else.
docs/reproduce.md has the commands.
"""

from importlib import import_module
from typing import Any

from vidsieve import registry
from vidsieve.checks import require
from vidsieve.errors import VidsieveError
from vidsieve.methods.compose import with_pixels

PARENTS = {  # our name: their kind of model, module and class
    "vidsieve_qwen2_5_vl": ("chat", "qwen2_5_vl", "Qwen2_5_VL"),
    "vidsieve_qwen3_vl": ("chat", "qwen3_vl", "Qwen3_VL"),
    "vidsieve_llava_onevision": ("simple", "llava_hf", "LlavaHf"),  # its chat class fails on video
}


def manifests() -> list[Any]:
    """What lmms-eval's registry wants to know of the models."""
    registry = require("lmms_eval.models.registry_v2", "lmms")
    return [
        registry.ModelManifest(**{"model_id": name, f"{kind}_class_path": f"{__name__}.{name}"})
        for name, (kind, _, _) in PARENTS.items()
    ]


def __getattr__(name: str) -> type:
    """The class behind one of our names; made when it is asked for, since its parent brings half of lmms-eval along."""
    if name not in PARENTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    kind, module, parent = PARENTS[name]
    require("lmms_eval", "lmms")
    model = getattr(import_module(f"lmms_eval.models.{kind}.{module}"), parent)
    made = type(name, (Reduced, model), {"__module__": __name__, "is_simple": kind == "simple"})
    globals()[name] = made  # the same class each time
    return made


class Reduced:
    """Attaches a method to the model that the class beside it loads, for as long as that lives."""

    def __init__(self, keep: float = 0.1, method: str = "vidsieve", pixels: float | None = None, **rest: Any) -> None:
        named, self.keep = registry.method(method), float(keep)
        reducer = with_pixels(named(self.keep), None if pixels is None else float(pixels))
        super().__init__(**rest)
        whole = self.keep == 1 and pixels is None
        self.trace = None if whole else reducer(self.model).trace  # type: ignore[attr-defined]

    def generate_until(self, requests: list[Any]) -> Any:
        before = self.trace.totals if self.trace is not None else {}
        answers = super().generate_until(requests)  # type: ignore[misc]
        if self.trace is not None:
            now = self.trace.totals
            check({name: now[name] - before[name] for name in now}, len(requests), self.keep)
            if self.trace.pixels:
                _log(f"vision tower, last call: {self.trace.tower}")
        return answers


def check(counts: dict[str, int], requests: int, keep: float = 0.0) -> None:
    """Log what became of the video tokens of this many requests; raise `VidsieveError` where nothing did.

    keep: 1 where all were to stay.
    """
    if counts["videos"] < requests:
        raise VidsieveError(
            f"of {requests} requests only {counts['videos']} showed the model a video: the others failed (see above) "
            "or were about images, and their scores would not be those of a reduced video"
        )
    if keep < 1 and counts["tokens_after"] >= counts["tokens_before"]:
        raise VidsieveError(f"all {counts['tokens_before']} video tokens were kept; use keep=1 for the unreduced model")
    _log("{videos} videos, {tokens_before} tokens -> {tokens_after}".format(**counts))


def _log(text: str) -> None:
    from loguru import logger

    logger.info(f"vidsieve: {text}")
