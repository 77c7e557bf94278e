"""Let workers with a model each encode many clips: Ray Data, on this machine or on a cluster."""

import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from vidsieve.checks import require
from vidsieve.errors import VidsieveError, redacted

CLIPS_A_TASK = 8  # few enough to share evenly, enough that the next clip decodes while this one is encoded
THREADS = 4  # processors a worker asks for, where there are as many
ATTEMPTS = 2  # a worker may die for other reasons; if two die on one clip, the clip is the cause
LINE_EVERY = 30.0  # seconds between lines of progress in a log


def check(device: str | None) -> None:
    """Raise `MissingExtra` without Ray, `VidsieveError` for a device that it cannot give a worker."""
    require("ray", "ray")
    require("ray.data", "ray")
    require("pyarrow.parquet", "ray")
    if device not in (None, "cpu", "cuda"):
        raise VidsieveError(f"expected device cpu or cuda, got {device!r}: Ray chooses which GPU a worker sees")


def is_here(address: str | None) -> bool:
    """Whether Ray is to be started on this machine, so that its workers see the files that are seen here."""
    return not (address or os.environ.get("RAY_ADDRESS") or require("ray", "ray").is_initialized())


def encoded(
    worker: type,
    settings: Any,
    items: Sequence[Mapping[str, str]],
    columns: Sequence[str],
    address: str | None,
    workers: int | None,
    note: Callable[[str], None],
) -> Generator[list[dict[str, Any]]]:
    """Yield the rows of each task as it ends: of `columns` and "error", which is null where there was none.

    worker: is made of `settings`, a dataclass with a `device`, and called with batches of `items`.
    address: of a Ray cluster, None for RAY_ADDRESS or this machine.  workers: how many; by default one per GPU, or
    without a GPU one per four processors.
    Raises `VidsieveError` for more workers than there is room for, and where no cluster answers or Ray fails.
    """
    ray = require("ray", "ray")
    note("starting Ray")
    with _cluster(ray, address):
        dataset = _dataset(ray, worker, settings, items, workers)
        note("loading the model")
        progress = _Progress(len(items), note)
        try:
            for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                rows = table.select([*columns, "error"]).to_pylist()
                yield rows
                progress.add(len(rows), sum(row["error"] is not None for row in rows))
        except ray.exceptions.RayError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            cause = lines[-1].strip().removeprefix("vidsieve.errors.VidsieveError: ") if lines else type(error).__name__
            raise VidsieveError(f"Ray gave up: {cause}") from error


def attempt(mark: Path, clip: str) -> None:
    """Note in the file `mark`, which is there while a worker has the clip, that one tries it.

    Raises `VidsieveError` if two have died on it.
    """
    with mark.open("a") as file:
        if file.tell() >= ATTEMPTS:
            raise VidsieveError(f"{redacted(clip)}: {ATTEMPTS} workers died on it; a decoder's crash, or out of memory")
        file.write("x")


def check_written(folder: Path, missing: int) -> None:
    """Raise `VidsieveError` if files are missing that workers wrote."""
    if missing:
        raise VidsieveError(
            f"{folder} lacks the files of {missing} clips that workers say they wrote; "
            "the output folder has to be one that all machines of the cluster share"
        )


@contextmanager
def _cluster(ray: Any, address: str | None) -> Iterator[None]:
    """Connect to Ray for the block; a connection that exists is used and kept."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors come as exceptions too
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"  # without it Ray joins what was last started here
    _knock(address)
    with redirect_stdout(sys.stderr), ExitStack() as stack:  # Ray prints dead workers there, until it has shut down
        stack.callback(ray.shutdown)
        try:
            ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise VidsieveError(f"no Ray cluster answers at {address!r}: {str(error).splitlines()[0]}") from error
        yield


def _knock(address: str) -> None:
    """Raise `VidsieveError` if nothing listens at host:port; Ray itself would try for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise VidsieveError(f"no Ray cluster answers at {address!r} ({error.strerror or error})") from error


def _dataset(ray: Any, worker: type, settings: Any, items: Sequence[Mapping[str, str]], workers: int | None) -> Any:
    """Make the dataset of encoded clips, by as many workers as the cluster has room for.

    Raises `VidsieveError` for more workers than that.
    """
    resources = ray.cluster_resources()
    gpus, processors = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    device = settings.device or ("cuda" if gpus else "cpu")
    room, kind = (gpus, "GPU") if device == "cuda" else (processors, "processor")
    if (workers or 1) > room:
        raise VidsieveError(f"expected a {kind} for each of {workers or 1} workers, Ray has {room}")
    workers = min(workers or (gpus if device == "cuda" else max(1, processors // THREADS)), len(items))
    smallest = min(int(node["Resources"].get("CPU", 0)) or processors for node in ray.nodes() if node["Alive"])
    need = {"num_cpus": max(1, min(THREADS, smallest, processors // workers))}  # Ray gives a worker as many threads
    if device == "cuda":
        need["num_gpus"] = 1
    size = max(1, min(CLIPS_A_TASK, len(items) // (4 * workers)))
    made = ray.data.from_items([*items], override_num_blocks=-(-len(items) // size))
    return made.map_batches(
        worker,
        fn_constructor_args=(replace(settings, device=device),),
        batch_size=size,
        compute=ray.data.ActorPoolStrategy(size=workers),
        **need,
    )


class _Progress:
    """Reports the progress of a job: on a terminal through `note`, in a log by a line every half minute."""

    def __init__(self, total: int, note: Callable[[str], None]) -> None:
        self.total, self.note = total, note
        self.done = self.failed = 0
        self.start = self.said = time.monotonic()

    def add(self, done: int, failed: int) -> None:
        self.done += done
        self.failed += failed
        now = time.monotonic()
        rate = self.done / (now - self.start)
        text = f"{self.done} of {self.total} clips, {self.failed} failed, {rate:.2f} a second"
        self.note(text)
        if not sys.stderr.isatty() and (now - self.said >= LINE_EVERY or self.done == self.total):
            self.said = now
            print(text, file=sys.stderr, flush=True)
