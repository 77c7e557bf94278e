"""The pages of the site that are made of the code: methods, their numbers, commands and the reference."""

import inspect
import json
import os
import re
from contextlib import redirect_stdout, suppress
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

from vidsieve import errors, registry
from vidsieve.cli.main import COMMANDS
from vidsieve.cli.parser import parser

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
# What the reference covers: the public names of each module, under one title.
REFERENCE = {
    "vidsieve": "Everyday names",
    "vidsieve.methods": "Methods and their parts",
    "vidsieve.registry": "Methods by name",
    "vidsieve.engines.hf": "Models of transformers",
    "vidsieve.video": "Video files",
    "vidsieve.encoded": "Stored videos",
    "vidsieve.errors": "Errors",
}
os.environ["COLUMNS"] = "100"  # of the help of a command


def pages() -> dict[str, str]:
    """Make every generated page: Markdown by the path in the site."""
    made = {"methods/index.md": _methods(), "cli.md": _commands()}
    made |= {f"methods/{name}.md": _method(method) for name, method in registry.methods().items()}
    made |= {f"api/{module.removeprefix('vidsieve.')}.md": _reference(module) for module in REFERENCE}
    return made


def _methods() -> str:
    lines = [
        "# Methods",
        "",
        "Each name works wherever a method is asked for: `vidsieve.attach(model, NAME, keep=0.1)`, "
        "`vidsieve run --method NAME`, `vidsieve eval --method NAME`. [Choose a method](../choose.md) compares them.",
        "",
        "| name | what it does | reduces | paper |",
        "| --- | --- | --- | --- |",
    ]
    for name, method in registry.methods().items():
        where = "inside the language model" if method.inside else "before the language model"
        lines.append(f"| [`{name}`]({name}.md) | {method.summary} | {where} | {_papers(method)} |")
    return "\n".join(lines) + "\n"


def _method(method: registry.Method) -> str:
    keep = method.default_keep
    doc = inspect.cleandoc(method.make.__doc__ or "")
    rest = re.sub(r"\bdocs/(\w+\.md)", r"[\1](../\1)", doc.partition("\n")[2].strip())
    source = Path(inspect.getsourcefile(method.make) or "").resolve().relative_to(ROOT)
    lines = [
        f"# {method.name}",
        "",
        method.summary,
        "",
        *([rest, ""] if rest else []),
        "```python",
        f'with vidsieve.attach(model, "{method.name}", keep={keep}) as trace:',
        "    model.generate(**inputs)",
        "```",
        "",
        *_picture(method.name),
        "## Rule",
        "",
        "The name stands for this expression of parts ([their mathematics](../method.md), "
        "[their arguments](../api/methods.md)):",
        "",
        "```text",
        _expression(method(keep)),
        "```",
        "",
        "| | |",
        "| --- | --- |",
        f"| paper | {_papers(method)} |",
        f"| `keep` is a share of | the {'video tokens' if method.keep_of == 'tokens' else 'FLOPs of the prefill'} |",
        f"| reduces | {'inside the language model' if method.inside else 'before the language model'} |",
        f"| its work grows with | {'the square of ' if method.grows == 'square' else ''}the length of the video |",
        f"| code | [{source.name}](../../{source}) |",
        "",
        "## Numbers",
        "",
        *(_numbers(method.name) or ["No figures of this method are in benchmarks/results."]),
    ]
    return "\n".join(lines) + "\n"


def _picture(name: str) -> list[str]:
    """What the method keeps of four frames, where somebody drew it."""
    if not (ROOT / "docs" / "images" / "kept" / f"{name}.jpg").exists():
        return []
    return [
        f"![Four frames of a flower that opens; what {name} drops is dark](../images/kept/{name}.jpg)",
        "",
        "A tenth of the tokens, of features of a network for photographs "
        "([natural_picture.py](../../benchmarks/natural_picture.py); clip: MDN, CC0).",
        "",
    ]


def _expression(made: Any) -> str:
    """What Python writes for a method, one part a line."""
    text, depth, out = repr(made), 0, []
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        out.append(letter)
        if letter == "," and depth == 1:
            out.append("\n   ")
    return "".join(out)


def _papers(method: registry.Method) -> str:
    numbers = re.findall(r"\d{4}\.\d{4,5}", method.paper or "")
    return ", ".join(f"[arXiv {number}](https://arxiv.org/abs/{number})" for number in numbers) or "none"


