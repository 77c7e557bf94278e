"""Which files of a folder are clips, which are listed, and which are ignored."""

from pathlib import Path

import pytest

from vidsieve.encoded import clips
from vidsieve.errors import VidsieveError


def test_find_walks_a_folder_and_reads_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.mp4", "a/c.MKV", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = [str(tmp_path / "a/c.MKV"), str(tmp_path / "b.mp4")]
    assert clips.find(tmp_path) == found
    (tmp_path / "list.txt").write_text(f"\ufeff# mine\n\nb.mp4\n{found[0]}\nb.mp4\nabsent.mp4\n")
    monkeypatch.chdir(tmp_path)
    assert clips.find("list.txt") == [found[1], found[0], str(tmp_path / "absent.mp4")]


def test_addresses_in_a_list_reach_the_reader_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:").mkdir()
    (tmp_path / "s3:" / "here.mp4").write_bytes(b"x")
    kept = ["http://host/a//clip.mp4?x=1", "FILE:///x/../y.mp4", "rtsp://host/live", "-"]
    names = ["a:b.mp4", "http:b.mp4", "s3://here.mp4"]
    (tmp_path / "list.txt").write_text("\n".join([*kept, *names]))
    paths = ["a:b.mp4", "http:b.mp4", "s3:/here.mp4"]
    assert clips.find("list.txt") == [*kept, *(str(tmp_path / path) for path in paths)]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("absent", None, "no such file; expected a folder of clips"),
        ("empty.txt", b"# none\n", "has no clip in it; expected one path or address a line"),
        ("clip.mp4", b"\xff\xfe\x00", "is no text; expected a folder of clips"),
    ],
)
def test_find_says_what_it_expected(name: str, content: bytes | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(VidsieveError, match=says):
        clips.find(tmp_path / name)
    (tmp_path / "folder").mkdir()
    with pytest.raises(VidsieveError, match=r"expected files that end in \.avi"):
        clips.find(tmp_path / "folder")


def test_what_is_no_clip_is_listed_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("b.mp4", "notes.txt", "out/clips.parquet", "out/b-1.vidsieve"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "gone.mkv").symlink_to(tmp_path / "nowhere")
    assert clips.ignored(tmp_path, tmp_path / "out") == {
        str(tmp_path / "gone.mkv"): "it is no file, or a link that leads nowhere",
        str(tmp_path / "notes.txt"): "its name does not end as a video's does",
    }
    assert clips.ignored(tmp_path / "notes.txt", tmp_path / "out") == {}
