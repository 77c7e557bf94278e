"""The suite's videos: takes one after another, with the cuts and the objects that are known of them.

The network sees one frame at a time, so features put one after another are those of the video that was so put together.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vidsieve.evaluation.natural.features import Features
from vidsieve.evaluation.natural.takes import CLIPS, SIDE, TAKES

PLACES = SIDE**2  # tokens a frame


@dataclass(frozen=True)
class Shot:
    """`count` frames at even distances of the frames `begin` to `end` of a take, all of it if not said.

    Frames of a take that has fewer than that come several times, as those of a still do.
    """

    take: str
    count: int
    begin: int = 0
    end: int | None = None

    @property
    def frames(self) -> list[int]:
        """Their numbers in the take."""
        length = (TAKES[self.take].count if self.end is None else self.end) - self.begin
        return [self.begin + (2 * i + 1) * length // (2 * self.count) for i in range(self.count)]


DEV: dict[str, tuple[Shot, ...]] = {
    "equal": (Shot("bottles", 8), Shot("bunny", 8), Shot("coffee_pan", 8), Shot("astronaut_pan", 8)),
    "unequal": (
        Shot("bottles_long", 16, 8, 40), Shot("bunny", 6), Shot("coffee", 1), Shot("astronaut_pan", 5),
        Shot("bottles_dark", 3), Shot("bunny_pan", 1),
    ),
    "static beside busy": (Shot("bottles", 10), Shot("bunny", 10), Shot("coffee", 6), Shot("bunny_pan", 6)),
    "pans": (Shot("bottles_pan", 8), Shot("bunny_pan", 8), Shot("coffee_pan", 8), Shot("astronaut_pan", 8)),
    "dark": (
        Shot("bottles_dark", 6), Shot("bunny_dark", 6), Shot("bottles", 8), Shot("astronaut_pan", 8), Shot("coffee", 4),
    ),
    "long": (
        Shot("bottles_long", 40), Shot("bunny", 12), Shot("astronaut", 1), Shot("coffee_pan", 8),
        Shot("bottles_dark", 3),
    ),
    "long still": (Shot("astronaut", 20), Shot("bunny", 4), Shot("bottles", 4), Shot("coffee_pan", 4)),
    "montage": (
        Shot("bottles_long", 20, 0, 20),
        *(Shot(take, 1) for take in ("bunny", "coffee", "bunny_pan", "astronaut", "bottles_pan", "bunny_dark")),
        *(Shot(take, 1, 0, 1) for take in ("coffee_pan", "bunny", "astronaut_pan", "bottles_dark", "bunny_pan")),
        Shot("bottles", 1, 0, 1),
    ),
}  # fmt: skip
TEST: dict[str, tuple[Shot, ...]] = {
    "equal": (Shot("car_busy", 8), Shot("friday", 8), Shot("flower", 8), Shot("chelsea_pan", 8)),
    "unequal": (
        Shot("car", 16, 0, 24), Shot("friday", 6), Shot("chelsea", 1), Shot("rocket_pan", 5), Shot("friday_dark", 3),
        Shot("flower_pan", 1),
    ),
    "static beside busy": (Shot("car", 10, 14, 22), Shot("rocket", 10), Shot("flower", 6), Shot("friday_pan", 6)),
    "pans": (Shot("friday_pan", 8), Shot("flower_pan", 8), Shot("chelsea_pan", 8), Shot("rocket_pan", 8)),
    "dark": (
        Shot("car_dark", 6), Shot("friday_dark", 6), Shot("friday", 8), Shot("rocket_pan", 8), Shot("chelsea", 4),
    ),
    "long": (Shot("car", 40), Shot("friday", 12), Shot("rocket", 1), Shot("chelsea_pan", 8), Shot("car_dark", 3)),
    "long still": (Shot("chelsea", 20), Shot("car_busy", 4), Shot("friday", 4), Shot("flower_pan", 4)),
    "montage": (
        Shot("car", 20, 4, 24),
        *(Shot(take, 1) for take in ("friday", "rocket", "flower_pan", "chelsea", "friday_pan", "friday_dark")),
        *(Shot(take, 1, 0, 1) for take in ("chelsea_pan", "flower", "rocket_pan", "car_dark", "friday_pan", "friday")),
    ),
}  # fmt: skip
# Drawn at random once: the eight above do not show what a selection by diversity does to a shot that moves.
MOVING: dict[str, tuple[Shot, ...]] = {
    "moving 1": (
        Shot("bunny_pan", 10, 3, 10), Shot("bottles_long", 8, 0, 38), Shot("bunny_dark", 6, 0, 5),
        Shot("bottles_pan", 8, 1, 10),
    ),
    "moving 2": (
        Shot("bunny", 10, 0, 14), Shot("coffee_pan", 5, 0, 8), Shot("bottles_long", 10, 0, 33),
        Shot("bunny_dark", 7, 0, 5),
    ),
    "moving 3": (
        Shot("bunny_dark", 8), Shot("bunny", 5, 3, 13), Shot("bunny_pan", 10), Shot("bottles_long", 9, 2, 38),
    ),
    "moving 4": (
        Shot("bottles", 6, 0, 10), Shot("bunny_dark", 10, 0, 5), Shot("astronaut_pan", 6), Shot("bottles_pan", 10, 2),
    ),
    "moving 5": (
        Shot("bottles_long", 5, 12, 32), Shot("coffee_pan", 8, 1, 6), Shot("bunny_dark", 8, 0, 5),
        Shot("bunny_pan", 5, 1, 8), Shot("astronaut_pan", 6),
    ),
    "moving 6": (
        Shot("coffee_pan", 6, 0, 6), Shot("bunny", 8, 0, 15), Shot("bottles_long", 10, 0, 37),
        Shot("bottles", 8, 5, 11),
    ),
}  # fmt: skip
VIDEOS = {"dev": DEV | MOVING, "test": TEST}


@dataclass(frozen=True, eq=False)
class Object:
    """What is to be seen in one shot.

    kind: static; moving, in the picture, by itself or with the camera; brief, in a shot of one frame, so neither.
    tokens: int64 (n,).
    """

    name: str
    kind: Literal["static", "moving", "brief"]
    tokens: Tensor


@dataclass(frozen=True, eq=False)
class Video:
    """features: float32 (T * PLACES, D).  shots: the first frame of each and the one after its last."""

    name: str
    split: Literal["dev", "test"]
    features: Tensor
    shots: tuple[tuple[int, int], ...]
    objects: tuple[Object, ...]

    @property
    def frames(self) -> int:
        return self.shots[-1][1]


def build(split: Literal["dev", "test"], name: str, bank: Features) -> Video:
    """Put the video of this name together from the features of its takes."""
    parts: list[Tensor] = []
    shots: list[tuple[int, int]] = []
    objects: list[Object] = []
    begin = 0
    for number, shot in enumerate(VIDEOS[split][name]):
        parts.append(bank.take(shot.take)[shot.frames].flatten(0, 1))
        objects += _objects(shot, begin, number)
        shots.append((begin, begin + shot.count))
        begin += shot.count
    return Video(name, split, torch.cat(parts), tuple(shots), tuple(objects))


def _objects(shot: Shot, begin: int, number: int) -> list[Object]:
    take = TAKES[shot.take]
    found = []
    for box in CLIPS[take.clip].boxes:
        cells = [(begin + i) * PLACES + cell for i, frame in enumerate(shot.frames) for cell in take.cells(box, frame)]
        if cells:
            moves = box.moves or take.camera_moves
            kind: Literal["static", "moving", "brief"] = "brief" if shot.count == 1 else "moving" if moves else "static"
            found.append(Object(f"{number} {shot.take}: {box.name}", kind, torch.tensor(cells)))
    return found
