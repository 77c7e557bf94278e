"""The file of an encoded video: safetensors, so that it cannot run code, with a header in JSON.

It has the tensors of `EncodedVideo`, named as in `_TYPES`, and in its metadata `format`, the version of all this;
`video`, everything that is no tensor; and `sha256`, of the former two and the bytes of the tensors.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from vidsieve import writable
from vidsieve.checks import require
from vidsieve.encoded.clips import SUFFIXES
from vidsieve.encoded.fingerprint import Fingerprint
from vidsieve.encoded.whole import write_whole
from vidsieve.errors import UnsupportedCall, VidsieveError
from vidsieve.types.frames import Frames
from vidsieve.types.selection import Rows, Selection

FORMAT = 1
Video = TypeVar("Video")
_NAMES = {  # by safetensors, which writes the last of them first, so that each is aligned
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
_FLOATS = tuple(name for dtype, name in _NAMES.items() if dtype.is_floating_point)
Header = tuple[str, tuple[int, ...]]  # a type and a shape
Expected = tuple[tuple[str, ...], str]  # types, dimensions: K kept tokens, D numbers each, S segments, L layers
_ROWS: dict[str, Expected] = {
    "kept": (("I64",), "K"),
    "features": (_FLOATS, "KD"),
    "step": (("I32",), "K"),
    "segment": (("I32",), "K"),
}
_TYPES: dict[str, Expected] = {**_ROWS, "lengths": (("I64",), "S"), "trailing": (_FLOATS, "tD")}
_GAINS: dict[str, Expected] = {"gains": (("F32",), "S")}
_OTHERS: Expected = (_FLOATS, "LKD")
_LARGEST = 2**31  # of a number of tokens, or a side of a picture


def write(
    path: str | os.PathLike[str],
    frames: Frames,
    selection: Selection,
    trailing: Tensor,
    tokens: tuple[int, ...],
    grid: tuple[int, int] | None,
    size: tuple[int, int] | None,
    fingerprint: Fingerprint,
    strict: bool,
) -> None:
    """Write the parts of an encoded video, completely or not at all. Raises `VidsieveError` if that cannot be.

    Nothing is held twice meanwhile.
    """
    where = writable.file(path)
    tensors, video = _contents(frames, selection, trailing, tokens, grid, size, fingerprint, strict)
    tensors = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    metadata = {"format": str(FORMAT), "video": video, "sha256": _digest(video, tensors)}
    try:
        where.parent.mkdir(parents=True, exist_ok=True)
        header, order = _header(tensors, metadata)
        write_whole(where, *header, *(_bytes(tensors[name]) for name in order))
    except OSError as error:
        raise VidsieveError(f"cannot write {where} ({error.strerror or error}); nothing is left of it") from error


def length(
    frames: Frames,
    selection: Selection,
    trailing: Tensor,
    tokens: tuple[int, ...],
    grid: tuple[int, int] | None,
    fingerprint: Fingerprint,
) -> int:
    """Count the bytes of the file that `write` makes of these. Tensors may be on meta."""
    tensors, video = _contents(frames, selection, trailing, tokens, grid, None, fingerprint, False)
    header, _ = _header(tensors, {"format": str(FORMAT), "video": video, "sha256": "0" * 64})
    return sum(map(len, header)) + sum(x.nbytes for x in tensors.values())


def _contents(
    frames: Frames,
    selection: Selection,
    trailing: Tensor,
    tokens: tuple[int, ...],
    grid: tuple[int, int] | None,
    size: tuple[int, int] | None,
    fingerprint: Fingerprint,
    strict: bool,
) -> tuple[dict[str, Tensor], str]:
    """Name the tensors of an encoded video, and describe in JSON what is no tensor."""
    tensors = {**_named(selection), "lengths": selection.lengths, "trailing": trailing}
    if selection.gains is not None:
        tensors["gains"] = selection.gains
    if selection.spare is not None:
        tensors |= {f"spare/{name}": x for name, x in _named(selection.spare).items()}
    about = {field.name: getattr(frames, field.name) for field in fields(Frames) if field.name != "pixels"}
    video = json.dumps(
        {
            "frames": {"shape": list(frames.pixels.shape), **about},
            "tokens": tokens,
            "grid": grid,
            "size": size,
            "floor": selection.floor,
            "original_count": selection.original_count,
            "capped": selection.capped,
            "strict": strict,
            "fingerprint": asdict(fingerprint) | {"digest": fingerprint.digest},
        }
    )
    return tensors, video


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[list[bytes], list[str]]:
    """Make what comes before the tensors in what `safetensors.torch.save` gives as one piece, and their order in it.

    A piece would be all of them once more, and `save_file` writes under a name that nobody sweeps up when it is killed.
    """
    for name, x in tensors.items():
        if x.dtype not in _NAMES:
            raise UnsupportedCall(f"cannot write {name} in {x.dtype}; expected one of {', '.join(map(str, _NAMES))}")
    ranks = {dtype: rank for rank, dtype in enumerate(_NAMES)}
    order = sorted(tensors, key=lambda name: (-ranks[tensors[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in order:
        x, begin = tensors[name], end
        end += x.nbytes
        header[name] = {"dtype": _NAMES[x.dtype], "shape": [*x.shape], "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [struct.pack("<Q", len(text)), text], order


def read(path: str | os.PathLike[str], make: Callable[..., Video]) -> Video:
    """Read what `write` took, and `make` an encoded video of it, by the names of its arguments.

    Types and sizes are compared with one another before a tensor is read. Raises `VidsieveError` for a file that is
    missing, of another kind or of another version of the format, `Damaged` for one that is.
    """
    with _opened(path) as (file, metadata, video):
        names = tuple(file.keys())
        tensors = {name: file.get_tensor(name) for name in names}
        if _digest(metadata["video"], tensors) != metadata["sha256"]:
            raise ValueError("its bytes are not those that were written")
        return make(**_parts(tensors, video))


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what is known of a video without its features: a row of the table of `vidsieve batch`.

    Raises what `read` does, but compares no digest.
    """
    with _opened(path) as (file, _, video):
        frames, tokens, kept = _frames(video["frames"]), _numbers(video["tokens"]), file.get_tensor("kept").tolist()
        return {
            "tokens_before": sum(tokens),
            "tokens_after": len(kept),
            "kept": kept,
            "tokens": list(tokens),
            "grid": None if video["grid"] is None else list(_numbers(video["grid"])),
            "frames": list(frames.index),
            "seconds": list(frames.seconds),
            "fps": frames.fps,
            "total": frames.total,
            "duration": frames.duration,
        }


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[Any, Mapping[str, str], Mapping[str, Any]]]:
    """Open a file whose types and sizes fit: the file, its metadata, and of that the video."""
    safetensors = require("safetensors", "hf")
    where = Path(path)
    if not where.is_file():
        raise VidsieveError(f"{where}: {_no_file(where)}; expected an encoded video")
    try:
        with safetensors.safe_open(where, "pt") as file:
            metadata = file.metadata() or {}
            _check_format(where, metadata)
            video = json.loads(metadata["video"])
            names = tuple(file.keys())
            parts = {name: file.get_slice(name) for name in names}
            _check_sizes({name: (one.get_dtype(), tuple(one.get_shape())) for name, one in parts.items()}, video)
            yield file, metadata, video
    except _OtherFile:
        raise
    except OSError as error:
        raise VidsieveError(f"{where}: cannot be read ({error.strerror or error})") from error
    except (safetensors.SafetensorError, RecursionError, KeyError, TypeError, ValueError) as error:
        if where.suffix.lower() in SUFFIXES:
            raise VidsieveError(f"{where}: is a clip, not what `vidsieve encode` writes; encode it first") from error
        raise Damaged(
            f"{where}: is damaged, or vidsieve did not write it ({' '.join(str(error).split())}); "
            "move it away, and encode the clip again"
        ) from error


