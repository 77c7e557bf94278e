"""The command line.

    vidsieve run CLIP --question "What happens?" --model Qwen/Qwen2.5-VL-7B-Instruct --keep 10% --out out
    vidsieve show out           draw it again
    vidsieve demo               the same, offline, on a generated clip and the model of the package
    vidsieve batch CLIPS        reduced features of many clips, on one machine or a cluster
    vidsieve warm MODEL         compile what a model needs, before its first video waits for it
    vidsieve methods            the methods for --method
    vidsieve env                what is installed, and what can run
    vidsieve bench ops          milliseconds and memory of a reduction, beside the loops in use today
    vidsieve eval               what each method loses on a synthetic suite, or on natural shots

Exit codes: 0 done; 1 it failed, and standard error says why in one line; 2 a mistake in the command; 130 interrupted.
With --json, standard output is one JSON document and nothing else, {"error": {"type": ..., "message": ...}} where it
failed. VIDSIEVE_TRACEBACK=1 shows where an error came from.
"""

import argparse
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vidsieve import registry
from vidsieve.checks import require
from vidsieve.cli import report
from vidsieve.cli.arguments import Mistake, Parser, Version, count, file, folder, fraction, method, question
from vidsieve.cli.quiet import quiet
from vidsieve.errors import VidsieveError
from vidsieve.video.decode import SAMPLINGS

LINE_EVERY = 30.0  # seconds between lines of progress in a log
Found = Any  # the result of a command, as JSON values


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return the exit code."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not typed:
            _parser().print_help()
            return 0
        options = _parser().parse_args(typed)
        options.typed = typed
        with quiet():
            found = options.command(options)
        if options.json:
            print(json.dumps(found, indent=1))
        else:
            options.show(found)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has stopped; a second failure at exit would be noise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Mistake as mistake:
        _print_error(mistake, typed, mistake.usage)
        raise SystemExit(2) from None
    except KeyboardInterrupt as stop:
        _print_error(KeyboardInterrupt("; ".join(("interrupted", *map(str, stop.args)))), typed)
        return 130
    except (VidsieveError, OSError, ValueError, RuntimeError, MemoryError) as error:
        if os.environ.get("VIDSIEVE_TRACEBACK"):
            raise
        _print_error(error, typed)
        return 1
    return 0


def _print_error(error: BaseException, typed: Sequence[str], usage: str = "") -> None:
    """Print an error as one line, and with --json as a document too."""
    message = " ".join(str(error).split()) or type(error).__name__
    begin = "vidsieve: " if isinstance(error, KeyboardInterrupt) else f"{usage}vidsieve: error: "
    print(f"{begin}{message}", file=sys.stderr)
    if "--json" in typed:
        print(json.dumps({"error": {"type": type(error).__name__, "message": message}}, indent=1))


def _parser() -> Parser:
    common = Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    how = Parser(add_help=False)
    about = "share of the video tokens that stays; with framefusion, of the prefill's FLOPs (10%%, or the paper's)"
    how.add_argument("--keep", type=fraction, help=about)
    how.add_argument("--method", type=method, default="vidsieve", help="see `vidsieve methods` (vidsieve)")
    how.add_argument("--device", help="cpu, cuda, cuda:1, ... (cuda where there is one)")
    how.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="(auto; float32 on cpu)")

    sample = Parser(add_help=False)
    sample.add_argument("--frames", type=count, default=64, help="frames to sample (64)")
    about = "even: at even distances; keyframes: of the key frames only, which is faster for long clips (even)"
    sample.add_argument("--sampling", choices=SAMPLINGS, default="even", help=about)

    film = Parser(add_help=False)
    film.add_argument("--film", action="store_true", help="draw overlay.mp4 too: the clip beside its kept patches")
    film.add_argument("--gif", action="store_true", help="draw overlay.gif too, the same, smaller")

    parser = Parser(prog="vidsieve", description="Drop the video tokens a video language model does not need.")
    parser.add_argument("--version", action=Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Callable[..., Found], show: Callable[[Found], None], *parents: Any) -> Any:
        about = (command.__doc__ or "").splitlines()[0]
        sub = commands.add_parser(name, help=about, description=about, parents=[*parents, common])
        sub.set_defaults(command=command, show=show)
        return sub

    _add_run(add("run", _run, report.show_result, how, sample, film))
    _add_show(add("show", _redraw, report.show_pictures, film))
    _add_demo(add("demo", _demo, report.show_result, how, film))
    _add_batch(add("batch", _batch, report.show_batch, how, sample))
    _add_warm(add("warm", _warm, report.show_warm, how))
    _add_bench(add("bench", _bench, report.show_bench))
    _add_eval(add("eval", _eval, report.show_eval))
    add("methods", _methods, report.show_methods)
    add("env", _env, report.show_env)
    return parser


