"""Draw what is kept of a natural shot: docs/images/natural_kept.jpg, and docs/images/kept, a strip for each method.

    python -m benchmarks.natural_picture CLIPS

CLIPS: a folder with mdn_flower.mp4, flower.mp4 of MDN's interactive examples (CC0-1.0). What is selected are the
features that come with the package, of a network that was trained on photographs; no language model takes part.
"""

import argparse
from pathlib import Path

from benchmarks.figures import HERE
from benchmarks.natural_features import pictures
from PIL import Image, ImageDraw

import vidsieve
from vidsieve.evaluation.natural.features import load
from vidsieve.evaluation.natural.takes import SIDE, TAKES
from vidsieve.registry import methods
from vidsieve.video import Overlay
from vidsieve.video.lettering import font
from vidsieve.video.timeline import INK, PAPER, clock

TAKE = "flower"
SHOWN = (0, 5, 10, 15)  # frames of the take
PANEL, SMALL, GAP = (400, 225), (240, 135), 8
LETTERS = 24  # pixels, of what is written below the frames
NOT_DRAWN = {"cdpruner", "fewer_frames"}  # the first needs a question, the second keeps none of these frames


def overlay(reducer: vidsieve.Reducer, folder: Path) -> Overlay:
    """Reduce the take, and lay what is kept over its frames."""
    features, take = load("test").take(TAKE), TAKES[TAKE]
    count = len(features)
    tokens = vidsieve.VideoTokens.from_grid(features.flatten(0, 1), frames=count, rows=SIDE, columns=SIDE)
    kept = reducer.reduce(tokens).kept
    seconds = tuple(take.second(frame) for frame in range(count))
    frames = vidsieve.Frames(pictures(take, folder), tuple(range(count)), seconds, 1.0, count, take.stop)
    return Overlay(frames, kept, (SIDE**2,) * count, (SIDE, SIDE))


def strip(drawn: Overlay, size: tuple[int, int], kept: bool) -> Image.Image:
    """Draw one row of frames: as they are, or what is kept of them."""
    row = Image.new("RGB", (len(SHOWN) * (size[0] + GAP) - GAP, size[1]), PAPER)
    for column, frame in enumerate(SHOWN):
        image = Image.fromarray(drawn.frames.pixels[frame].numpy()).resize(size, Image.Resampling.LANCZOS)
        row.paste(drawn.draw(frame, size) if kept else image, (column * (size[0] + GAP), 0))
    return row


def sheet(drawn: Overlay) -> Image.Image:
    """Draw two rows: frames, and below each what is kept of it, in pictures and in numbers."""
    rows = [strip(drawn, PANEL, kept) for kept in (False, True)]
    page = Image.new("RGB", (rows[0].width, 2 * PANEL[1] + 2 * GAP + round(1.4 * LETTERS)), PAPER)
    for number, row in enumerate(rows):
        page.paste(row, (0, number * (PANEL[1] + GAP)))
    pen = ImageDraw.Draw(page)
    for column, frame in enumerate(SHOWN):
        x, y = column * (PANEL[0] + GAP) + GAP, 2 * (PANEL[1] + GAP)
        kept = f"{drawn.counts[frame]} of {drawn.tokens[frame]} tokens"
        pen.text((x, y), clock(drawn.frames.seconds[frame]), INK, font(LETTERS))
        pen.text((x + PANEL[0] - 2 * GAP, y), kept, INK, font(LETTERS), anchor="ra")
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("clips", type=Path)
    parser.add_argument("--keep", type=float, default=0.1)
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "images", help="folder (docs/images)")
    options = parser.parse_args()
    (options.out / "kept").mkdir(parents=True, exist_ok=True)
    for name, known in methods(inside=False).items():
        if name in NOT_DRAWN:
            continue
        drawn = overlay(known(options.keep), options.clips)
        strip(drawn, SMALL, kept=True).save(options.out / "kept" / f"{name}.jpg", quality=82, optimize=True)
        if name == "vidsieve":
            sheet(drawn).save(options.out / "natural_kept.jpg", quality=88, optimize=True)
        print(f"{name}: {len(drawn.kept)} of {sum(drawn.tokens)} tokens kept")


if __name__ == "__main__":
    main()
