"""Starts the page on this machine; nothing is sent anywhere else."""

import os
from copy import copy
from typing import Any

from enat.errors import InputError
from enat.pipeline import Pipeline
from experiments.web.uploads import MAX_BYTES, own_folder


def launch(model: Pipeline, given: str, host: str = "127.0.0.1", port: int = 7860) -> Any:
    """Starts the page in threads of its own, and returns it; `close()` ends it, and `block_thread()` waits for Ctrl+C.

    Args:
        model: draws the images.
        given: the options of `run.py` that choose the weights, quoted for a shell.
        host: the address on which the page is reachable; this machine alone by default.
        port: of the page; 0 for any that is free.

    Raises:
        InputError: without gradio, and for a port that can't be used.
    """
    prepare_environment()
    try:
        import gradio as gr
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise InputError("the page needs the package gradio; expected `pip install -e '.[page]'` before.") from error
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from experiments.web.choices import Choices
    from experiments.web.interface import CSS, Page, build
    from experiments.web.requests import BoundedBody, FewUploads, OwnSite, allowed_hosts

    # Fonts of the reader's machine: gradio's own are fetched from elsewhere.
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    blocks = build(Page(Choices(with_plain_names(model)), given))
    checks = [
        Middleware(TrustedHostMiddleware, allowed_hosts=allowed_hosts(host), www_redirect=False),
        Middleware(OwnSite),
        Middleware(FewUploads, folder=own_folder()),
        Middleware(BoundedBody),
    ]
    try:
        blocks.launch(
            server_name=host,
            server_port=port or None,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            max_file_size=MAX_BYTES,
            state_session_capacity=100,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            inbrowser=False,
            theme=theme,
            css=CSS,
            app_kwargs={"middleware": checks},
        )
    except OSError as error:
        raise InputError(
            f"port={port}: can't be used on {host}; expected another port, or as the host an address of this machine."
        ) from error
    return blocks


def prepare_environment() -> None:
    """Sets what gradio reads when it is imported, and when it asks its own page whether it is there.

    Only this machine can answer that, and no proxy.
    """
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    os.environ |= {"GRADIO_TEMP_DIR": str(own_folder()), "NO_PROXY": "*", "no_proxy": "*"}


def with_plain_names(model: Pipeline) -> Pipeline:
    """Returns the model with a mark in the place of bytes in names of classes that are no text, as of a folder's name.

    A browser can't be sent such bytes.
    """
    plain = [name.encode(errors="surrogateescape").decode(errors="replace") for name in model.class_names]
    if plain == model.class_names:
        return model
    shown = copy(model)
    shown.class_names = plain
    return shown


def serve(model: Pipeline, given: str, host: str, port: int) -> str:
    """Shows the page until the user ends it with Ctrl+C; returns its address. See `launch`."""
    blocks = launch(model, given, host, port)
    print(f"The page is at {blocks.local_url} (Ctrl+C ends it)", flush=True)
    blocks.block_thread()
    return str(blocks.local_url)
