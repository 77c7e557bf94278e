"""What the suite's videos are cut from: clips and stills, whose they are, what stands or moves in them, and takes.

A take is a run of frames of one clip at even distances: all of the picture, or a window that moves over it as a camera
would, or darkened. Boxes were drawn by hand, in units of the 14 x 14 grid of the whole picture.
"""

from dataclasses import dataclass
from typing import Literal

Bounds = tuple[float, float, float, float]  # left, top, right, bottom
SIDE = 14  # tokens along each side of a frame
SPLITS = ("dev", "test")


@dataclass(frozen=True)
class Box:
    """An object of a clip, whether it moves in the picture, and where it is.

    keys: (second, bounds), between which it is interpolated.  seen: the first and the last second it is there.
    """

    name: str
    moves: bool
    keys: tuple[tuple[float, Bounds], ...]
    seen: tuple[float, float] = (0.0, 1e9)

    def at(self, second: float) -> Bounds | None:
        """Its bounds at that second, None while it is not there."""
        if not self.seen[0] <= second <= self.seen[1]:
            return None
        before = max((key for key in self.keys if key[0] <= second), default=self.keys[0], key=lambda key: key[0])
        after = min((key for key in self.keys if key[0] >= second), default=self.keys[-1], key=lambda key: key[0])
        share = 0.0 if before[0] == after[0] else (second - before[0]) / (after[0] - before[0])
        left, top, right, bottom = (a + (b - a) * share for a, b in zip(before[1], after[1], strict=True))
        return left, top, right, bottom


def still(name: str, *bounds: float, seen: tuple[float, float] = (0.0, 1e9)) -> Box:
    """What stays where it is."""
    left, top, right, bottom = bounds
    return Box(name, False, ((0.0, (left, top, right, bottom)),), seen)


def moving(name: str, *keys: tuple[float, Bounds], around: float = 0.3) -> Box:
    """What is there from the first key to the last, and `around` seconds before and after."""
    return Box(name, True, keys, (keys[0][0] - around, keys[-1][0] + around))


