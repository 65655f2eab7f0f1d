"""Damaged snapshots and ledgers, made in bulk: what they said before, what they say now, or one clear error.

Each case is a file with one to three mutations, drawn by its seed. Half of them get the right checksum of what they now
are, so that the parsers behind it are reached. Then a value may be given only if the file *means* it: a reader of the
documented format that is written out here, strictly and without safetensors, has to read the same from it, bit for bit.
Where this one refuses, the library has to refuse. Without the right checksum nothing but what was written may be given:
all of it, or of a ledger also what stands before a torn last line.

No case may take more than 512 MiB, nor all of them more than a few minutes.
"""

import faulthandler
import hashlib
import json
import math
import os
import random
import re
import resource
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from continual import glance, journal, ledger
from continual.errors import UserError
from continual.ledger import Ledger
from continual.record import Record
from continual.snapshot import dumps, loads

CI, LONG = 1000, 20_000
MEMORY = 512 * 2**20


@pytest.fixture(autouse=True)
def bounded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A case that hangs ends the process with a traceback; one that takes too much memory raises a MemoryError."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # nobody pulls the plug here
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    faulthandler.dump_traceback_later(600, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def check_told(error: UserError) -> None:
    """One clear error: of one kind, on one line of some hundred letters."""
    assert type(error) is UserError
    assert 20 < len(str(error)) < 1000, str(error)[:2000]
    assert "\n" not in str(error)


# Mutations of bytes


def flipped(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def inserted(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    noise = draw.choice(
        [b"\n", b"\0", b" ", b'"', b"}", b"0", b"-", b"\xef\xbb\xbf", draw.randbytes(draw.randrange(1, 40))]
    )
    return data[:at] + noise + data[at:]


def block(data: bytes, draw: random.Random) -> tuple[int, int]:
    start = draw.randrange(len(data))
    return start, min(len(data), start + draw.choice([1, 8, 64, len(data)]))


def removed(data: bytes, draw: random.Random) -> bytes:
    start, end = block(data, draw)
    return data[:start] + data[end:]


def zeroed(data: bytes, draw: random.Random) -> bytes:
    start, end = block(data, draw)
    return data[:start] + bytes(end - start) + data[end:]


def doubled(data: bytes, draw: random.Random) -> bytes:
    start, end = block(data, draw)
    at = draw.randrange(len(data) + 1)
    return data[:at] + data[start:end] + data[at:]


def swapped(data: bytes, draw: random.Random) -> bytes:
    one, two, three, four = sorted(draw.randrange(len(data) + 1) for _ in range(4))
    return data[:one] + data[three:four] + data[two:three] + data[one:two] + data[four:]


BYTES = [flipped, flipped, flipped, cut, inserted, removed, zeroed, doubled, swapped]


def some(data: bytes, draw: random.Random) -> bytes:
    return draw.choice(BYTES)(data or b"\0", draw)


# Mutations of JSON, as text: what no writer of JSON would write is among them

ODD = [
    *("null", "true", "[]", "{}", '""', "0", "-1", "1.5", "-0.0", "1e999", "NaN", "Infinity", "-Infinity", "01", "1_0"),
    *(str(2**31), str(2**53 + 1), str(2**63 - 1), str(2**63), str(2**64 - 1), str(2**64), str(-(2**63)), "9" * 400),
    *("9" * 5000, "1e400", '"nan"', '"1"', '"\\ud800"', '"\\u0000"', "[" * 200 + "]" * 200, "[" * 100_000),
    *('{"a":' * 50_000, '{"a":1,"a":2}', '{"tensor":"0","tensor":"1"}', '{"tensor":"0"}', '{"tensor":"9"}'),
    *('{"tensor":0}', '{"complex":"0"}', '{"complex":"1"}', '{"int":"0x10"}', '{"int":"1_0"}', '{"int":" 0x10"}'),
    *('{"float":"nan"}', '{"float":"1.0"}', '{"tuple":"ab"}', '{"tuple":{"a":1}}', '{"dict":["ab"]}'),
    *('{"dict":[["a",1],["a",2]]}', '{"dict":[[1,1],[true,2]]}', '{"dict":[[{"tuple":[]},1]]}', '{"dict":[[1.5,2]]}'),
    *('{"dict":[],"tuple":[]}', '{"dict":[["a",1,2]]}', '{"dict":{}}', '{"dict":[[{"tensor":"0"},1]]}', '{"list":[]}'),
    *('{"int":16}', '"finished"', '"failed"'),
]  # fmt: skip
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|null|true|false')


def replaced(text: str, draw: random.Random) -> str:
    """Another value, or a small change of the number, in the place of one token, be it a key or not."""
    tokens = list(TOKEN.finditer(text))
    if not tokens:
        return text + draw.choice(ODD)
    token = draw.choice(tokens)
    new = draw.choice(ODD)
    if token[0].lstrip("-").isdigit() and len(token[0]) < 40 and draw.random() < 0.5:
        number = int(token[0])
        new = str(
            draw.choice([number + 1, number - 1, -number, 2 * number, number + 2**32, number + 2**64, number / 2])
        )
    elif draw.random() < 0.3:
        new = draw.choice(tokens)[0]
    return text[: token.start()] + new + text[token.end() :]


def member(text: str, draw: random.Random) -> str:
    """One more member of some object or array, often with a key that is there already."""
    places = [found.end() for found in re.finditer(r"[{\[,]", text)]
    if not places:
        return text + ","
    at = draw.choice(places)
    keys = re.findall(r'"(?:[^"\\]|\\.)*"(?=:)', text) or ['"a"']
    more = f"{draw.choice([*keys, chr(34) + 'extra' + chr(34)])}:" if draw.random() < 0.7 else ""
    return f"{text[:at]}{more}{draw.choice(ODD)},{text[at:]}"


def respaced(text: str, draw: random.Random) -> str:
    """White space, where JSON allows it and where it does not."""
    at = draw.randrange(len(text) + 1)
    return text[:at] + draw.choice([" ", "\t", "  ", "\u00a0", "\ufeff"]) + text[at:]


TEXTS = [replaced, replaced, replaced, member, respaced]


# A reader of JSON that takes no more than JSON


def strict(text: bytes) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key twice")
        return dict(pairs)

    def finite(digits: str) -> float:
        if not math.isfinite(float(digits)):
            raise ValueError("too large")
        return float(digits)

    def never(word: str) -> Any:
        raise ValueError(word)

    return json.loads(text.decode(), object_pairs_hook=once, parse_float=finite, parse_constant=never)


def need(condition: bool) -> None:
    if not condition:
        raise ValueError("not of the format")


# Snapshots

STATE = {
    "model": {
        "w": torch.arange(6.0).reshape(2, 3),
        "b": torch.tensor([1, -2], dtype=torch.int16),
        "n": torch.zeros(0, 2),
    },
    "same": [torch.arange(4, dtype=torch.uint8), (True, None, 1.5, "text")],
    "c": torch.tensor([1 + 2j], dtype=torch.complex128),
    5: (2**70, float("nan"), -(2**63), [], {}),
    "half": torch.tensor(0.5, dtype=torch.bfloat16),
}
NAMES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool, "C64": torch.complex64,
}  # fmt: skip
NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def exact(node: Any) -> Any:
    """Equal for two states only if types, order of keys and all bits are."""
    if isinstance(node, torch.Tensor):
        plain = node.resolve_conj().resolve_neg().contiguous()
        return str(node.dtype), tuple(node.shape), bytes(plain.reshape(-1).view(torch.uint8).numpy())
    if isinstance(node, dict):
        return "dict", [(exact(key), exact(value)) for key, value in node.items()]
    if isinstance(node, list | tuple):
        return type(node).__name__, [exact(item) for item in node]
    return type(node).__name__, repr(node)


def meant(body: bytes) -> Any:
    """What the bytes after a snapshot's first line mean, as :func:`exact` tells it. Errors: if they mean nothing."""
    tree, newline, stored = body.partition(b"\n")
    need(newline == b"\n")
    return _node(strict(tree), _tensors(stored))


def _tensors(stored: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    size = int.from_bytes(stored[:8], "little")
    need(8 + size <= len(stored))
    header, data = strict(stored[8 : 8 + size]), stored[8 + size :]
    need(type(header) is dict)
    tensors, spans = {}, []
    for name, about in header.items():
        if name == "__metadata__":
            continue
        kind, shape, (start, end) = NAMES[about["dtype"]], about["shape"], about["data_offsets"]
        need(all(type(n) is int and n >= 0 for n in (*shape, start, end)))
        need(end - start == math.prod(shape) * kind.itemsize)
        spans.append((start, end))
        tensors[name] = str(kind), tuple(shape), data[start:end]
    at = 0
    for start, end in sorted(spans):
        need(start == at)
        at = end
    need(at == len(data))
    return tensors


def _node(node: Any, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> Any:
    if isinstance(node, list):
        return "list", [_node(item, tensors) for item in node]
    if not isinstance(node, dict):
        return exact(node)
    ((tag, value),) = node.items()
    if tag == "tuple":
        need(type(value) is list)
        return "tuple", _node(value, tensors)[1]
    if tag == "dict":
        need(type(value) is list and all(type(pair) is list and len(pair) == 2 for pair in value))
        pairs = [(_node(key, tensors), _node(item, tensors)) for key, item in value]
        need(all(key[0] in ("str", "int") for key, _ in pairs))
        need(len({repr(key) for key, _ in pairs}) == len(pairs))
        return "dict", pairs
    need(type(value) is str)
    if tag == "int":
        need(hex(int(value, 16)) == value)
        return exact(int(value, 16))
    if tag == "float":
        return exact(NONFINITE[value])
    kind, shape, data = tensors[value]
    if tag == "complex":
        need(kind == "torch.float64" and shape[-1:] == (2,))
        return "torch.complex128", shape[:-1], data
    need(tag == "tensor")
    return kind, shape, data


def signed(body: bytes) -> bytes:
    return b'{"format":1,"sha256":"%s"}\n' % hashlib.sha256(body).hexdigest().encode() + body


def mutated(body: bytes, draw: random.Random) -> bytes:
    """The tree, the header of the tensors, its length or just any bytes are changed."""
    tree, _, stored = body.partition(b"\n")
    size = int.from_bytes(stored[:8], "little")
    header, data, length = stored[8 : 8 + size], stored[8 + size :], None
    how = draw.randrange(8)
    if how == 0:
        tree = draw.choice(TEXTS)(tree.decode(errors="replace"), draw).encode(errors="replace")
    elif how == 1:
        header = draw.choice(TEXTS)(header.decode(errors="replace"), draw).encode(errors="replace")
    elif how == 2:
        header = described(header, draw)
    elif how == 3:
        length = draw.choice(
            [0, 1, 7, 8, size - 1, size + 1, size + len(data), 2**31, 10**8 + 1, 2**62, 2**63, 2**64 - 1]
        )
    elif how == 4:
        data = some(data, draw)
    elif how == 5:
        header = some(header, draw)
    elif how == 6:
        tree = some(tree, draw)
    else:
        return some(body, draw)
    length = len(header) if length is None else length
    return tree + b"\n" + (length % 2**64).to_bytes(8, "little") + header + data


def described(header: bytes, draw: random.Random) -> bytes:
    """Another dtype, shape or offsets of one tensor, or two of them exchanged."""
    try:
        told = json.loads(header)
        name, other = (draw.choice([key for key in told if key != "__metadata__"]) for _ in range(2))
        about = told[name]
        how = draw.randrange(5)
        if how == 0:
            about["dtype"] = draw.choice([*NAMES, "F4", "F6_E2M3", "F8_E8M0", "I128", "f32", "", None, 1])
        elif how == 1:
            wild = [
                [],
                [0],
                [-1],
                [2**62],
                [2**63],
                [2**64],
                [0, 2**62],
                [0, 2**63],
                [2**32, 2**32, 0],
                [1.0],
                [[]],
                None,
            ]
            about["shape"] = draw.choice(
                [*wild, about["shape"][::-1], [1, *about["shape"]], [math.prod(about["shape"])]]
            )
        elif how == 2:
            start, end = about["data_offsets"]
            wild = [start + 1, start - 1, end + 1, end - 1, 0, -1, 2**31, 2**63, 2**64 - 1, 2**64, 0.0, "0", None]
            about["data_offsets"] = [draw.choice([start, *wild]), draw.choice([end, *wild])]
        elif how == 3:
            told[name], told[other] = told[other], told[name]
        else:
            about["data_offsets"] = told[other]["data_offsets"]
        return json.dumps(told, separators=(",", ":")).encode()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):  # it was mutated before
        return flipped(header or b"\0", draw)


def fuzz_snapshots(seeds: range) -> Counter[str]:
    data, found = dumps(STATE), Counter[str]()
    head, body = data.splitlines(keepends=True)[0], data[data.index(b"\n") + 1 :]
    whole = exact(STATE)
    assert meant(body) == whole
    for seed in seeds:
        draw, right = random.Random(f"snapshot {seed}"), seed % 2 == 0
        if not right:
            changed = data
            for _ in range(draw.choice([1, 1, 2, 3])):
                changed = some(changed, draw) if draw.random() < 0.5 else head + mutated(changed[len(head) :], draw)
            expected = whole if changed == data else None
        else:
            content = body
            for _ in range(draw.choice([1, 1, 2, 3])):
                content = mutated(content, draw)
            changed, expected = signed(content), read_by(meant, content)
        how = f"{'right' if right else 'wrong'} checksum"
        try:
            state = exact(loads(changed))
        except UserError as error:
            check_told(error)
            found[f"{how}: refused"] += 1
            found["refused although it means something"] += expected is not None
        else:
            # What safetensors does not know within a header it passes over; then it is as it was written.
            assert state == expected or (right and state == whole), f"seed {seed}: {changed!r}"
            found[f"{how}: {'harmless' if state == whole else 'another value, as it says'}"] += 1
    return found


def read_by(reader: Callable[..., Any], *arguments: Any) -> Any:
    """What it reads, None if it refuses."""
    try:
        return reader(*arguments)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def check_snapshots(seeds: range, figure: Callable[[str], None]) -> None:
    found = fuzz_snapshots(seeds)
    figure(f"{len(seeds)} snapshots: {dict(sorted(found.items()))}")
    assert found["wrong checksum: refused"] > 0.4 * len(seeds)
    assert found["right checksum: refused"] > 0.2 * len(seeds)
    assert found["right checksum: another value, as it says"] > 0.02 * len(seeds)  # the parsers are reached


def test_damaged_snapshots(figure: Callable[[str], None]) -> None:
    check_snapshots(range(5 * CI), figure)  # they are cheap


@pytest.mark.long
def test_damaged_snapshots_at_length(figure: Callable[[str], None]) -> None:
    check_snapshots(range(LONG), figure)


# Ledgers

FIRST = Record(rows_seen=0, step=0, task=None, at="start", probe=0, metric="accuracy", value=0.1)
MANIFEST = b'{"format":1,"seed":3}'
SHA256 = "ab" * 32


def bodies() -> list[dict[str, Any]]:
    """A run that was stopped once, with every kind of line."""
    values = [0.25, math.nan, -math.inf, 1e-300, 1.0]
    facts = [replace(FIRST, rows_seen=10 * i, step=i, task=i // 2, at="end", value=v) for i, v in enumerate(values)]
    lines = [journal.record(fact) for fact in [FIRST, *facts, replace(FIRST, at="final", probe=None, metric="seconds")]]
    saved = [{"snapshot": f"{n}-{n}.snapshot", "sha256": SHA256, "score": score} for n, score in ((2, 0.5), (5, None))]
    return [
        journal.header(MANIFEST),
        *(*lines[:3], saved[0], lines[3], {"resumed": {"torch": ["2.10", None]}}, *lines[4:], saved[1]),
        {"end": "interrupted", "seconds": 1.5, "reason": "KeyboardInterrupt"},
    ]


def text(lines: Sequence[bytes]) -> bytes:
    """A ledger with these lines, each ``{...}`` without its checksum, and with the right checksums."""
    crc, written = 0, []
    for line in lines:
        crc = zlib.crc32(b"{" + line[1:], crc)
        written.append(b'{"crc":"%08x",' % crc + line[1:] + b"\n")
    return b"".join(written)


Told = tuple[list[str], dict[str, Any], list[Any], list[Any]]


def told(found: journal.Journal) -> Told:
    """All that a ledger says, nan equal to nan and -0.0 unlike 0.0."""
    places = [mark.size for mark in found.marks]
    saved = [(*one[:3], one.mark.size) for one in found.saved]
    return [repr(astuple(record)) for record in found.records], found.end, [*saved, repr(found.resumed)], places


def says(data: bytes) -> Told:
    """What a ledger means, by the documented format alone. Errors: if a whole line of it means nothing."""
    records, end, saved, resumed, places, at, crc = [], {}, [], [], [], 0, 0
    for number, line in enumerate(data.split(b"\n")[:-1]):
        at += len(line) + 1
        head, content = re.fullmatch(rb'\{"crc":"([0-9a-f]{8})",(.*)', line, re.S).groups()  # type: ignore[union-attr]
        crc = zlib.crc32(b"{" + content, crc)
        need(int(head, 16) == crc and not end)
        body = strict(b"{" + content)
        if number == 0:
            need(body == {"format": 1, "manifest": f"{zlib.crc32(MANIFEST):08x}"})
            places.append(at)
        elif "end" in body:
            need(body.keys() == {"end", "seconds", "reason"} and type(body["seconds"]) is float)
            need(body["end"] in ("finished", "interrupted", "failed") and isinstance(body["reason"], str | None))
            end = body
        elif "snapshot" in body:
            need(body.keys() == {"snapshot", "sha256", "score"} and isinstance(body["score"], float | None))
            need(re.fullmatch(r"[\w.-]+\.snapshot", body["snapshot"]) is not None)
            need(re.fullmatch("[0-9a-f]{64}", body["sha256"]) is not None)
            saved.append((*body.values(), at))
        elif "resumed" in body:
            need(body.keys() == {"resumed"} and type(body["resumed"]) is dict)
            resumed.append(body["resumed"])
        else:
            need(body.keys() == set(Record.__dataclass_fields__))
            fact = Record(**body)
            value = NONFINITE[fact.value] if type(fact.value) is str else fact.value
            need(type(value) is float and {type(fact.at), type(fact.metric)} == {str})
            need(type(fact.rows_seen) is type(fact.step) is int)
            need(all(type(one) is int or one is None for one in (fact.task, fact.probe)))
            records.append(repr(astuple(replace(fact, value=value))))
            places.append(at)
    return records, end, [*saved, repr(resumed)], places


def prefixes(data: bytes) -> list[Told]:
    """What the ledger says if its tail is cut, wherever."""
    ends = [found.end() for found in re.finditer(b"\n", data)]
    return [says(data[:end]) for end in [0, *ends]]


def reordered(lines: list[bytes], draw: random.Random) -> list[bytes]:
    """A line goes, comes twice, or changes its place."""
    one, two = (draw.randrange(len(lines)) for _ in range(2))
    how = draw.randrange(3)
    if how == 0:
        return lines[:one] + lines[one + 1 :] if len(lines) > 1 else lines
    if how == 1:
        return [*lines[:one], lines[two], *lines[one:]]
    lines = list(lines)
    lines[one], lines[two] = lines[two], lines[one]
    return lines


def rewritten(lines: list[bytes], draw: random.Random) -> list[bytes]:
    """Lines, each without its checksum, that are changed, or are others, or in another order."""
    if draw.random() < 0.3:
        return reordered(lines, draw)
    at = draw.randrange(len(lines))
    if draw.random() < 0.8:
        changed = draw.choice(TEXTS)(lines[at].decode(errors="replace"), draw).encode(errors="replace")
    else:
        changed = some(lines[at], draw)
    return [*lines[:at], changed, *lines[at + 1 :]]


def fuzz_ledgers(seeds: range, directory: Path) -> Counter[str]:
    lines = [json.dumps(body, separators=(",", ":")).encode() for body in bodies()]
    data, found = text(lines), Counter[str]()
    whole, shorter = says(data), prefixes(data)
    (directory / ledger.MANIFEST).write_bytes(MANIFEST)
    for seed in seeds:
        draw = random.Random(f"ledger {seed}")
        right = seed % 2 == 0
        changed, content = data, lines
        for _ in range(draw.choice([1, 1, 2, 3])):
            if right:
                content = rewritten(content, draw)
            elif draw.random() < 0.3:
                changed = b"".join(reordered(changed.splitlines(keepends=True) or [b""], draw))
            else:
                changed = some(changed, draw)
        changed = text(content) if right else changed
        how = f"{'right' if right else 'wrong'} checksum"
        try:
            read = told(journal.parse(changed, MANIFEST, "f"))
        except UserError as error:
            check_told(error)
            found[f"{how}: refused"] += 1
            found["refused although it means something"] += read_by(says, changed) is not None
            read = None
        else:
            assert read == says(changed), f"seed {seed}: {changed!r}"
            assert right or read in shorter, f"seed {seed}: {changed!r}"
            other = "another value, as it says" if right else "a torn tail is cut"
            found[f"{how}: {'harmless' if read == whole else other}"] += 1
        check_files(directory, changed, read, resume=seed % 10 < 2)
    return found


def check_files(directory: Path, data: bytes, expected: Told | None, resume: bool) -> None:
    """Reading, glancing and going on all see the same of the file, or refuse it."""
    path = directory / ledger.RECORDS
    path.unlink(missing_ok=True)  # far cheaper than to write over it
    path.write_bytes(data)
    read, seen = tried(ledger.read, directory), tried(glance.glance, directory)
    if expected is None:
        assert type(read) is UserError
        assert type(seen) is UserError or len(data) > glance.TAIL  # it looks at both ends only
    else:
        assert repr(seen.last) == repr(read.records[-1] if read.records else None)
        assert [repr(astuple(record)) for record in read.records] == expected[0]
        assert read.status == seen.status == expected[1].get("end", "killed")
    if resume:
        check_resumed(tried(Ledger.resume, directory), path, data, expected)


def check_resumed(resumed: Any, path: Path, data: bytes, expected: Told | None) -> None:
    if expected is None or expected[1].get("end") == "finished" or not expected[3]:
        assert type(resumed) is UserError
    else:
        resumed.close()
        assert resumed.count == len(expected[0])
        assert data.startswith(path.read_bytes())
        assert says(path.read_bytes()) == (expected[0], {}, *expected[2:])  # all but the line that ended it


def tried(look: Callable[[Path], Any], directory: Path) -> Any:
    try:
        return look(directory)
    except UserError as error:
        check_told(error)
        return error


def check_ledgers(seeds: range, directory: Path, figure: Callable[[str], None]) -> None:
    found = fuzz_ledgers(seeds, directory)
    figure(f"{len(seeds)} ledgers: {dict(sorted(found.items()))}")
    assert found["wrong checksum: refused"] > 0.3 * len(seeds)
    assert found["wrong checksum: a torn tail is cut"] > 0.01 * len(seeds)
    assert found["right checksum: refused"] > 0.2 * len(seeds)
    assert found["right checksum: another value, as it says"] > 0.05 * len(seeds)  # the parsers are reached


def test_damaged_ledgers(tmp_path: Path, figure: Callable[[str], None]) -> None:
    check_ledgers(range(CI), tmp_path, figure)


@pytest.mark.long
def test_damaged_ledgers_at_length(tmp_path: Path, figure: Callable[[str], None]) -> None:
    check_ledgers(range(LONG), tmp_path, figure)
