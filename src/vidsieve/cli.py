"""The command line.

    vidsieve run CLIP --question "What happens?" --model Qwen/Qwen2.5-VL-7B-Instruct --keep 0.1 --out out
    vidsieve show out           draw it again
    vidsieve demo               the same, offline, on a generated clip and the model that comes with the package
    vidsieve batch CLIPS        reduced features of many clips, on one machine or a cluster
    vidsieve methods            what --method takes
    vidsieve env                what is installed, and what would run
    vidsieve bench ops          milliseconds and memory of a reduction, beside today's loops
    vidsieve eval               what each method loses on the synthetic needle suite

Exit codes: 0 done; 1 it failed, and standard error says why in one line; 2 a mistake in the command; 130 interrupted.
With --json, standard output is one JSON document and nothing else. VIDSIEVE_TRACEBACK=1 shows where an error came from.
"""

import argparse
import importlib.util
import inspect
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vidsieve import _report
from vidsieve.errors import VidsieveError, require

Found = Any  # what a command found out, as JSON knows it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    options = _parser().parse_args(arguments)
    options.typed = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _quiet_libraries()
        found = options.command(options)
        if options.json:
            print(json.dumps(found, indent=1))
        else:
            options.show(found)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read has read enough; a second failure at exit would be noise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("vidsieve: interrupted", file=sys.stderr)
        return 130
    except (VidsieveError, OSError, ValueError, RuntimeError, MemoryError) as error:
        if os.environ.get("VIDSIEVE_TRACEBACK"):
            raise
        print(f"vidsieve: error: {_one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _quiet_libraries() -> None:
    """Keep other libraries' chatter off the terminal; their errors still come."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    method = argparse.ArgumentParser(add_help=False)
    about = "share of the video tokens that stays; with framefusion, of the prefill's FLOPs (0.1, or the paper's)"
    method.add_argument("--keep", type=_fraction, help=about)
    method.add_argument("--method", type=_method, default="vidsieve", help="see `vidsieve methods` (vidsieve)")
    method.add_argument("--device", help="cpu, cuda, cuda:1, ... (cuda where there is one)")
    method.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="(auto; float32 on cpu)")

    parser = argparse.ArgumentParser(
        prog="vidsieve", description="Drop the video tokens a video language model does not need."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Callable[..., Found], show: Callable[[Found], None], *parents: Any) -> Any:
        about = (command.__doc__ or "").splitlines()[0]
        sub = commands.add_parser(name, help=about, description=about, parents=[*parents, common])
        sub.set_defaults(command=command, show=show)
        return sub

    run = add("run", _run, _report.show_result, method)
    run.add_argument("clip", help="a video file")
    run.add_argument("--question", "-q", required=True)
    run.add_argument("--model", "-m", required=True, help="Hub id or folder of a video language model")
    run.add_argument("--frames", type=_count, default=64, help="frames to sample, evenly (64)")
    run.add_argument("--strict", action="store_true", help="refuse a clip that is cut short or damaged")
    run.add_argument("--max-new-tokens", type=_count, default=128, help="longest answer (128)")
    run.add_argument("--only-reduced", action="store_true", help="do not answer with every token too")
    run.add_argument("--out", type=Path, help="folder for result.json and the overlay as PNG, MP4 and GIF")

    show = add("show", _redraw, _report.show_pictures)
    show.add_argument("result", type=Path, help="result.json, or the folder it lies in")
    show.add_argument("--out", type=Path, help="folder for the pictures (beside result.json)")

    demo = add("demo", _demo, _report.show_result, method)
    demo.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for everything (out/demo)")

    batch = add("batch", _batch, _report.show_batch, method)
    batch.add_argument("clips", help="a folder of clips, or a text file with one path a line")
    batch.add_argument("--model", "-m", required=True, help="Hub id or folder of a video language model")
    batch.add_argument("--out", type=Path, required=True, help="folder for the table and the features; resumes there")
    batch.add_argument("--question", "-q", help="what methods that look at the question are given, for every clip")
    batch.add_argument("--frames", type=_count, default=64, help="frames to sample, evenly (64)")
    batch.add_argument("--strict", action="store_true", help="a clip that is cut short or damaged is one that fails")
    batch.add_argument("--workers", type=_count, help="copies of the model (one a GPU, or one for four processors)")
    batch.add_argument("--address", help="of a Ray cluster (this machine)")

    bench = add("bench", _bench, _report.show_bench)
    bench.add_argument("what", choices=("ops",))
    bench.add_argument("--frames", type=_count, default=64, help="(64)")
    bench.add_argument("--tokens", type=_count, default=196, help="tokens a frame (196)")
    bench.add_argument("--dim", type=_count, default=3584, help="features a token (3584)")
    bench.add_argument("--keep", type=float, help="one case of your own: this share of the tokens,")
    bench.add_argument("--segments", type=_count, metavar="FRAMES", help="in segments of so many frames (1)")
    bench.add_argument("--case", action="append", dest="cases", metavar="NAME", help="only this case; repeatable")
    bench.add_argument("--relevance", choices=("prompt", "flat"), default="prompt", help="(prompt)")
    bench.add_argument("--rounds", type=_count, default=20, help="calls of each variant (20)")
    bench.add_argument("--device", help="cpu, cuda, cuda:1, ... (cuda where there is one)")
    bench.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16", help="(bfloat16)")
    bench.add_argument("--out", type=Path, help="write the card and the rows to this JSON file")

    eval_ = add("eval", _eval, _report.show_eval)
    eval_.add_argument("--model", "-m", help="a checkpoint trained on the suite (the bundled one)")
    eval_.add_argument("--split", choices=("dev", "test"), default="dev", help="dev to choose by, test to report (dev)")
    eval_.add_argument("--videos", type=_count, default=500, help="17 questions each (500)")
    eval_.add_argument("--keep", type=_fraction, action="append", dest="keeps", help="repeatable (0.05 0.1 0.25 0.5)")
    eval_.add_argument("--method", action="append", dest="methods", metavar="NAME", help="repeatable (all there are)")
    eval_.add_argument("--frames", type=_count, default=32, help="of a video, as the model was trained (32)")
    eval_.add_argument("--quick", action="store_true", help="64 videos, keep 0.1, the default method and the floors")
    eval_.add_argument("--device", help="cpu, cuda, cuda:1, ... (cuda where there is one)")
    eval_.add_argument("--out", type=Path, help="write the card and the rows to this JSON file")

    add("methods", _methods, _report.show_methods)
    add("env", _env, _report.show_env)
    return parser


class _Version(argparse.Action):
    """Prints the version, looked up only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"vidsieve {version('vidsieve')}")
        parser.exit()


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a fraction above 0, at most 1; got {text}")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1; got {text}")
    return int(text)


