"""Print the results of the commands as text. Libraries for it are imported only when there is a result."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidsieve.checks import pip_install, printable, require
from vidsieve.errors import VidsieveError, redacted

MOST = 10  # entries of a list that are printed
EMPTY = "(empty)"  # an answer
FULLEST = 5  # parts of a video that are printed

# What is told in one line where a command fails; anything else is a fault of vidsieve's own.
FAILURES = (VidsieveError, OSError, ValueError, RuntimeError, MemoryError)

TORCHVISION = {
    None: "is not installed",
    "fine": "fits torch",
    "patched": "is not built for this torch; patched here, so plain transformers works too",
    "broken": "is not built for this torch: vidsieve works where that is without CUDA, `from transformers import "
    "AutoProcessor` fails; install both from one package index, or run: python -m vidsieve.engines.torchvision",
}


def one_line(error: BaseException) -> str:
    """Write an error as one line, without passwords in addresses."""
    return printable(redacted(" ".join(str(error).split()))) or type(error).__name__


def show_result(result: dict[str, Any]) -> None:
    """Print tokens, answers and times with and without the method, and last the paths of the pictures."""
    require("rich", "video")
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    sample = result["frames"]
    console.print(
        f"{Text(printable(Path(result['clip']).name)).markup}: {_sampled(sample)}, {sample['duration']:.1f} s; "
        f"{result['model_type']} on {result['device']} in {result['dtype']}"
    )
    if advice := _advice(sample):
        console.print(advice)
    console.print(f"[bold]{tokens(result)}")
    console.print(f"most of the kept tokens: {spans(result['spans'])}")
    if result.get("pixels"):
        console.print(f"vision tower: {result['tower']}")
    inside = [stage for stage in result.get("stages", ()) if stage["layer"] > 0]
    if inside:
        left = ", ".join(f"{stage['tokens_after']} from layer {stage['layer']}" for stage in result["stages"])
        console.print(f"{left}; {100 * result['cost']:.1f} % of the prefill's FLOPs")
    console.print()

    unreduced = result["stages_ms_unreduced"]
    console.print(_split(result))
    loading = result["loading_ms"]
    hidden = _ms(max(0.0, result["stages_ms"]["decode"] - loading["waited"]))
    console.print(f"[dim]{hidden} of decoding while the model was loaded, which took {_ms(loading['load'])}[/]")
    if unreduced:
        console.print(f"\n[bold]{result['gain']}[/]")

    console.print(f"\n[dim]question[/]     {Text(result['question']).markup}")
    if unreduced:
        console.print(f"[dim]every token[/]  {Text(result['answer_unreduced'] or EMPTY).markup}")
    console.print(f"[dim]reduced[/]      {Text(result['answer'] or EMPTY).markup}")
    if "note" in result:
        console.print(f"[dim]{result['note']}[/]")
    if "pictures" in result:
        console.print()
        for path in result["pictures"].values():
            console.print(f"picture: [bold]{Text(path).markup}[/]")


def tokens(result: dict[str, Any]) -> str:
    """Say how many video tokens there were and are."""
    before, after, count = result["tokens_before"], result["tokens_after"], len(result["segments"] or ())
    segments = f" in {count} segment{'s' * (count > 1)}" if count else ""
    return f"{before} video tokens -> {after} kept ({100 * after / before:.1f} %){segments}"


def _split(result: dict[str, Any]) -> Any:
    """Make a table of prompt lengths and times, of both answers where there are two."""
    from rich.table import Table

    compared = bool(result["stages_ms_unreduced"])
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for title in (("every token",) if compared else ()) + (reduced_title(result),):
        table.add_column(title, justify="right")
    for name, unreduced, reduced in rows(result):
        table.add_row(name, *((unreduced,) if compared else ()), reduced)
    return table


def reduced_title(result: dict[str, Any]) -> str:
    """Name the method of a result and its share."""
    return f"{result['method']}, {'cost' if result.get('keep_of') == 'FLOPs' else 'keep'} {result['keep']:g}"


def rows(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """List prompt lengths and times: a name, with every token ("" if it was not measured), and with those kept."""
    stages = result["stages_ms"]
    unreduced = result["stages_ms_unreduced"]
    made = [("prompt tokens", str(result["prompt_before"]), str(result["prompt_after"]))]

    def add(name: str, key: str) -> None:
        made.append((name, _ms(unreduced[key]) if unreduced and key in unreduced else "", _ms(stages[key])))

    shared = ("decode", "process", *(("vision",) if "vision" in stages else ()))
    for name in shared:
        add(name, name)
    add("prefill" if "vision" in stages else "vision + prefill", "prefill")
    others = {*shared, "prefill", "first_token", "rest", "draw"}
    for name in (name for name in stages if name not in others):
        add(f"  of which {name}", name)
    add("first token", "first_token")
    add("rest", "rest")
    if "draw" in stages:
        add("draw", "draw")
    return made


def _sampled(sample: dict[str, Any]) -> str:
    if sample["sampling"] == "keyframes":
        return f"{len(sample['index'])} of {sample['key_frames']} key frames among {sample['total']} frames"
    return f"{len(sample['index'])} of {sample['total']} frames"


def _advice(sample: dict[str, Any]) -> str | None:
    """Say what key frames would have saved, if that is more than half and there are enough of them."""
    count, decoded = len(sample["index"]), sample["decoded"]
    instead = min(count, sample["key_frames"])
    if sample["sampling"] == "keyframes" or 2 * instead < count or 2 * instead >= decoded:
        return None
    return (
        f"{decoded} frames were decoded for these {count}: by that count, --sampling keyframes ({instead} frames, at "
        f"uneven distances) would save {100 * (1 - instead / decoded):.0f} % of the decoding"
    )


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.1f} ms" if milliseconds < 100 else f"{milliseconds:,.0f} ms"


def show_app(found: Any) -> None:
    print(f"stopped after {found['answered']} answer{'s' * (found['answered'] != 1)}")


def show_encode(found: Any) -> None:
    for row in found["rows"]:
        name = printable(Path(row["clip"]).name)
        if "error" in row:
            print(printable(row["error"]) if row["clip"] in row["error"] else f"{name}: {printable(row['error'])}")
            continue
        kept = f"{row['tokens_before']} video tokens -> {row['tokens_after']} kept, {_bytes(row['bytes'])}"
        took = f"{row['seconds']:.1f} s" if "seconds" in row else "was there"
        if "not_compared" in row:
            took += f", and the clip cannot be compared ({printable(row['not_compared'])})"
        count = f"{row['frames']} frame{'s' * (row['frames'] != 1)}"
        print(f"{name}: {count} of {row['duration']:.1f} s, {kept}; {took}\n  {printable(row['file'])}")
    files = [row["file"] for row in found["rows"] if "file" in row]
    print(f"ask: vidsieve ask {shlex.quote(files[0])} --question '...'")


def show_answer(row: Any) -> None:
    if "error" in row:
        print(f"{row['question']}\n  not answered: {row['error']}", flush=True)
        return
    print(f"{row['question']}\n  {row['answer'].strip() or EMPTY}  ({_ms(1e3 * row['seconds'])})", flush=True)


def show_asked(found: Any) -> None:
    """Print where most of what was asked is; each answer was printed when it came."""
    for video in found["videos"]:
        of = f" of {printable(Path(video['clip']).name)}" if len(found["videos"]) > 1 else ""
        print(f"most of the kept tokens{of}: {spans(video['spans'])}")


def spans(held: Sequence[dict[str, float]]) -> str:
    """Write when most of the kept tokens are shown, the fullest part first."""
    told = [f"{_when(span['start'], span['end'])} ({100 * span['share']:.0f} %)" for span in held[:FULLEST]]
    rest = held[FULLEST:]
    others = "1 more part holds" if len(rest) == 1 else f"{len(rest)} more parts hold"
    more = f"; {others} {100 * sum(span['share'] for span in rest):.0f} %" if rest else ""
    return ", ".join(told) + more


def _when(start: float, end: float) -> str:
    begin, last = _clock(int(start)), _clock(int(end))
    return begin if begin == last else f"{begin}-{last}"


def _clock(seconds: int) -> str:
    minutes = f"{seconds // 60 % 60:02d}" if seconds >= 3600 else f"{seconds // 60}"
    return f"{seconds // 3600}:" * (seconds >= 3600) + f"{minutes}:{seconds % 60:02d}"


def show_plan(found: Any) -> None:
    size, seconds = found["bytes"], found["seconds"]
    height, width = found["size"]
    stages = {name: seconds[name] for name in ("decode", "process", "tower")}
    name = printable(Path(found["clip"]).name)
    frames = "1 frame" if found["frames"] == 1 else f"{found['frames']} frames"
    print(f"{name}: {frames} of {height} x {width}, {found['duration']:.1f} s")
    least, most = _bytes(size["stored"]), _bytes(size["stored_most"])
    scenes = "" if least == most else f" to {most}, depending on its scenes"
    print(f"{found['tokens_before']} video tokens -> {found['tokens_after']} kept, a file of {least}{scenes}")
    print(f"prompt: {found['prompt_before']} -> {found['prompt_after']} tokens, KV cache ", end="")
    print(f"{_bytes(size['kv_before'])} -> {_bytes(size['kv_after'])}; weights {_bytes(size['weights'])}")
    print("encoding, about: " + ", ".join(f"{name} {took:.1f} s" for name, took in stages.items()), end="")
    print(f", at the same time: {max(stages.values()):.1f} s")
    print(f"first token of a question, about: {seconds['first_token']:.2f} s", end="")
    print(f" ({seconds['first_token_before']:.2f} s with every token)")


def _bytes(count: float) -> str:
    """Write a number of bytes in binary units."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def show_batch(found: Any) -> None:
    print(f"{found['clips']} clips: {found['encoded']} encoded, {found['already_there']} were there", end="")
    print(f", {len(found['failed'])} failed" if found["failed"] else "")
    for row in found["failed"][:MOST]:
        named = row["clip"] in row["error"]
        print("  " + printable(row["error"] if named else f"{row['clip']}: {row['error']}"))
    if len(found["failed"]) > MOST:
        print(f"  and {len(found['failed']) - MOST} more, in the table")
    if found["ignored"]:
        print(f"{len(found['ignored'])} files ignored")
    for reason in sorted(set(found["ignored"].values())):
        names = [repr(name)[1:-1] for name, why in found["ignored"].items() if why == reason]
        more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
        print(f"  {reason}: {', '.join(names[:MOST])}{more}")
    print(f"table: {found['table']}\nask: vidsieve ask {shlex.quote(found['folder'])}/NAME.vidsieve --question '...'")


