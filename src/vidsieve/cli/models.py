"""Which model types are served, and what of them: `vidsieve models`, and docs/models.md.

python -m vidsieve.cli.models > docs/models.md
"""

from typing import Any

from vidsieve.engines.hf import families

SERVED = ("inside", "before tower", "encode")


def found() -> dict[str, Any]:
    """List the model types that are served, and those that are refused, each with its reasons."""
    return {"models": families.table(), "refused": dict(sorted(families.REFUSED.items()))}


def show(found: Any) -> None:
    """Print the table, and the reasons below it."""
    names = f"{'type':<25}{'layout':<8}{'before':<8}{'inside':<8}{'tower':<9}{'before tower':<14}"
    print(f"{names}{'encode':<8}tested")
    for row in found["models"]:
        inside, pixels, encode = ("no" if row[what] else "yes" for what in SERVED)
        print(
            f"{row['type']:<25}{row['layout']:<8}{'yes':<8}{inside:<8}{row['tower']:<9}{pixels:<14}{encode:<8}"
            f"{', '.join(row['tested'])}"
        )
    print("\nrefused")
    for model_type, reason in found["refused"].items():
        print(f"{model_type:<25}{reason}")
    print("\nwhy not, with --json")


def page() -> str:
    """Make docs/models.md."""
    lines = [
        "# Model types",
        "",
        "Made by `python -m vidsieve.cli.models > docs/models.md` from the table that the library itself reads; "
        "`vidsieve models` prints it.",
        "",
        "*before*: tokens are dropped between the vision tower and the language model. *inside*: at layers of the "
        'language model. *tower*: how `vision="auto"` runs the vision tower (packed: one attention call a layer; '
        "batched: as it is, the frames are one batch; stock: as it is). *before tower*: groups of pixels are left out. "
        "*encode*: `vidsieve encode`, `batch` and `ask`: encoded once, stored, and asked later. "
        "*tested*: the releases of transformers.",
        "",
        "| type | layout | before | inside | tower | before tower | encode | tested |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    whys: dict[str, int] = {}
    data = found()
    for row in data["models"]:
        inside, pixels, encode = (_yes(row[what], whys) for what in SERVED)
        cells = (
            f"`{row['type']}`",
            row["layout"],
            "yes",
            inside,
            row["tower"],
            pixels,
            encode,
            ", ".join(row["tested"]),
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"{number}. {why}" for why, number in whys.items())]
    lines += ["", "## Refused", "", "Attaching to one of these raises `UnsupportedModel` with the reason.", ""]
    lines += ["| type | reason |", "| --- | --- |"]
    lines += [f"| `{model_type}` | {reason} |" for model_type, reason in data["refused"].items()]
    return "\n".join(lines) + "\n"


def _yes(why_not: str, whys: dict[str, int]) -> str:
    """Say yes, or no with the number of the reason."""
    return f"no ({whys.setdefault(why_not, len(whys) + 1)})" if why_not else "yes"


if __name__ == "__main__":
    print(page(), end="")
