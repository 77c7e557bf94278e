"""Answer one question about one clip, with all its video tokens and with the few that a method keeps.

    result = run(Request("clip.mp4", "What happens?", "Qwen/Qwen2.5-VL-7B-Instruct"), out="out")

It runs what one would write by hand: decode, beside it the model's own processor, then `model.generate`, once with the
method attached and once without. `result` is a plain dictionary, with everything that is needed to draw it again.
"""

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vidsieve import registry, writable
from vidsieve.checks import check_question, describe, require
from vidsieve.cli.answer import Answer, answer
from vidsieve.cli.env import versions
from vidsieve.engines.hf.loading import load, prepare
from vidsieve.errors import VidsieveError, redacted
from vidsieve.methods.compose import with_pixels
from vidsieve.telemetry.trace import Trace
from vidsieve.types.frames import Frames
from vidsieve.video.begin import begin
from vidsieve.video.decode import read_video
from vidsieve.video.demux import is_path
from vidsieve.video.overlay import Overlay
from vidsieve.video.wanted import Library, Sampling, Wanted


@dataclass(frozen=True)
class Request:
    """The arguments of `vidsieve run`. device, dtype: None for those that fit this machine and the checkpoint.

    strict: refuse a clip that is cut short or damaged.  sampling: as `read_video` takes it.  pixels: the share
    of the groups of pixels that the vision tower computes (docs/vision.md); None for all.  decoder: as `read_video`
    takes it.
    """

    clip: str
    question: str
    model: str
    method: str = "vidsieve"
    keep: float = 0.1
    frames: int = 64
    device: str | None = None
    dtype: str | None = None
    max_new_tokens: int = 128
    compare: bool = True
    strict: bool = False
    sampling: Sampling = "even"
    pixels: float | None = None
    decoder: Library = "pyav"

    @property
    def wanted(self) -> Wanted:
        """What is read of the clip; torchcodec decodes on the GPU that is asked for."""
        on_gpu = self.decoder == "torchcodec" and (self.device or "").startswith("cuda")
        return Wanted(
            self.frames,
            strict=self.strict,
            sampling=self.sampling,
            decoder=self.decoder,
            device=self.device if on_gpu else None,
        )


def run(
    request: Request,
    note: Callable[[str], None] = lambda what: None,
    out: str | os.PathLike[str] | None = None,
    films: Sequence[str] = (),
    loaded: tuple[Any, Any] | None = None,
    warn: Callable[[str], None] = lambda fault: warnings.warn(fault, stacklevel=2),
) -> dict[str, Any]:
    """Answer `request` with and without the method. note: called with the current step.

    out: a folder for result.json and its picture.  films: as `draw` takes them.  loaded: processor and model of
    `request.model`, if they are there already.  warn: called with each fault of the clip.
    """
    method = registry.method(request.method)
    check_question(request.question)
    reducer = with_pixels(method(request.keep), request.pixels)
    if out is not None:
        writable.file(writable.folder(out) / "result.json")
    require("av", "video")  # not on the clock
    processor, model, frames, inputs, stages, loading = _prepare(request, note, warn, loaded)
    if request.compare:  # a first call pays for what later ones do not; neither of the two may be it
        note("warming up")
        with reducer(model):
            model.generate(**inputs, do_sample=False, max_new_tokens=1)
    note(f"answering with {request.method}")
    reduced = answer(model, processor, inputs, request.max_new_tokens, reducer)
    trace = reduced.trace
    if not trace.videos:
        raise VidsieveError(f"{request.model} was shown no video token; nothing could be reduced")
    result = _described(request, method, repr(reducer), frames, model, inputs["input_ids"].shape[1], trace)
    result |= {"answer": reduced.text, "stages_ms": _split(stages, reduced, trace), "memory": reduced.memory}
    result["loading_ms"] = loading
    if request.compare:
        note("answering with every token")
        unreduced = answer(model, processor, inputs, request.max_new_tokens)
        result["answer_unreduced"] = unreduced.text
        result |= {"stages_ms_unreduced": _split(stages, unreduced), "memory_unreduced": unreduced.memory}
        result["gain"] = gain(result)
    if out is not None:
        note("drawing")
        write(result, out)  # whatever becomes of the picture
        began = time.perf_counter()
        pictures = draw(result, out, frames, films)
        result["stages_ms"]["draw"] = 1e3 * (time.perf_counter() - began)
        write(result, out)
        result["pictures"] = pictures
    return result


class _Prepared(NamedTuple):
    """What an answer is generated from, and milliseconds.

    stages: "decode", to the last frame; "process", from then on, or from when the model was there if that was later.
    loading: "load", and for how long the decoder was "waited" for after that.
    """

    processor: Any
    model: Any
    frames: Frames
    inputs: Any
    stages: dict[str, float]
    loading: dict[str, float]