def _add_run(command: Parser) -> None:
    command.add_argument("clip", help="a video file")
    command.add_argument("--question", "-q", type=question, required=True)
    command.add_argument("--model", "-m", required=True, help="Hub id or folder of a video language model")
    command.add_argument("--strict", action="store_true", help="refuse a clip that is cut short or damaged")
    command.add_argument("--max-new-tokens", type=count, default=128, help="longest answer (128)")
    command.add_argument("--only-reduced", action="store_true", help="do not answer with every token too")
    command.add_argument("--out", type=folder, help="folder for result.json and the overlay, a picture")


def _add_show(command: Parser) -> None:
    command.add_argument("result", type=Path, help="result.json, or the folder it lies in")
    command.add_argument("--out", type=folder, help="folder for the pictures (beside result.json)")


def _add_demo(command: Parser) -> None:
    command.add_argument("--out", type=folder, default="out/demo", help="folder for everything (out/demo)")


def _add_batch(command: Parser) -> None:
    command.add_argument("clips", help="a folder of clips, or a text file with one path a line")
    command.add_argument("--model", "-m", required=True, help="Hub id or folder of a video language model")
    command.add_argument(
        "--out", type=folder, required=True, help="folder for the table and the features; resumes there"
    )
    about = "the question for every clip, for methods that look at it"
    command.add_argument("--question", "-q", type=question, help=about)
    command.add_argument("--strict", action="store_true", help="a clip that is cut short or damaged fails")
    command.add_argument("--workers", type=count, help="copies of the model (one a GPU, or one for four processors)")
    command.add_argument("--address", help="of a Ray cluster (this machine)")


def _add_warm(command: Parser) -> None:
    command.add_argument("model", help="Hub id or folder of a video language model")
    about = "numbers of frames to compile for (64)"
    command.add_argument("--frames", type=count, nargs="+", action="extend", metavar="N", help=about)
    about = "height and width of frames, repeatable (of 16:9 and 4:3, both ways up, as `vidsieve run` reads them)"
    command.add_argument("--size", type=count, nargs=2, action="append", metavar=("H", "W"), dest="sizes", help=about)


def _add_bench(command: Parser) -> None:
    command.add_argument("what", choices=("ops",))
    command.add_argument("--frames", type=count, default=64, help="(64)")
    command.add_argument("--tokens", type=count, default=196, help="tokens a frame (196)")
    command.add_argument("--dim", type=count, default=3584, help="features a token (3584)")
    command.add_argument("--keep", type=fraction, help="one case of your own: this share of the tokens,")
    command.add_argument("--segments", type=count, metavar="FRAMES", help="in segments of so many frames (1)")
    command.add_argument("--case", action="append", dest="cases", metavar="NAME", help="only this case; repeatable")
    command.add_argument("--relevance", choices=("prompt", "flat"), default="prompt", help="(prompt)")
    command.add_argument("--rounds", type=count, default=20, help="calls of each variant (20)")
    command.add_argument("--device", help="cpu, cuda, cuda:1, ... (cuda where there is one)")
    command.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16", help="(bfloat16)")
    command.add_argument("--out", type=file, help="write the card and the rows to this JSON file")


