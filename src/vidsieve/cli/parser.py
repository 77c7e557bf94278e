"""The options of each command."""

from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vidsieve.cli.arguments import (
    Completion,
    Parser,
    Version,
    count,
    file,
    folder,
    fraction,
    host,
    method,
    port,
    question,
    rate,
    seconds,
    size,
)
from vidsieve.video.wanted import LIBRARIES, SAMPLINGS

Command = tuple[Callable[..., Any], Callable[[Any], None]]

EXAMPLES = {
    "run": 'vidsieve run clip.mp4 --question "What happens?" --model Qwen/Qwen2.5-VL-7B-Instruct --out out/run',
    "show": "vidsieve show out/run --gif",
    "demo": "vidsieve demo --keep 5% --method divprune",
    "app": "vidsieve app --model Qwen/Qwen2.5-VL-7B-Instruct --port 8080",
    "encode": "vidsieve encode lecture.mp4 --model Qwen/Qwen2.5-VL-7B-Instruct --fps 1 --keep 5% --out stored",
    "ask": 'vidsieve ask stored --question "Who speaks?" --question "What is on the board?"',
    "plan": "vidsieve plan lecture.mp4 --model Qwen/Qwen2.5-VL-7B-Instruct --fps 1 --keep 5%",
    "batch": "vidsieve batch clips --model Qwen/Qwen2.5-VL-7B-Instruct --keep 10% --out stored",
    "warm": "vidsieve warm Qwen/Qwen2.5-VL-7B-Instruct --frames 64 --size 576 1024",
    "bench": "vidsieve bench ops --case perframe-10 --rounds 5",
    "eval": "vidsieve eval --quick",
    "methods": "vidsieve methods",
    "models": "vidsieve models --json",
    "env": "vidsieve env",
}


def parser(commands: Mapping[str, Command]) -> Parser:
    """Make the parser of the command line. commands: by name, what is called and what shows what it returns."""
    common = Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    share = Parser(add_help=False)
    about = "share of the video tokens that stays; with framefusion, of the prefill's FLOPs (10%%, or the paper's)"
    share.add_argument("--keep", type=fraction, help=about)
    share.add_argument("--method", type=method, default="vidsieve", help="see `vidsieve methods` (vidsieve)")
    place = Parser(add_help=False)
    place.add_argument("--device", help="cpu, cuda, cuda:1, ... (cuda where there is one)")
    place.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="precision of the model (auto: that of the checkpoint; float32 on cpu)",
    )
    how = Parser(add_help=False, parents=[share, place])

    about = "share of the groups of pixels that the vision tower computes: the others repeat those (100%%)"
    pixels = Parser(add_help=False)
    pixels.add_argument("--pixels", type=fraction, help=about)

    sample = Parser(add_help=False)
    sample.add_argument("--frames", type=count, default=64, help="frames to sample (64)")
    about = "even: at even distances; keyframes: of the key frames only, which is faster for long clips (even)"
    sample.add_argument("--sampling", choices=SAMPLINGS, default="even", help=about)

    film = Parser(add_help=False)
    film.add_argument("--film", action="store_true", help="draw overlay.mp4 too: the clip beside its kept patches")
    film.add_argument("--gif", action="store_true", help="draw overlay.gif too, the same, smaller")

    made = _top()
    subparsers = made.add_subparsers(metavar="COMMAND", required=True)
    layouts: dict[str, tuple[Callable[[Parser], None] | None, list[Parser]]] = {
        "run": (_add_run, [how, pixels, sample, film]),
        "show": (_add_show, [film]),
        "demo": (_add_demo, [how, pixels, film]),
        "app": (_add_app, [place, sample]),
        "encode": (_add_encode, [how, pixels, _part()]),
        "ask": (_add_ask, [place]),
        "plan": (_add_plan, [share, place, _part()]),
        "batch": (_add_batch, [how, pixels, _part()]),
        "warm": (_add_warm, [how, pixels]),
        "bench": (_add_bench, []),
        "eval": (_add_eval, [pixels]),
        "methods": (None, []),
        "models": (None, []),
        "env": (None, []),
    }
    siblings: dict[str, Parser] = {}
    for name, (add, parents) in layouts.items():
        command, show = commands[name]
        about = (command.__doc__ or "").splitlines()[0]
        sub = subparsers.add_parser(
            name,
            help=about,
            description=about,
            parents=[*parents, common],
            epilog=f"example:\n  {EXAMPLES[name]}",
            formatter_class=RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=command, show=show)
        siblings[name] = sub
        sub.siblings = siblings
        if add is not None:
            add(sub)
    made.siblings = siblings
    return made


