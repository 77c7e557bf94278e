"""overlay.py: kept patches keep their colours, dropped ones lose them, and the files can be read again."""

from pathlib import Path

import pytest
import torch

from vidsieve.types.frames import Frames
from vidsieve.video import overlay as drawing
from vidsieve.video.decode import read_video
from vidsieve.video.overlay import Overlay

pytest.importorskip("PIL")
np = pytest.importorskip("numpy")

ROWS, COLUMNS, CELL = 3, 4, 16


def sample(count: int = 8) -> Frames:
    """Frames of plain saturated red, 48 x 64."""
    pixels = torch.zeros(count, ROWS * CELL, COLUMNS * CELL, 3, dtype=torch.uint8)
    pixels[..., 0] = 220
    return Frames(pixels, tuple(range(0, 10 * count, 10)), tuple(float(i) for i in range(count)), 10, 80, float(count))


def coloured(image: object) -> torch.Tensor:
    """Which cells of a drawn frame still are red: bool (ROWS, COLUMNS), judged at their middles."""
    pixels = torch.from_numpy(np.array(image)).int()
    return pixels[CELL // 2 :: CELL, CELL // 2 :: CELL, 0] - pixels[CELL // 2 :: CELL, CELL // 2 :: CELL, 2] > 150


def overlay(kept: list[int], token_frames: int = 4, count: int = 8, segments: tuple[int, ...] = ()) -> Overlay:
    return Overlay(
        sample(count),
        torch.tensor(kept, dtype=torch.int64),
        (ROWS * COLUMNS,) * token_frames,
        (ROWS, COLUMNS),
        segments,
    )


def test_kept_patches_stay_bright_and_the_rest_goes_dim() -> None:
    drawn = overlay([0, 5, 11]).draw(0)
    expected = torch.zeros(12, dtype=torch.bool)
    expected[[0, 5, 11]] = True
    assert torch.equal(coloured(drawn), expected.view(ROWS, COLUMNS))


@pytest.mark.parametrize(
    ("count", "token_frames", "frames"), [(8, 4, (4, 5)), (8, 8, (2,)), (5, 3, (4,)), (1, 1, ()), (8, 2, ())]
)
def test_a_token_frame_is_drawn_over_every_frame_it_was_made_of(
    count: int, token_frames: int, frames: tuple[int, ...]
) -> None:
    picture = overlay([ROWS * COLUMNS * 2 + 6] if frames else [], token_frames, count)
    for frame in range(count):
        assert coloured(picture.draw(frame)).sum() == (frame in frames)
        assert bool(coloured(picture.draw(frame))[1, 2]) == (frame in frames)


def test_patches_that_repeat_an_earlier_frame_are_struck_through() -> None:
    frames, kept, tokens = sample(2), torch.arange(24), (ROWS * COLUMNS,) * 2
    plain = Overlay(frames, kept, tokens, (ROWS, COLUMNS))
    marked = Overlay(frames, kept, tokens, (ROWS, COLUMNS), computed=torch.tensor([*range(12), 14, 23]))
    first, second = (np.array(plain.draw(i)) != np.array(marked.draw(i)) for i in range(2))
    assert not first.any()
    changed = second.any(-1).reshape(ROWS, CELL, COLUMNS, CELL).any((1, 3)).flatten()
    assert [int(i) for i in changed.nonzero()[0]] == [0, 1, 3, 4, 5, 6, 7, 8, 9, 10]
    assert np.array(plain.sheet()).shape == np.array(marked.sheet()).shape
    without = Overlay(frames, kept, tokens, computed=torch.arange(12))
    assert (np.array(without.draw(1)) == np.array(Overlay(frames, kept, tokens).draw(1))).all()
    with pytest.raises(ValueError, match=r"expected computed within \[0, 24\)"):
        Overlay(frames, kept, tokens, computed=torch.tensor([24]))


def test_counts_and_segments_follow_the_token_frames() -> None:
    picture = overlay([0, 1, 12, 40], segments=(0, 24, 36))
    assert picture.counts == (2, 1, 0, 1)
    assert picture._segment == (0, 0, 1, 2)


def test_without_a_grid_a_frame_is_as_bright_as_its_share() -> None:
    picture = Overlay(sample(2), torch.arange(4), (4, 4))
    first, second = (np.array(picture.draw(i)).astype(int) for i in range(2))
    assert (first[..., 0] - first[..., 2] > 150).all()
    assert (abs(second[..., 0] - second[..., 2]) < 30).all()


@pytest.mark.parametrize("token_frames", [1, 5, 64, 70])
def test_the_sheet_has_room_for_every_number_of_panels(token_frames: int) -> None:
    image = overlay([0], token_frames, token_frames).sheet("caption")
    assert min(image.size) > 200
    assert max(image.size) < 2600


def test_the_files_can_be_read_again(tmp_path: Path) -> None:
    paths = overlay([0, 5, 11, 30], segments=(0, 24)).save(tmp_path, "caption", ["mp4", "gif"])
    assert {kind: path.name for kind, path in paths.items()} == {
        kind: f"overlay.{kind}" for kind in ("png", "mp4", "gif")
    }
    film = read_video(paths["mp4"])
    assert film.total == 8
    assert film.duration == pytest.approx(8, abs=0.1)
    assert read_video(paths["gif"]).total == 8
    from PIL import Image

    with Image.open(paths["png"]) as sheet:
        assert sheet.format == "PNG"


def test_a_film_has_so_many_frames_at_most_and_the_clips_duration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "MOST_FRAMES", 4)
    picture = overlay([0, 30], count=7, token_frames=7)
    assert picture._filmed == [0, 2, 4, 6]
    film = read_video(picture.save(tmp_path, films=["mp4"])["mp4"])
    assert film.total == 4
    assert overlay([0], 1, 1)._filmed == [0]


