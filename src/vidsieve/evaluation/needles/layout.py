"""What is where and when in each video, in integers: `plan` decides, `render.py` draws, `questions.py` asks.

Time runs in steps of two frames, one temporal patch of the model; space in a grid of 6 x 6 visual tokens, grouped into
nine blocks of 2 x 2. Cuts fall between steps and needles lie on the token grid, so that which tokens hold the evidence
is known exactly.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vidsieve.evaluation.needles.draws import LARGE, Draws
from vidsieve.evaluation.needles.glyphs import COLOURS, DIGIT, GREY, SHAPES, TEXTURES

GRID = 6  # tokens along each side of a frame
BLOCKS = GRID // 2
SCENES = 6  # at most
SHORTEST = 2  # steps of a scene, at least

UNIQUE = {"needles": 5, "long": 6}  # shapes that are shown once, in `needles` at different steps
REPEATED = 2  # shapes that are shown 0 to MOST times
MOST = 5
CARDS = 2  # digits on cards of different colours
CONFETTI = 6  # tokens of coloured noise, different in each frame
BALLS = 2  # movers that are asked about
BLOCKERS = 2  # grey movers that are not

NOTHING = -1
LEAST = {"needles": 8, "long": 32}  # frames of a video of each suite


@dataclass(frozen=True)
class Size:
    """Of a video. frames: a multiple of 8.  token: pixels of a visual token's side, a multiple of 8.

    suite: "needles", this file's, or "long" (`long_layout.py`), whose videos have at least 32 frames.
    plain: to begin learning with. Nothing that is never asked about (noise, grey movers), flat backgrounds, no
    camouflage, every needle on one token and in both frames of its step. The cards show the same digit and the balls go
    the same way, so that reading them can be learned before telling them apart.
    """

    frames: int = 32
    token: int = 16
    plain: bool = False
    suite: str = "needles"

    def __post_init__(self) -> None:
        if self.suite not in LEAST:
            raise ValueError(f"expected a suite among {', '.join(LEAST)}, got {self.suite!r}")
        if self.frames < 8 or self.frames % 8:
            raise ValueError(f"expected a multiple of 8 frames (four quarters of whole steps), got {self.frames}")
        if self.frames < LEAST[self.suite]:
            raise ValueError(
                f"expected at least {LEAST[self.suite]} frames in the suite {self.suite}, got {self.frames}"
            )
        if self.token < 8 or self.token % 8:
            raise ValueError(f"expected tokens of a multiple of 8 pixels, got {self.token}")

    @property
    def steps(self) -> int:
        return self.frames // 2

    @property
    def side(self) -> int:
        """Pixels of a frame's side."""
        return GRID * self.token

    @property
    def tokens(self) -> int:
        """Visual tokens of a video."""
        return self.steps * GRID * GRID

    @property
    def unique(self) -> int:
        """Shapes shown once: no more than there are steps."""
        return min(UNIQUE[self.suite], self.steps)

    @property
    def lasting(self) -> int:
        """Position, in the order of a video's shapes, of the one that stays for a whole scene (in `needles` alone)."""
        return self.unique + REPEATED


@dataclass(frozen=True, eq=False)
class Needles:
    """Unique shapes, copies of the repeated ones, cards, confetti, in this order: all (B, I).

    step, row, column: where its first token is.  steps: how many it lasts.  height, width: in tokens, 1 or 2.  glyph:
    index into `glyphs()`, or NOTHING for confetti.  colour: index into `palette()`.  tone: percent of it.  shown: in
    the first frame of a step (bit 0), in the second (bit 1); 0 where there is no such needle.
    """

    step: Tensor
    steps: Tensor
    row: Tensor
    column: Tensor
    height: Tensor
    width: Tensor
    glyph: Tensor
    colour: Tensor
    tone: Tensor
    shown: Tensor