def _top() -> Parser:
    """Make the parser of the options that stand alone."""
    made = Parser(prog="vidsieve", description="Drop the video tokens a video language model does not need.")
    made.add_argument("--version", action=Version, nargs=0, help="show the version, and those of what it runs on")
    about = "print what completes commands in this shell (extra `completion`)"
    made.add_argument("--print-completion", action=Completion, choices=("bash", "zsh", "tcsh"), help=about)
    return made


def _part() -> Parser:
    """Make the options that say which frames of a long clip are taken."""
    part = Parser(add_help=False)
    which = part.add_mutually_exclusive_group()
    which.add_argument("--frames", type=count, help="frames to sample, at even distances (64)")
    which.add_argument("--fps", type=rate, help="frames to sample a second, instead")
    part.add_argument("--max-frames", type=count, help="at most so many frames, at even distances (all that fps gives)")
    part.add_argument("--start", type=seconds, default=0.0, help="begin here: seconds, or 1:02:03 (0)")
    part.add_argument("--end", type=seconds, help="end here (the end of the clip)")
    part.add_argument("--max-pixels", type=count, help="of a decoded frame; larger ones are scaled down (1024 a side)")
    part.add_argument("--sampling", choices=SAMPLINGS, default="even", help="as in `vidsieve run` (even)")
    return part


def _add_run(command: Parser) -> None:
    command.add_argument("clip", metavar="CLIP", help="a video file")
    command.add_argument("--question", "-q", type=question, required=True, help="what to ask about it")
    command.add_argument("--model", "-m", required=True, help="Hub id or folder of a video language model")
    command.add_argument("--strict", action="store_true", help="refuse a clip that is cut short or damaged")
    about = "what decodes the clip; torchcodec does on the GPU that --device names (pyav)"
    command.add_argument("--decoder", choices=LIBRARIES, default="pyav", help=about)
    command.add_argument("--max-new-tokens", type=count, default=128, help="longest answer (128)")
    command.add_argument("--only-reduced", action="store_true", help="do not answer with every token too")
    command.add_argument("--out", type=folder, metavar="DIR", help="folder for result.json and the overlay, a picture")


def _add_show(command: Parser) -> None:
    command.add_argument("result", metavar="RESULT", type=Path, help="result.json, or the folder it lies in")
    command.add_argument("--out", type=folder, metavar="DIR", help="folder for the pictures (beside result.json)")


def _add_demo(command: Parser) -> None:
    command.add_argument(
        "--out", type=folder, metavar="DIR", default="out/demo", help="folder for everything (out/demo)"
    )


def _add_app(command: Parser) -> None:
    about = "Hub id or folder of a video language model beside the bundled one; repeatable"
    command.add_argument("--model", "-m", action="append", dest="models", help=about)
    about = "address to listen at; 0.0.0.0 lets everyone in who reaches this machine, without a password (127.0.0.1)"
    command.add_argument("--host", default="127.0.0.1", help=about)
    command.add_argument("--port", type=port, default=7860, help="0: any that is free (7860)")
    about = "a name, beside localhost, that requests may ask for, as behind a proxy; repeatable"
    command.add_argument("--allow-host", type=host, action="append", dest="hosts", metavar="NAME", help=about)
    command.add_argument("--max-upload", type=size, default="1GB", help="largest clip (1GB)")
    command.add_argument("--max-new-tokens", type=count, default=128, help="longest answer (128)")


def _add_clips(command: Parser) -> None:
    command.add_argument(
        "clips", nargs="+", metavar="CLIP", help="video files, folders of them, or text files (.txt) with one a line"
    )
    command.add_argument("--model", "-m", required=True, help="Hub id or folder of a video language model")
    command.add_argument(
        "--out", type=folder, metavar="DIR", required=True, help="folder for the files, one a clip; goes on there"
    )
    command.add_argument("--strict", action="store_true", help="a clip that is cut short or damaged fails")


