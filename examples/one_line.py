"""One line around `generate`: the answer with a tenth of the video tokens.

    python examples/one_line.py [CLIP [MODEL]]

Without arguments it uses the clip and the small model that `make demo` leaves in out/demo. MODEL is a checkpoint folder
or a Hub id of a supported family.
"""

import sys

import vidsieve
from vidsieve.engines.hf import load, prepare
from vidsieve.video import read_video


def main(clip: str = "out/demo/clip.mp4", checkpoint: str = "out/demo/model") -> None:
    # `load` and `prepare` are AutoProcessor, AutoModelForImageTextToText and the processor's own call; nothing in them
    # is special to vidsieve.
    processor, model = load(checkpoint)
    frames = read_video(clip, num_frames=32)
    inputs = prepare(processor, frames, "Which digit is on the yellow card?").to(model.device, model.dtype)

    with vidsieve.attach(model, "vidsieve", keep=0.1) as trace:
        out = model.generate(**inputs, max_new_tokens=32)

    print(trace)
    print(processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
