"""What can be drawn: twelve shapes, ten digits, eight colours, and the textures of each split."""

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from vidsieve.evaluation.needles.draws import mix

CELL = 8  # a glyph is CELL x CELL dots
TILE = 128  # a texture repeats after TILE pixels

COLOURS = {
    "red": (230, 40, 40),
    "orange": (240, 140, 20),
    "yellow": (235, 225, 40),
    "green": (50, 200, 60),
    "cyan": (50, 220, 220),
    "blue": (60, 90, 240),
    "purple": (150, 50, 220),
    "pink": (245, 120, 190),
}

_SHAPES = {
    "ring": "..####.. .######. ##....## ##....## ##....## ##....## .######. ..####..",
    "square": "######## ######## ######## ######## ######## ######## ######## ########",
    "triangle": "...##... ...##... ..####.. ..####.. .######. .######. ######## ########",
    "cross": "...##... ...##... ...##... ######## ######## ...##... ...##... ...##...",
    "diamond": "...##... ..####.. .######. ######## ######## .######. ..####.. ...##...",
    "heart": ".##..##. ######## ######## ######## .######. ..####.. ..####.. ...##...",
    "arrow": "....#... ....##.. ######## ######## ######## ######## ....##.. ....#...",
    "moon": "..####.. .####... ####.... ###..... ###..... ####.... .####... ..####..",
    "hourglass": "######## .######. ..####.. ...##... ...##... ..####.. .######. ########",
    "ladder": "##....## ######## ##....## ##....## ######## ##....## ######## ##....##",
    "comb": "##.##.## ##.##.## ##.##.## ##.##.## ##.##.## ######## ######## ########",
    "bolt": "....###. ...###.. ..###... .######. ..#####. ...###.. ..###... ..#.....",
}
_DIGITS = (
    "..###... .#...#.. .#..##.. .#.#.#.. .##..#.. .#...#.. ..###... ........",
    "...#.... ..##.... ...#.... ...#.... ...#.... ...#.... ..###... ........",
    "..###... .#...#.. .....#.. ....#... ...#.... ..#..... .#####.. ........",
    ".#####.. ....#... ...#.... ....#... .....#.. .#...#.. ..###... ........",
    "....#... ...##... ..#.#... .#..#... .#####.. ....#... ....#... ........",
    ".#####.. .#...... .####... .....#.. .....#.. .#...#.. ..###... ........",
    "...##... ..#..... .#...... .####... .#...#.. .#...#.. ..###... ........",
    ".#####.. .....#.. ....#... ...#.... ..#..... ..#..... ..#..... ........",
    "..###... .#...#.. .#...#.. ..###... .#...#.. .#...#.. ..###... ........",
    "..###... .#...#.. .#...#.. ..####.. .....#.. ....#... ..##.... ........",
)
SHAPES = tuple(_SHAPES)
DIGIT = len(SHAPES)  # glyph DIGIT + n is the digit n


@cache
def glyphs(device: torch.device) -> Tensor:
    """Shapes, then digits: bool (22, CELL, CELL)."""
    rows = [[[dot == "#" for dot in row] for row in art.split()] for art in (*_SHAPES.values(), *_DIGITS)]
    return torch.tensor(rows, device=device)


@cache
def palette(device: torch.device) -> Tensor:
    """The colours in the order of `COLOURS`, then the grey of what is never asked about: int64 (9, 3)."""
    return torch.tensor([*COLOURS.values(), (150, 150, 150)], device=device)


GREY = len(COLOURS)

Pattern = Callable[[Tensor, Tensor], Tensor]  # rows (TILE, 1), columns (1, TILE) in [0, 1) -> (TILE, TILE) in [-1, 1]


def _wave(down: int, right: int) -> Pattern:
    return lambda y, x: torch.sin(2 * math.pi * (down * y + right * x))


def _checks(n: int) -> Pattern:
    return lambda y, x: 1 - 2.0 * (((n * y).floor() + (n * x).floor()) % 2)


def _plaid(n: int) -> Pattern:
    return lambda y, x: (torch.sin(2 * math.pi * n * y) + torch.sin(2 * math.pi * n * x)) / 2


def _patches(n: int, seed: int) -> Pattern:
    def draw(y: Tensor, x: Tensor) -> Tensor:
        bits = mix(((n * y).floor() * n + (n * x).floor()).long() + (seed << 20))
        return (bits & 255) / 127.5 - 1

    return draw


def _dots(n: int) -> Pattern:
    return lambda y, x: 1 - 2.0 * (((n * y % 1 - 0.5) ** 2 + (n * x % 1 - 0.5) ** 2) < 0.1)


def _zigzag(n: int) -> Pattern:
    return lambda y, x: 1 - 2.0 * ((n * y + (n * x % 1 - 0.5).abs()) % 1 < 0.5)


def _bricks(n: int) -> Pattern:
    def draw(y: Tensor, x: Tensor) -> Tensor:
        row = (2 * n * y).floor()
        return 1 - 2.0 * ((2 * n * y % 1 < 0.2) | ((n * x + row / 2) % 1 < 0.1))

    return draw


def _rings(n: int) -> Pattern:
    def draw(y: Tensor, x: Tensor) -> Tensor:
        distance = ((n * y % 1 - 0.5) ** 2 + (n * x % 1 - 0.5) ** 2).sqrt()
        return torch.cos(6 * math.pi * distance)

    return draw


TEXTURES: dict[str, tuple[Pattern, ...]] = {  # no split shares a pattern with another
    "train": (
        *(_wave(*frequency) for frequency in ((3, 0), (0, 3), (2, 2), (2, -2), (5, 1), (1, 5), (7, 4), (4, -7))),
        *(_checks(n) for n in (4, 6, 10)),
        *(_plaid(n) for n in (2, 5)),
        *(_patches(n, seed) for n in (8, 16) for seed in (0, 1, 2)),
    ),
    "dev": (*(_dots(n) for n in (3, 5, 8)), *(_zigzag(n) for n in (3, 6)), _patches(11, 3)),
    "test": (*(_bricks(n) for n in (3, 5)), *(_rings(n) for n in (2, 4)), _wave(4, 5), _patches(13, 4)),
}


@cache
def textures(split: str, device: torch.device) -> Tensor:
    """int16 (K, TILE, TILE) in [-127, 127]. Computed on the CPU, so that they are the same on every device."""
    steps = torch.arange(TILE, dtype=torch.float64) / TILE
    drawn = [pattern(steps[:, None], steps[None]).expand(TILE, TILE) for pattern in TEXTURES[split]]
    return (127 * torch.stack(drawn)).round().to(device, torch.int16)