def _numbers(name: str) -> list[str]:
    """The rows of a method in the committed results, each with its machine and file."""
    rows = [_milliseconds(name), *_natural(name), *_answers(name)]
    found = [row for row in rows if row]
    if not found:
        return []
    head = ["| what | keep | value | machine | file |", "| --- | --- | --- | --- | --- |"]
    return [*head, *found, "", "[What is compared, and how](../evaluation.md); [natural shots](../natural.md)."]


def _milliseconds(name: str) -> str:
    found = _read("methods_cpu.json")
    card = found["card"]
    for row in found["rows"]:
        if row["method"] == name:
            value = f"{row['ms']['median']:,.0f} ms".replace(",", " ")
            what = f"one reduction of {card['shape']}, median of {row['runs']}"
            return _row(what, card["keep"], value, f"{card['cores']} CPU cores", "methods_cpu.json")
    return ""


def _natural(name: str) -> list[str]:
    found = _read("natural_test.json")
    rows = []
    for row in found["rows"]:
        if row["method"] == name and not row["refused"]:
            right, of = row["static"]
            measures = {
                "natural shots: objects that stand still, found": f"{right} of {of}",
                "natural shots: least share of a shot": f"{row['least_share']:.2f}",
                "natural shots: mean distance to the nearest kept token": f"{row['cov']:.3f}",
            }
            rows += [_row(what, row["keep"], value, "CPU", "natural_test.json") for what, value in measures.items()]
    return rows


def _answers(name: str) -> list[str]:
    """Right answers on the synthetic suites, of the first file that has the method as it is now."""
    for file in ("seeds_h200.json", "eval_test_h100.json"):
        found = _read(file)
        suites = {"needles": found["rows"]} if "rows" in found else found
        rows = [
            _row(f"right answers, suite `{suite}`", row["keep"], _accuracy(row), _device(found), file)
            for suite in ("needles", "long")
            for row in suites.get(suite, ())
            if row["method"] == name and row["reducer"] == repr(registry.method(name)(row["keep"]))
            if row["keep"] in (0.05, 0.1, 0.25) and not row["refused"]
        ]
        if rows:
            return rows
    return []


def _accuracy(row: Any) -> str:
    mean = row["accuracy"].get("mean") or row["accuracy"]["all"]["mean"]
    return f"{mean:.3f}"


def _device(found: Any) -> str:
    device = found["card"]["device"]
    return device if "NVIDIA" in device else "CPU"


def _row(what: str, keep: float, value: str, machine: str, file: str) -> str:
    return f"| {what} | {100 * keep:g} % | {value} | {machine} | [{file}](../../benchmarks/results/{file}) |"


def _read(file: str) -> Any:
    return json.loads((RESULTS / file).read_text("utf-8"))


def _commands() -> str:
    lines = ["# The command line", "", *_help(), ""]
    for name in COMMANDS:
        lines += [f"## {name}", "", *_help(name), ""]
    return "\n".join(lines)


def _help(*command: str) -> list[str]:
    said = StringIO()
    with redirect_stdout(said), suppress(SystemExit):
        parser(COMMANDS).parse_args([*command, "--help"])
    return ["```text", said.getvalue().rstrip(), "```"]


def _reference(module: str) -> str:
    names = _public(module)
    title = REFERENCE[module]
    lines = [f"# {title}", "", f"`{module}`", ""]
    for name in names:
        lines += [f"::: {module}.{name}" if module == "vidsieve.errors" else f"::: {_canonical(module, name)}", ""]
    return "\n".join(lines)


def _public(module: str) -> list[str]:
    loaded = import_module(module)
    if module == "vidsieve.errors":
        return [name for name, value in vars(errors).items() if inspect.isclass(value)]
    names = getattr(loaded, "__all__", None) or ["Method", "register_method", "methods", "method", "engine"]
    taken = [name for name in names if inspect.isclass(v := getattr(loaded, name)) or inspect.isfunction(v)]
    first = set() if module == "vidsieve" else set(import_module("vidsieve").__all__)
    return sorted(
        (name for name in taken if name not in first), key=lambda name: inspect.isclass(getattr(loaded, name))
    )


def _canonical(module: str, name: str) -> str:
    value = getattr(import_module(module), name)
    return f"{value.__module__}.{value.__qualname__}"
