"""The text of ``records.jsonl``: facts to lines and back. Pure functions, no file is touched.

::

    {"crc":"8d3c51f0","format":1,"manifest":"5b1c9ae2"}                       the header: crc32 of manifest.json
    {"crc":"70d01b5e","rows_seen":10,"step":1,...,"value":0.5}                one line per record
    {"crc":"0b4a77c3","end":"finished","seconds":1.5,"reason":null}           how the run ended, if it did

``crc`` is the crc32 of all lines up to and with this one, each without its own ``crc``: a line that was changed, lost,
added or moved is noticed there or at the next line. Bytes after the last newline are a write that was cut short, and
are not read. Values round-trip exactly; those that are not finite are written ``"nan"``, ``"inf"`` and ``"-inf"``
(strict JSON has no spelling for them; the sign and payload of a nan are lost).
"""

import json
import math
import operator
import zlib
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args

from continual.errors import UserError
from continual.manifest import FORMAT
from continual.types import Record

End = Literal["finished", "interrupted", "failed"]
_FIELDS = ("rows_seen", "step", "task", "at", "probe", "metric", "value")
_TYPES = {(int, int, task, str, probe, str, float) for task in (int, NoneType) for probe in (int, NoneType)}
_values = operator.itemgetter(*_FIELDS)
_NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Mark(NamedTuple):
    """A place between two lines: the bytes, the running crc32 and the records before it."""

    size: int = 0
    crc: int = 0
    records: int = 0


class Journal(NamedTuple):
    """What a file says.

    Attributes:
        records: all complete records.
        marks: the places after the header and after each record; empty if the header is not complete.
        end: the line that says how the run ended; empty if there is none.
    """

    records: list[Record]
    marks: list[Mark]
    end: dict[str, Any]


def line(body: dict[str, Any], mark: Mark) -> tuple[bytes, Mark]:
    """The line that says ``body`` at ``mark``, and the place after it."""
    text = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
    crc = zlib.crc32(text, mark.crc)
    data = _prefix(crc) + text[1:] + b"\n"
    return data, Mark(mark.size + len(data), crc, mark.records + ("metric" in body))


def header(manifest: bytes) -> dict[str, Any]:
    """Body of the first line, which ties the file to the manifest beside it."""
    return {"format": FORMAT, "manifest": f"{zlib.crc32(manifest):08x}"}


def record(fact: Record) -> dict[str, Any]:
    """Body of the line of one record. Errors: TypeError where a field is not of its type."""
    value = float(fact.value)
    return {
        "rows_seen": operator.index(fact.rows_seen),
        "step": operator.index(fact.step),
        "task": None if fact.task is None else operator.index(fact.task),
        "at": str(fact.at),
        "probe": None if fact.probe is None else operator.index(fact.probe),
        "metric": str(fact.metric),
        "value": value if math.isfinite(value) else repr(value),
    }


def parse(data: bytes, manifest: bytes, name: str) -> Journal:
    """Read the bytes of the file ``name``, which began beside ``manifest``.

    Errors:
        UserError: a complete line is damaged, naming file and line; or the format is another.
    """
    journal, size, crc = Journal([], [], {}), 0, 0
    for number, text in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            size, crc = size + len(text) + 1, zlib.crc32(b"{" + text[_PREFIX_SIZE:], crc)
            _read(text, crc, manifest, journal)
        except UserError as error:
            raise UserError(f"{name}, line {number}: {error}") from None
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise UserError(f"{name}, line {number} is damaged: {error}; restore the file or start over") from None
        if not journal.end:
            journal.marks.append(Mark(size, crc, len(journal.records)))
    return journal


def _read(text: bytes, crc: int, manifest: bytes, journal: Journal) -> None:
    """Check one line and add what it says to ``journal``."""
    if not text.startswith(_prefix(crc)):
        raise ValueError("its checksum does not match")
    body = json.loads("{" + text[_PREFIX_SIZE:].decode())
    if journal.end:
        raise ValueError("it follows the line that ended the run")
    if not journal.marks:
        _check_header(body, manifest)
    elif "end" in body:
        journal.end.update(_check_end(body))
    else:
        journal.records.append(_fact(body))


def _check_header(body: dict[str, Any], manifest: bytes) -> None:
    if body["format"] != FORMAT:
        raise UserError(f"it is in format {body['format']}, this version reads {FORMAT}; upgrade continual")
    if body != header(manifest):
        raise UserError("the manifest beside it is not the one that the run began with; restore it or start over")


def _check_end(body: dict[str, Any]) -> dict[str, Any]:
    known = body["end"] in get_args(End)
    if not known or type(body["seconds"]) is not float or type(body["reason"]) not in (str, NoneType):
        raise ValueError("it does not say how the run ended")
    return body


def _fact(body: dict[str, Any]) -> Record:
    if isinstance(body["value"], str):
        body["value"] = _NONFINITE[body["value"]]
    values = _values(body)
    if len(body) != len(values) or tuple(map(type, values)) not in _TYPES:
        raise ValueError("it is not a record")
    return Record(*values)


def _prefix(crc: int) -> bytes:
    return b'{"crc":"%08x",' % crc


_PREFIX_SIZE = len(_prefix(0))
