"""Write a few videos of the synthetic needle suite, with their questions, for lmms-eval: docs/reproduce.md.

python -m benchmarks.lmms.make --videos 4 --out out/needles
"""

import argparse
import json
from pathlib import Path

from vidsieve.evaluation.needles import PLAN, Size, generate
from vidsieve.evaluation.needles.clip import write_clip


def make(folder: Path, videos: int, size: Size = Size()) -> Path:
    """folder/test.json: one question a row, with the path of its video."""
    folder.mkdir(parents=True, exist_ok=True)
    batch = generate("test", range(videos), size)
    rows = []
    for video in range(videos):
        clip = write_clip(batch.frames[video], folder / f"{video}.mp4")
        for question, kind in enumerate(PLAN):
            text, answer = batch.questions.text(video, question), batch.questions.reply(video, question)
            rows.append({"video": str(clip.resolve()), "kind": kind, "question": text, "answer": answer})
    path = folder / "test.json"
    path.write_text(json.dumps(rows, indent=1) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("out/needles"))
    options = parser.parse_args()
    print(make(options.out, options.videos, Size(options.frames)))


if __name__ == "__main__":
    main()
