"""The model card of vidsieve-tiny, with the figures of the run that made it: README.md beside each checkpoint.

python -m benchmarks.tiny_card out/tiny     # again, from out/tiny/log.json; a training run does it by itself
"""

import json
import sys
from pathlib import Path
from typing import Any

PHASES = {
    "full": "It was trained on whole videos: a reduced video is something it has not seen{unless}.",
    "dropped": (
        "It was trained on whole videos first, then on videos of which 2 to 100 % of the visual tokens were kept,\n"
        "chosen at random and unevenly. What it gets wrong about a reduced video is therefore mostly evidence\n"
        "that was lost, and not the mere strangeness of a shorter sequence."
    ),
}

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: video-text-to-text
---

# vidsieve-tiny, `{phase}`

A Qwen2.5-VL of {millions:.1f} million parameters that answers questions about the synthetic needle suites of the
library vidsieve ({suites}), and nothing else. It exists so that what a reduction of video tokens costs can be measured
anywhere, on a model whose answers mean something, with evidence that is known token by token.

{about}

## What it is not

It has never seen a natural picture, knows {words} words, and answers with one of them. Figures measured on it are no
statement about any other model, and the suite is no benchmark of video language models.

## Use

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder)
```

Videos are {frames} frames of 96 x 96 pixels at two frames a second, which the processor must be told
(`video_metadata`): transformers rounds the seconds between two steps down to whole ones, and at a higher rate all steps
would have the same position. `vidsieve.cli.run.prepare` does it.

## Accuracy

{count} videos of the split `test`, whose textures were not in the training; the mean is over kinds of questions.
Chance is that of a uniform guess; *words* is the most frequent answer to exactly these words in 20 000 other videos,
the most that can be had without the video; *no video* is this model, shown none.

{tables}

*Random 25 %* and the others are this model on a random subset of the visual tokens.

## Training

`{command}`: {videos:,} videos, rendered while
training on one {device} with torch {torch} and transformers {transformers}{began}. The history is in `log.json`, in the
repository {log}.
"""

COLUMNS = {
    "chance": "chance",
    "words": "words",
    "no video": "no video",
    "test": "**all tokens**",
    "train textures": "known textures",
    "random 0.25": "random 25 %",
    "random 0.1": "random 10 %",
    "random 0.05": "random 5 %",
}


def card(log: dict[str, Any], phase: str, words: int) -> str:
    """The card of one checkpoint. log: what `train_tiny.py` wrote."""
    suites = log["chance"]
    start = log["start"]
    return CARD.format(
        phase=phase,
        about=PHASES[phase].format(unless=" since, if what it began with had" if start else ""),
        millions=log["parameters"] / 1e6,
        words=words,
        suites=" and ".join(f"`{suite}`" for suite in suites),
        frames=" or ".join(str(frames) for frames in log["frames"]),
        count=f"{log['test_videos']:,}",
        tables="\n\n".join(f"Suite `{suite}`:\n\n{_table(log, phase, suite)}" for suite in suites),
        began=f", from the weights with the SHA-256 {log['start_sha256'][:16]}" if start else "",
        log=f"benchmarks/results/{_log_of(log)}",
        **{name: log[name] for name in ("command", "seed", "videos", "device", "torch", "transformers")},
    )


def _log_of(log: dict[str, Any]) -> str:
    """The name under which the log of such a run is kept."""
    if not log["start"]:
        return "train_tiny_h200.json"
    if "--freeze-tower" not in log["command"]:
        return "train_tiny_both_h200.json"
    return f"train_tiny_decoder_seed{log['seed']}_h200.json"


def _table(log: dict[str, Any], phase: str, suite: str) -> str:
    """Accuracy on one suite, a row for each kind of question."""
    chance = dict(log["chance"][suite])
    chance["mean"] = sum(chance.values()) / len(chance)
    columns = {"chance": chance, "words": log["results"]["words"][suite]} | log["results"][phase][suite]
    rows = ["| kind | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    rows += [f"| {kind} | " + " | ".join(f"{columns[name][kind]:.3f}" for name in COLUMNS) + " |" for kind in chance]
    return "\n".join(rows)


def write_cards(folder: Path) -> None:
    """README.md for both checkpoints in `folder`."""
    log = json.loads((folder / "log.json").read_text())
    for phase in PHASES.keys() & log["results"].keys():
        words = len(json.loads((folder / phase / "tokenizer.json").read_text())["model"]["vocab"])
        (folder / phase / "README.md").write_text(card(log, phase, words))


if __name__ == "__main__":
    write_cards(Path(sys.argv[1]))
