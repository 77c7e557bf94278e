"""The layouts of the suite `long`: what stands still, what lasts, and shots of very unequal lengths.

A video has three to six shots, of which the shortest may be one step and the longest nearly all. In some the camera
pans. Needles last for one step, for some, for a whole shot or for the whole video, and none moves; what moves beside
them is hardly ever asked about. Half of the shots are busy: cards of other colours than those that are asked about come
and go, each of them as unlike the rest as a needle is.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vidsieve.evaluation.needles.draws import LARGE, Draws
from vidsieve.evaluation.needles.glyphs import COLOURS, GREY, SHAPES
from vidsieve.evaluation.needles.layout import (
    BALLS,
    BLOCKS,
    CARDS,
    MOST,
    REPEATED,
    SCENES,
    Layout,
    Movers,
    Needles,
    Size,
    backgrounds,
    centre,
    cross,
    diameter,
    dress,
    flicker,
    glyphs_of,
)

FEWEST = 3  # shots
LENGTHS = 5  # the shots' lengths are about as 1, 2, 4, 8, 16
BUSY = 3  # grey movers in the shot of the lasting shape, and half as many elsewhere, on average
PAN = 24  # quarter pixels a frame, the fastest camera
CROWD = 3  # cards that are not asked about, in every two steps of a video, all of them in busy shots
BALL = 6  # steps before and after a moment in which a ball is there, at most
# Numbers of the needles.
LASTING, THROUGHOUT, BRIEF, MEDIUM = 0, 1, 2, 4
COPIES, SHOTS = 6, 6 + MOST  # the shape that is counted, the one whose shots are counted
SIGN, CARD = 6 + REPEATED * MOST, 7 + REPEATED * MOST  # digits: one that stands for a whole shot, one of one step
SQUARE = SHAPES.index("square")  # covers a token, so that its shot cannot be told


def plan(draws: Draws, size: Size, split: str) -> Layout:
    """The layout of every video of `draws`."""
    scenes, scene = _cut(draws, size)
    scene_colour = draws.order(len(COLOURS))[:, :SCENES]
    shapes = draws.order(len(SHAPES))
    shapes = _no_square(draws, shapes, size.unique + 1)
    copies = torch.stack((draws.below(MOST + 1), 1 + draws.below(FEWEST)), dim=1)
    crowd = CROWD * size.steps // 2
    digits = draws.below(10, CARDS + crowd)
    balls = _roll(draws, size, scene)
    shot = scene.gather(1, draws.below(size.steps)[:, None])  # a long one, most likely
    needles = _hide(draws, size, scenes, scene, scene_colour, shapes, copies, digits, balls, shot)
    movers = _crowd(draws, size, scenes, scene, balls, shot)
    scenery = backgrounds(draws, size, split)
    pans = draws.below(2, SCENES, 1) * (not size.plain)
    scenery["drift"] = (draws.below(2 * PAN + 1, SCENES, 2) - PAN) * pans
    none = torch.zeros_like(scene[:, :3])  # what `lasting` says of the suite `needles` is a needle here
    none[:, 0] = -1
    return Layout(
        size=size,
        scenes=scenes,
        scene=scene,
        scene_colour=scene_colour,
        **scenery,
        shapes=shapes,
        copies=copies,
        digits=digits[:, :CARDS],
        needles=needles,
        movers=movers,
        lasting=none,
        flicker=flicker(draws, size),
    )


def _no_square(draws: Draws, shapes: Tensor, place: int) -> Tensor:
    """Exchange the square, if it is in this place, for any other shape: shapes (B, 12)."""
    other = draws.below(len(SHAPES) - 1)[:, None]
    other = other + (other >= place)
    swapped = shapes.scatter(1, other, SQUARE)
    swapped[:, place] = shapes.gather(1, other)[:, 0]
    return torch.where(shapes[:, place, None] == SQUARE, swapped, shapes)


def _cut(draws: Draws, size: Size) -> tuple[Tensor, Tensor]:
    """How many shots (B,), uniform, and the shot of each step (B, T)."""
    scenes = FEWEST + draws.below(SCENES - FEWEST + 1)
    number = torch.arange(SCENES, device=scenes.device)
    shift = draws.below(LENGTHS, SCENES)
    weight = (torch.ones_like(shift) << shift) * (number < scenes[:, None])
    so_far, spare = weight.cumsum(1), size.steps - scenes[:, None]
    cuts = number + 1 + spare * so_far // so_far[:, -1:]  # the last step of a shot, and one
    cuts = torch.where(number < scenes[:, None] - 1, cuts, size.steps)
    step = torch.arange(size.steps, device=scenes.device)
    return scenes, (step[:, None] >= cuts[:, None]).sum(2)


def _roll(draws: Draws, size: Size, scene: Tensor) -> Movers:
    """Balls, each for some steps of a shot, within a row or column of blocks."""
    moment = draws.below(size.steps, BALLS)
    before, after = draws.below(BALL, BALLS), draws.below(BALL, BALLS)
    begin, end = _bounds(scene, scene.gather(1, moment))
    first, last = torch.maximum(begin, moment - before), torch.minimum(end, moment + 1 + after)
    return cross(draws, size, 2 * first, 2 * last - 1, lanes=True)


def _bounds(scene: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """First step of shots `which` (B, n), and the one after the last."""
    there = scene[:, None] == which[..., None]
    begin = there.int().argmax(2)
    return begin, begin + there.sum(2)


def _crowd(draws: Draws, size: Size, scenes: Tensor, scene: Tensor, balls: Movers, shot: Tensor) -> Movers:
    """The balls, and grey squares that go to and fro as long as their shot lasts."""
    elsewhere = draws.below(LARGE, BUSY) % scenes[:, None]
    begin, end = _bounds(scene, torch.cat((shot.expand(-1, BUSY), elsewhere), dim=1))  # (B, 2 * BUSY)
    room = size.side - diameter(size)
    fastest = size.token // 4
    start = draws.below(2 * room, 2 * BUSY, 2)
    speed = draws.below(2 * fastest + 1, 2 * BUSY, 2) - fastest
    time = torch.arange(size.frames, device=scene.device)
    way = (start[..., None] + speed[..., None] * time) % (2 * room)
    y, x = torch.where(way > room, 2 * room - way, way).unbind(2)
    seen = draws.below(2, 2 * BUSY) > 0
    seen[:, :BUSY] = True
    last = torch.where(seen & (not size.plain), 2 * end - 1, -1)
    some = torch.zeros_like(begin)
    return Movers(
        y=torch.cat((balls.y, y), dim=1),
        x=torch.cat((balls.x, x), dim=1),
        first=torch.cat((balls.first, 2 * begin), dim=1),
        last=torch.cat((balls.last, last), dim=1),
        heading=torch.cat((balls.heading, some), dim=1),
        colour=torch.cat((balls.colour, some + GREY), dim=1),
    )


class _Board:
    """Which blocks are taken at which steps, needle after needle."""

    def __init__(self, draws: Draws, scene: Tensor, balls: Movers, size: Size) -> None:
        self.draws, self.scene = draws, scene
        blocks = torch.arange(BLOCKS * BLOCKS, device=scene.device)
        row, column, there = (each[..., None] for each in centre(balls, size))  # (B, M, T, 1)
        down, right = row // 2 == blocks // BLOCKS, column // 2 == blocks % BLOCKS
        self.taken = (there & down & right).any(1)  # (B, T, blocks)
        # A ball's whole lane, for what stays: so that no block is likelier than another.
        vertical = (balls.heading >= 2)[..., None]
        row, column, there = (each.transpose(2, 3) for each in (row, column, there))  # (B, M, 1, T)
        begin = there.int().argmax(3, keepdim=True)
        down, right = (each.gather(3, begin)[..., 0] // 2 for each in (row, column))  # (B, M, 1)
        lane = torch.where(vertical, right == blocks % BLOCKS, down == blocks // BLOCKS)  # (B, M, blocks)
        shot = scene.gather(1, begin[..., 0, 0])  # (B, M)
        self.lanes = ((scene[:, None] == shot[..., None])[..., None] & lane[:, :, None]).any(1)  # (B, T, blocks)
        self.placed: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def put(
        self, steps: Tensor, allowed: Tensor, wanted: Tensor | None = None, still: bool = False, cuts: bool = False
    ) -> Tensor:
        """Take a random block for so many steps, one where there is no room for more: the steps it is there, (B, T).

        steps: (B,).  allowed: bool (B, T), the steps at which it may be.  wanted: bool (B,), else nothing is taken.
        still: clear of the lanes of balls.  cuts: whether it may stay over a cut.
        """
        busy = self.taken | ~allowed[..., None]
        busy = busy | self.lanes if still else busy
        many, blocks = busy.shape[1:]
        so_far = F.pad(busy.int().cumsum(1), (0, 0, 1, 0))  # (B, T + 1, blocks)
        step = torch.arange(many, device=busy.device)
        end = step + steps[:, None]  # (B, T)
        clear = so_far.gather(1, end.clamp(max=many)[..., None].expand(-1, -1, blocks)) == so_far[:, :-1]
        within = cuts or self.scene.gather(1, (end - 1).clamp(max=many - 1)) == self.scene
        clear &= ((end <= many) & within)[..., None]
        enough = clear.flatten(1).any(1)
        clear = torch.where(enough[:, None, None], clear, ~busy)
        score = self.draws.below(LARGE, many * blocks)
        place = torch.where(clear.flatten(1), score, -1).argmax(1)
        begin, block = place // blocks, place % blocks
        steps = torch.where(enough, steps, 1)
        there = clear.flatten(1).any(1)
        there = there if wanted is None else there & wanted
        during = (step >= begin[:, None]) & (step < (begin + steps)[:, None]) & there[:, None]
        here = torch.arange(blocks, device=busy.device) == block[:, None]
        self.taken = self.taken | (during[..., None] & here[:, None])
        self.placed.append((begin, steps, block, there))
        return during

    def scatter(self, many: int, allowed: Tensor) -> None:
        """Take `many` places of one step, any that are free, or as many as there are. allowed: bool (B, T)."""
        blocks = self.taken.shape[2]
        free = (~self.taken & allowed[..., None]).flatten(1)
        score = torch.where(free, self.draws.below(LARGE, free.shape[1]), -1)
        order = score.argsort(dim=1, descending=True, stable=True)[:, :many]
        there = free.gather(1, order)
        self.taken = self.taken | torch.zeros_like(free).scatter(1, order, there).view_as(self.taken)
        for place, free_one in zip(order.T, there.T, strict=True):
            self.placed.append((place // blocks, torch.ones_like(place), place % blocks, free_one))


def _hide(
    draws: Draws,
    size: Size,
    scenes: Tensor,
    scene: Tensor,
    scene_colour: Tensor,
    shapes: Tensor,
    copies: Tensor,
    digits: Tensor,
    balls: Movers,
    shot: Tensor,
) -> Needles:
    """Needles, each in a block of its own. shot: (B, 1), of the lasting shape.

    In one piece, as the draws of a video come one after another: another order would make other videos.
    """
    board = _Board(draws, scene, balls, size)
    put, step = board.put, torch.arange(size.steps, device=scene.device)
    begin, end = _bounds(scene, torch.arange(SCENES, device=scene.device).expand(len(scene), -1))
    lengths = end - begin  # (B, SCENES), 0 where there is no such shot
    every = torch.ones_like(scene, dtype=torch.bool)

    def length(which: Tensor) -> Tensor:
        """Of the shots `which` (B, 1): (B,)."""
        return lengths.gather(1, which)[:, 0]

    # What stays comes first, since it needs a block for itself; its number is put right at the end.
    put(torch.full_like(scenes, size.steps), every, still=True, cuts=True)
    put(length(shot), scene == shot, still=True)
    sign = scene.gather(1, draws.below(size.steps)[:, None])
    put(length(sign), scene == sign, still=True)
    for moment in draws.order(size.steps)[:, :3].T:  # two brief shapes and a card, never two at a time
        put(torch.ones_like(scenes), step == moment[:, None])
    absent = torch.arange(SCENES, device=scene.device) >= scenes[:, None]
    other = (
        draws.below(LARGE, SCENES)
        .masked_fill(absent, -1)
        .scatter(1, shot, -1)
        .argsort(dim=1, descending=True, stable=True)
    )
    for place in range(2):
        which = other[:, place, None]
        put(torch.minimum(2 + draws.below(max(1, size.steps // 4 - 1)), length(which)), scene == which)
    near = torch.zeros_like(every)
    for copy in range(MOST):  # with a pause between any two, or they could be taken for one
        there = put(1 + draws.below(max(1, size.steps // 12)), ~near, copy < copies[:, 0])
        near = near | there | F.pad(there, (1, -1)) | F.pad(there, (-1, 1))
    order = draws.below(LARGE, SCENES).masked_fill(absent, -1).argsort(dim=1, descending=True, stable=True)
    for shown in range(FEWEST):
        which = order[:, shown, None]
        put(torch.minimum(1 + draws.below(4), length(which)), scene == which, shown < copies[:, 1])
    for _ in range(MOST - FEWEST):  # once more in a shot where it is shown already, or not
        which = order.gather(1, (draws.below(LARGE) % copies[:, 1])[:, None])
        put(torch.minimum(1 + draws.below(4), length(which)), scene == which, draws.below(2) == 1)
    busy = draws.below(2, SCENES) * (not size.plain) > 0
    board.scatter(digits.shape[1] - CARDS, busy.gather(1, scene))
    board.scatter(size.steps // 4, every)

    throughout, lasting, sign_at, *others = board.placed
    briefs, card, rest = others[:2], others[2], others[3:]
    middle = 2 + REPEATED * MOST
    placed = [lasting, throughout, *briefs, *rest[:middle], sign_at, card, *rest[middle:]]
    at, steps, block, there = (torch.stack(each, dim=1) for each in zip(*placed, strict=True))
    glyph = glyphs_of(shapes, size.unique, digits, size.steps // 4)
    behind = scene_colour.gather(1, scene.gather(1, at))
    single, crowd = slice(SHOTS, SHOTS + MOST), slice(CARD + 1, CARD + 1 + digits.shape[1] - CARDS)
    return dress(draws, size, at, steps, block, glyph, there, behind, single, crowd)