class Damaged(VidsieveError):
    """A file that is not as it was written."""


def _no_file(where: Path) -> str:
    return "is a folder" if where.is_dir() else "is no file" if where.exists() else "no such file"


class _OtherFile(VidsieveError):
    """A file that is whole, and not of this kind or version."""


def _check_format(where: Path, metadata: Mapping[str, str]) -> None:
    found = metadata.get("format", "")
    if "video" not in metadata:
        before = "features of `vidsieve batch` of before, which vidsieve.encoded.stored reads"
        kind = f"has {before}" if "vidsieve" in metadata else "is none"
        raise _OtherFile(f"{where}: expected an encoded video, and this {kind}")
    if found != str(FORMAT):
        age = "newer" if found.isdecimal() and int(found) > FORMAT else "older"
        remedy = "update vidsieve" if age == "newer" else "move it away, and encode the clip again"
        raise _OtherFile(f"{where}: is of format {found!r}, {age} than {FORMAT}, which is read here; {remedy}")


def _check_sizes(found: Mapping[str, tuple[str, tuple[int, ...]]], video: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless types and shapes fit one another and what the header says of the video."""
    tokens, count = _numbers(video["tokens"]), _number(video["original_count"])
    if sum(tokens) != count:
        raise ValueError(f"tokens of its frames sum to {sum(tokens)}, not {count}")
    own = {name: one for name, one in found.items() if not name.startswith("spare/")}
    spare = {name.removeprefix("spare/"): one for name, one in found.items() if name.startswith("spare/")}
    kept = _check_rows(own, {**_TYPES, **(_GAINS if "gains" in own else {})}, {})
    if not 0 < kept["K"] <= count:
        raise ValueError(f"it keeps {kept['K']} of {count} tokens")
    if spare:
        _check_rows(spare, _ROWS, {"D": kept["D"], "S": kept["S"]})


def _check_rows(found: Mapping[str, Header], types: Mapping[str, Expected], sizes: dict[str, int]) -> dict[str, int]:
    """Raise `ValueError` unless `found` has the tensors of `types` and `others/`, of like sizes; return these."""
    for name in dict.fromkeys([*types, *found]):
        dtype, shape = found[name]
        dtypes, dims = _OTHERS if name.startswith("others/") else types[name]
        shared = tuple(sizes.setdefault(dim, size) for dim, size in zip(dims, shape, strict=True) if dim != "L")
        if dtype not in dtypes or shape[-len(shared) :] != shared:
            raise ValueError(f"{name} is {dtype} {shape}, expected {dtypes[0]} (..., {', '.join(map(str, shared))})")
    return sizes


def _parts(tensors: dict[str, Tensor], video: Mapping[str, Any]) -> dict[str, Any]:
    spare = {name.removeprefix("spare/"): x for name, x in tensors.items() if name.startswith("spare/")}
    own = _rows(tensors)
    lengths, count = tensors["lengths"], video["original_count"]
    for rows in (own, *([_rows(spare)] if spare else [])):
        outside = (rows.segment < 0) | (rows.segment >= len(lengths)) | (rows.kept < 0) | (rows.kept >= count)
        if outside.any():
            raise ValueError("it keeps tokens that the video has not")
    if (lengths < 0).any():
        raise ValueError("a segment has less than no token")
    if int(lengths.sum()) != count:
        raise ValueError(f"it has segments of {int(lengths.sum())} tokens, expected {count}")
    named = dict(video["fingerprint"])
    if not isinstance(named["name"], str):
        raise ValueError(f"expected the name of a model, got {named['name']!r}")
    digest, fingerprint = named.pop("digest"), Fingerprint(**named)
    if fingerprint.digest != digest:
        raise ValueError("its configuration is not the one that it had")
    if "gains" in tensors and not (tensors["gains"].isfinite() & (tensors["gains"] >= 0)).all():
        raise ValueError("what its segments add is no number")
    gains, floor, capped = tensors.get("gains"), _real(video["floor"]), _number(video["capped"])
    return {
        "frames": _frames(video["frames"]),
        "selection": Selection(*own, lengths, gains, floor, count, _rows(spare) if spare else None, capped),
        "trailing": tensors["trailing"],
        "tokens": _numbers(video["tokens"]),
        "grid": None if video["grid"] is None else _numbers(video["grid"]),
        "size": None if video["size"] is None else _pair(video["size"]),
        "fingerprint": fingerprint,
        "strict": video.get("strict") is True,  # which a file of before does not say
    }


def _frames(about: Mapping[str, Any]) -> Frames:
    """Make the description of frames of its JSON. Raises for what a processor could not be told."""
    shape = _numbers(about["shape"])
    if len(shape) != 4 or not all(shape) or math.prod(shape) > _LARGEST**2:
        raise ValueError(f"its frames are {shape}")
    if not isinstance(about["source"], str):
        raise ValueError(f"expected the name of a clip, got {about['source']!r}")
    return Frames(
        torch.empty(shape, dtype=torch.uint8, device="meta"),
        _numbers(about["index"]),
        tuple(map(_real, about["seconds"])),
        _real(about["fps"]),
        _number(about["total"]),
        _real(about["duration"]),
        about["source"],
        _number(about["decoded"]),
        _number(about["key_frames"]),
    )


def _named(rows: Selection | Rows) -> dict[str, Tensor]:
    others = {f"others/{name}": x for name, x in rows.others.items()}
    return {**{name: getattr(rows, name) for name in _ROWS}, **others}


def _rows(tensors: Mapping[str, Tensor]) -> Rows:
    others = {name.removeprefix("others/"): x for name, x in tensors.items() if name.startswith("others/")}
    return Rows(others=others, **{name: tensors[name] for name in _ROWS})


def _digest(video: str, tensors: Mapping[str, Tensor]) -> str:
    """Hash the header and the tensors, on the CPU, in the order of their names."""
    digest = hashlib.sha256(f"{FORMAT}\0{video}".encode())
    for name in sorted(tensors):
        x = tensors[name]
        digest.update(f"\0{name} {x.dtype} {tuple(x.shape)}\0".encode())
        digest.update(_bytes(x))
    return digest.hexdigest()


def _bytes(x: Tensor) -> memoryview:
    return x.flatten().view(torch.uint8).numpy().data


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _LARGEST:
        raise ValueError(f"expected a number of tokens, got {value!r}")
    return value


def _real(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < _LARGEST**2:
        raise ValueError(f"expected a number, got {value!r}")
    return value


def _pair(values: Any) -> tuple[int, ...]:
    sides = _numbers(values)
    if len(sides) != 2 or not all(sides) or math.prod(sides) > _LARGEST:
        raise ValueError(f"expected a height and a width, got {values!r}")
    return sides


def _numbers(values: Any) -> tuple[int, ...]:
    return tuple(map(_number, values))
