"""The page, made with Gradio: its fields, what its buttons call, and how a reply is shown."""

import os
import shutil
from collections.abc import Callable, Collection
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import gradio as gr
from fastapi import FastAPI
from gradio.utils import get_upload_folder
from gradio_client.utils import is_file_obj_with_meta, traverse

from vidsieve import registry
from vidsieve.cli.app.html import heading, table
from vidsieve.cli.app.requests import Bounded, OnlyHosts
from vidsieve.cli.app.service import Asked, Service, sample
from vidsieve.cli.app.uploads import Uploads
from vidsieve.cli.app.visitors import Visitors

FONTS = ["system-ui", "sans-serif"]
STEPS = 7  # that `Service.ask` tells of, about
AGE = 24 * 3600  # seconds after which a file goes that no page has shown
# What a page may load: only what this server sends.
# Gradio's button that cuts a clip loads what it needs from another host.
STYLE = """
#clip button[aria-label="Trim video to selection"] { display: none }
#said { min-height: 5rem }
#said .error { color: var(--error-text-color); font-weight: bold }
#times table { width: 100% }
#times td, #times th { padding: 0.15rem 0.6rem; white-space: pre }
#times .number { text-align: right }
"""
POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
KNOWS = "vidsieve-tiny knows only videos like the sample, to whose question {} is the right answer"
ABOUT = (
    "# vidsieve\nA video language model answers your question twice: with every video token, and with those that a "
    "method keeps."
)


def application(service: Service, folder: Path, max_upload: int, hosts: Collection[str] | None = None) -> FastAPI:
    """Make the application that serves the page.

    Uploads and pictures lie in `folder`; max_upload: bytes.  hosts: those that it is asked for as; None for any.
    """
    visitors = Visitors()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    made = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        build(service, folder, visitors),
        "/",
        footer_links=[],
        run_history=False,
        max_file_size=max_upload,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        css=STYLE,
        theme=gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"]),
    )
    made.add_middleware(Bounded, uploads=Uploads(folder, visitors, max_upload))
    if hosts is not None:
        made.add_middleware(OnlyHosts, names=hosts)
    made.add_middleware(_FromHere)
    return made


