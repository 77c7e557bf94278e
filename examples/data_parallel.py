"""Several GPUs, a copy of the model on each, the questions shared out: plain data parallelism.

    torchrun --nproc-per-node 8 examples/data_parallel.py [CLIP [MODEL]]
    accelerate launch --num_processes 8 examples/data_parallel.py [CLIP [MODEL]]
    python examples/data_parallel.py [CLIP [MODEL]]      one process, the same answers

The defaults are what `make demo` leaves in out/demo. Without GPUs the processes share the processors. A model too large
for one GPU is spread over several with `device_map="auto"` instead, and a reducer attaches to it all the same. Tested
with two processes on CPUs, and run on two GPUs, with the answers of one process.
"""

import json
import os
import sys

import torch
import torch.distributed as dist

import vidsieve
from vidsieve.engines.hf import load, prepare
from vidsieve.video import read_video

QUESTIONS = (
    "Which digit is on the yellow card?",
    "What colour is the heart?",
    "How many scenes are there?",
    "Which came first, the heart or the moon?",
    "Is the bolt shown?",
)


def main(clip: str = "out/demo/clip.mp4", checkpoint: str = "out/demo/model") -> None:
    rank, world, local = (int(os.environ.get(name, default)) for name, default in PLACE)
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(local)

    processor, model = load(checkpoint, f"cuda:{local}" if gpu else "cpu")
    found = {}
    with vidsieve.attach(model, "vidsieve", keep=0.1):
        for number in range(rank, len(QUESTIONS), world):
            frames = read_video(clip, num_frames=16)
            inputs = prepare(processor, frames, QUESTIONS[number]).to(model.device, model.dtype)
            out = model.generate(**inputs, max_new_tokens=16)
            found[number] = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]

    if world > 1:  # only answers travel, and those are text: the launcher's own store will do
        store, *_ = next(dist.rendezvous("env://"))
        store.set(f"answers of {rank}", json.dumps(list(found.items())))
    if rank == 0:
        for other in range(1, world):
            found |= json.loads(store.get(f"answers of {other}"))
        for number, question in enumerate(QUESTIONS):
            print(f"{question:42}{found[number]}")


PLACE = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))

if __name__ == "__main__":
    main(*sys.argv[1:])
