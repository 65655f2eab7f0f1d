"""Online or offline: decided once per process, without a question, and without a connection where none is wanted."""

import logging
import os
import socket
import threading
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from continual.errors import UserError

MODES = ("auto", "online", "offline")
LOGGER = logging.getLogger(__name__)


def choose_mode(mode: str, connect_timeout: float = 2.0) -> str:
    """``online``, ``offline`` or ``disabled`` for one of ``MODES``; never asks, and connects only if logged in.

    It leaves the answer in ``WANDB_MODE``, so that later runs of the process need not try a dead connection again.
    """
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # telemetry, also of offline runs; read when wandb is imported
    wish = os.environ.get("WANDB_MODE", "").lower() if mode == "auto" else mode
    if wish == "disabled":
        return wish
    offline = wish in ("offline", "dryrun") or not _can_send(mode, connect_timeout)
    os.environ["WANDB_MODE"] = "offline" if offline else "online"
    return os.environ["WANDB_MODE"]


def _can_send(mode: str, connect_timeout: float) -> bool:
    settings = server_settings(online=mode == "online")
    logged_in = is_logged_in()
    if mode == "online" and not logged_in:
        LOGGER.warning("track.mode is online but there is no login: tracking offline; run `wandb login`")
    return logged_in and (mode == "online" or reachable(settings.base_url, connect_timeout))


def server_settings(online: bool) -> Any:
    """What wandb reads from the environment and its settings file; ``online`` outranks a mode that is set there."""
    import wandb

    settings = wandb.setup(wandb.Settings(silent=True)).settings
    if online:
        settings.mode = "online"
    return settings


def is_logged_in() -> bool:
    """Whether there is an API key of the right form; nobody is asked, and no server."""
    import wandb

    try:
        return bool(wandb.login(prompt=False, verify=False))
    except Exception:  # a key of the wrong form
        return False


def require_server(seconds: float = 5.0) -> str:
    """The address of the server, for a command that is of no use without one.

    Raises:
        UserError: there is no login, or nothing answers there within ``seconds``.
    """
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    url = str(server_settings(online=True).base_url)
    if not is_logged_in():
        raise UserError(f"there is no login for {url}; run `wandb login`, or set WANDB_API_KEY")
    if not reachable(url, seconds):
        raise UserError(f"{url} does not answer within {seconds:g} s; check the network, or WANDB_BASE_URL")
    return url


def reachable(url: str, seconds: float) -> bool:
    """Whether ``url``'s server, or the proxy that leads to it, accepts a TCP connection within ``seconds``."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy)
    address = (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
    answered = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection(address, timeout=seconds).close()
            answered.set()
        except OSError:
            pass

    thread = threading.Thread(target=connect, daemon=True)  # a name server that is gone blocks for longer than asked
    thread.start()
    thread.join(seconds)
    return answered.is_set()