def show_warm(found: Any) -> None:
    if found["reason"]:
        print(f"nothing to compile: {found['reason']}")
        return
    print(f"{found['model_type']} on {found['device']} in {found['dtype']}; {found['method']}, keep {found['keep']:g}")
    print(f"attached: {found['attach_s']:.2f} s, {_kernels(found['attach_compiled'])}; tower {found['tower']}")
    for row in found["layouts"]:
        height, width = row["size"]
        print(
            f"{row['frames']} frames of {height} x {width}, {row['tokens']} tokens: first {row['first_s']:.2f} s, "
            f"second {row['second_s']:.2f} s, {_kernels(row['compiled'])}"
        )
    for row in found["encode"]:
        height, width = row["size"]
        print(
            f"encode, chunks of {row['chunk']} frames of {height} x {width}: first {row['first_s']:.2f} s, "
            f"second {row['second_s']:.2f} s, {_kernels(row['compiled'])}"
        )
    if found["encode_reason"]:
        print(f"encode: not with this model and method ({found['encode_reason']})")
    print(f"{_kernels(found['compiled'])} into {found['folder']}")


def _kernels(count: int) -> str:
    return f"{count or 'no'} kernel{'s' * (count != 1)} compiled"


def show_bench(found: Any) -> None:
    require("rich", "video")
    from rich.console import Console

    from vidsieve.evaluation.bench import table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    for name, value in found["card"].items():
        console.print(f"[dim]{name:14}[/] {value}")
    console.print(table(found))