def _prepare(
    request: Request, note: Callable[[str], None], warn: Callable[[str], None], loaded: tuple[Any, Any] | None
) -> _Prepared:
    """Decode the clip while the model is loaded, and process what is decoded. What is no video is told before that."""
    note("decoding the clip" if loaded else "decoding the clip, and loading the model")
    began = time.perf_counter()
    with begin(request.clip, request.wanted, warn) as coming:
        coming.wait_until_known()
        loading = time.perf_counter()
        processor, model = loaded or load(request.model, request.device, request.dtype, bar=False)
        there = time.perf_counter()
        note("decoding the clip")
        inputs = prepare(processor, coming, request.question, model.device).to(model.device, model.dtype)
        processed = time.perf_counter()
    frames, decoded = coming.result(), coming.ended or processed
    stages = {"decode": 1e3 * (decoded - began), "process": 1e3 * (processed - max(decoded, there))}
    times = {"load": 1e3 * (there - loading), "waited": 1e3 * max(0.0, decoded - there)}
    return _Prepared(processor, model, frames, inputs, stages, times)


def _described(
    request: Request, method: registry.Method, reducer: str, frames: Frames, model: Any, prompt: int, trace: Trace
) -> dict[str, Any]:
    """Make the result, with None for answers, times and memory. prompt: tokens of the unreduced prompt."""
    video = trace.videos[0]
    return {
        "clip": str(Path(request.clip).resolve()) if is_path(os.fspath(request.clip)) else redacted(request.clip),
        "question": request.question,
        "model": request.model,
        "model_type": model.config.model_type,
        "method": request.method,
        "reducer": reducer,
        "keep": request.keep,
        "keep_of": method.keep_of,
        "pixels": request.pixels,
        "tower": trace.tower,
        "computed": _computed(trace, video.before),
        "cost": trace.cost,
        "stages": video.to_dict()["stages"],
        "tokens_before": video.before,
        "tokens_after": video.after,
        "prompt_before": prompt,
        "prompt_after": prompt - video.before + video.after,
        "answer": None,
        "answer_unreduced": None,
        "stages_ms": None,
        "stages_ms_unreduced": None,
        "loading_ms": None,
        "memory": None,
        "memory_unreduced": None,
        "gain": None,
        "frames": {
            "index": list(frames.index),
            "seconds": list(frames.seconds),
            "size": list(frames.pixels.shape[1:3]),
            "total": frames.total,
            "duration": frames.duration,
            "sampling": request.sampling,
            "decoder": request.decoder,
            "decoded": frames.decoded,
            "key_frames": frames.key_frames,
        },
        "tokens": list(video.frames),
        "grid": list(video.grid) if video.grid else None,
        "segments": [list(bounds) for bounds in video.segments] if video.segments else None,
        "budgets": video.budgets,
        "kept": video.kept,
        "spans": [span._asdict() for span in video.spans(frames.seconds)],
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": versions(),
    }


def _computed(trace: Trace, tokens: int) -> list[int] | None:
    """List the tokens whose pixels the tower computed; None for all, and where a group of pixels is no token."""
    [selection] = trace.pixels or (None,)
    return None if selection is None or len(selection.source) != tokens else selection.kept.tolist()


def _split(before: dict[str, float], answered: Answer, trace: Trace | None = None) -> dict[str, float]:
    """Join the milliseconds: before the model, in it, of the reduction within the prefill, and to the first token."""
    first = sum(before.values()) + sum(answered.stages_ms.values()) - answered.stages_ms["rest"]
    return before | (trace.stages_ms if trace else {}) | answered.stages_ms | {"first_token": first}


def gain(result: dict[str, Any]) -> str:
    """Say how much sooner the first token comes and what memory is saved, as far as it was measured."""
    full, reduced = result["stages_ms_unreduced"], result["stages_ms"]
    file = full["first_token"] / reduced["first_token"]
    pixels = _after_pixels(full) / _after_pixels(reduced)
    said = [f"first token {_sooner(file)} from the file, {_sooner(pixels)} from the pixels"]
    for name, of in (("kv_bytes", "KV cache"), ("peak_bytes", "peak memory")):
        if name in result["memory"] and result["memory_unreduced"].get(name):
            change = round(100 * (result["memory"][name] / result["memory_unreduced"][name] - 1))
            said.append(f"{of} {change:+d} %" if change else f"{of} 0 %")
    return ", ".join(said)


def _after_pixels(stages: dict[str, float]) -> float:
    return stages["first_token"] - stages["decode"] - stages["process"]


def _sooner(ratio: float) -> str:
    if 0.95 < ratio < 1.05:
        return "equally soon"
    return f"{ratio:.1f}x sooner" if ratio >= 1 else f"{1 / ratio:.1f}x later"


