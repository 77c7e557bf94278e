"""Draw what is kept of a natural shot: docs/images/natural_kept.jpg.

    python -m benchmarks.natural_picture CLIPS

CLIPS: a folder with mdn_flower.mp4, flower.mp4 of MDN's interactive examples (CC0-1.0). What is selected are the
features that come with the package, of a network that was trained on photographs; no language model takes part.
"""

import argparse
from pathlib import Path

from benchmarks.figures import HERE
from benchmarks.natural_features import pictures
from PIL import Image

import vidsieve
from vidsieve.evaluation.natural.features import load
from vidsieve.evaluation.natural.takes import SIDE, TAKES
from vidsieve.registry import method
from vidsieve.video import Overlay

TAKE = "flower"
SHOWN = (0, 5, 10, 15)  # frames of the take
PANEL, GAP = (400, 225), 8
PAPER = (255, 255, 255)


def overlay(name: str, keep: float, folder: Path) -> Overlay:
    """Reduce the take by the method of this name, and lay what is kept over its frames."""
    features, take = load("test").take(TAKE), TAKES[TAKE]
    count = len(features)
    tokens = vidsieve.VideoTokens.from_grid(features.flatten(0, 1), frames=count, rows=SIDE, columns=SIDE)
    kept = method(name)(keep).reduce(tokens).kept
    seconds = tuple(take.second(frame) for frame in range(count))
    frames = vidsieve.Frames(pictures(take, folder), tuple(range(count)), seconds, 1.0, count, take.stop)
    return Overlay(frames, kept, (SIDE**2,) * count, (SIDE, SIDE))


def sheet(drawn: Overlay) -> Image.Image:
    """Two rows: frames, and below each what is kept of it."""
    page = Image.new("RGB", (len(SHOWN) * (PANEL[0] + GAP) - GAP, 2 * PANEL[1] + GAP), PAPER)
    for column, frame in enumerate(SHOWN):
        left = column * (PANEL[0] + GAP)
        whole = Image.fromarray(drawn.frames.pixels[frame].numpy())
        page.paste(whole.resize(PANEL, Image.Resampling.LANCZOS), (left, 0))
        page.paste(drawn.draw(frame, PANEL), (left, PANEL[1] + GAP))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("clips", type=Path)
    parser.add_argument("--method", default="vidsieve")
    parser.add_argument("--keep", type=float, default=0.1)
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "images" / "natural_kept.jpg")
    options = parser.parse_args()
    drawn = overlay(options.method, options.keep, options.clips)
    sheet(drawn).save(options.out, quality=88, optimize=True)
    print(f"{options.out}: {len(drawn.kept)} of {sum(drawn.tokens)} tokens kept")


if __name__ == "__main__":
    main()
