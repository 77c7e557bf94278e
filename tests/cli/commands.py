"""Command lines that the tests share."""

from pathlib import Path


def command(world: Path, *more: str, clip: str = "clip.mp4") -> list[str]:
    """`vidsieve run` of a clip of this folder with the model of this folder; later options override these."""
    return [
        *("run", str(world / clip), "--question", "What moves?", "--model", str(world / "model")),
        *("--frames", "8", "--max-new-tokens", "4", *more),
    ]
