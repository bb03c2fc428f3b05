"""The app: a page to segment pictures on, made with Gradio. The same is a Space on the Hugging Face Hub (`examples/space`).

The page asks nobody but its own server: no analytics, no fonts or scripts of other hosts, and a Content-Security-Policy that forbids them.
"""

from __future__ import annotations

import contextlib
import html
import tempfile
from abc import ABCMeta
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from ..demo import scenes
from ..demo.run import FIRST_UNSEEN_SEED
from ..errors import MissingPackageError, UPerNetZooError, shown
from ..version import install_line
from . import app_view
from .app_models import MOST_BYTES, Answer, Studio

try:
    import fastapi
    import gradio as gr
    from starlette.responses import PlainTextResponse
except ImportError as error:
    raise MissingPackageError(f"The app needs the package {error.name}: {install_line('app')}.") from None

__all__ = ["application"]

_HERE = Path(__file__).resolve().parent
_HEADER = (
    '<header class="uz-header"><h1>upernet_zoo</h1><p>What is where in a picture: every pixel gets a class. Drop a picture, or click an '
    "example.</p></header>"
)
_EXAMPLES = (0, 3, 7, 11)  # unseen scenes of the demo
_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # of the published multi-scale numbers
_WAITING = 20  # pictures, in the queue
_KEPT = 3600  # seconds that a visitor's picture and result are kept
_VISITORS = 50  # whose results are kept
# what Gradio serves and this app does not need: other hosts' files, pages of its own, editing by a language model
_NOT_SERVED = (
    "/gradio_api/file=http",
    "/gradio_api/proxy=",
    "/gradio_api/run-history",
    "/gradio_api/runs",
    "/gradio_api/vibe",
    "/monitoring",
)
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'"
)


def _path(self: gr.Image, payload: Any) -> str | None:
    """What was uploaded, not opened by Gradio, whose messages are not ours."""
    return None if payload is None else payload.path


async def _move_uploaded(self: gr.Image, url_or_file_path: str | Path | None) -> str | None:
    """As Gradio does with uploaded files; nothing is fetched for a visitor."""
    if str(url_or_file_path).lower().startswith(("http:", "https:")):
        raise gr.Error("Pictures are uploaded, not fetched from a URL.", print_exception=False)
    return await gr.Image.async_move_resource_to_block_cache(self, url_or_file_path)


# an input that gives the path of an uploaded file; made by ABCMeta, as Gradio's own writes a file beside the module of each component
_Picture: Any = ABCMeta.__new__(
    type(gr.Image),
    "_Picture",
    (gr.Image,),
    {"preprocess": _path, "async_move_resource_to_block_cache": _move_uploaded, "get_block_name": lambda self: "image"},
)


@contextlib.contextmanager
def _shown_errors() -> Iterator[None]:
    """The library's errors, in the page."""
    try:
        yield
    except UPerNetZooError as error:
        raise gr.Error(html.escape(shown(str(error), "message")), duration=None, print_exception=False) from None


def _examples(folder: Path) -> list[list[str]]:
    paths = []
    for number, seed in enumerate(_EXAMPLES, 1):
        paths.append(folder / f"drawn_street_{number}.png")
        Image.fromarray(scenes.draw(FIRST_UNSEEN_SEED + seed)[0]).save(paths[-1])
    return [[str(path)] for path in paths]


