"""The file of an encoded video: what comes back, and what is refused in a line."""

import json
import math
import os
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision", reason="transformers' video processors need torchvision")

from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from tests.encoded.worlds import QUESTIONS, World, qwen, same, world
from vidsieve.encoded.video import EncodedVideo
from vidsieve.errors import UnsupportedCall, VidsieveError

# Processors of GLM and MiniCPM make numpy arrays of torch tensors, of which numpy 2 warns.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
__all__ = ["qwen", "world"]  # fixtures


def test_it_can_be_pickled_after_a_question(qwen: World) -> None:
    qwen.encoded.ask(*qwen.both(), QUESTIONS[0], max_new_tokens=2)
    same(qwen.encoded, pickle.loads(pickle.dumps(qwen.encoded)))


def test_it_comes_back_from_its_file(world: World, tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.vidsieve"
    world.encoded.save(path)
    loaded = EncodedVideo.load(path)
    same(world.encoded, loaded)
    assert [file.name for file in path.parent.iterdir()] == ["a.vidsieve"]
    asked = [one.ask(*world.both(), QUESTIONS[1], max_new_tokens=4) for one in (world.encoded, loaded)]
    assert asked[0] == asked[1]


def test_half_precision_and_all_that_a_selection_can_have_come_back(qwen: World, tmp_path: Path) -> None:
    selection = qwen.encoded.selection
    some = selection.rows.take(torch.arange(2))
    video = replace(
        qwen.encoded,
        selection=replace(
            selection,
            features=selection.features.bfloat16(),
            gains=torch.ones(1),
            floor=0.25,
            spare=some._replace(features=some.features.bfloat16()),
            capped=3,
        ),
    )
    video.save(tmp_path / "a")
    loaded = EncodedVideo.load(tmp_path / "a")
    same(video, loaded)
    found = loaded.selection
    assert (found.floor, found.capped, found.gains.tolist()) == (0.25, 3, [1.0])
    assert torch.equal(found.spare.features, some.features.bfloat16())
    assert torch.equal(found.spare.kept, some.kept)


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, str], dict[str, Any]], None]) -> None:
    """The file with other tensors, metadata or parts of its header, and a digest that fits them."""
    from vidsieve.encoded.file import _digest

    with path.open("rb") as file:
        metadata = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))["__metadata__"]
    tensors, video = load_file(path), json.loads(metadata["video"])
    change(tensors, metadata, video)
    if "video" in metadata:
        metadata["video"] = json.dumps(video)
        metadata["sha256"] = _digest(metadata["video"], tensors)
    save_file(tensors, path, metadata)


def _short(tensors: Any, metadata: Any, video: Any) -> None:
    tensors["features"] = tensors["features"][:-1].clone()


CHANGES: dict[str, tuple[Callable[..., Any], str]] = {
    "newer": (lambda t, m, v: m.update(format="2"), "is of format '2', newer than 1.*update vidsieve"),
    "older": (lambda t, m, v: m.update(format="0"), "is of format '0', older than 1.*encode the clip again"),
    "batch": (
        lambda t, m, v: (m.clear(), m.update(vidsieve="{}")),
        "features of `vidsieve batch` of before, which vidsieve.encoded.stored reads",
    ),
    "foreign": (lambda t, m, v: m.clear(), "expected an encoded video, and this is none"),
    "short": (_short, "is damaged.*features is F32"),
    "lacking": (lambda t, m, v: t.pop("step"), "is damaged.*step"),
    "unknown": (lambda t, m, v: t.update(more=torch.ones(1)), "is damaged.*more"),
    "dtype": (lambda t, m, v: t.update(kept=t["kept"].int()), "kept is I32"),
    "outside": (lambda t, m, v: t.update(segment=t["segment"] + 5), "tokens that the video has not"),
    "unsorted": (lambda t, m, v: t.update(kept=t["kept"].flip(0).contiguous()), "sorted, unique"),
    "count": (lambda t, m, v: v.update(original_count=7), "sum to"),
    "claim": (lambda t, m, v: v.update(tokens=[1], original_count=1), "keeps 2 of 1 tokens"),
    "type": (lambda t, m, v: v.update(tokens="many"), "expected a number of tokens"),
    "huge": (lambda t, m, v: v["frames"].update(shape=[8, 2**30, 2**30, 2**30]), "its frames are"),
    "size": (lambda t, m, v: v.update(size=[0, 5]), r"expected a height and a width, got \[0, 5\]"),
    "config": (lambda t, m, v: v["fingerprint"]["config"].update(a=1), "configuration is not the one"),
    "flat": (lambda t, m, v: v["frames"]["shape"].__setitem__(1, 0), "is damaged.*its frames are"),
    "timeless": (lambda t, m, v: v["frames"].update(seconds=[None] * 8), "is damaged.*expected a number, got None"),
    "endless": (lambda t, m, v: v["frames"].update(seconds=[math.inf] * 8), "is damaged.*expected a number, got inf"),
    "immense": (lambda t, m, v: v["frames"].update(fps=10**400), "is damaged.*expected a number"),
    "length": (lambda t, m, v: v["frames"].update(duration="long"), "is damaged.*expected a number, got 'long'"),
    "nameless": (lambda t, m, v: v["frames"].update(source=5), "is damaged.*expected the name of a clip, got 5"),
    "floor": (lambda t, m, v: v.update(floor="low"), "is damaged.*expected a number, got 'low'"),
    "lengths": (lambda t, m, v: t["lengths"].add_(1), "is damaged.*segments of"),
    "name": (lambda t, m, v: v["fingerprint"].update(name=5), "is damaged.*expected the name of a model, got 5"),
    "deep": (lambda t, m, v: v.update(grid=json.loads("[" * 900 + "]" * 900)), "is damaged"),
}