class _FromHere:
    """Tells the browser to load nothing from other hosts."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def told(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"content-security-policy", POLICY)]
            await send(message)

        await self.app(scope, receive, told)


class _Page(gr.Blocks):
    """Takes no file but uploads. Gradio itself would fetch an address that a request names."""

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *more: Any, **named: Any) -> Any:
        traverse(inputs, _uploaded, is_file_obj_with_meta)
        return await super().preprocess_data(block_fn, inputs, *more, **named)


def _uploaded(file: dict[str, Any]) -> dict[str, Any]:
    # Each upload lies in a folder of its own there, and each copy of the sample; the sample itself lies beside them.
    if Path(file["path"]).resolve().parent.parent != Path(get_upload_folder()).resolve():
        raise gr.Error("expected a clip that was uploaded on this page")
    return file


def build(service: Service, folder: Path, visitors: Visitors) -> gr.Blocks:
    """Make the page."""
    clip_of_sample, question_of_sample, right = sample(folder)
    names = list(registry.methods())
    with _Page(title="vidsieve", analytics_enabled=False, fill_width=True, delete_cache=(3600, AGE)) as page:
        gr.Markdown(ABOUT)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                clip = gr.Video(label="Clip", sources=["upload"], height=260, elem_id="clip")
                take = gr.Button("Take the sample", elem_id="sample")
                question = gr.Textbox(label="Question", placeholder="What happens?", elem_id="question")
                model = gr.Dropdown(service.models, label="Model", info=KNOWS.format(right), elem_id="model")
                method = gr.Dropdown(names, value=names[0], label="Method", elem_id="method", **_about(names[0]))
                keep = gr.Slider(0.01, 1, step=0.01, label="Keep", elem_id="keep", **_share(names[0]))
                film = gr.Checkbox(label="Film of the kept patches (takes longer)", elem_id="film")
                ask = gr.Button("Ask", variant="primary", elem_id="ask")
            with gr.Column(scale=3, min_width=420):
                said = gr.HTML(elem_id="said")
                with gr.Row():
                    unreduced = gr.Textbox(label="With every token", lines=2, interactive=False, elem_id="unreduced")
                    reduced = gr.Textbox(label="With the tokens kept", lines=2, interactive=False, elem_id="reduced")
                times = gr.HTML(elem_id="times")
                sheet = gr.Image(
                    show_label=False,
                    type="filepath",
                    interactive=False,
                    buttons=["download", "fullscreen"],
                    elem_id="sheet",
                )
                moving = gr.Video(
                    label="Film", visible=False, interactive=False, buttons=["download"], elem_id="moving"
                )
        private: dict[str, Any] = {"api_visibility": "private"}
        taking = _taking(visitors, folder, clip_of_sample, question_of_sample)
        take.click(taking, None, [clip, question], **private)
        method.change(
            lambda name: (gr.update(**_about(name)), gr.update(**_share(name))), method, [method, keep], **private
        )
        clip.change(_noted(visitors), clip, None, show_progress="hidden", queue=False, **private)
        asking = {
            "fn": _asking(service, visitors, folder),
            "inputs": [clip, question, model, method, keep, film],
            "outputs": [said, unreduced, reduced, times, sheet, moving],
            "concurrency_limit": 1,
            "show_progress_on": said,
        }
        gr.on([ask.click, question.submit], **asking, **private)
        page.unload(_left(visitors))
    page.has_launched = True  # before that Gradio checks no path
    return page


def _taking(visitors: Visitors, folder: Path, clip: Path, question: str) -> Callable[..., tuple[str, str]]:
    def taking(request: gr.Request) -> tuple[str, str]:
        copied = _copy(clip, folder)
        visitors.shows(request.session_hash, clip=copied)  # now: the page may be closed before it says so
        return copied, question

    return taking


def _copy(file: Path, folder: Path) -> str:
    """Copy a file to where uploads lie, for one visitor: it goes when the page that shows it is closed, as these do."""
    return shutil.copy(file, mkdtemp(dir=folder))


def _about(name: str) -> dict[str, Any]:
    return {"info": registry.method(name).summary}


def _share(name: str) -> dict[str, Any]:
    """What the slider is set to for a method, and what it means."""
    method = registry.method(name)
    of = "video tokens that stay" if method.keep_of == "tokens" else f"prefill's {method.keep_of} that are left"
    return {"value": method.default_keep, "info": f"share of the {of}"}


def _noted(visitors: Visitors) -> Callable[..., None]:
    def noted(clip: str | None, request: gr.Request) -> None:
        visitors.shows(request.session_hash, clip=clip)

    return noted


def _left(visitors: Visitors) -> Callable[..., None]:
    def left(request: gr.Request) -> None:
        visitors.leaves(request.session_hash)

    return left


def _asking(service: Service, visitors: Visitors, folder: Path) -> Callable[..., tuple[Any, ...]]:
    def asking(
        clip: str | None,
        question: str,
        model: str,
        method: str,
        keep: float,
        film: bool,
        request: gr.Request,
        progress: Any = gr.Progress(),
    ) -> tuple[Any, ...]:
        asked = Asked(clip, question, model, method, keep, film)
        done = count()
        with TemporaryDirectory() as out:  # not in `folder`, of which old files go when room is short
            reply = service.ask(asked, out, lambda what: progress((next(done), STEPS), desc=what))
            kept = {kind: _copy(path, folder) for kind, path in reply.pictures.items()}
        sheet, moving = kept.get("png"), kept.get("mp4")
        visitors.shows(request.session_hash, sheet=sheet, film=moving)
        return (
            heading(reply),
            reply.answer_unreduced,
            reply.answer,
            table(reply),
            sheet,
            gr.update(value=moving, visible=moving is not None),
        )

    return asking
