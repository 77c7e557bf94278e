"""`vidsieve bench` and `vidsieve eval`: what is measured, and the plan that the options make for it."""

import argparse
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from vidsieve import registry
from vidsieve.checks import not_among
from vidsieve.cli.arguments import Mistake


def bench(options: argparse.Namespace, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The card and the rows of the cases that were asked for. save: called with what there is after each case."""
    import torch

    from vidsieve.evaluation import bench as timing

    unknown = [case for case in options.cases or () if case not in timing.CASES]
    if unknown:
        raise Mistake(f"no case {not_among(unknown[0], timing.CASES)}")
    cases = {case: timing.CASES[case] for case in options.cases or timing.CASES}
    if options.keep is not None:
        if options.cases:
            raise Mistake("--keep describes a case of your own and --case names others; choose one of the two")
        if (options.segments or 1) > options.frames:
            raise Mistake(f"expected segments of at most {options.frames} frames, all there are")
        cases = timing.uniform_case(options.keep, options.segments or 1)
    elif options.segments is not None:
        raise Mistake("--segments describes a case of your own; say how much it keeps with --keep")
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = getattr(torch, options.dtype)
    load = timing.Load(options.frames, options.tokens, options.dim, device, dtype, options.relevance == "flat")
    command = "vidsieve " + shlex.join(options.typed)
    return timing.bench(load, cases, options.rounds, lambda case: print(case, file=sys.stderr), command, save)


def evaluate(options: argparse.Namespace, note: Callable[[str], None]) -> dict[str, Any]:
    """The card and the rows of the suite that was asked for."""
    from vidsieve.evaluation.floors import KEEPS

    names = options.methods or (["vidsieve"] if options.quick else list(registry.methods()))
    methods = {name: _on_pixels(registry.method(name), options.pixels) for name in names}
    keeps = tuple(options.keeps or ((0.1,) if options.quick else KEEPS))
    command = "vidsieve " + shlex.join(options.typed)
    return (_natural if options.suite == "natural" else _needles)(options, methods, keeps, command, note)


def _on_pixels(method: registry.Method, share: float | None) -> registry.Method:
    """Give a method videos of which the vision tower computes this share of the groups of pixels; None: all."""
    if share is None:
        return method
    from vidsieve.methods.compose import with_pixels

    return replace(method, make=lambda keep, **more: with_pixels(method(keep, **more), share))


def _needles(
    options: argparse.Namespace, methods: dict[str, Any], keeps: tuple[float, ...], command: str, note: Any
) -> dict[str, Any]:
    from vidsieve.evaluation import evaluate
    from vidsieve.evaluation.needles.tiny import BUNDLED

    if options.features is not None:
        raise Mistake("--features is for --suite natural; the synthetic suites render their videos, see --model")
    videos = options.videos or 500
    plan = evaluate.Plan(
        model=options.model or str(BUNDLED),
        split=options.split,
        videos=min(videos, 64) if options.quick else videos,
        keeps=keeps,
        methods=methods,
        device=options.device,
        frames=options.frames,
        command=command,
        suite=options.suite,
    )
    return evaluate.evaluate(plan, note)


def _natural(
    options: argparse.Namespace, methods: dict[str, Any], keeps: tuple[float, ...], command: str, note: Any
) -> dict[str, Any]:
    from vidsieve.evaluation.natural import NaturalPlan, evaluate_natural
    from vidsieve.evaluation.natural.features import DATA

    for name in ("model", "videos", "frames", "pixels"):
        if getattr(options, name) is not None:
            raise Mistake(f"--{name} is for synthetic suites; the natural suite has no model, and its videos are fixed")
    features = options.features or DATA
    return evaluate_natural(NaturalPlan(options.split, keeps, methods, None, options.device, features, command), note)
