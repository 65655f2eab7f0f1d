"""The dashboard as one HTML document: data, styles and scripts inside, and a policy that admits nothing else."""

import base64
import hashlib
import html
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

VENDOR = "vendor/plot.min.js"
STYLE = "page.css"
SCRIPTS = (
    "format",
    "dom",
    "look",
    "chart",
    "lines",
    "places",
    "heat",
    "table",
    "card",
    "panels/strategies",
    "panels/matrix",
    "panels/forgetting",
    "panels/time",
    "panels/prequential",
    "panels/compute",
    "panels/transfer",
    "panels/classes",
    "panels/runs",
    "top",
    "live",
    "main",
)
"""In the order in which they build on each other."""


def render(data: dict[str, Any], live: bool = False) -> str:
    """One self-contained document that draws ``data``; equal arguments give equal text.

    Its content security policy admits the two scripts and the style sheet by their hashes and nothing else: no network
    (``live``: the page's own origin), no ``eval``, no markup made from text.

    Args:
        data: the page's data, format 1; plain JSON values without NaN. All strings in it may be user text.
        live: whether the page asks ``data.json`` beside itself for newer data every second.

    Raises:
        ValueError: ``data`` holds NaN or an infinity.
    """
    vendor, style, script = _asset(VENDOR), _asset(STYLE), _script()
    return Template(_asset("page.html")).substitute(
        policy=_policy([vendor, script], style, live),
        title=_escaped(str(data["title"])),
        style=style,
        live="true" if live else "false",
        data=_inert(data),
        vendor=vendor,
        script=script,
    )


def _policy(scripts: Sequence[str], style: str, live: bool) -> str:
    origin = "'self'" if live else "'none'"
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join(map(_hash, scripts))}",
            f"style-src {_hash(style)}",
            "img-src data:",
            f"connect-src {origin}",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
        )
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _inert(data: dict[str, Any]) -> str:
    """JSON in ASCII and without ``<``: no text in it can end the element that holds it."""
    return json.dumps(_packed(data), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _packed(data: dict[str, Any]) -> dict[str, Any]:
    """``{"page", "lists"}``: lists that occur more than once (moments, counts of seeds, references) are written once.

    In ``page``, ``{"list": k}`` stands for ``lists[k]``. No object of the page's data has a number under that key.
    """
    keys = Counter(map(tuple, _long_lists(data)))
    places = {key: at for at, key in enumerate(key for key, count in keys.items() if count > 1)}

    def pack(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: pack(value) for key, value in node.items()}
        if not isinstance(node, list):
            return node
        if not _is_long(node):
            return [pack(value) for value in node]
        at = places.get(tuple(node))
        return node if at is None else {"list": at}

    return {"page": pack(data), "lists": list(places)}


def _long_lists(node: Any) -> Iterator[list[Any]]:
    if _is_long(node):
        yield node
    elif isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield from _long_lists(value)


def _is_long(node: Any) -> bool:
    """Whether it is a list of many numbers."""
    return isinstance(node, list) and len(node) >= 8 and not any(isinstance(value, dict | list | str) for value in node)


def _escaped(text: str) -> str:
    """For markup; in ASCII, so that not even half a surrogate pair keeps the page from being written."""
    return html.escape(text.replace("\0", "\ufffd")).encode("ascii", "xmlcharrefreplace").decode()


@cache
def _script() -> str:
    parts = "\n".join(_asset(f"js/{name}.js") for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{parts}}})();\n'


@cache
def _asset(name: str) -> str:
    return files("continual.dashboard").joinpath("assets", *name.split("/")).read_text(encoding="utf-8")
