"""Provide a clip, a question and a model for `vidsieve demo`, all offline.

The clip is a video of the synthetic needle suite, and the model is vidsieve-tiny, which was trained on other videos of
that suite (docs/needles.md) and comes with the package. It is a small Qwen2.5-VL.
"""

import os
import shutil
from pathlib import Path

from vidsieve.evaluation.needles import generate
from vidsieve.evaluation.needles.clip import write_clip
from vidsieve.evaluation.needles.layout import Size
from vidsieve.evaluation.needles.tiny import BUNDLED

SPLIT, NUMBER = "test", 11
QUESTION = 3
FRAMES = Size().frames
NOTE = "right is {}; this model of 6 million parameters knows only videos of this kind"


def render_clip(path: str | os.PathLike[str]) -> Path:
    """Write the demo clip, always the same: 16 s in 32 frames of 96 x 96, H.264."""
    return write_clip(generate(SPLIT, [NUMBER]).frames[0], path)


def question() -> tuple[str, str]:
    """Get the question about the clip, and the right answer."""
    asked = generate(SPLIT, [NUMBER]).questions
    return asked.text(0, QUESTION), asked.reply(0, QUESTION)


def copy_model(folder: str | os.PathLike[str]) -> Path:
    """Put the bundled checkpoint into `folder`, which `from_pretrained` then loads."""
    return Path(shutil.copytree(BUNDLED, folder, dirs_exist_ok=True))
