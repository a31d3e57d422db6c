"""The page on this machine."""

from __future__ import annotations

from typing import Any

from ...errors import TokenpruneError, install
from .. import plots
from .style import STYLE

UPLOAD = "10mb"


def need() -> Any:
    """Gradio, or a TokenpruneError that says how to get it."""
    try:
        import gradio
    except ImportError as error:
        raise TokenpruneError(f"the web page needs Gradio ({error}): {install('demo')}") from error
    plots.need()
    return gradio


def serve(page: Any, host: str = "127.0.0.1", port: int = 7860) -> str:
    """Show the page in a thread; its address. Nothing is shared, reported or fetched from elsewhere.

    Raises TokenpruneError if the port cannot be had.
    """
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            inline=False,
            max_file_size=UPLOAD,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            css=STYLE,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise TokenpruneError(f"cannot listen on {host}:{port}: {error} Give another --host or --port") from error
    return str(address)
