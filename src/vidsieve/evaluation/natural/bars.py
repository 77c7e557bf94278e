"""What a default has to reach on this suite, each relative to uniform sampling in the same run."""

from typing import Any

COV = {0.1: 1.05, 0.05: 1.10}  # by keep ratio
QKL = {0.1: 1.5}


def bars(row: dict[str, Any], uniform: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The bars of a row, by name: what it has, the limit, and whether it is met; none at other ratios.

    share: no shot of two or more frames below half of what its length would bring.  cov, c99, qkl: at most so much
    times that of uniform.  static: as many found as by uniform.  moving: at most one fewer.  reconstruction: less.
    """
    keep = row["keep"]
    if keep not in COV:
        return {}
    found = {
        "share": _bar(row["least_share"], 0.5, row["least_share"] >= 0.5),
        "cov": _at_most(row, uniform, "cov", COV[keep]),
        "c99": _at_most(row, uniform, "c99", 0.85),
        "static": _bar(row["static"][0], uniform["static"][0], row["static"][0] >= uniform["static"][0]),
        "moving": _bar(row["moving"][0], uniform["moving"][0] - 1, row["moving"][0] >= uniform["moving"][0] - 1),
        "reconstruction": _bar(
            row["reconstruction"], uniform["reconstruction"], row["reconstruction"] < uniform["reconstruction"]
        ),
    }
    if keep in QKL:
        found["qkl"] = _at_most(row, uniform, "qkl", QKL[keep])
    return found


def _at_most(row: dict[str, Any], uniform: dict[str, Any], name: str, factor: float) -> dict[str, Any]:
    limit = round(factor * uniform[name], 6)
    return _bar(row[name], limit, row[name] <= limit)


def _bar(has: float, limit: float, met: bool) -> dict[str, Any]:
    return {"has": has, "limit": limit, "met": met}