@dataclass(frozen=True, eq=False)
class Movers:
    """Balls, then grey squares: all (B, M) but the first two.

    y, x: upper left corner in each frame, (B, M, F).  first, last: frames in which it is there.  heading: 0 left,
    1 right, 2 up, 3 down.  colour: index into `palette()`.
    """

    y: Tensor
    x: Tensor
    first: Tensor
    last: Tensor
    heading: Tensor
    colour: Tensor


@dataclass(frozen=True, eq=False)
class Layout:
    """Of B videos with T steps.

    scenes: (B,), how many.  scene: (B, T), which one a step belongs to.  scene_colour: (B, SCENES).
    texture, shade, contrast, offset, drift: of each scene's background, (B, SCENES[, 2]).
    shapes: (B, 12), first the unique ones, then the repeated, the lasting and the absent ones.
    copies: (B, REPEATED), how often those are shown.  digits: (B, CARDS).
    lasting: (B, 3), scene, block and colour of the lasting one.  flicker: (B, 3), block, first and last step of noise.
    """

    size: Size
    scenes: Tensor
    scene: Tensor
    scene_colour: Tensor
    texture: Tensor
    shade: Tensor
    contrast: Tensor
    offset: Tensor
    drift: Tensor
    shapes: Tensor
    copies: Tensor
    digits: Tensor
    needles: Needles
    movers: Movers
    lasting: Tensor
    flicker: Tensor


def plan(draws: Draws, size: Size, split: str) -> Layout:
    """The layout of every video of `draws`."""
    scenes, scene = _cut(draws, size)
    scene_colour = draws.order(len(COLOURS))[:, :SCENES]
    shapes = draws.order(len(SHAPES))
    movers = _move(draws, size, scenes, scene)
    lasting = torch.stack((draws.below(LARGE) % scenes, draws.below(BLOCKS * BLOCKS), draws.below(len(COLOURS))), dim=1)
    noise = flicker(draws, size)
    copies = draws.below(MOST + 1, REPEATED)
    digits = draws.below(10, CARDS)
    if size.plain:
        digits = digits[:, :1].expand(-1, CARDS)
    needles = _hide(draws, size, scene, scene_colour, shapes, copies, digits, movers, lasting)
    return Layout(
        size=size,
        scenes=scenes,
        scene=scene,
        scene_colour=scene_colour,
        **backgrounds(draws, size, split),
        shapes=shapes,
        copies=copies,
        digits=digits,
        needles=needles,
        movers=movers,
        lasting=lasting,
        flicker=noise,
    )


