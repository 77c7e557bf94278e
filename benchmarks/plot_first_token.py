"""Draw the time from pixels to the first token: docs/images/first_token_<device>.png.

    python -m benchmarks.plot_first_token       every benchmarks/results/first_token_h*.json, of GPUs

A bar is a median, its whisker the 20 and 80 % quantiles; the number behind it says how many times sooner than stock.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from benchmarks.figures import draw_each, save
from matplotlib.ticker import MaxNLocator

NAMES = {"qwen2_5_vl": "Qwen2.5-VL-7B", "qwen3_vl": "Qwen3-VL-8B", "llava_onevision": "LLaVA-OneVision-7B"}
SHOWN = {  # colour, what the axis says
    "stock, every token": ("#5c5c5c", "transformers, every token"),
    "packed, every token": ("#a3a3a3", "every token, packed tower"),
    "10 %, stock tower": ("#e69f00", "10 % of the tokens, stock tower"),
    "10 %, fused tower": ("#7cc0ea", "10 %, fast tower, every pixel"),
    "10 %, 50 % of the pixels": ("#2f86c6", "10 %, fast tower, half of the pixels"),
    "10 %, 25 % of the pixels": ("#0b3d66", "10 %, fast tower, a quarter"),
}


def draw(path: Path, folder: Path) -> Path:
    """The figure of one JSON."""
    found: dict[str, Any] = json.loads(path.read_text())
    models = [name for name in NAMES if any(row["model"] == name for row in found["rows"])]
    figure, axes = plt.subplots(1, len(models), figsize=(2.6 + 3.4 * len(models), 4), layout="constrained", sharey=True)
    for place, model in zip([axes] if len(models) == 1 else axes, models, strict=True):
        rows = {row["variant"]: row for row in found["rows"] if row["model"] == model and row["median_ms"]}
        stock = rows["stock, every token"]["median_ms"]
        for y, (variant, (colour, _)) in enumerate(SHOWN.items()):
            if (row := rows.get(variant)) is None:
                continue
            place.barh(y, row["median_ms"], 0.6, color=colour)
            place.plot([row["q20_ms"], row["q80_ms"]], [y, y], color="#222222", linewidth=1.5, solid_capstyle="butt")
            note = f"{row['median_ms']:,.0f} ms"
            note += f"  {stock / row['median_ms']:.1f}x" if variant != "stock, every token" else ""
            place.annotate(
                note,
                (max(row["median_ms"], row["q80_ms"]), y),
                (5, 0),
                textcoords="offset points",
                va="center",
                fontsize=10.5,
            )
        place.set_title(NAMES[model], fontsize=12, loc="left")
        place.set_xlim(0, 1.5 * max(row["q80_ms"] for row in rows.values()))
        place.set_yticks(range(len(SHOWN)), [text for _, text in SHOWN.values()])
        place.set_ylim(len(SHOWN) - 0.5, -0.5)
        place.tick_params(length=0, labelsize=10.5)
        place.xaxis.set_major_locator(MaxNLocator(3))
        place.spines[["top", "right", "left"]].set_visible(False)
    tokens = found["rows"][0]["tokens"]
    figure.suptitle(
        f"From pixels to the first token, {tokens:,} video tokens, bf16 on {found['card']['device']}: milliseconds, "
        "and how many times sooner than transformers",
        fontsize=12,
        x=0.02,
        ha="left",
    )
    return save(figure, path, folder)


if __name__ == "__main__":
    draw_each(draw, __doc__ or "", "first_token_h*.json")
