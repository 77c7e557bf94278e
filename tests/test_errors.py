"""errors.py: what a message says to do is right where it is read."""

import json
import shlex
from importlib import metadata
from pathlib import Path

import pytest

from vidsieve.checks import pip_install, require
from vidsieve.errors import MissingExtra, redacted


def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, origin: dict | None) -> None:
    folder = tmp_path / "vidsieve-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Name: vidsieve\nVersion: 1\n")
    if origin is not None:
        (folder / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.setattr(metadata, "distribution", lambda name: metadata.PathDistribution(folder))


@pytest.mark.parametrize(
    ("origin", "extras"),
    [
        (None, "'vidsieve[ray]'"),
        ({"url": "file:///a/b.whl", "archive_info": {}}, "'vidsieve[ray]'"),
        ({"url": "file:///a/b", "dir_info": {}}, "'vidsieve[ray]'"),
        ({"url": "file:///a/b", "dir_info": {"editable": False}}, "'vidsieve[ray]'"),
        ({"url": "file:///a/my%20tree", "dir_info": {"editable": True}}, "-e '/a/my tree[ray]'"),
    ],
)
def test_a_hint_leaves_an_editable_checkout_editable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, origin: dict | None, extras: str
) -> None:
    installed(monkeypatch, tmp_path, origin)
    assert pip_install("ray") == f"pip install {extras}"
    assert pip_install("ray", "-U") == f"pip install -U {extras}"
    assert shlex.split(pip_install("ray"))[-1].endswith("[ray]")
    with pytest.raises(MissingExtra, match="this needs absent, which could not be imported") as error:
        require("absent.part", "ray")
    assert str(error.value).endswith(f"install it with: pip install {extras}")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://me:se:c@ret@camera:554/1?token=hidden", "rtsp://camera:554/1"),
        ("HTTPS://host/a.mp4?token=a:b/c: no answer in 30 s", "HTTPS://host/a.mp4: no answer in 30 s"),
        ("got 'http://host/a.mp4#x'; choose (rtsp://u@h/b?c).", "got 'http://host/a.mp4'; choose (rtsp://h/b)."),
        *((f"rtsp://me:se{mark}c@ret@camera:554/1: refused", "rtsp://camera:554/1: refused") for mark in "/?#"),
        ("http://[::1]:80/@me/a.mp4 http://host:80/@me/a.mp4", "http://[::1]:80/@me/a.mp4 http://host:80/@me/a.mp4"),
        ("rtsp:// cannot be read", "rtsp:// cannot be read"),
        ("/a b#c?d@e.mp4: is empty", "/a b#c?d@e.mp4: is empty"),
    ],
)
def test_an_address_is_shown_without_what_opens_it(text: str, shown: str) -> None:
    assert redacted(text) == shown == redacted(shown)