def _add_encode(command: Parser) -> None:
    _add_clips(command)
    about = "copies of the model; several: Ray runs them, one a GPU, or on the CPU (one, in this process)"
    command.add_argument("--workers", type=count, help=about)
    command.add_argument("--address", help="of a Ray cluster that encodes the clips (this process)")


def _add_ask(command: Parser) -> None:
    command.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        type=Path,
        help="what `vidsieve encode` wrote, or its folder; several: one prompt",
    )
    about = "repeatable; without one, questions are read from standard input, one a line"
    command.add_argument("--question", "-q", type=question, action="append", dest="questions", help=about)
    command.add_argument("--model", "-m", help="Hub id or folder of the model (the one that the file names)")
    command.add_argument("--keep", type=fraction, help="of the video tokens, fewer than are stored (all of those)")
    about = "inside the model, to pick those for each question of what is stored: fastv, pyramiddrop (none)"
    command.add_argument("--method", type=method, help=about)
    command.add_argument("--max-new-tokens", type=count, default=128, help="longest answer (128)")


def _add_plan(command: Parser) -> None:
    command.add_argument("clip", metavar="CLIP", help="a video file")
    command.add_argument("--model", "-m", required=True, help="Hub id or folder of a video language model")


def _add_batch(command: Parser) -> None:
    _add_clips(command)
    command.add_argument("--workers", type=count, help="copies of the model (one a GPU, or one for four processors)")
    command.add_argument("--address", help="of a Ray cluster (this machine)")


def _add_warm(command: Parser) -> None:
    command.add_argument("model", metavar="MODEL", help="Hub id or folder of a video language model")
    about = "numbers of frames to compile for (64)"
    command.add_argument("--frames", type=count, nargs="+", action="extend", metavar="N", help=about)
    about = "height and width of frames, repeatable (of 16:9 and 4:3, both ways up, as `vidsieve run` reads them)"
    command.add_argument("--size", type=count, nargs=2, action="append", metavar=("H", "W"), dest="sizes", help=about)


def _add_bench(command: Parser) -> None:
    command.add_argument("what", metavar="WHAT", choices=("ops",), help="ops: the operations on tensors")
    command.add_argument("--frames", type=count, default=64, help="frames of the video (64)")
    command.add_argument("--tokens", type=count, default=196, help="tokens a frame (196)")
    command.add_argument("--dim", type=count, default=3584, help="features a token (3584)")
    command.add_argument("--keep", type=fraction, help="one case of your own: this share of the tokens,")
    command.add_argument("--segments", type=count, metavar="FRAMES", help="in segments of so many frames (1)")
    command.add_argument("--case", action="append", dest="cases", metavar="NAME", help="only this case; repeatable")
    command.add_argument(
        "--relevance",
        choices=("prompt", "flat"),
        default="prompt",
        help="of tokens: to a prompt, or all alike (prompt)",
    )
    command.add_argument("--rounds", type=count, default=20, help="calls of each variant (20)")
    command.add_argument("--device", help="cpu, cuda, cuda:1, ... (cuda where there is one)")
    command.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16", help="of the features (bfloat16)"
    )
    command.add_argument("--out", type=file, metavar="FILE", help="write the card and the rows to this JSON file")


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
    command.add_argument(
        "--keep", type=fraction, action="append", dest="keeps", help="a share; repeatable (0.05 0.1 0.25 0.5)"
    )
    command.add_argument(
        "--method", type=method, action="append", dest="methods", help="a method; repeatable (all there are)"
    )
    command.add_argument("--frames", type=count, help="synthetic: of a video (as the model was trained)")
    command.add_argument("--quick", action="store_true", help="keep 0.1, the default method and the floors; 64 videos")
    command.add_argument("--device", help="cpu, cuda, cuda:1, ... (cuda where there is one; natural: cpu)")
    command.add_argument("--out", type=file, metavar="FILE", help="write the card and the rows to this JSON file")
