"""What is asked about the videos of the suite `long`: the kinds of `questions.PLANS`, asked and answered as there.

A needle that lasts is shown many times over, so its evidence is each of its parts once, at any step.
"""

import torch
from torch import Tensor

from vidsieve.evaluation.needles.draws import Draws
from vidsieve.evaluation.needles.glyphs import SHAPES
from vidsieve.evaluation.needles.layout import BLOCKS, GRID, MOST, REPEATED, Layout
from vidsieve.evaluation.needles.long_layout import BRIEF, CARD, COPIES, LASTING, MEDIUM, SHOTS, SIGN, THROUGHOUT
from vidsieve.evaluation.needles.questions import (
    AREA,
    COLOUR,
    NUMBER,
    ORDINAL,
    SHAPE,
    YES,
    Questions,
    Sheet,
    ask_balls,
    ask_scenes,
    pick,
)

PARTS = 4  # tokens of a needle, at most


def ask(draws: Draws, layout: Layout, owner: Tensor) -> Questions:
    """The questions about each video. owner: (B, T, GRID, GRID), as `render.owners` has it."""
    size, needles, shapes = layout.size, layout.needles, layout.shapes
    shape = owner.shape
    owner = owner.flatten(1)  # (B, N)
    item = owner.clamp(min=0)
    cell = torch.arange(GRID, device=owner.device)
    row, column = (side.expand(shape).flatten(1) for side in (cell[:, None], cell))
    needle_of = item.clamp(max=needles.step.shape[1] - 1)
    down, right = (at - first.gather(1, needle_of) for at, first in ((row, needles.row), (column, needles.column)))
    part = 1 + 2 * down + right  # of the needle that a token shows
    sheet = Sheet("long")
    add = sheet.add

    def number(value: int) -> Tensor:
        return torch.full_like(layout.scenes, value)

    def parts(index: Tensor, group: int = 0) -> Tensor:
        """Each part of needles `index` (B,), groups from `group` on."""
        return ((part + group) * (owner == index[:, None])).to(torch.int8)

    of_colour = {"colour": (BRIEF, BRIEF + 1), "some": (MEDIUM, MEDIUM + 1), "lasting": (LASTING,)}
    for kind, them in {**of_colour, "throughout": (THROUGHOUT,)}.items():
        for which in them:
            add(kind, COLOUR + needles.colour[:, which], parts(number(which)), SHAPE + shapes[:, which])
    for kind, which, digit in (("sign", SIGN, 0), ("digit", CARD, 1)):
        add(kind, NUMBER + layout.digits[:, digit], parts(number(which)), COLOUR + needles.colour[:, which])

    copies = torch.stack([parts(number(COPIES + copy), PARTS * copy) for copy in range(MOST)]).sum(0)
    add("count", NUMBER + layout.copies[:, 0], copies.to(torch.int8), SHAPE + shapes[:, size.unique])
    shot = layout.scene.repeat_interleave(GRID * GRID, dim=1) + 1
    here = (owner >= SHOTS) & (owner < SHOTS + MOST)
    add("across", NUMBER + layout.copies[:, 1], (shot * here).to(torch.int8), SHAPE + shapes[:, size.unique + 1])

    # Each is in a shot of its own.
    for pair in draws.order(3, 2).unbind(1):
        one, other = (torch.where(each > 0, MEDIUM - 1 + each, LASTING) for each in pair.T[:2])
        earlier = torch.where(pick(needles.step, one) < pick(needles.step, other), one, other)
        both = parts(one) + parts(other, PARTS)
        add("order", SHAPE + pick(shapes, earlier), both, SHAPE + pick(shapes, one), SHAPE + pick(shapes, other))

    there = draws.below(2) == 1
    absent = size.unique + REPEATED
    index = torch.where(there, draws.below(size.unique), absent + draws.below(len(SHAPES) - absent))
    add("appear", torch.where(there, YES, YES + 1), parts(index) * there[:, None], SHAPE + pick(shapes, index))

    ask_scenes(draws, layout, owner, add, 2)
    ask_balls(layout, owner, add)

    block = needles.row[:, LASTING] // 2 * BLOCKS + needles.column[:, LASTING] // 2
    add("where", AREA + block, parts(number(LASTING)), SHAPE + shapes[:, LASTING])
    quarter = needles.step[:, BRIEF] * 4 // size.steps
    add("when", ORDINAL + quarter, parts(number(BRIEF)), SHAPE + shapes[:, BRIEF])
    return sheet.questions()