def _add_eval(command: Parser) -> None:
    about = (
        "needles and long: questions about synthetic videos, long ones of several shots; natural: no model (needles)"
    )
    command.add_argument("--suite", choices=("needles", "long", "natural"), default="needles", help=about)
    command.add_argument("--model", "-m", help="synthetic: a checkpoint trained on the suites (the bundled one)")
    about = "natural: a folder that benchmarks/natural_features.py made (the one that comes with the package)"
    command.add_argument("--features", type=Path, help=about)
    command.add_argument(
        "--split", choices=("dev", "test"), default="dev", help="dev to choose by, test to report (dev)"
    )
    command.add_argument("--videos", type=count, help="synthetic: 17 or 20 questions each (500)")
    command.add_argument("--keep", type=fraction, action="append", dest="keeps", help="repeatable (0.05 0.1 0.25 0.5)")
    command.add_argument("--method", type=method, action="append", dest="methods", help="repeatable (all there are)")
    command.add_argument("--frames", type=count, help="synthetic: of a video (as the model was trained)")
    command.add_argument("--quick", action="store_true", help="keep 0.1, the default method and the floors; 64 videos")
    command.add_argument("--device", help="cpu, cuda, cuda:1, ... (cuda where there is one; natural: cpu)")
    command.add_argument("--out", type=file, help="write the card and the rows to this JSON file")


@contextmanager
def _notes(logged: bool = False) -> Iterator[Callable[[str], None]]:
    """Show the current step on standard error, if that is a terminal, until it is done.

    logged: without a terminal, print a line every half minute.
    """
    if not sys.stderr.isatty():
        said = -math.inf

        def log(what: str) -> None:
            nonlocal said
            if logged and time.monotonic() - said >= LINE_EVERY:
                said = time.monotonic()
                print(what, file=sys.stderr, flush=True)

        yield log
        return
    require("rich", "video")
    from rich.console import Console

    status = Console(stderr=True).status("")

    def note(what: str) -> None:
        status.update(f"{what} ...")
        status.start()

    try:
        yield note
    finally:
        status.stop()


def _run(options: argparse.Namespace) -> Found:
    """Ask a question about a clip, with every video token and with the few that stay."""
    from vidsieve.cli import run as pipeline

    if _films(options) and options.out is None:
        raise Mistake("--film and --gif draw into the folder of --out; give one")
    request = pipeline.Request(
        options.clip,
        options.question,
        options.model,
        options.method,
        _keep(options),
        options.frames,
        options.device,
        options.dtype,
        options.max_new_tokens,
        not options.only_reduced,
        options.strict,
        options.sampling,
    )
    return _carry_out(request, options.out, _films(options))


def _demo(options: argparse.Namespace) -> Found:
    """Try vidsieve offline: render a clip, and ask the small model of the package about it."""
    from vidsieve.cli import demo
    from vidsieve.cli import run as pipeline

    options.out.mkdir(parents=True, exist_ok=True)
    with _notes() as note:
        note("rendering a clip")
        clip = demo.render_clip(options.out / "clip.mp4")
        model = demo.copy_model(options.out / "model")
        question, right = demo.question()
    request = pipeline.Request(
        str(clip),
        question,
        str(model),
        options.method,
        _keep(options),
        demo.FRAMES,
        options.device,
        options.dtype,
        max_new_tokens=16,
    )
    return _carry_out(request, options.out, _films(options)) | {"note": demo.NOTE.format(right)}


def _carry_out(request: Any, out: Path | None, films: Sequence[str]) -> dict[str, Any]:
    from vidsieve.cli import run as pipeline

    with _notes() as note:
        return pipeline.run(request, note, out, films)