def _page(studio: Studio, folder: Path) -> gr.Blocks:
    """The page and what happens on it. Files are in `folder`, and removed an hour after they were made."""

    def segment(picture: str | None, model: str, scales: list[float], flip: bool, progress: gr.Progress = gr.Progress()) -> Any:  # noqa: B008 (as Gradio asks)
        if picture is None:
            return None, None
        with _shown_errors():
            answer = studio.segment(picture, model, sorted(scales), flip, say=lambda text: progress(None, desc=text))
            return app_view.view(answer), answer

    def keep(what: str) -> Callable[[Answer | None, gr.EventData], str]:
        def write(answer: Answer | None, event: gr.EventData) -> str:
            if answer is None:
                raise gr.Error("This result is gone. Segment the picture again.", print_exception=False)
            with _shown_errors():
                made = Path(tempfile.mkdtemp(dir=folder))
                return str(app_view.write(answer, what, made, float(event.alpha)))

        return write

    def facts(model: str) -> str:
        return app_view.facts(next(choice for choice in studio.choices() if choice.name == model))

    def choices() -> Any:
        return gr.Dropdown(choices=[(choice.label, choice.name) for choice in studio.choices()])

    with gr.Blocks(title="upernet_zoo", analytics_enabled=False, delete_cache=(600, _KEPT), fill_width=True) as page:
        answer = gr.State(None, time_to_live=_KEPT)
        gr.HTML(_HEADER, apply_default_css=False, elem_id="uz-head")
        with gr.Row(elem_id="uz-columns"):
            with gr.Column(scale=5, min_width=280, elem_id="uz-ask"):
                picture = _Picture(
                    sources=["upload", "webcam", "clipboard"],
                    show_label=False,
                    buttons=["fullscreen"],
                    height=280,
                    elem_id="uz-picture",
                    placeholder="Drop a picture here\n- or -\nclick to choose one",
                    webcam_options=gr.WebcamOptions(mirror=False),
                    alt_text="The picture to segment",
                )
                examples = gr.Examples(_examples(folder), picture, label="Examples: streets that were drawn", elem_id="uz-examples")
                with gr.Group(elem_id="uz-pick"):
                    model = gr.Dropdown(
                        [(choice.label, choice.name) for choice in studio.choices()],
                        value=studio.first,
                        label="Model",
                        info="● its weights are here · ○ they are downloaded first",
                        elem_id="uz-model",
                    )
                    about = gr.HTML(facts(studio.first), elem_id="uz-facts", padding=True, apply_default_css=False)
                with gr.Accordion("Scales and flip", open=False):
                    scales = gr.CheckboxGroup(
                        [(f"{scale:g}", scale) for scale in _SCALES], value=[1.0], label="Scales, averaged", elem_id="uz-scales"
                    )
                    flip = gr.Checkbox(label="average with the mirrored picture")
                run = gr.Button("Segment", variant="primary", elem_id="uz-run")
            with gr.Column(scale=8, min_width=280):
                viewer = gr.HTML(
                    None,
                    html_template=(_HERE / "viewer.html").read_text(encoding="utf-8"),
                    js_on_load=(_HERE / "viewer.js").read_text(encoding="utf-8"),
                    apply_default_css=False,
                    elem_id="uz-viewer",
                )
                file = gr.DownloadButton(visible="hidden")
        asked: dict[str, Any] = dict(
            fn=segment,
            inputs=[picture, model, scales, flip],
            outputs=[viewer, answer],
            concurrency_limit=1,
            api_visibility="private",
            show_progress_on=viewer,
        )
        quick: dict[str, Any] = dict(api_visibility="private", show_progress="hidden")
        for asking in (picture.input(**asked), examples.load_input_event.then(**asked), run.click(**asked)):
            asking.failure(lambda: (None, None), None, [viewer, answer], **quick)
        model.change(facts, model, about, **quick)
        page.load(choices, None, model, **quick)
        for what in app_view.ENDINGS:
            written = getattr(viewer, f"save_{what}")(keep(what), answer, file, api_visibility="private", show_progress="minimal")
            written.success(None, file, None, js="(file) => window.upernetZooSave(file)")
    page.queue(max_size=_WAITING, default_concurrency_limit=2, api_open=False)
    page.state_session_capacity = _VISITORS
    blocks: gr.Blocks = page
    return blocks


class _Guard:
    """Refuses what this app does not serve, and tells browsers to ask nobody else."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"].lower().startswith(_NOT_SERVED):
            await PlainTextResponse("Not served.", status_code=404)(scope, receive, send)
        else:

            async def send_with_policy(message: Any) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY.encode())]
                await send(message)

            await self._app(scope, receive, send_with_policy)


def application(studio: Studio, folder: Path) -> fastapi.FastAPI:
    """The app as an ASGI application.

    Args:
        studio: its models.
        folder: for pictures and results, of which Gradio must know (`GRADIO_TEMP_DIR`); no other file is served.
    """
    blocks = _page(studio, folder)
    undocumented: dict[str, Any] = dict(docs_url=None, redoc_url=None, openapi_url=None)
    app = fastapi.FastAPI(**undocumented)
    blocks.has_launched = True  # Gradio checks the paths that visitors name in an app that was launched alone
    sans = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
    theme = gr.themes.Base(
        primary_hue="indigo", neutral_hue="slate", radius_size="lg", font=sans, font_mono=("ui-monospace", "monospace")
    ).set(body_text_color_subdued="*neutral_500", body_text_color_subdued_dark="*neutral_400", block_info_text_color="*neutral_500")
    gr.mount_gradio_app(
        app,
        blocks,
        "",
        app_kwargs=undocumented,
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        max_file_size=MOST_BYTES,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme,
        css_paths=[_HERE / "app.css"],
    )
    app.add_middleware(_Guard)
    return app