@pytest.mark.parametrize(("change", "says"), CHANGES.values(), ids=CHANGES)
def test_a_file_that_is_none_is_told_in_a_line(qwen: World, tmp_path: Path, change: Any, says: str) -> None:
    path = tmp_path / "a"
    qwen.encoded.save(path)
    rewritten(path, lambda t, m, v: None)
    same(EncodedVideo.load(path), qwen.encoded)
    rewritten(path, change)
    with pytest.raises(VidsieveError, match=says) as caught:
        EncodedVideo.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_part_of_the_file_is_watched(qwen: World, tmp_path: Path) -> None:
    path = tmp_path / "a"
    qwen.encoded.save(path)
    data = path.read_bytes()
    for change in (b"", data[:7], data[:-1], data + b"x", data[:-5] + b"?????", b"x" * len(data)):
        path.write_bytes(change)
        with pytest.raises(VidsieveError, match="is damaged"):
            EncodedVideo.load(path)
    size = struct.unpack("<Q", data[:8])[0]
    for at in range(8, 8 + size, max(1, size // 150)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(VidsieveError):
            EncodedVideo.load(path)
    for path, says in ((tmp_path, "is a folder"), (tmp_path / "absent", "no such file"), (os.devnull, "is no file")):
        with pytest.raises(VidsieveError, match=f"{path}: {says}; expected an encoded video"):
            EncodedVideo.load(path)


def test_a_header_that_says_more_than_there_is_allocates_nothing(qwen: World, tmp_path: Path) -> None:
    path = tmp_path / "a"
    qwen.encoded.save(path)
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header["features"]["shape"][0] = 2**50
    begin = header["features"]["data_offsets"][0]
    header["features"]["data_offsets"] = [begin, begin + 2**50 * 64 * 4]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    with pytest.raises(VidsieveError, match="is damaged"):
        EncodedVideo.load(path)
    with path.open("wb") as file:  # a hole of 4 GiB where nothing was written
        rows = 2**24
        header = {"features": {"dtype": "F32", "shape": [rows, 64], "data_offsets": [0, rows * 256]}}
        text = json.dumps({"__metadata__": {"format": "1", "video": "{}"}, **header}).encode()
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + rows * 256)
    with pytest.raises(VidsieveError, match="is damaged"):
        EncodedVideo.load(path)


def test_a_file_is_what_safetensors_would_write_and_is_not_laid_out_in_memory_first(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.encoded.save(tmp_path / "a")
    written: list[Any] = []
    monkeypatch.setattr("vidsieve.encoded.file.write_whole", lambda path, *parts: written.extend(parts))
    world.encoded.save(tmp_path / "b")
    with safe_open(tmp_path / "a", "pt") as file:
        metadata = file.metadata()
    whole = (tmp_path / "a").read_bytes()
    assert b"".join(written) == whole
    (size,) = struct.unpack("<Q", whole[:8])
    known = save(load_file(tmp_path / "a"), metadata)
    (other,) = struct.unpack("<Q", known[:8])
    assert json.loads(whole[8 : 8 + size]) == json.loads(known[8 : 8 + other])
    assert whole[8 + size :] == known[8 + other :]
    features = world.encoded.selection.features
    assert features.data_ptr() in [np.frombuffer(part, np.uint8).ctypes.data for part in written]
    odd = replace(world.encoded, trailing=torch.zeros(0, features.shape[1], dtype=torch.float8_e5m2))
    with pytest.raises(UnsupportedCall, match=r"cannot write trailing in torch\.float8_e5m2; expected"):
        odd.save(tmp_path / "c")


def test_a_write_that_fails_leaves_the_old_file(qwen: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    qwen.encoded.save(path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(VidsieveError, match=r"cannot write .*a \(No space left on device\)"):
        qwen.encoded.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(VidsieveError, match="is a folder"):
        qwen.encoded.save(tmp_path)