def _redraw(options: argparse.Namespace) -> Found:
    """Draw the overlay of an earlier run again."""
    from vidsieve.cli import run as pipeline

    result = pipeline.read(options.result)
    beside = options.result if options.result.is_dir() else options.result.parent
    with _notes() as note:
        note("drawing")
        return {"pictures": pipeline.draw(result, options.out or beside, films=_films(options))}


def _films(options: argparse.Namespace) -> list[str]:
    """List the requested moving pictures, by kind."""
    return [kind for kind, wanted in (("mp4", options.film), ("gif", options.gif)) if wanted]


def _batch(options: argparse.Namespace) -> Found:
    """Encode and reduce many clips and store the features; the same command resumes a stopped job."""
    from vidsieve.encoded import batch

    model = str(Path(options.model).resolve()) if Path(options.model).is_dir() else options.model
    if why := batch.refused(options.method):
        raise Mistake(why)
    job = batch.Job(
        model,
        str(options.out.resolve()),
        options.method,
        _keep(options),
        options.frames,
        options.question or batch.QUESTION,
        options.device,
        options.dtype,
        options.strict,
        options.sampling,
    )
    with _notes() as note:
        return batch.run(options.clips, job, options.address, options.workers, note)


def _warm(options: argparse.Namespace) -> Found:
    """Compile what a model needs, so that the first video of a later process does not wait for it."""
    from vidsieve.cli import warm

    request = warm.Request(
        options.model,
        options.method,
        _keep(options),
        options.frames or warm.FRAMES,
        [(height, width) for height, width in options.sizes or warm.SIZES],
        options.device,
        options.dtype,
    )
    with _notes(logged=True) as note:
        return warm.warm(request, note)


def _keep(options: argparse.Namespace) -> float:
    """Get the requested keep, else the default of the method."""

    return registry.method(options.method).default_keep if options.keep is None else float(options.keep)


def _bench(options: argparse.Namespace) -> Found:
    """Time reductions beside the loops in use today, after checking that they are correct."""
    import torch

    from vidsieve.evaluation import bench

    unknown = [case for case in options.cases or () if case not in bench.CASES]
    if unknown:
        raise Mistake(f"no case {unknown[0]!r}; there are {', '.join(bench.CASES)}")
    cases = {case: bench.CASES[case] for case in options.cases or bench.CASES}
    if options.keep is not None:
        if options.cases:
            raise Mistake("--keep describes a case of your own and --case names others; choose one of the two")
        if (options.segments or 1) > options.frames:
            raise Mistake(f"expected segments of at most {options.frames} frames, all there are")
        cases = bench.uniform_case(options.keep, options.segments or 1)
    elif options.segments is not None:
        raise Mistake("--segments describes a case of your own; say how much it keeps with --keep")
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = getattr(torch, options.dtype)
    load = bench.Load(options.frames, options.tokens, options.dim, device, dtype, options.relevance == "flat")
    command = "vidsieve " + shlex.join(options.typed)
    show, save = lambda case: print(case, file=sys.stderr), lambda found: _save(found, options.out)
    return bench.bench(load, cases, options.rounds, show, command, save)


def _eval(options: argparse.Namespace) -> Found:
    """What each method loses: answers on a synthetic suite, or what is to be seen in natural shots."""
    from vidsieve.cli.evaluation import evaluate

    with _notes(logged=True) as note:
        found = evaluate(options, note)
    _save(found, options.out)
    return found


def _save(found: Found, path: Path | None) -> None:
    """Write the card and the rows as JSON, if a file was requested."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")


def _methods(options: argparse.Namespace) -> Found:
    """List the methods, each with its paper."""
    return [method.to_dict() for method in registry.methods().values()]


def _env(options: argparse.Namespace) -> Found:
    """Show what is installed and what can run, for troubleshooting."""
    from vidsieve.cli.env import environment

    return environment()