@dataclass(frozen=True)
class Clip:
    """A file that is not in the package, whose it is, and the boxes in it.

    fps: 0 for a still.  sha256: of the file that the features were made of.
    """

    file: str
    sha256: str
    split: Literal["dev", "test"]
    fps: float
    licence: str
    credit: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Take:
    """`count` frames of a clip from `start` to `stop`, in seconds.

    first, last: the window of the first and the last frame, as shares of the picture, between which it moves evenly.
    gain: what the pixels are multiplied by.
    """

    clip: str
    count: int
    start: float = 0.0
    stop: float = 0.0
    first: Bounds = (0.0, 0.0, 1.0, 1.0)
    last: Bounds = (0.0, 0.0, 1.0, 1.0)
    gain: float = 1.0

    def second(self, frame: int) -> float:
        return self.start + (frame + 0.5) * (self.stop - self.start) / self.count

    def window(self, frame: int) -> Bounds:
        share = frame / max(1, self.count - 1)
        left, top, right, bottom = (a + (b - a) * share for a, b in zip(self.first, self.last, strict=True))
        return left, top, right, bottom

    @property
    def camera_moves(self) -> bool:
        return self.first != self.last

    def cells(self, box: Box, frame: int) -> list[int]:
        """The tokens of this frame whose middle lies in the box: numbers below SIDE**2, row after row."""
        bounds = box.at(self.second(frame))
        if bounds is None:
            return []
        x0, y0, x1, y1 = self.window(frame)
        left, right = ((x - SIDE * x0) / (x1 - x0) for x in bounds[::2])
        top, bottom = ((y - SIDE * y0) / (y1 - y0) for y in bounds[1::2])
        middle = [(cell // SIDE + 0.5, cell % SIDE + 0.5) for cell in range(SIDE**2)]
        return [cell for cell, (y, x) in enumerate(middle) if left <= x <= right and top <= y <= bottom]


INTEL = "Intel Corporation, github.com/intel-iot-devkit/sample-videos"
MDN = "MDN contributors, github.com/mdn/interactive-examples"
SCIKIT_IMAGE = "the image of that name in skimage.data"

CLIPS = {
    "bottles": Clip(
        "intel_bottle-detection.mp4",
        "d52ba94aedf8a923c342fe9ea1d2bd85f712c4cc0f49a6de1bac43eebe3a48ff",
        "dev",
        179 / 6,
        "CC-BY-4.0",
        f"bottle-detection, {INTEL}",
        (
            still("left bottle", 1.2, 4.1, 2.7, 12.1, seen=(0, 6.6)),
            still("left bottle, brought back", 1.6, 4.3, 3.0, 12.1, seen=(13.0, 16.5)),
            still("left bottle, brought back again", 1.1, 4.2, 2.7, 12.1, seen=(28.9, 40)),
            still("middle bottle", 6.2, 4.1, 7.6, 12.2, seen=(0, 16.6)),
            still("middle bottle, brought back", 6.3, 4.3, 7.6, 12.2, seen=(24.8, 40)),
            still("right bottle", 10.9, 4.1, 12.7, 12.3, seen=(0, 31.5)),
            still("right bottle, brought back", 11.2, 4.2, 12.8, 12.3, seen=(36.6, 40)),
            moving("hand takes the left bottle", (6.42, (0.2, 0, 2.8, 5))),
            moving("bottle in the air", (11.36, (1.8, 0, 3, 4))),
            moving("hand puts it down", (12.34, (0.9, 0, 3, 5)), (13.33, (0.6, 0, 2.8, 4.8))),
            moving("left of two hands", (16.29, (0, 0, 1.8, 5)), (17.28, (0.2, 0.8, 2.6, 5.3))),
            moving("right of two hands", (16.29, (5.6, 0, 7.8, 5.2)), (17.28, (4.8, 0, 7.6, 4.8))),
            moving("second bottle in the air", (22.22, (5.9, 0, 7, 5.2))),
            moving("hand puts down the second", (23.2, (3, 0, 7.3, 5.4)), (24.19, (3, 0, 7.7, 6))),
            moving("hand puts down the third", (28.14, (0, 0, 2.7, 5.8))),
            moving("hand over the right bottle", (31.1, (9.7, 0, 12.3, 3.8))),
            moving("fourth bottle in the air", (35.06, (11.9, 0, 13.4, 5.9))),
            moving("hand puts down the fourth", (36.04, (7.7, 0, 12.2, 5))),
        ),
    ),
    "bunny": Clip(
        "skv_bigbuckbunny.mp4",
        "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd",
        "dev",
        25.0,
        "CC-BY-3.0",
        "Big Buck Bunny, (c) 2008 Blender Foundation, www.bigbuckbunny.org",
        (
            still("rock", 8.8, 5.2, 13.8, 8.3),
            still("stone at the burrow", 0.9, 7.3, 2.5, 10.2),
            still("yellow flowers", 7.1, 3.6, 8.6, 5.1),
            moving(
                "bunny",
                (0.05, (0.9, 5.1, 5.6, 10.7)),
                (0.48, (1.1, 4.4, 6.1, 10.7)),
                (0.91, (1.4, 3, 6.2, 11.4)),
                (1.34, (1.9, 3.3, 7.2, 11.6)),
                (1.77, (2.5, 0.3, 7.5, 11.8)),
                (2.2, (2.1, 0.5, 6.6, 12)),
                (2.63, (1.8, 1.4, 6.8, 12.1)),
                (3.92, (1.8, 1.4, 6.9, 12.1)),
                (4.35, (3.5, 1, 6.8, 12)),
                (4.78, (3, 1.1, 6.6, 12)),
                around=1,
            ),
        ),
    ),
    "coffee": Clip(
        "coffee.png",
        "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
        "dev",
        0.0,
        "CC0-1.0",
        f"Rachel Michetti; {SCIKIT_IMAGE}",
        (still("cup", 4, 0.6, 9.6, 7.3), still("spoon", 7.5, 8.3, 9.6, 11.4)),
    ),
    "astronaut": Clip(
        "astronaut.png",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        "dev",
        0.0,
        "public domain",
        f"NASA, Eileen Collins; {SCIKIT_IMAGE}",
        (
            still("face", 4.3, 0.5, 8.1, 5),
            still("shuttle", 10, 0, 12.5, 7.8),
            still("helmet", 7.7, 9.5, 13.8, 14),
            still("flag", 0, 0, 2.5, 5),
            still("patch", 3.4, 9.4, 5.6, 11.6),
        ),
    ),
    "car": Clip(
        "intel_car-detection.mp4",
        "d31e0ebf194cc16e50eea784e7c3b0b1bb7976a4fb9b3fec26cb92a6704cca34",
        "test",
        12.5,
        "CC-BY-4.0",
        f"car-detection, {INTEL}",
        (
            still("line at the left", 0, 0.3, 1.3, 1.3),
            still("line at the right", 9.7, 0, 11.2, 1.2),
            still("arrow", 13.2, 12.4, 14, 14),
            moving(
                "white car",
                (4.875, (5.3, 10.9, 8.6, 14)),
                (5.625, (5, 6.2, 8.7, 14)),
                (6.375, (5, 2.9, 8, 11.5)),
                (7.125, (5.1, 0, 7.6, 6.6)),
                (7.875, (5.2, 0, 7.4, 3)),
                around=0.2,
            ),
            moving(
                "silver car",
                (15.0, (2.8, 0, 4.8, 2.4)),
                (15.4, (2.4, 0, 4.8, 4.5)),
                (15.8, (2.2, 0, 4.7, 6.8)),
                (16.2, (2, 0.3, 4.7, 9.4)),
                (16.6, (1.6, 2.3, 4.7, 12.6)),
                (17.0, (1.3, 4.6, 4.5, 14)),
                (17.4, (1.1, 7, 4.4, 14)),
                (17.8, (1.2, 9.7, 4.3, 14)),
                (18.2, (1.2, 12.8, 4.2, 14)),
                around=0.1,
            ),
            moving(
                "red car",
                (15.4, (6, 11.2, 8.9, 14)),
                (15.8, (5.8, 8.6, 9, 14)),
                (16.2, (5.8, 6.3, 9, 14)),
                (16.6, (6, 4.3, 8.9, 13.9)),
                (17.0, (5.9, 2.4, 8.8, 11)),
                (17.4, (5.7, 0.8, 8.4, 8.6)),
                (17.8, (5.6, 0, 8.2, 6.2)),
                (18.2, (5.7, 0, 7.9, 4.2)),
                (18.6, (5.8, 0, 7.7, 2.5)),
                around=0.2,
            ),
            moving(
                "second white car",
                (25.875, (3.1, 0, 6.2, 4.8)),
                (26.625, (2.4, 1.6, 5.7, 12.1)),
                (27.375, (2, 8.8, 5.6, 14)),
                around=0.2,
            ),
        ),
    ),
    "friday": Clip(
        "mdn_friday.mp4",
        "339504acdef44f4e50c760e657cf76a8df60f25c91a239682abda56ac1886e90",
        "test",
        30.0,
        "CC0-1.0",
        f"friday.mp4, {MDN}",
        (
            still("clock", 3.8, 0.6, 5.7, 3.3),
            still("papers", 8.6, 7.2, 12.2, 8.8),
            still("pigeonholes", 7.1, 4.2, 8.9, 6.6),
            moving(
                "hat",
                (0.1, (8.3, 0.6, 11, 2.4)),
                (0.6, (8.9, 0.4, 11.1, 3)),
                (1.1, (8.2, 0.3, 10.5, 3)),
                (1.6, (7.4, 0.3, 10.4, 3.1)),
                (2.1, (8.2, 0.6, 10.6, 2.9)),
                (2.6, (8.1, 0.5, 10.4, 3)),
                (3.1, (7.9, 0.5, 10.2, 2.8)),
                (3.6, (8, 0.8, 9.9, 3.1)),
                (4.1, (7.4, 0.9, 9.8, 3.2)),
                (4.6, (7.8, 0.5, 11, 2.9)),
                (5.1, (8.5, 0.6, 10.7, 3)),
                (5.6, (8.3, 0.4, 10.5, 3)),
                around=1,
            ),
            moving(
                "girl",
                (0.1, (4.3, 5.5, 6.7, 12)),
                (0.6, (3.9, 5.6, 6.9, 12)),
                (2.6, (3.8, 5.4, 6.4, 12)),
                (5.6, (4, 5.2, 6.3, 12)),
                around=1,
            ),
        ),
    ),
    "flower": Clip(
        "mdn_flower.mp4",
        "0cd83d944a6ca7822b4a8306cecc60a36e859b041f6702c6a1ad9ead78924451",
        "test",
        30000 / 1001,
        "CC0-1.0",
        f"flower.mp4, {MDN}",
        (
            still("leaf at the right", 8.9, 1.6, 11.5, 6.6),
            still("bud behind", 2.4, 0, 4.6, 3.8),
            moving(
                "leaf below",
                (0.1, (0.4, 8.6, 2.8, 13.7)),
                (2.15, (0.8, 9.8, 4.6, 13.4)),
                (4.6, (0.5, 10.9, 4.5, 13.4)),
                around=1,
            ),
            moving(
                "flower",
                (0.1, (5.9, 5.2, 7.9, 9.2)),
                (1.33, (5.8, 4.8, 7.9, 9.2)),
                (2.15, (5.4, 4, 7.9, 9.1)),
                (2.97, (5.1, 3.4, 8, 9.3)),
                (3.38, (4.8, 2.9, 8.4, 9.5)),
                (4.2, (4.5, 2.4, 8.6, 9.6)),
                (4.61, (4.3, 2.3, 8.7, 9.8)),
                around=1,
            ),
        ),
    ),
    "chelsea": Clip(
        "chelsea.png",
        "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
        "test",
        0.0,
        "CC0-1.0",
        f"Stefan van der Walt; {SCIKIT_IMAGE}",
        (
            still("left eye", 4.2, 4, 6.4, 6.8),
            still("right eye", 9.1, 5.2, 10.8, 7.7),
            still("nose", 7.1, 10.4, 9.1, 12.5),
        ),
    ),
    "rocket": Clip(
        "rocket.jpg",
        "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
        "test",
        0.0,
        "public domain",
        f"SpaceX; {SCIKIT_IMAGE}",
        (
            still("rocket", 6.7, 4.1, 7.6, 13.4),
            still("tower", 1, 0, 2, 14),
            still("lights", 3, 12.1, 4.6, 13.8),
        ),
    ),
}

TAKES = {
    "bottles": Take("bottles", 12, 0, 4.125),
    "bottles_long": Take("bottles", 40, 0, 39.5),
    "bottles_pan": Take("bottles", 10, 0, 5.5, (0, 0, 0.65, 0.9), (0.35, 0.1, 1, 1)),
    "bottles_dark": Take("bottles", 6, 0, 5.5, gain=0.2),
    "bunny": Take("bunny", 16, 0, 5.2),
    "bunny_pan": Take("bunny", 10, 0, 5.2, (0, 0, 0.65, 0.85), (0.35, 0.15, 1, 1)),
    "bunny_dark": Take("bunny", 6, 0, 5.2, gain=0.2),
    "coffee": Take("coffee", 1),
    "coffee_pan": Take("coffee", 10, first=(0.1, 0, 0.7, 0.7), last=(0.4, 0.3, 1, 1)),
    "astronaut": Take("astronaut", 1),
    "astronaut_pan": Take("astronaut", 10, first=(0, 0, 0.6, 0.7), last=(0.4, 0.3, 1, 1)),
    "car": Take("car", 40, 0, 30),
    "car_busy": Take("car", 12, 14, 18.8),
    "car_dark": Take("car", 6, 4.5, 8.5, gain=0.2),
    "friday": Take("friday", 12, 0, 4.575),
    "friday_pan": Take("friday", 10, 0, 6.1, (0, 0, 0.6, 0.7), (0.4, 0.3, 1, 1)),
    "friday_dark": Take("friday", 6, 0, 6.1, gain=0.2),
    "flower": Take("flower", 16, 0, 5),
    "flower_pan": Take("flower", 10, 0, 5, (0.1, 0, 0.7, 0.7), (0.3, 0.3, 0.9, 1)),
    "chelsea": Take("chelsea", 1),
    "chelsea_pan": Take("chelsea", 10, first=(0, 0, 0.6, 0.7), last=(0.4, 0.3, 1, 1)),
    "rocket": Take("rocket", 1),
    "rocket_pan": Take("rocket", 10, first=(0, 0.3, 0.6, 1), last=(0.4, 0, 1, 0.7)),
}
