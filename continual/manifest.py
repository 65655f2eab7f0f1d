"""The manifest of a run: everything but the data that is needed to run it again, and no secret."""

import math
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped, unused-ignore]

FORMAT = 1
"""Version of what a run directory holds, manifest and records; a reader refuses a higher one."""

REDACTED = "<redacted>"
PACKAGES = (
    "continual",
    "torch",
    "torchvision",
    "numpy",
    "avalanche-lib",
    "hydra-core",
    "wandb",
    "scikit-learn",
)

# Matched against a key in lower case without punctuation, so api_key, apiKey and WANDB-API-KEY are one. A token at
# the end is a secret unless it is a word of a vocabulary; n_tokens, tokenizer and author are not secrets.
_SECRET = re.compile(
    r"apikey|privatekey|accesskey|signingkey|sshkey|passw(or)?d|passphrase|pwd$|secret|credential|bearer"
    r"|auth(?!or(?!iz|is))"
    r"|(?<!cls|pad|sep|bos|eos|unk|reg|max|num)(?<!mask|dist)(?<!class)token$"
)
# Both take time in proportion to a text, also to one long word: no match is tried from within a word.
_ASSIGNED = re.compile(r"(?<![\w./@-])([\w./@-]+)(['\"]?\s*[=:]\s*)(?=\S)")
_USER_IN_URL = re.compile(r"(?<=[\w+.-])(://)[^/\s'\"]*@")


def manifest(
    config: Mapping[str, Any],
    resolved: Mapping[str, Any],
    *,
    seed: int,
    threads: int,
    device: str,
    data_digest: str | None,
    command: Sequence[str] = (),
) -> dict[str, Any]:
    """Describe a run about to start, in plain JSON values (a float that is not finite becomes ``"nan"``, ``"inf"``).

    Args:
        config: the configuration with its interpolations unresolved; kept as YAML text.
        resolved: the configuration as it will be used.
        seed: the run's seed.
        threads: threads of one operation; results are exact only between runs with equal threads.
        device: e.g. ``cpu`` or ``cuda:0``.
        data_digest: digest of the rows the stream is made of, None if it has none.
        command: the command line, program first.

    Returns:
        ``format``, ``created`` (UTC, ISO 8601), ``config``, ``resolved``, ``seed``, ``threads``, ``device``,
        ``data_digest``, ``command``, ``versions`` (None where a package is not installed), ``python``,
        ``platform``, ``commit`` and ``dirty`` (see :func:`origin`). Secrets are redacted, see :func:`redact`.
    """
    sha, dirty = origin()
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "command": redact_command(command),
        "config": yaml.safe_dump(redact(config), sort_keys=False, allow_unicode=True),
        "resolved": _finite(redact(resolved)),
        "seed": seed,
        "threads": threads,
        "device": device,
        "data_digest": data_digest,
        "commit": sha,
        "dirty": dirty,
        "versions": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What may make a run that goes on differ from one that never stopped: name -> [when it began, now]."""
    kept = ("commit", "dirty", "threads", "device", "python", "platform")
    pairs = {name: [before.get(name), now.get(name)] for name in kept}
    old, new = before.get("versions", {}), now.get("versions", {})
    pairs |= {name: [old.get(name), new.get(name)] for name in sorted({*old, *new})}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def is_secret(key: str) -> bool:
    """Whether a key names a secret, itself or as a part of a dotted path: ``track.api_key``, ``DB_PASSWORD``."""
    return any(_SECRET.search(re.sub(r"[\W_]", "", part).lower()) for part in re.split(r"[./@]", key))


def redact(tree: Any) -> Any:
    """A copy of ``tree`` in plain dicts, lists and scalars without its secrets.

    The value of every key that :func:`is_secret` becomes ``<redacted>``, whatever its type; strings are treated by
    :func:`redact_text`. What is not covered: a secret under a name that does not look like one.
    """
    if isinstance(tree, Mapping):
        return {_key(key): REDACTED if is_secret(str(key)) else redact(value) for key, value in tree.items()}
    if isinstance(tree, Sequence) and not isinstance(tree, str | bytes):
        return [redact(value) for value in tree]
    if tree is None or type(tree) in (bool, int, float):
        return tree
    return redact_text(str(tree))


def redact_text(text: str) -> str:
    """Cut ``text`` after the first ``key=`` or ``key:`` that names a secret, and the user out of ``scheme://user@host``.

    All that follows is cut, because a secret may hold commas, quotes and spaces.
    """
    text = _USER_IN_URL.sub(rf"\1{REDACTED}@", text)
    for found in _ASSIGNED.finditer(text):
        if is_secret(found[1]):
            return text[: found.end()] + REDACTED
    return text


def redact_command(command: Sequence[str]) -> list[str]:
    """A command line without its secrets: ``key=value`` overrides, ``--password=x`` and ``--password x``."""
    previous = ["", *command]
    return [
        REDACTED if before.startswith("-") and "=" not in before and is_secret(before) else redact_text(word)
        for before, word in zip(previous, command, strict=False)
    ]


def version(package: str) -> str | None:
    """The installed version of ``package``, read without importing it; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def origin() -> tuple[str | None, bool | None]:
    """Where the code comes from, as :func:`commit` says it.

    The repository around the working directory, which holds a user's own code; where there is none, the one that this
    package is run from. (None, None) if it is installed, and used outside a repository.
    """
    found = commit(Path.cwd())
    own = Path(__file__).parent
    if found[0] is None and _git(own, "ls-files", "--error-unmatch", Path(__file__).name) is not None:
        return commit(own)
    return found


def commit(directory: Path, untracked: bool = False, without: str | None = None) -> tuple[str | None, bool | None]:
    """The git commit checked out around ``directory`` and whether its files were changed since.

    (None, None) outside a repository, before its first commit, or without git. Files that are not tracked count only if
    ``untracked``, and those in the folder ``without``, named from the root of the repository, never do.
    """
    sha = _git(directory, "rev-parse", "--verify", "HEAD")
    if sha is None:
        return None, None
    files = f"--untracked-files={'normal' if untracked else 'no'}"
    paths = () if without is None else ("--", ":/", f":(top,exclude){without}")
    changes = _git(directory, "--no-optional-locks", "status", "--porcelain", files, *paths)
    return sha, None if changes is None else bool(changes)


def _git(directory: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=directory, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _key(key: Any) -> Any:
    return key if key is None or type(key) in (bool, int, float) else str(key)


def _finite(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {str(key): _finite(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_finite(value) for value in tree]
    return repr(tree) if isinstance(tree, float) and not math.isfinite(tree) else tree
