"""Questions about a clip of which only the encoded video is left: no video, no vision tower, no second selection.

    python examples/from_features.py [CLIP [MODEL]]

The defaults are what `make demo` leaves in out/demo. `vidsieve batch` stores many clips the same way, on many machines.
"""

import os
import sys

from vidsieve import EncodedVideo
from vidsieve.encoded.batch import EncodeClips


def main(clip: str = "out/demo/clip.mp4", checkpoint: str = "out/demo/model") -> None:
    out = os.path.abspath("out/features")
    worker = EncodeClips(checkpoint, out, num_frames=32)  # what Ray would make, and call with batches of clips
    row = worker.row(os.path.abspath(clip))  # the only time that the clip is opened
    if "error" in row:
        raise SystemExit(row["error"])
    print(f"{row['file']}: {row['tokens_after']} of {row['tokens_before']} video tokens kept")

    processor, model = worker.loaded
    encoded = EncodedVideo.load(row["file"])
    for question in ("Which digit is on the yellow card?", "How many scenes are there?"):
        print(question, encoded.ask(model, processor, question))


if __name__ == "__main__":
    main(*sys.argv[1:])