def _method(name: str) -> str:
    from vidsieve.presets import METHODS, STAGED

    if name not in METHODS | STAGED:
        raise argparse.ArgumentTypeError(f"no method {name!r}; there are {', '.join(METHODS | STAGED)}")
    return name


@contextmanager
def _notes() -> Iterator[Callable[[str], None]]:
    """A line on standard error, if that is a terminal, that says what is being done and goes when it is done."""
    if not sys.stderr.isatty():
        yield lambda what: None
        return
    require("rich", "video")
    from rich.console import Console

    status = Console(stderr=True).status("")

    def note(what: str) -> None:
        status.update(f"{what} ...")
        status.start()  # only now: before the first note, decoding may show a progress bar of its own

    try:
        yield note
    finally:
        status.stop()


def _run(options: argparse.Namespace) -> Found:
    """Ask a question about a clip, with every video token and with the few that stay."""
    from vidsieve import run as pipeline

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
    )
    return _carry_out(request, options.out)


def _demo(options: argparse.Namespace) -> Found:
    """Try it offline: render a clip, and ask the small model that comes with the package about it."""
    from vidsieve import demo
    from vidsieve import run as pipeline

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
    return _carry_out(request, options.out) | {"note": demo.NOTE.format(right)}


def _carry_out(request: Any, out: Path | None) -> dict[str, Any]:
    from vidsieve import run as pipeline

    with _notes() as note:
        result = pipeline.run(request, note)
        if out is not None:
            note("drawing")
            pipeline.write(result, out)
            result["pictures"] = pipeline.draw(result, out)
    return result


def _redraw(options: argparse.Namespace) -> Found:
    """Draw the overlay of an earlier run again."""
    from vidsieve import run as pipeline

    result = pipeline.read(options.result)
    folder = options.result if options.result.is_dir() else options.result.parent
    with _notes() as note:
        note("drawing")
        return {"pictures": pipeline.draw(result, options.out or folder)}