def show_eval(found: Any) -> None:
    require("rich", "video")
    from rich.console import Console

    if "network" in found["card"]:
        from vidsieve.evaluation.natural.runner import table
    else:
        from vidsieve.evaluation.evaluate import table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    for name, value in found["card"].items():
        if name != "chance":
            console.print(f"[dim]{name:14}[/] {value}")
    console.print(table(found))
    for row in found["rows"]:
        if row["refused"]:
            console.print(f"refused: {row['method']} at {row['keep']:g}: {row['refused']}", markup=False)


def show_pictures(found: Any) -> None:
    for path in found["pictures"].values():
        print(path)


def show_methods(found: Any) -> None:
    for method in found:
        share = f" --keep: share of the prefill's {method['keep_of']}." if method["keep_of"] != "tokens" else ""
        paper = f" [{method['paper']}]" if method["paper"] else ""
        grows = " Grows with the square of the video's length." if method["grows"] == "square" else ""
        print(f"{method['name']:<13}{method['summary']}{share}{grows}{paper}")


def show_env(found: Any) -> None:
    for package, number in found["versions"].items():
        print(f"{package:<14}{number or 'not installed'}")
    print(f"{'':<14}torchvision {TORCHVISION[found['torchvision']]}")
    if tested := found["transformers"]["tested"]:
        print(f"{'':<14}transformers {', '.join(tested)} were tested")
    if fault := found["transformers"]["fault"]:
        print(f"{'':<14}{fault}")
    print(f"{'devices':<14}{', '.join(found['devices'])}")
    print(f"{'VIDSIEVE_OPS':<14}{found['ops']['asked']}")
    for name, reason in found["ops"]["available"].items():
        print(f"{'':<14}{name}: {reason or 'can run'}")
    for extra, present in found["extras"].items():
        print(f"{'extra ' + extra:<14}" + ("complete" if present else f"missing: {pip_install(extra)}"))
    models = ", ".join(found["model_types"] or ("none without a transformers that fits",))
    print(f"{'models':<14}{models}")
    print("\nDid it engage? `print(trace)` inside `with method(model) as trace:` says how many tokens each video lost;")
    print("`vidsieve.verify(model, inputs, method)` compares your model with and without hooks, token for token.")