def flicker(draws: Draws, size: Size) -> Tensor:
    """The field of noise: block, first and last step, (B, 3)."""
    start, length = draws.below(size.steps), draws.below(size.steps)
    none = torch.full_like(start, size.steps)
    return torch.stack(
        (draws.below(BLOCKS * BLOCKS), none if size.plain or size.steps <= 4 else start, start + length // 2), dim=1
    )


def backgrounds(draws: Draws, size: Size, split: str) -> dict[str, Tensor]:
    """What `Layout` says of each scene's background but its colour, which drifts by half a pixel a frame at most."""
    return {
        "texture": draws.below(len(TEXTURES[split]), SCENES),
        "shade": 44 + draws.below(16, SCENES),
        "contrast": (6 + draws.below(14, SCENES)) * (not size.plain),
        "offset": draws.below(LARGE, SCENES, 2),
        "drift": draws.below(5, SCENES, 2) - 2,
    }


def _cut(draws: Draws, size: Size) -> tuple[Tensor, Tensor]:
    """How many scenes (B,), uniform, and the scene of each step (B, T); none is shorter than SHORTEST."""
    steps, most = size.steps, min(SCENES, size.steps // SHORTEST)
    scenes = draws.below(most) + 1
    # Cut a video that is shorter by one step a scene anywhere, then give each scene its step back.
    place = torch.arange(1, steps, device=scenes.device)
    score = draws.below(LARGE, steps - 1).masked_fill(place > steps - 1 - scenes[:, None], LARGE)
    picked = score.argsort(dim=1, stable=True).argsort(dim=1) < scenes[:, None] - 1
    cuts = torch.where(picked, place, 2 * steps).sort(dim=1).values[:, : most - 1]  # (B, most - 1)
    cuts = cuts + torch.arange(1, most, device=cuts.device)
    scene = (torch.arange(steps, device=cuts.device)[None, :, None] >= cuts[:, None]).sum(2)
    return scenes, scene


def _move(draws: Draws, size: Size, scenes: Tensor, scene: Tensor) -> Movers:
    """Movers that cross their scene in a straight line and stay inside the picture."""
    many = BALLS + BLOCKERS
    where = draws.below(LARGE, many) % scenes[:, None]  # (B, M)
    there = scene[:, None] == where[..., None]  # (B, M, T)
    first = 2 * there.int().argmax(2)
    movers = cross(draws, size, first, first + 2 * there.sum(2) - 1)
    seen = draws.below(2, many) * (not size.plain)
    movers.last[:, BALLS:] = torch.where(seen > 0, movers.last, -1)[:, BALLS:]
    return movers


def cross(draws: Draws, size: Size, first: Tensor, last: Tensor, lanes: bool = False) -> Movers:
    """Movers on straight lines, there from frame `first` to `last`, (B, M): balls, then grey ones.

    lanes: each within a row or column of blocks, any of them equally likely.
    """
    many, length = first.shape[1], last - first + 1
    room = size.side - diameter(size)
    speed = torch.minimum(size.token // 8 + draws.below(2, many), room // (length - 1))
    way = speed * (length - 1)
    heading = draws.below(4, many)
    if size.plain:
        heading = heading[:, :1].expand(-1, many)
    backwards, vertical = heading % 2 == 0, heading >= 2
    begin = draws.below(LARGE, many) % (room - way + 1)
    drawn = draws.below(LARGE, many)
    across = drawn % (room + 1)
    if lanes:
        across = (drawn >> 16) % BLOCKS * 2 * size.token + drawn % (2 * size.token - diameter(size) + 1)
    time = torch.arange(size.frames, device=first.device) - first[..., None]  # (B, M, F)
    gone = speed[..., None] * time
    along = begin[..., None] + torch.where(backwards[..., None], way[..., None] - gone, gone)
    y = torch.where(vertical[..., None], along, across[..., None])
    x = torch.where(vertical[..., None], across[..., None], along)
    colour = torch.full_like(heading, GREY)
    colour[:, :BALLS] = draws.order(len(COLOURS))[:, :BALLS]
    return Movers(y, x, first, last, heading, colour)


def diameter(size: Size) -> int:
    """Pixels across a mover."""
    return size.token * 3 // 4


def centre(movers: Movers, size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """Token row and column of each mover's middle at each step, and whether it is there: (B, M, T) each."""
    half, end = diameter(size) // 2, size.side - 1
    row, column = (
        ((side[..., 0::2] + side[..., 1::2]) // 2 + half).clamp(0, end) // size.token for side in (movers.y, movers.x)
    )
    frame = 2 * torch.arange(size.steps, device=row.device)
    there = (frame >= movers.first[..., None]) & (frame <= movers.last[..., None])
    return row, column, there


def _hide(
    draws: Draws,
    size: Size,
    scene: Tensor,
    scene_colour: Tensor,
    shapes: Tensor,
    copies: Tensor,
    digits: Tensor,
    movers: Movers,
    lasting: Tensor,
) -> Needles:
    """Needles, each in a block of its own, none in a block of the lasting shape or of the middle of a ball.

    In one piece, as the draws of a video come one after another: another order would make other videos.
    """
    blocks, unique = BLOCKS * BLOCKS, size.unique
    row, column, there = (each[:, :BALLS] for each in centre(movers, size))
    index = torch.where(there, row // 2 * BLOCKS + column // 2, blocks)  # (B, M, T)
    reserved = torch.zeros(*scene.shape, blocks + 1, dtype=torch.bool, device=scene.device)
    reserved.scatter_(2, index.mT, True)
    stays = torch.where(scene == lasting[:, :1], lasting[:, 1:2], blocks)
    reserved.scatter_(2, stays[..., None], True)
    reserved = reserved[..., :blocks]  # (B, T, blocks)

    time = draws.order(size.steps)[:, :unique]
    score = draws.below(LARGE, unique, blocks)
    taken = reserved.gather(1, time[..., None].expand(-1, -1, blocks))
    alone = time * blocks + score.masked_fill(taken, -1).argmax(2)  # (B, unique)
    score = draws.below(LARGE, size.steps * blocks).masked_fill(reserved.flatten(1), -1).scatter(1, alone, -1)
    rest = score.argsort(dim=1, descending=True, stable=True)[:, : REPEATED * MOST + CARDS + CONFETTI]
    place = torch.cat((alone, rest), dim=1)  # (B, I)

    step = place // blocks
    there = torch.ones_like(place, dtype=torch.bool)
    there[:, unique : unique + REPEATED * MOST] = (torch.arange(MOST, device=step.device) < copies[..., None]).flatten(
        1
    )
    glyph = glyphs_of(shapes, unique, digits, CONFETTI)
    behind = scene_colour.gather(1, scene.gather(1, step))
    return dress(draws, size, step, torch.ones_like(step), place % blocks, glyph, there, behind)


def glyphs_of(shapes: Tensor, unique: int, digits: Tensor, confetti: int) -> Tensor:
    """What each needle shows, in the order of `Needles`: (B, I)."""
    repeated = shapes[:, unique : unique + REPEATED].repeat_interleave(MOST, 1)
    glyph = torch.cat((shapes[:, :unique], repeated, DIGIT + digits), dim=1)
    return F.pad(glyph, (0, confetti), value=NOTHING)


def dress(
    draws: Draws,
    size: Size,
    step: Tensor,
    steps: Tensor,
    block: Tensor,
    glyph: Tensor,
    there: Tensor,
    behind: Tensor,
    single: slice = slice(0),
    crowd: slice = slice(0),
) -> Needles:
    """What needles look like that are in these blocks from `step` on for `steps`.

    there: bool (B, I), which exist.  behind: colour of the background.  single: numbers of those that take one token.
    crowd: of those that have the colours that the cards have not.
    """
    items = step.shape[1]
    kind = draws.below(10, items) * (not size.plain)
    kind[:, single] = 0
    height, width = 1 + ((kind == 7) | (kind == 9)).long(), 1 + ((kind == 8) | (kind == 9)).long()
    inside = draws.below(2, items, 2)
    cards = slice(size.unique + REPEATED * MOST, size.unique + REPEATED * MOST + CARDS)
    colour = draws.below(len(COLOURS), items)
    hidden = draws.below(10, items) < 3  # camouflage: in the background's own colour, and darker than others
    hidden[:, cards.start :] = False
    hidden &= not size.plain
    colour = torch.where(hidden, behind, colour)
    hues = draws.order(len(COLOURS))
    colour[:, cards] = hues[:, :CARDS]
    colour[:, crowd] = hues.gather(1, CARDS + colour[:, crowd] % (len(COLOURS) - CARDS))
    tone = torch.where(hidden, 70, 85 + draws.below(16, items))
    often = draws.below(10, items) * (not size.plain)
    shown = torch.where((often < 7) | (steps > 1), 3, torch.where(often < 9, 1, 2))  # bits
    shown[:, cards.stop :] = 3 * (not size.plain)
    return Needles(
        step=step,
        steps=steps,
        row=block // BLOCKS * 2 + inside[..., 0] * (height == 1),
        column=block % BLOCKS * 2 + inside[..., 1] * (width == 1),
        height=height,
        width=width,
        glyph=glyph,
        colour=colour,
        tone=tone,
        shown=shown * there,
    )
