"""What is refused before Gradio sees it: requests under another host's name, and uploads without room."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest

from vidsieve.cli.app.requests import Bounded, OnlyHosts
from vidsieve.cli.app.serve import hosts, listen
from vidsieve.cli.app.uploads import AROUND, Uploads
from vidsieve.cli.app.visitors import Visitors
from vidsieve.cli.main import COMMANDS
from vidsieve.cli.parser import parser

LONG_AGO = time.time() - 3600


def answered(app: Any, *first: tuple[bytes, bytes], **headers: str) -> tuple[int, str]:
    """Status and text that an application answers a request with."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    pairs = [*first, *((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items())]
    asyncio.run(app({"type": "http", "headers": pairs}, None, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent).decode()


async def fine(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"fine"})


@pytest.mark.parametrize("host", ["localhost:7860", "LocalHost", "127.0.0.1:1", "[::1]:7860", "[::1]", "clips.org:80"])
def test_this_machine_and_what_is_allowed_may_be_asked_for(host: str) -> None:
    with listen("127.0.0.1", 0) as listening:
        names = hosts(listening, "127.0.0.1", ["Clips.org"])
    assert names is not None
    assert answered(OnlyHosts(fine, names), host=host) == (200, "fine")


@pytest.mark.parametrize("host", ["evil.example:7860", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::2]"])
def test_a_page_of_another_name_is_refused_in_a_line(host: str) -> None:
    with listen("127.0.0.1", 0) as listening:
        names = hosts(listening, "127.0.0.1", [])
    assert names is not None
    status, text = answered(OnlyHosts(fine, names), host=host)
    assert status == 403
    assert text.startswith(f"vidsieve app: expected a request to localhost, got one to {host!r}; --allow-host ")
    assert text.count("\n") == 1
    assert answered(OnlyHosts(fine, names))[0] == 403  # a request without a host


def test_who_listens_to_all_is_asked_for_by_any_name_unless_some_are_allowed() -> None:
    with listen("0.0.0.0", 0) as listening:
        assert hosts(listening, "0.0.0.0", []) is None
        names = hosts(listening, "0.0.0.0", ["clips.org"])
    assert names == {"localhost", "127.0.0.1", "[::1]", "0.0.0.0", "clips.org"}
    with listen("localhost", 0) as listening:
        assert hosts(listening, "localhost", []) == {"localhost", "127.0.0.1", "[::1]"}


def test_hosts_are_names_without_scheme_and_port(capsys: pytest.CaptureFixture[str]) -> None:
    options = parser(COMMANDS).parse_args(["app", "--allow-host", "clips.org", "--allow-host", "[fe80::1]"])
    assert options.hosts == ["clips.org", "[fe80::1]"]
    from vidsieve.cli import main

    for wrong in ("http://clips.org", "clips.org:80", "a b", "clips.org/"):
        with pytest.raises(SystemExit, match="2"):
            main.main(["app", "--allow-host", wrong])
        assert f"expected the name of a host, such as clips.example.org; got {wrong}" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--max-upload", "--port", "--frames"])
@pytest.mark.parametrize("digits", [400, 5000])
def test_a_number_of_very_many_digits_is_a_mistake_told_in_two_short_lines(
    option: str, digits: int, capsys: pytest.CaptureFixture[str]
) -> None:
    from vidsieve.cli import main

    with pytest.raises(SystemExit, match="2"):
        main.main(["app", option, "9" * digits + ("GB" if option == "--max-upload" else "")])
    told = capsys.readouterr().err
    assert len(told) < 300
    assert f"error: argument {option}: expected a " in told


def written(folder: Path, name: str, size: int, at: float = LONG_AGO) -> Path:
    path = folder / name / "clip.mp4"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(size))
    os.utime(path, (at, at))
    return path


def uploaded(uploads: Uploads, length: int) -> tuple[int, str]:
    return answered(Bounded(fine, uploads), content_type="Multipart/form-data; boundary=b", content_length=str(length))


