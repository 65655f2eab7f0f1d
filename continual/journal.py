"""The text of ``records.jsonl``: facts to lines and back. Pure functions, no file is touched.

::

    {"crc":"8d3c51f0","format":1,"manifest":"5b1c9ae2"}                       the header: crc32 of manifest.json
    {"crc":"70d01b5e","rows_seen":10,"step":1,...,"value":0.5}                one line per record
    {"crc":"19c0e21b","snapshot":"5-40.snapshot","sha256":"..","score":0.5}   what the run can go on from, as of here
    {"crc":"5f11a0d2","resumed":{"torch":["2.10","2.11"]}}                    it went on here; what differed from before
    {"crc":"0b4a77c3","end":"finished","seconds":1.5,"reason":null}           how the run ended, if it did

``crc`` is the crc32 of all lines up to and with this one, each without its own ``crc``: a line that was changed, lost,
added or moved is noticed there or at the next line. Bytes after the last newline are a write that was cut short, and
are not read. Values round-trip exactly; those that are not finite are written ``"nan"``, ``"inf"`` and ``"-inf"``
(strict JSON has no spelling for them; the sign and payload of a nan are lost).
"""

import json
import math
import operator
import re
import zlib
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args

from continual.errors import UserError
from continual.manifest import FORMAT
from continual.record import Record
from continual.strict import decoder

End = Literal["finished", "interrupted", "failed"]
_FIELDS = ("rows_seen", "step", "task", "at", "probe", "metric", "value")
_TYPES = {(int, int, task, str, probe, str, float) for task in (int, NoneType) for probe in (int, NoneType)}
_values = operator.itemgetter(*_FIELDS)
_JSON = decoder()
_NAME, _SHA256 = re.compile(r"[\w.-]+\.snapshot"), re.compile("[0-9a-f]{64}")
_NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Mark(NamedTuple):
    """A place between two lines: the bytes, the running crc32 and the records before it."""

    size: int = 0
    crc: int = 0
    records: int = 0


class Saved(NamedTuple):
    """A snapshot that the run can go on from.

    Attributes:
        name: of its file.
        sha256: of that file's bytes.
        score: mean accuracy over all probes, of a snapshot at a task's end; else None.
        mark: the place after the line that names it.
    """

    name: str
    sha256: str
    score: float | None
    mark: Mark


class Journal(NamedTuple):
    """What a file says.

    Attributes:
        records: all complete records.
        marks: the places after the header and after each record; empty if the header is not complete.
        end: the line that says how the run ended; empty if there is none.
        saved: the snapshots, oldest first.
        resumed: for each time the run went on, what differed from how it began: name -> [before, then].
        last: the place after the last line, the one that says how the run ended left out.
    """

    records: list[Record]
    marks: list[Mark]
    end: dict[str, Any]
    saved: list[Saved]
    resumed: list[dict[str, Any]]
    last: Mark = Mark()


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
    journal, place, last = Journal([], [], {}, [], []), Mark(), Mark()
    for number, text in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            place = _read(text, place, manifest, journal)
        except UserError as error:
            raise UserError(f"{name}, line {number}: {error}") from None
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise UserError(f"{name}, line {number} is damaged: {error}; restore the file or start over") from None
        last = last if journal.end else place
    return journal._replace(last=last)


def ends(head: bytes, tail: bytes, manifest: bytes, name: str) -> Journal | None:
    """How a long file stands: its last lines, from the last record in ``tail`` on, all places counted from there.

    The header and these lines are checked as :func:`parse` does, the first of them by the checksum that the line before
    it states; what lies between is not looked at. Without a record if there is none in ``tail``; None if ``tail`` holds
    fewer than two whole lines.

    Args:
        head: the first bytes of the file, at least its header.
        tail: its last bytes.
        manifest: the bytes of the manifest beside it.
        name: of the file, for messages.

    Errors:
        UserError: what is looked at is damaged, or the format is another.
    """
    journal = parse(head[: head.find(b"\n") + 1], manifest, name)
    if not journal.marks:
        raise UserError(f"{name}, line 1 is damaged: it is too long; restore the file or start over")
    lines = tail.split(b"\n")[1:-1]
    if len(lines) < 2:
        return None
    first = next((at for at in range(len(lines) - 1, 0, -1) if b'"metric":' in lines[at]), 1)
    try:
        place = Mark(crc=int(lines[first - 1][len(b'{"crc":"') :][:8], 16))
        for text in lines[first:]:
            place = _read(text, place, manifest, journal)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{name}: a line at its end is damaged: {error}; restore the file or start over") from None
    return journal


def _read(text: bytes, before: Mark, manifest: bytes, journal: Journal) -> Mark:
    """Check one line, which begins at ``before``, and add what it says to ``journal``; the place after it."""
    crc = zlib.crc32(b"{" + text[_PREFIX_SIZE:], before.crc)
    place = Mark(before.size + len(text) + 1, crc, before.records)
    if not text.startswith(_prefix(crc)):
        raise ValueError("its checksum does not match")
    body = _JSON.decode("{" + text[_PREFIX_SIZE:].decode())
    if journal.end:
        raise ValueError("it follows the line that ended the run")
    if not journal.marks:
        _check_header(body, manifest)
        journal.marks.append(place)
    elif "end" in body:
        journal.end.update(_check_end(body))
    elif "snapshot" in body:
        journal.saved.append(_saved(body, place))
    elif "resumed" in body:
        journal.resumed.append(_differences(body))
    else:
        journal.records.append(_fact(body))
        place = place._replace(records=place.records + 1)
        journal.marks.append(place)
    return place


def _check_header(body: dict[str, Any], manifest: bytes) -> None:
    if body["format"] != FORMAT:
        raise UserError(f"it is in format {body['format']}, this version reads {FORMAT}; upgrade continual")
    if body != header(manifest):
        raise UserError("the manifest beside it is not the one that the run began with; restore it or start over")


def _check_end(body: dict[str, Any]) -> dict[str, Any]:
    known = body["end"] in get_args(End)
    if len(body) != 3 or not known or type(body["seconds"]) is not float or type(body["reason"]) not in (str, NoneType):
        raise ValueError("it does not say how the run ended")
    return body


def _saved(body: dict[str, Any], place: Mark) -> Saved:
    name, sha256, score = body["snapshot"], body["sha256"], body["score"]
    known = type(name) is str and type(sha256) is str and _NAME.fullmatch(name) and _SHA256.fullmatch(sha256)
    if len(body) != 3 or not known or type(score) not in (float, NoneType):
        raise ValueError("it does not name a snapshot")
    return Saved(name, sha256, score, place)


def _differences(body: dict[str, Any]) -> dict[str, Any]:
    differences = body["resumed"]
    if len(body) != 1 or type(differences) is not dict:
        raise ValueError("it does not say how the run went on")
    return differences


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