def _batch(options: argparse.Namespace) -> Found:
    """Encode and reduce many clips and keep the features; a job that was stopped goes on where it was."""
    from vidsieve import batch

    model = str(Path(options.model).resolve()) if Path(options.model).is_dir() else options.model
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
    )
    with _notes() as note:
        return batch.run(options.clips, job, options.address, options.workers, note)


def _keep(options: argparse.Namespace) -> float:
    """What was asked for, else what the method is known for."""
    from vidsieve.presets import default_keep

    return default_keep(options.method) if options.keep is None else float(options.keep)


def _bench(options: argparse.Namespace) -> Found:
    """Time whole reductions beside the loops people run today; correctness first."""
    import torch

    from vidsieve import bench

    unknown = [case for case in options.cases or () if case not in bench.CASES]
    if unknown:
        raise ValueError(f"no case {unknown[0]!r}; there are {', '.join(bench.CASES)}")
    cases = {case: bench.CASES[case] for case in options.cases or bench.CASES}
    if options.keep is not None:
        if options.cases:
            raise ValueError("--keep describes a case of your own and --case names others; choose one of the two")
        if (options.segments or 1) > options.frames:
            raise ValueError(f"expected segments of at most {options.frames} frames, all there are")
        cases = bench.uniform_case(options.keep, options.segments or 1)
    elif options.segments is not None:
        raise ValueError("--segments describes a case of your own; say how much it keeps with --keep")
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = getattr(torch, options.dtype)
    load = bench.Load(options.frames, options.tokens, options.dim, device, dtype, options.relevance == "flat")
    command = "vidsieve " + shlex.join(options.typed)
    tell, save = lambda case: print(case, file=sys.stderr), lambda found: _save(found, options.out)
    return bench.bench(load, cases, options.rounds, tell, command, save)


def _eval(options: argparse.Namespace) -> Found:
    """Accuracy, loyalty and kept evidence of each method on the synthetic needle suite."""
    from vidsieve import evaluate
    from vidsieve.needles.tiny import BUNDLED

    names = options.methods or (["vidsieve"] if options.quick else list(evaluate.METHODS))
    unknown = [name for name in names if name not in evaluate.METHODS]
    if unknown:
        raise ValueError(f"no method {unknown[0]!r}; there are {', '.join(evaluate.METHODS)}")
    plan = evaluate.Plan(
        model=options.model or str(BUNDLED),
        split=options.split,
        videos=min(options.videos, 64) if options.quick else options.videos,
        keeps=tuple(options.keeps or ((0.1,) if options.quick else evaluate.KEEPS)),
        methods={name: evaluate.METHODS[name] for name in names},
        device=options.device,
        frames=options.frames,
        command="vidsieve " + shlex.join(options.typed),
    )
    found = evaluate.evaluate(plan, lambda what: print(what, file=sys.stderr))
    _save(found, options.out)
    return found


def _save(found: Found, path: Path | None) -> None:
    """The card and the rows as JSON, where a file was asked for."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")


def _methods(options: argparse.Namespace) -> Found:
    """List the methods, each with its paper."""
    from vidsieve.presets import METHODS, STAGED, default_keep, keep_of

    return [
        {
            "name": name,
            "summary": (inspect.getdoc(method) or "").splitlines()[0],
            "keep_of": keep_of(name),
            "default_keep": default_keep(name),
            "paper": " ".join(re.findall(r"arXiv[: ]\d{4}\.\d{4,5}", method.__doc__ or "")) or None,
        }
        for name, method in (METHODS | STAGED).items()
    ]


def _installed(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in modules)


def _env(options: argparse.Namespace) -> Found:
    """Show what is installed and what would run, for troubleshooting."""
    import torch

    from vidsieve import ops
    from vidsieve.run import versions

    found = versions()
    models = None
    if found["transformers"]:
        from vidsieve.models import model_types

        models = list(model_types())
    return {
        "versions": found,
        "platform": sys.platform,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or ["cpu"],
        "ops": {"asked": os.environ.get("VIDSIEVE_OPS", "auto"), "available": ops.available()},
        "extras": {
            "hf": bool(found["transformers"] and found["torchvision"]),
            "video": bool(found["av"] and found["rich"]),
            "viz": bool(found["pillow"] and found["av"]),
            "ray": _installed("ray", "pyarrow"),
            "lmms": _installed("lmms_eval"),
            "vllm": _installed("vllm"),
        },
        "model_types": models,
    }
