"""What is asked about a layout, what the answer is, and which tokens hold it.

Every video of a suite gets the same questions, those of `PLANS`, in that order. The answer is one word, uniform over
the words that the question admits, and independent of the words in the question: who has not seen the video can only
guess (`CHANCES`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, repeat

import torch
from torch import Tensor

from vidsieve.evaluation.needles.draws import Draws
from vidsieve.evaluation.needles.glyphs import COLOURS, SHAPES
from vidsieve.evaluation.needles.layout import BALLS, BLOCKS, CARDS, GRID, MOST, REPEATED, Layout
from vidsieve.evaluation.needles.render import ball_tokens

TEMPLATES = {  # kind of question: its text, with places for words
    "colour": "What colour is the {}?",  # of something shown for one step
    "some": "What colour is the {}?",  # for some steps
    "lasting": "What colour is the {}?",  # for a whole scene
    "throughout": "What colour is the {}?",  # for the whole video
    "digit": "Which digit is on the {} card?",
    "sign": "Which digit is on the {} card?",  # which stands for a whole scene
    "count": "How many times is the {} shown?",
    "across": "In how many scenes is the {} shown?",
    "order": "Which came first, the {} or the {}?",
    "appear": "Is the {} shown?",
    "scene": "What colour is the {} scene?",
    "cuts": "How many scenes are there?",
    "direction": "Which way does the {} ball move?",
    "where": "Where is the {}?",
    "when": "In which quarter is the {} shown?",
}
PLANS = {  # of each suite: kinds of questions, in order
    suite: tuple(chain.from_iterable(repeat(kind, times) for kind, times in counts.items()))
    for suite, counts in {
        "needles": {
            "colour": 2,
            "lasting": 1,
            "digit": CARDS,
            "count": REPEATED,
            "order": 3,
            "appear": 1,
            "scene": 1,
            "cuts": 1,
            "direction": BALLS,
            "where": 1,
            "when": 1,
        },
        "long": {
            "colour": 2,
            "some": 2,
            "lasting": 1,
            "throughout": 1,
            "digit": 1,
            "sign": 1,
            "count": 1,
            "across": 1,
            "order": 2,
            "appear": 1,
            "scene": 2,
            "cuts": 1,
            "direction": BALLS,
            "where": 1,
            "when": 1,
        },
    }.items()
}
PLAN = PLANS["needles"]
KINDS = tuple(dict.fromkeys(PLAN))
CHANCE = {  # of a right guess, for videos of at least 12 steps (shorter ones have fewer scenes)
    "colour": 1 / 8,
    "lasting": 1 / 8,
    "digit": 1 / 10,
    "count": 1 / 6,
    "order": 1 / 2,
    "appear": 1 / 2,
    "scene": 1 / 8,
    "cuts": 1 / 6,
    "direction": 1 / 4,
    "where": 1 / 9,
    "when": 1 / 4,
}
CHANCES = {
    "needles": CHANCE,
    "long": {kind: CHANCE.get(kind, 1 / 8) for kind in dict.fromkeys(PLANS["long"])}
    | {"sign": 1 / 10, "across": 1 / 3, "cuts": 1 / 4},
}

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
HEADINGS = ("left", "right", "up", "down")
AREAS = ("northwest", "north", "northeast", "west", "centre", "east", "southwest", "south", "southeast")
WORDS = (*COLOURS, *SHAPES, *ORDINALS, *HEADINGS, *AREAS, *map(str, range(10)), "yes", "no")  # all answers, and more
# Where each list of words begins in WORDS.
COLOUR, SHAPE, ORDINAL, HEADING, AREA, NUMBER, YES = (
    WORDS.index(word) for word in ("red", SHAPES[0], "first", "left", "northwest", "0", "yes")
)


@dataclass(frozen=True, eq=False)
class Questions:
    """About B videos of N tokens of a suite; Q = len(plan), and question j is of kind plan[j].

    words: (B, Q, 2), what fills the places of the template.  answer: (B, Q).  Both are indices into WORDS.
    evidence: int8 (B, Q, N), the group a token belongs to, counted from 1; 0 where it has nothing to do with the
    question. One token of every group is needed, and enough. Where nothing was shown, there is no evidence.
    """

    words: Tensor
    answer: Tensor
    evidence: Tensor
    suite: str = "needles"

    @property
    def plan(self) -> tuple[str, ...]:
        return PLANS[self.suite]

    def text(self, video: int, question: int) -> str:
        """The question in words."""
        return TEMPLATES[self.plan[question]].format(*(WORDS[word] for word in self.words[video, question].tolist()))

    def reply(self, video: int, question: int) -> str:
        """The answer in words."""
        return WORDS[int(self.answer[video, question])]


def recall(evidence: Tensor, kept: Tensor) -> Tensor:
    """The share of evidence groups of which a token was kept: float32 (B, Q), NaN where there is no evidence.

    evidence: int8 (B, Q, N).  kept: bool (B, N), or (B, Q, N) where it depends on the question.
    """
    kept = kept if kept.ndim == 3 else kept[:, None]
    groups = torch.arange(1, int(evidence.max()) + 1, device=evidence.device)
    found = torch.stack([((evidence == group) & kept).any(2) for group in groups.tolist()], dim=2)
    wanted = torch.stack([(evidence == group).any(2) for group in groups.tolist()], dim=2)
    return (found & wanted).sum(2) / wanted.sum(2)


def pick(value: Tensor, index: Tensor) -> Tensor:
    """value (B, n), index (B,) -> (B,)."""
    return value.gather(1, index[:, None])[:, 0]


def each_token(mask: Tensor) -> Tensor:
    """Every token of `mask` (B, N) as a group of its own."""
    return (mask.cumsum(1) * mask).to(torch.int8)


class Sheet:
    """The questions about B videos of a suite, kind after kind."""

    def __init__(self, suite: str) -> None:
        self.suite = suite
        self.asked: dict[str, list[tuple[Tensor, Tensor, Tensor, Tensor]]] = {kind: [] for kind in PLANS[suite]}

    def add(
        self, kind: str, answer: Tensor, evidence: Tensor, first: Tensor | None = None, second: Tensor | None = None
    ) -> None:
        """answer: (B,).  evidence: (B, N).  first, second: the words in the question, (B,)."""
        none = torch.zeros_like(answer)
        self.asked[kind].append(
            (none if first is None else first, none if second is None else second, answer, evidence)
        )

    def questions(self) -> Questions:
        first, second, answer, evidence = zip(*chain.from_iterable(self.asked.values()), strict=True)
        words = torch.stack((torch.stack(first, 1), torch.stack(second, 1)), dim=2)
        return Questions(words, torch.stack(answer, 1), torch.stack(evidence, 1), self.suite)


def ask_scenes(draws: Draws, layout: Layout, owner: Tensor, add: Callable[..., None], times: int = 1) -> None:
    """Ask for the colour of `times` scenes, and how many there are. owner: (B, N).

    To know a scene for the third one, a token of the first and of the second must be seen as well.
    """
    scene = layout.scene.repeat_interleave(owner.shape[1] // layout.size.steps, dim=1)  # (B, N)
    scene = (scene + 1) * (owner < 0)
    index = draws.below(1 << 20) % layout.scenes
    for time in range(times):
        if time:  # another one than the last
            index = (index + 1 + draws.below(1 << 20) % (layout.scenes - 1)) % layout.scenes
        until = (scene * (scene <= index[:, None] + 1)).to(torch.int8)
        add("scene", COLOUR + pick(layout.scene_colour, index), until, ORDINAL + index)
    add("cuts", NUMBER + layout.scenes, scene.to(torch.int8))


def ask_balls(layout: Layout, owner: Tensor, add: Callable[..., None]) -> None:
    """Ask for the way of each ball. owner: (B, N)."""
    over = ball_tokens(layout, owner.view(len(owner), layout.size.steps, GRID, GRID)).flatten(2)  # (B, BALLS, N)
    for ball in range(BALLS):
        heading, colour = layout.movers.heading[:, ball], layout.movers.colour[:, ball]
        add("direction", HEADING + heading, over[:, ball].to(torch.int8), COLOUR + colour)


def ask(draws: Draws, layout: Layout, owner: Tensor) -> Questions:
    """The questions about each video of `needles`. owner: (B, T, GRID, GRID), as `render.owners` has it.

    In one piece, kind after kind: the order of the draws is part of what the suite is.
    """
    size, needles, shapes = layout.size, layout.needles, layout.shapes
    batch, items = needles.step.shape
    unique, kinds = size.unique, len(SHAPES)
    owner = owner.flatten(1)  # (B, N)
    number = torch.arange(items, device=owner.device)
    cards = unique + REPEATED * MOST
    sheet = Sheet("needles")
    add = sheet.add

    def needle(index: Tensor) -> Tensor:
        return each_token(owner == index[:, None])

    anyone = draws.order(unique)  # of the shapes shown once, in any order
    for index in anyone.T[:2]:
        add("colour", COLOUR + pick(needles.colour, index), needle(index), SHAPE + pick(shapes, index))

    stays = (owner == items).to(torch.int8)
    add("lasting", COLOUR + layout.lasting[:, 2], stays, SHAPE + shapes[:, size.lasting])

    for card in range(CARDS):
        index = torch.full((batch,), cards + card, device=owner.device)
        add("digit", NUMBER + layout.digits[:, card], needle(index), COLOUR + pick(needles.colour, index))

    for repeated in range(REPEATED):
        begin = unique + repeated * MOST
        copy = (owner[..., None] == number[begin : begin + MOST]).any(2)
        add("count", NUMBER + layout.copies[:, repeated], each_token(copy), SHAPE + shapes[:, unique + repeated])

    for pair in draws.order(unique, 3).unbind(1):
        one, other = pair[:, 0], pair[:, 1]
        earlier = torch.where(pick(needles.step, one) < pick(needles.step, other), one, other)
        both = each_token((owner == one[:, None]) | (owner == other[:, None]))
        add("order", SHAPE + pick(shapes, earlier), both, SHAPE + pick(shapes, one), SHAPE + pick(shapes, other))

    there = draws.below(2) == 1
    index = torch.where(there, draws.below(unique), size.lasting + 1 + draws.below(kinds - size.lasting - 1))
    add("appear", torch.where(there, YES, YES + 1), needle(index) * there[:, None], SHAPE + pick(shapes, index))

    ask_scenes(draws, layout, owner, add)
    ask_balls(layout, owner, add)

    index = anyone[:, 2]
    row, column = (pick(each, index) // 2 for each in (needles.row, needles.column))
    add("where", AREA + row * BLOCKS + column, needle(index), SHAPE + pick(shapes, index))
    index = anyone[:, 3]
    quarter = pick(needles.step, index) * 4 // size.steps
    add("when", ORDINAL + quarter, needle(index), SHAPE + pick(shapes, index))

    return sheet.questions()