@pytest.mark.parametrize("films", ["mp4", ["avi"]])
def test_a_film_of_another_kind_is_refused(films: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='a list of "mp4" and "gif"'):
        overlay([0]).save(tmp_path, films=films)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("clip.mp4", "clip.mp4"),
        ("\u89c6\u9891 a.mp4", "\\u89c6\\u9891 a.mp4"),
        ("a\n\U0001f3ac\udcff\t", "a\\n\\U0001f3ac\\udcff\\t"),
    ],
)
def test_what_no_font_can_write_is_escaped(name: str, written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "FONTS", ())
    assert overlay([0]).sheet(name) == overlay([0]).sheet(written) != overlay([0]).sheet()


def test_a_font_that_can_write_a_name_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    from PIL import ImageDraw, ImageFont

    font, name = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", "\u0432\u0438\u0434\u0435\u043e.mp4"
    monkeypatch.setattr(drawing, "FONTS", ())
    assert overlay([0]).sheet(name) == overlay([0]).sheet(name.encode("unicode_escape").decode())
    monkeypatch.setattr(drawing, "FONTS", ("absent.ttf", font))
    expected = overlay([0]).sheet()
    place = drawing.MARGIN, drawing.MARGIN + 28
    ImageDraw.Draw(expected).text(place, name, drawing.FAINT, ImageFont.truetype(font, 15))
    assert overlay([0]).sheet(name) == expected


def test_keep_nothing_and_keep_everything_can_be_drawn(tmp_path: Path) -> None:
    assert not coloured(overlay([]).draw(0)).any()
    assert coloured(overlay(list(range(48))).draw(0)).all()
    assert list(overlay([]).save(tmp_path)) == ["png"]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 2 token frames, got 3"):
        Overlay(sample(2), torch.arange(1), (4, 4, 4))
    with pytest.raises(ValueError, match="3 x 4 tokens in each frame"):
        Overlay(sample(2), torch.arange(1), (12, 11), (3, 4))
    with pytest.raises(ValueError, match=r"kept within \[0, 8\)"):
        Overlay(sample(2), torch.tensor([8]), (4, 4))
