"""Another question about a clip of which only the features are left: no video, no vision tower, no second selection.

    python examples/from_features.py [CLIP [MODEL]]

The defaults are what `make demo` leaves in out/demo. `vidsieve batch` stores many clips the same way, on many machines.
"""

import sys

import torch

from vidsieve.encoded import batch, stored

QUESTION = "How many scenes are there?"


def main(clip: str = "out/demo/clip.mp4", checkpoint: str = "out/demo/model") -> None:
    job = batch.Job(checkpoint, "out/features", frames=32)
    encoder = batch.EncodeClips(job)
    (row,) = encoder.rows([(clip, job.question)])  # the only time that the clip is opened
    if "error" in row:
        raise SystemExit(row["error"])
    print(f"{row['file']}: {len(row['kept'])} of {row['tokens_before']} video tokens kept")

    model, processor = encoder.model, encoder.processor
    content = [{"type": "video"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    after = text.rpartition(processor.video_token)[2]
    tail = torch.tensor(processor.tokenizer(after, add_special_tokens=False)["input_ids"])

    tensors, _ = stored.read(job.features / row["file"])
    out = model.generate(**stored.restore(model, tensors, tail), max_new_tokens=32)
    print(processor.batch_decode(out, skip_special_tokens=True)[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
