"""What a card of measurements says of where they were taken."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch


def quantiles(values: list[float]) -> tuple[float, float, float]:
    """The 20, 50 and 80 % quantiles, to four digits."""
    q = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64))
    low, median, high = (round(v, 4) for v in q.tolist())
    return low, median, high


def processor() -> str:
    """The name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def version_of(package: str) -> str | None:
    """The version of an installed package, None where it is not."""
    try:
        return version(package)
    except ImportError:
        return None


def commit() -> str | None:
    """The commit this code is at, with "-dirty" where files differ from it; None where nobody knows."""
    if variable := os.environ.get("GIT_COMMIT"):  # where the code runs without its repository
        return variable
    here = Path(__file__).parent
    try:
        describe = ["git", "describe", "--always", "--dirty", "--exclude=*"]
        run = subprocess.run(describe, cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()
