"""The synthetic needle suite: short videos, made from a number, with questions whose evidence is known token by token.

    batch = generate("test", range(64))
    batch.frames                   # uint8 (64, 32, 3, 96, 96)
    batch.questions.text(0, 3)     # "Which digit is on the green card?"
    batch.questions.reply(0, 3)    # "1"
    batch.questions.evidence       # int8 (64, 17, 576): which visual tokens hold each answer

It tells what a token reducer loses, exactly. It is no benchmark of video language models: what it shows is not natural
video, and the model that answers it can answer nothing else.

A video is one to six scenes with hard cuts between still or slowly drifting backgrounds. In it are shapes and digits
shown for one or two frames on one to four tokens, some of them in the colour of the background; shapes shown several
times, and one that stays for a whole scene; moving balls; and clutter that nobody asks about, but that a selection by
diversity alone spends its budget on.

The splits `train`, `dev` and `test` share no video and no texture. A video depends on its split and number alone:
not on the device, and not on the others in the batch.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vidsieve.evaluation.needles import layout, long_layout, long_questions, questions
from vidsieve.evaluation.needles.draws import Draws
from vidsieve.evaluation.needles.glyphs import TEXTURES
from vidsieve.evaluation.needles.layout import Layout, Size
from vidsieve.evaluation.needles.questions import CHANCE, CHANCES, KINDS, PLAN, PLANS, Questions, recall
from vidsieve.evaluation.needles.render import owners, render

__all__ = [
    "CHANCE",
    "CHANCES",
    "KINDS",
    "LONG",
    "PLAN",
    "PLANS",
    "SIZES",
    "SPLITS",
    "SUITES",
    "Batch",
    "Layout",
    "Questions",
    "Size",
    "describe",
    "generate",
    "recall",
]

SPLITS = tuple(TEXTURES)
LONG = Size(96, suite="long")
SIZES = {"needles": Size(), "long": LONG}  # of the videos of each suite
SUITES = tuple(SIZES)


@dataclass(frozen=True, eq=False)
class Batch:
    """B videos. frames: uint8 (B, F, 3, H, W).  questions: the same kinds for each.  layout: what there is to see."""

    frames: Tensor
    questions: Questions
    layout: Layout


def generate(
    split: str, numbers: Iterable[int] | Tensor, size: Size = Size(), device: torch.device | str = "cpu"
) -> Batch:
    """The videos of these numbers, with their questions. Everything is made on `device`.

    size: of a video, and of which suite.

    Raises `ValueError` for a split that does not exist.
    """
    draws, planned, owner = _plan(split, numbers, size, device)
    asked = _MAKERS[size.suite][1](draws, planned, owner)
    return Batch(render(planned, owner, split, draws.key), asked, planned)


def describe(
    split: str, numbers: Iterable[int] | Tensor, size: Size = Size(), device: torch.device | str = "cpu"
) -> tuple[Layout, Questions]:
    """What `generate` makes, without the frames, which are most of the work."""
    draws, planned, owner = _plan(split, numbers, size, device)
    return planned, _MAKERS[size.suite][1](draws, planned, owner)


_MAKERS = {"needles": (layout.plan, questions.ask), "long": (long_layout.plan, long_questions.ask)}


def _plan(
    split: str, numbers: Iterable[int] | Tensor, size: Size, device: torch.device | str
) -> tuple[Draws, Layout, Tensor]:
    if split not in TEXTURES:
        raise ValueError(f"expected a split among {', '.join(SPLITS)}, got {split!r}")
    if not isinstance(numbers, Tensor):
        numbers = torch.tensor(list(numbers), dtype=torch.int64)
    stream = SUITES.index(size.suite) * len(SPLITS) + SPLITS.index(split)
    draws = Draws(numbers.to(device), stream)
    planned = _MAKERS[size.suite][0](draws, size, split)
    return draws, planned, owners(planned)