def test_uploads_of_all_visitors_are_bounded(tmp_path: Path) -> None:
    visitors = Visitors()
    uploads = Uploads(tmp_path, visitors, 1000)
    shown = [written(tmp_path, str(number), 1000) for number in range(3)]
    for number, file in enumerate(shown):
        visitors.shows(str(number), clip=file)
    assert uploaded(uploads, 1000) == (200, "fine")
    assert uploads.begin(600) == ""
    status, text = uploaded(uploads, 600)  # the first is still on its way
    assert (status, text) == (
        413,
        "there is no room for another clip until a visitor leaves; --max-upload makes more\n",
    )
    uploads.end(600)
    assert uploaded(uploads, 600)[0] == 200
    written(tmp_path, "new", 900, time.time())  # whose page is about to say that it shows it
    assert uploaded(uploads, 600)[0] == 413
    assert all(file.exists() for file in (*shown, tmp_path / "new" / "clip.mp4"))
    visitors.leaves("0")
    assert uploaded(uploads, 600)[0] == 200
    assert uploaded(uploads, 1000 + AROUND + 1)[0] == 413
    assert uploaded(uploads, 10**30)[0] == 413


def test_requests_that_bring_no_file_are_not_counted_and_a_length_is_needed(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, Visitors(), 10)
    written(tmp_path, "full", 40, time.time())
    app = Bounded(fine, uploads)
    assert answered(app, content_type="application/json", content_length="5") == (200, "fine")
    assert answered(app) == (200, "fine")
    assert answered(app, content_type="multipart/form-data; boundary=b", transfer_encoding="chunked")[0] == 411
    assert answered(app, content_type="multipart/form-data; boundary=b", content_length="5")[0] == 413


def test_an_upload_is_bounded_whatever_else_its_headers_say(tmp_path: Path) -> None:
    """Of two headers of a name the application reads the first; of two lengths of a body a server takes the chunks."""
    kind = (b"content-type", b"multipart/form-data; boundary=b")
    app = Bounded(fine, Uploads(tmp_path, Visitors(), 10))
    assert answered(app, kind, content_type="text/plain", content_length=str(AROUND + 11))[0] == 413
    assert answered(app, kind, content_length="5", transfer_encoding="chunked")[0] == 411
    assert answered(app, kind, content_length="5") == (200, "fine")
    assert answered(OnlyHosts(fine, ["localhost"]), (b"host", b"evil.example"), host="localhost")[0] == 403


def test_what_an_upload_reserved_is_free_again_when_it_fails(tmp_path: Path) -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise ConnectionError

    uploads = Uploads(tmp_path, Visitors(), 1000)
    for _ in range(9):
        with pytest.raises(ConnectionError):
            answered(Bounded(fails, uploads), content_type="multipart/form-data", content_length="1000")
    assert uploaded(uploads, 1000)[0] == 200


def test_the_oldest_that_nobody_shows_make_room(tmp_path: Path) -> None:
    visitors = Visitors()
    uploads = Uploads(tmp_path, visitors, 1000)
    files = [written(tmp_path, str(number), 1000, LONG_AGO + number) for number in (2, 0, 3, 1)]
    newest, oldest, here, second = files
    visitors.shows("here", clip=here)
    assert uploaded(uploads, 1000)[0] == 200
    assert [file.exists() for file in files] == [True, False, True, True]
    assert not oldest.parent.exists()
    assert uploaded(uploads, 1500)[0] == 200
    assert [file.exists() for file in (second, newest, here)] == [False, True, True]


def test_what_is_shown_to_a_visitor_who_has_left_makes_room(tmp_path: Path) -> None:
    """The sample that was taken, or the picture of an answer, as the page was closed."""
    visitors = Visitors()
    late = written(tmp_path, "late", 4000)
    visitors.leaves("gone")
    visitors.shows("gone", clip=late)
    assert late.exists()  # a visitor may come back
    assert uploaded(Uploads(tmp_path, visitors, 1000), 1000)[0] == 200
    assert not late.exists()


def test_an_equal_clip_that_was_just_uploaded_stays_when_the_other_visitor_leaves(tmp_path: Path) -> None:
    visitors, file = Visitors(), written(tmp_path, "equal", 10)
    visitors.shows("first", clip=file)
    os.utime(file, (time.time() + 1, time.time() + 1))  # the second has sent it, and not said yet that it shows it
    visitors.leaves("first")
    assert file.exists()
    visitors.shows("second", clip=file)
    os.utime(file, (LONG_AGO, LONG_AGO))
    visitors.leaves("second")
    assert not file.exists()
