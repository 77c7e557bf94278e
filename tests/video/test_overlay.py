"""overlay.py: kept patches keep their colours, dropped ones lose them, and the files can be read again."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from vidsieve.types.frames import Frames
from vidsieve.video import lettering
from vidsieve.video import overlay as drawing
from vidsieve.video.decode import read_video
from vidsieve.video.overlay import Overlay
from vidsieve.video.timeline import INK, Timeline, colour_of

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
    assert plain.sheet().height < marked.sheet().height  # a line says what it means
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


TEXTS = (("question", "What moves?"), ("every token", "A red square."), ("reduced", "Red."))


def said(gain: str = "", texts: tuple[tuple[str, str], ...] = (), **others: object) -> Overlay:
    return dataclasses.replace(overlay([0, 5, 30]), gain=gain, texts=texts, **others)


def test_gain_question_and_answers_stand_above_the_pictures_and_change_nothing_below() -> None:
    plain = said().sheet()
    drawn = said("KV cache -89 %", TEXTS).sheet()
    added = drawn.height - plain.height
    assert added > 0
    below = drawing.MARGIN + said()._header(976, drawing.TEXT, 3).height
    assert drawn.crop((0, below + added, *drawn.size)) == plain.crop((0, below, *plain.size))
    for other in (
        said("KV cache -80 %", TEXTS),
        said("KV cache -89 %", (("question", "What stands?"), *TEXTS[1:])),
        said("KV cache -89 %", (*TEXTS[:2], ("reduced", "Blue."))),
    ):
        changed = np.array(other.sheet()) != np.array(drawn)
        assert changed[: below + added].any()
        assert not changed[below + added :].any()


def test_a_film_carries_them_too() -> None:
    drawn, other = (next(said(gain, TEXTS).film()) for gain in ("KV cache -89 %", "KV cache -80 %"))
    assert drawn.height > next(said().film()).height
    changed = np.nonzero((np.array(drawn) != np.array(other)).any((1, 2)))[0]
    assert 0 < len(changed) < 30
    assert changed.max() < drawing.GAP + said("a", TEXTS)._header(912, 17, 2).height


def test_letters_are_large_enough_for_half_the_size() -> None:
    sheet = said("KV cache -89 %", TEXTS).sheet("clip.mp4")
    assert sheet.width < 1100
    header = np.array(said("", (("", "H"),))._header(976, drawing.TEXT, 3))
    ink = (header[round(2.2 * drawing.TEXT) :] == INK).all(-1).any(1)
    assert ink.sum() >= 12  # pixels of a capital letter


def test_texts_of_any_length_leave_room_for_the_pictures() -> None:
    endless = (("question", "word " * 4000), ("every token", "x" * 20000), ("reduced", "\u4e2d" * 5000))
    drawn = said("gained " * 900, endless).sheet("y" * 9000)
    assert drawn.width == said().sheet().width
    assert drawn.height < said().sheet().height + 700
    assert next(said("gained " * 900, endless).film()).height < next(said().film()).height + 400
    for empty in ("", " \n\t"):
        assert said("", (("reduced", empty),)).sheet() == said("", (("reduced", "(empty)"),)).sheet()


@pytest.mark.parametrize("size", [(1, 900), (900, 1), (24, 1024), (1024, 24), (1, 1), (160, 90)], ids=str)
@pytest.mark.parametrize("count", [1, 3, 16])
def test_frames_of_any_shape_can_be_drawn(size: tuple[int, int], count: int) -> None:
    high, wide = size
    pixels = torch.full((count, high, wide, 3), 200, dtype=torch.uint8)
    frames = Frames(pixels, tuple(range(count)), tuple(map(float, range(count))), 1, count, float(count))
    picture = Overlay(frames, torch.arange(0, 4 * count, 3), (4,) * count, (2, 2), gain="g", texts=TEXTS)
    sheet, film = picture.sheet("caption"), next(picture.film())
    assert 1000 < sheet.width < 2100
    assert max(sheet.height, film.height) < 3000
    assert film.size[0] % 2 == film.size[1] % 2 == 0
    assert (np.array(sheet) == 200).all(-1).any()  # a kept patch


def test_the_sheet_of_many_frames_says_how_many_are_shown() -> None:
    many, few = (overlay([0], count, count) for count in (512, 64))
    assert max(many.sheet().size) < 2800
    assert few._header(976, 20, 3, "", 64) == few._header(976, 20, 3)
    assert many._header(976, 20, 3, "", 64).height > many._header(976, 20, 3).height


def playhead(image: object) -> int:
    """Find the column of the playhead: the first one that is bright over more than the height of letters."""
    pixels = np.array(image.convert("RGB")).astype(int)[-130:]
    return int(np.nonzero((pixels.min(-1) > 200).sum(0) > 60)[0][0])


@pytest.mark.parametrize("token_frames", [4, 8])
def test_a_playhead_moves_along_the_timeline_of_the_gif(token_frames: int, tmp_path: Path) -> None:
    from PIL import Image

    path = overlay([0, 5, 11, 30], token_frames).save(tmp_path, films=["gif"])["gif"]
    with Image.open(path) as film:
        columns = [(film.seek(frame), playhead(film))[1] for frame in range(film.n_frames)]
    steps = np.diff(columns)
    assert len(columns) == 8
    assert (abs(steps - 616 / 8) <= 2).all()
    assert abs(columns[0] - (16 + 616 / 16)) <= 2


def test_times_on_the_axis_never_touch() -> None:
    class Pen:
        def __init__(self) -> None:
            self.written: list[tuple[float, float]] = []

        def text(self, place: tuple[int, int], text: str, colour: object, font: object) -> None:
            self.written.append((place[0], place[0] + font.getlength(text)))

        def line(self, *_: object) -> None: ...

    for count in (1, 3, 4, 240):
        times = Timeline((1,) * count, ((0, 0, 0),) * count, tuple(60.0 * i for i in range(count)), 1)
        for cursor in (None, *range(count)):
            pen = Pen()
            times._write_times(pen, (16, 0, 632, 50), lettering.font(16), cursor)
            ends = sorted(pen.written)
            assert all(end + 8 < begin for (_, end), (begin, _) in pairwise(ends))
            assert 16 <= ends[0][0] <= ends[-1][1] <= 632
            assert len(pen.written) >= (2 if count > 1 else 1)


def test_neighbouring_segments_differ_in_lightness_too() -> None:
    def light(colour: tuple[int, int, int]) -> float:
        return 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]

    lights = [light(colour_of(segment)) for segment in range(13)]
    assert all(abs(a - b) > 15 for a, b in pairwise(lights))


def test_letters_that_no_font_has_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "FONTS", ())
    picture = said("", (("question", "\u89c6\u9891?"),))
    with pytest.warns(UserWarning, match="no font on this machine has \u89c6\u9891: ") as told:
        picture.save(tmp_path, "a.mp4")
    assert len(told) == 1
    escaped = said("", (("question", "\\u89c6\\u9891?"),))
    assert picture.sheet() != escaped.sheet()
    note = np.array(picture.sheet())[-10:], np.array(escaped.sheet())[-10:]
    assert (note[0] == note[1]).all()
    assert picture.sheet().height > escaped.sheet().height  # a line says why
    with pytest.warns(UserWarning, match=r"has \u89c6\u9891\.: |has \u89c6\u9891: "):
        overlay([0]).save(tmp_path, "\u89c6\u9891.mp4")


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
