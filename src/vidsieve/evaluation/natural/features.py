"""The features that come with the package: what a pretrained network saw in the takes, and its head.

data/card.json says which network, whose clips under which licences, and what projection and rounding cost.
benchmarks/natural_features.py makes the folder.
"""

import json
import lzma
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidsieve.errors import WrongArgument
from vidsieve.evaluation.natural.takes import CLIPS, SIDE, SPLITS, TAKES

DATA = Path(__file__).parent / "data"
LENGTHS = 16  # steps in which a length may double


@dataclass(frozen=True, eq=False)
class Features:
    """Of the takes of one split.

    takes: by name, float32 (frames, SIDE**2, D).  weight, bias: of the network's head, (classes, D), (classes,).
    """

    takes: dict[str, Tensor]
    weight: Tensor
    bias: Tensor

    def take(self, name: str) -> Tensor:
        return self.takes[name]


def card(folder: Path = DATA) -> dict[str, Any]:
    """What is known of the features. Raises `WrongArgument` where the folder holds none."""
    path = folder / "card.json"
    if not path.is_file():
        raise WrongArgument(f"expected a folder that benchmarks/natural_features.py made, got {folder}: no card.json")
    found: Any = json.loads(path.read_text())
    wanted = {"network", "rank", "splits", "head_bias"}
    if not isinstance(found, dict) or not wanted <= found.keys() or not set(SPLITS) <= set(found["splits"]):
        raise WrongArgument(f"{path} is no card of benchmarks/natural_features.py; make the folder again with it")
    return found


def of_split(split: str) -> list[str]:
    """The takes whose clips are of this split, in the order in which the file has them."""
    return [name for name, take in TAKES.items() if CLIPS[take.clip].split == split]


@cache
def load(split: str, folder: Path = DATA) -> Features:
    """Read the features of one split: the length of each token, then each direction of all tokens.

    Raises `WrongArgument` where they are of other takes than those there are now.
    """
    about = card(folder)
    scale = about["splits"][split]
    steps = torch.tensor(scale["steps"])
    names = of_split(split)
    counts = [TAKES[name].count for name in names]
    shape = (1 + len(steps), sum(counts), SIDE**2)
    flat = _int8(folder / f"{split}.xz", math.prod(shape))
    if len(flat) != math.prod(shape):
        raise WrongArgument(
            f"{folder / split}.xz holds {len(flat)} numbers or more, and {shape[1]} frames need {math.prod(shape)}: it "
            "was made for other takes; make it again with benchmarks/natural_features.py"
        )
    stored = flat.view(shape).float()
    whole = (stored[1:] * steps[:, None, None] * (stored[0] / LENGTHS).exp2()).permute(1, 2, 0).contiguous()
    takes, begin = {}, 0
    for name, count in zip(names, counts, strict=True):
        takes[name] = whole[begin : begin + count]
        begin += count
    bias, classes = torch.tensor(about["head_bias"]), torch.tensor(scale["head_steps"])
    head = _int8(folder / f"{split}_head.xz", len(classes) * len(steps))
    if len(head) != len(classes) * len(steps) or bias.shape != classes.shape:
        raise WrongArgument(f"{folder / split}_head.xz and the card are not of one head; make the folder again")
    return Features(takes, classes[:, None] * head.view(len(classes), -1), bias)


def _int8(path: Path, count: int) -> Tensor:
    """The numbers in a file that should hold `count`; of one that holds more, one more than that."""
    try:
        stored = lzma.LZMADecompressor().decompress(path.read_bytes(), max_length=count + 1)
    except lzma.LZMAError as error:
        raise WrongArgument(
            f"{path} cannot be read ({error}); make it again with benchmarks/natural_features.py"
        ) from None
    return torch.frombuffer(bytearray(stored), dtype=torch.int8) if stored else torch.empty(0, dtype=torch.int8)