def overlay(result: dict[str, Any], frames: Frames | None = None) -> Overlay:
    """Make the overlay of a result. Reads the clip again unless `frames` are given."""
    sample = result["frames"]
    frames = frames or read_video(result["clip"], index=sample["index"], size=tuple(sample["size"]))
    bounds = [begin for begin, _ in result["segments"] or ()]
    kept = torch.tensor(result["kept"], dtype=torch.int64)
    grid = tuple(result["grid"]) if result["grid"] else None
    computed = result.get("computed")  # an earlier release has none
    said = (("question", "question"), ("every token", "answer_unreduced"), ("reduced", "answer"))
    texts = [(name, result[key]) for name, key in said if result.get(key) is not None]
    computed = None if computed is None else torch.tensor(computed)
    return Overlay(frames, kept, result["tokens"], grid, bounds, computed, result.get("gain") or "", texts)


def draw(
    result: dict[str, Any], folder: str | os.PathLike[str], frames: Frames | None = None, films: Sequence[str] = ()
) -> dict[str, str]:
    """Draw overlay.png in `folder`, and the `films` "mp4" and "gif": returns the paths by kind.

    Reads the clip again unless `frames` are given.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = result["model_type"] if Path(result["model"]).is_dir() else result["model"]
    about = (Path(result["clip"]).name, f"{result['method']}, keep {result['keep']:g}", model)
    paths = overlay(result, frames).save(folder, " \u00b7 ".join(about), films)
    return {kind: str(path) for kind, path in paths.items()}


def write(result: dict[str, Any], folder: str | os.PathLike[str]) -> Path:
    """Write result.json to `folder`."""
    path = Path(folder) / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a result from result.json or its folder. A clip that has moved is looked for beside it.

    Raises `VidsieveError` for anything else.
    """
    path = Path(path) / "result.json" if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise VidsieveError(f"{path}: no such file; expected the result.json of a `vidsieve run`")
    try:
        result = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number of thousands of digits
        raise VidsieveError(f"{path}: is not a result.json of `vidsieve run` ({error})") from error
    if fault := _fault(result):
        raise VidsieveError(f"{path}: is not a result.json of `vidsieve run`: {fault}")
    beside = path.parent / Path(result["clip"]).name
    if beside.exists() and not Path(result["clip"]).exists():
        result["clip"] = str(beside)
    return dict(result)


def _fault(result: Any) -> str | None:
    """Describe why a value is not a result that can be drawn; None if it is."""
    needed = {"clip", "model", "model_type", "method", "keep", "kept", "tokens", "grid", "segments", "frames"}
    missing = sorted(needed - result.keys()) if isinstance(result, dict) else sorted(needed)
    if missing:
        return f"it has no {', '.join(missing)}"
    wrong = (
        f"expected {requirement}, got {describe(value)}" for requirement, value, fits in _expected(result) if not fits
    )
    return next(wrong, None)


def _expected(result: dict[str, Any]) -> Iterator[tuple[str, Any, bool]]:
    """Yield a requirement, the value and whether it fits, for each part of a result. Each assumes those before it."""

    def are_integers(value: Any, least: int, length: int | None = None) -> bool:
        fits = isinstance(value, list) and all(type(n) is int and n >= least for n in value)
        return fits and length in (None, len(value))

    for name in ("clip", "model", "model_type", "method"):
        yield f"{name} as text", result[name], isinstance(result[name], str)
    keep, kept, tokens, grid, segments = (result[name] for name in ("keep", "kept", "tokens", "grid", "segments"))
    for name in ("question", "answer", "answer_unreduced", "gain"):  # an earlier release has not all
        yield f"{name} as text or null", result.get(name), isinstance(result.get(name), str | None)
    yield "keep as a number above 0, at most 1", keep, type(keep) in (int, float) and 0 < keep <= 1
    frames = result["frames"]
    yield "frames with index and size", frames, isinstance(frames, dict) and {"index", "size"} <= frames.keys()
    index, size = frames["index"], frames["size"]
    yield "index as whole numbers, one a frame", index, index != [] and are_integers(index, 0)
    yield "size as [height, width]", size, are_integers(size, 1, 2)
    yield "tokens as whole numbers above 0", tokens, tokens != [] and are_integers(tokens, 1)
    yield f"tokens of at most {len(index)} frames", tokens, len(tokens) <= len(index)
    yield "grid as [rows, columns] or null", grid, grid is None or are_integers(grid, 1, 2)
    yield f"grid of {describe(tokens)} tokens", grid, grid is None or set(tokens) == {grid[0] * grid[1]}
    yield (
        f"kept as whole numbers below {sum(tokens)}",
        kept,
        are_integers(kept, 0) and max(kept, default=0) < sum(tokens),
    )
    computed = result.get("computed")
    yield (
        f"computed as whole numbers below {sum(tokens)} or null",
        computed,
        computed is None or (are_integers(computed, 0) and max(computed, default=0) < sum(tokens)),
    )
    pairs = segments is None or (isinstance(segments, list) and all(are_integers(pair, 0, 2) for pair in segments))
    yield "segments as pairs of whole numbers or null", segments, pairs
