"""The page, made with Gradio: its fields, what its buttons call, and how a reply is shown."""

import os
from collections.abc import Callable
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
from fastapi import FastAPI
from gradio.processing_utils import save_file_to_cache

from vidsieve import registry
from vidsieve.cli.app.service import Asked, Reply, Service, sample
from vidsieve.cli.app.visitors import Visitors

FONTS = ["system-ui", "sans-serif"]
AGE = 24 * 3600  # seconds after which a file goes that no page has shown
# What a page may load: only what this server sends.
POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
ABOUT = (
    "# vidsieve\nA video language model answers your question twice: with every video token, and with those that a "
    "method keeps."
)


def application(service: Service, folder: Path, max_upload: int) -> FastAPI:
    """Make the application that serves the page. Uploads and pictures lie in `folder`; max_upload: bytes."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    made = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        build(service, folder),
        "/",
        footer_links=[],
        run_history=False,
        max_file_size=max_upload,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        theme=gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"]),
    )
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


def build(service: Service, folder: Path) -> gr.Blocks:
    """Make the page."""
    visitors = Visitors()
    clip_of_sample, question_of_sample, note = sample(folder)
    names = list(registry.methods())
    with gr.Blocks(title="vidsieve", analytics_enabled=False, delete_cache=(3600, AGE)) as page:
        gr.Markdown(ABOUT)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                clip = gr.Video(label="Clip", sources=["upload"], height=260, elem_id="clip")
                take = gr.Button("Take the sample", elem_id="sample")
                question = gr.Textbox(label="Question", placeholder="What happens?", elem_id="question")
                model = gr.Dropdown(service.models, label="Model", info=f"vidsieve-tiny: {note}", elem_id="model")
                method = gr.Dropdown(names, value=names[0], label="Method", elem_id="method", **_about(names[0]))
                keep = gr.Slider(0.01, 1, step=0.01, label="Keep", elem_id="keep", **_share(names[0]))
                film = gr.Checkbox(label="Film: the clip beside its kept patches (takes longer)", elem_id="film")
                ask = gr.Button("Ask", variant="primary", elem_id="ask")
            with gr.Column(scale=3, min_width=480):
                said = gr.HTML(elem_id="said")
                with gr.Row():
                    unreduced = gr.Textbox(label="With every token", lines=2, interactive=False, elem_id="unreduced")
                    reduced = gr.Textbox(label="With the tokens kept", lines=2, interactive=False, elem_id="reduced")
                times = gr.HTML(elem_id="times")
                sheet = gr.Image(label="What was kept", type="filepath", interactive=False, elem_id="sheet")
                moving = gr.Video(label="Film", visible=False, interactive=False, elem_id="moving")
        private: dict[str, Any] = {"api_visibility": "private"}
        take.click(lambda: (str(clip_of_sample), question_of_sample), None, [clip, question], **private)
        method.change(
            lambda name: (gr.update(**_about(name)), gr.update(**_share(name))), method, [method, keep], **private
        )
        clip.change(_noted(visitors), clip, None, show_progress="hidden", queue=False, **private)
        asking = {
            "fn": _asking(service, visitors, folder),
            "inputs": [clip, question, model, method, keep, film],
            "outputs": [said, unreduced, reduced, times, sheet, moving],
            "concurrency_limit": 1,
        }
        gr.on([ask.click, question.submit], **asking, **private)
        page.unload(_left(visitors))
    return page


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
        with TemporaryDirectory(dir=folder) as out:
            reply = service.ask(asked, out, lambda what: progress(None, desc=what))
            kept = {kind: save_file_to_cache(path, str(folder)) for kind, path in reply.pictures.items()}
        sheet, moving = kept.get("png"), kept.get("mp4")
        visitors.shows(request.session_hash, sheet=sheet, film=moving)
        return (
            said(reply),
            reply.answer_unreduced,
            reply.answer,
            times(reply),
            sheet,
            gr.update(value=moving, visible=moving is not None),
        )

    return asking


def said(reply: Reply) -> str:
    """Write what is above the answers: the error, or what was gained."""
    if reply.error:
        return f'<p role="alert" style="color: var(--error-text-color)"><b>{escape(reply.error)}</b></p>'
    lines = [f"<b>{escape(reply.gain)}</b>", escape(reply.tokens), *(f"warning: {escape(w)}" for w in reply.warnings)]
    return f"<p>{'<br>'.join(lines)}</p>"


def times(reply: Reply) -> str:
    """Write the table of prompt lengths and times, and when the kept tokens are shown."""
    if reply.error:
        return ""
    head = "".join(f"<th style='text-align: right'>{escape(title)}</th>" for title in reply.titles)
    rows = "".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(f"<td style='text-align: right'>{escape(v)}</td>" for v in values)
        + "</tr>"
        for name, *values in reply.rows
    )
    table = f"<table style='width: 100%'><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f"{table}<p>most of the kept tokens: {escape(reply.spans)}</p>"
