"""The command line.

    vidsieve run CLIP --question "What happens?" --model Qwen/Qwen2.5-VL-7B-Instruct --keep 10% --out out
    vidsieve show out           draw it again
    vidsieve demo               the same, offline, on a generated clip and the model of the package
    vidsieve app                the same in the browser, with clips of your own
    vidsieve encode CLIPS       keep a tenth of the tokens of hours of video, in bounded memory
    vidsieve ask FILE           ask about what encode stored, as often as you like, without the video
    vidsieve plan CLIP          tokens, memory and seconds, before anything runs
    vidsieve batch CLIPS        the same as encode on every GPU, of this machine or a cluster, and a table
    vidsieve warm MODEL         compile what a model needs, before its first video waits for it
    vidsieve methods            the methods for --method
    vidsieve models             the model types that are served, and what of them
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
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vidsieve import registry
from vidsieve.checks import require
from vidsieve.cli import report
from vidsieve.cli.arguments import Mistake
from vidsieve.cli.parser import Command, parser
from vidsieve.cli.quiet import quiet

LINE_EVERY = 30.0  # seconds between lines of progress in a log
Found = Any  # the result of a command, as JSON values


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return the exit code."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if typed in ([], ["help"]):
            parser(COMMANDS).print_help()
            return 0
        options = parser(COMMANDS).parse_args(typed)
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
    except report.FAILURES as error:
        if os.environ.get("VIDSIEVE_TRACEBACK"):
            raise
        _print_error(error, typed)
        return 1
    return 0


def _print_error(error: BaseException, typed: Sequence[str], usage: str = "") -> None:
    """Print an error as one line, and with --json as a document too."""
    message = report.one_line(error)
    begin = "vidsieve: " if isinstance(error, KeyboardInterrupt) else f"{usage}vidsieve: error: "
    print(f"{begin}{message}", file=sys.stderr)
    if "--json" in typed:
        print(json.dumps({"error": {"type": type(error).__name__, "message": message}}, indent=1))


@contextmanager
def _notes(logged: bool = False) -> Iterator[Callable[[str], None]]:
    """Show the current step on standard error, if that is a terminal, until it is done or the next one is "".

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
    from rich.text import Text

    status = Console(stderr=True).status("")

    def note(what: str) -> None:
        if what:
            status.update(Text(f"{what} ..."))  # no markup: a name of a file may look like it
            status.start()
        else:
            status.stop()

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
        options.pixels,
        options.decoder,
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
        pixels=options.pixels,
    )
    return _carry_out(request, options.out, _films(options)) | {"note": demo.NOTE.format(right)}


def _app(options: argparse.Namespace) -> Found:
    """Open a page in the browser that asks about clips, and shows both answers and what was kept."""
    from vidsieve.cli.app import serve, service

    settings = service.Settings(
        options.models or (),
        options.frames,
        options.sampling,
        options.device,
        options.dtype,
        options.max_new_tokens,
    )
    with _notes() as note:
        return serve.serve(settings, options.host, options.port, options.max_upload, note, options.hosts or ())


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


def _encode(options: argparse.Namespace) -> Found:
    """Encode clips of any length in bounded memory, and store what is kept; the same command goes on."""
    from vidsieve.encoded import many

    with _notes(logged=True) as note:
        return many.encode_all(_clips(options), options.address, options.workers, note)


def _batch(options: argparse.Namespace) -> Found:
    """Encode many clips as `encode` does, by workers of Ray, and write a table; the same command goes on."""
    from vidsieve.encoded import batch

    with _notes() as note:
        return batch.run(_clips(options), options.address, options.workers, note)


def _clips(options: argparse.Namespace) -> Any:
    """Get which clips are to be encoded, and how."""
    from vidsieve.encoded.many import Request

    return Request(
        options.clips,
        options.model,
        options.out,
        _sample(options) | {"strict": options.strict},
        options.max_pixels,
        options.method,
        _keep(options),
        options.device,
        options.dtype,
        options.pixels,
    )


def _ask(options: argparse.Namespace) -> Found:
    """Ask about clips that `vidsieve encode` stored: no video, no vision tower."""
    from vidsieve.cli import ask

    with _notes() as note:
        asked = ask.Questions(
            options.files,
            options.questions or (),
            options.model,
            options.keep,
            options.device,
            options.dtype,
            options.max_new_tokens,
            options.method,
        )
        return ask.ask_all(asked, note, None if options.json else report.show_answer)


def _plan(options: argparse.Namespace) -> Found:
    """Say what a clip would take before anything runs: tokens, memory, seconds."""
    from vidsieve.cli import plan
    from vidsieve.encoded.many import by_name, sampled
    from vidsieve.video.chunks import plan_video

    method = by_name(options.method, _keep(options))  # what encode would refuse
    with _notes() as note:
        note("reading which frames there are")
        frames = plan_video(options.clip, **sampled(options.clip, _sample(options), options.max_pixels))
        return plan.plan(frames, options.model, method, options.device, options.dtype, note)


def _sample(options: argparse.Namespace) -> dict[str, Any]:
    """Get the arguments of `plan_video` that say which frames are taken."""
    return {
        "num_frames": options.frames,
        "fps": options.fps,
        "start": options.start,
        "end": options.end,
        "max_frames": options.max_frames,
        "sampling": options.sampling,
    }


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
        options.pixels,
    )
    with _notes(logged=True) as note:
        return warm.warm(request, note)


def _keep(options: argparse.Namespace) -> float:
    """Get the requested keep, else the default of the method."""

    return registry.method(options.method).default_keep if options.keep is None else float(options.keep)


def _bench(options: argparse.Namespace) -> Found:
    """Time reductions beside the loops in use today, after checking that they are correct."""
    from vidsieve.cli.evaluation import bench

    return bench(options, lambda found: _save(found, options.out))


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


def _models(options: argparse.Namespace) -> Found:
    """List the model types that are served, what of each works, and the types that are refused."""
    from vidsieve.cli.models import found

    return found()


def _show_models(found: Found) -> None:
    from vidsieve.cli.models import show

    show(found)


def _env(options: argparse.Namespace) -> Found:
    """Show what is installed and what can run, for troubleshooting."""
    from vidsieve.cli.env import environment

    return environment()


COMMANDS: dict[str, Command] = {
    "run": (_run, report.show_result),
    "show": (_redraw, report.show_pictures),
    "demo": (_demo, report.show_result),
    "app": (_app, report.show_app),
    "encode": (_encode, report.show_encode),
    "ask": (_ask, report.show_asked),
    "plan": (_plan, report.show_plan),
    "batch": (_batch, report.show_batch),
    "warm": (_warm, report.show_warm),
    "bench": (_bench, report.show_bench),
    "eval": (_eval, report.show_eval),
    "methods": (_methods, report.show_methods),
    "models": (_models, _show_models),
    "env": (_env, report.show_env),
}
