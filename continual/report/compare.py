"""Many runs side by side: one row per scenario, name and config, its seeds summed up.

Nothing is mixed in silence: :mod:`continual.report.notes` names the runs that are left out, and whatever keeps rows
from being comparable.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped, unused-ignore]

from continual import ledger
from continual.errors import UserError, nearest
from continual.metrics import summary
from continual.statistics import Estimate, interval, paired_difference

APART = ("seed", "track", "device", "output", "name")
"""Keys in which two runs of one row may differ; ``device`` is noted where it does."""

STREAM = ("scenario", "operator")
"""Keys that make the stream."""


@dataclass(frozen=True)
class Entry:
    """One run.

    Attributes:
        path: its directory.
        status: see :class:`continual.ledger.RunData`.
        reason: why it did not finish, if it said so.
        manifest: see :mod:`continual.manifest`.
        metrics: by name; what was not measured is absent.
    """

    path: Path
    status: str
    reason: str | None
    manifest: Mapping[str, Any]
    metrics: Mapping[str, float]

    @classmethod
    def read(cls, path: Path) -> "Entry":
        """The run in directory ``path``."""
        data = ledger.read(path)
        return cls(path, data.status, data.reason, data.manifest, summary(data.records))

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.manifest["seed"])

    @cached_property
    def config(self) -> dict[str, str]:
        """Dotted key -> value as it was written, without the keys in ``APART``."""
        written = yaml.load(self.manifest["config"], getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return dict(_leaves({key: value for key, value in written.items() if key not in APART}))


@dataclass(frozen=True)
class Row:
    """Runs that differ by seed only.

    Attributes:
        name: what is compared, e.g. ``er``.
        variant: what tells rows of one name apart, e.g. ``("train.epochs=5",)``.
        runs: {seed: finished run}.
        left_out: runs that are not counted: those that did not finish, and of several of one seed all but the newest.
    """

    name: str
    variant: tuple[str, ...]
    runs: Mapping[int, Entry]
    left_out: tuple[Entry, ...]

    @property
    def label(self) -> str:
        """Name and variant."""
        return f"{self.name} ({', '.join(self.variant)})" if self.variant else self.name

    def values(self, metric: str) -> dict[int, float]:
        """{seed: value} where it was measured."""
        return {seed: run.metrics[metric] for seed, run in sorted(self.runs.items()) if metric in run.metrics}

    def estimate(self, metric: str) -> Estimate | None:
        """Mean over seeds with its interval; None if no seed measured it."""
        values = self.values(metric)
        return interval(values.values()) if values else None

    def difference(self, baseline: "Row", metric: str) -> Estimate | None:
        """Mean over the seeds of both, on equal data, of this row's value minus the baseline's; None without one."""
        mine, theirs = self.values(metric), baseline.values(metric)
        common = [seed for seed in mine if seed in theirs and self._same_data(baseline, seed)]
        finite = [seed for seed in common if abs(mine[seed] - theirs[seed]) < float("inf")]
        if not finite:
            return None
        return paired_difference({s: mine[s] for s in finite}, {s: theirs[s] for s in finite})

    def _same_data(self, other: "Row", seed: int) -> bool:
        return bool(self.runs[seed].manifest["data_digest"] == other.runs[seed].manifest["data_digest"])


@dataclass(frozen=True)
class Block:
    """Rows on one stream, which may be compared.

    Attributes:
        scenario: name of the stream.
        variant: what tells streams of one name apart, e.g. ``("scenario.n_tasks=2",)``.
        rows: in the order in which they were first run.
    """

    scenario: str
    variant: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def label(self) -> str:
        """Name and variant."""
        return f"{self.scenario} ({', '.join(self.variant)})" if self.variant else self.scenario

    def find(self, baseline: str) -> list[Row]:
        """Rows with this name or label."""
        return [row for row in self.rows if baseline in (row.name, row.label)]


def compare(paths: Iterable[str | Path]) -> list[Block]:
    """Gather all runs at and below ``paths``.

    Raises:
        UserError: there is no run, or one is damaged.
    """
    return arrange(Entry.read(path) for path in ledger.find_runs(map(Path, paths)))


def arrange(entries: Iterable[Entry]) -> list[Block]:
    """Put runs into rows and rows into blocks, each in the order in which they were first run."""
    in_order = sorted(entries, key=lambda entry: (entry.manifest["created"], entry.manifest["name"], entry.seed))
    scenarios = _grouped(in_order, lambda entry: str(entry.manifest["scenario"]))
    return [block for name, own in scenarios.items() for block in _blocks(name, own)]


def pick_baseline(blocks: Sequence[Block], name: str) -> list[Row | None]:
    """The row of each block that ``name`` names; None where a block has none.

    Raises:
        UserError: no block has it, or one has several.
    """
    found = [block.find(name) for block in blocks]
    for rows in found:
        if len(rows) > 1:
            labels = ", ".join(f"'{row.label}'" for row in rows)
            raise UserError(f"--baseline {name} names {len(rows)} rows; write one of {labels}")
    if not any(found):
        offered = {row.label for block in blocks for row in block.rows}
        raise UserError(f"--baseline {name} is not among the runs{nearest(name, offered)}")
    return [rows[0] if rows else None for rows in found]


def _blocks(scenario: str, entries: Sequence[Entry]) -> list[Block]:
    streams = _grouped(entries, lambda entry: _identity(entry, stream=True))
    variants = _variants([own[0] for own in streams.values()], stream=True)
    blocks = []
    for own, variant in zip(streams.values(), variants, strict=True):
        names = _grouped(own, lambda entry: str(entry.manifest["name"]))
        rows = tuple(row for name, runs in names.items() for row in _rows(name, runs))
        blocks.append(Block(scenario, variant, rows))
    return blocks


def _rows(name: str, entries: Sequence[Entry]) -> list[Row]:
    configs = _grouped(entries, lambda entry: _identity(entry, stream=False))
    variants = _variants([own[0] for own in configs.values()], stream=False)
    rows = []
    for own, variant in zip(configs.values(), variants, strict=True):
        finished = {entry.seed: entry for entry in own if entry.status == "finished"}  # the newest of each seed
        left_out = tuple(entry for entry in own if finished.get(entry.seed) is not entry)
        rows.append(Row(name, variant, finished, left_out))
    return rows


def _identity(entry: Entry, stream: bool) -> str:
    return json.dumps({key: value for key, value in entry.config.items() if _of_stream(key) is stream}, sort_keys=True)


def _of_stream(key: str) -> bool:
    return key.split(".")[0] in STREAM


def _variants(entries: Sequence[Entry], stream: bool) -> list[tuple[str, ...]]:
    """For each entry the settings in which it differs from another one."""
    keys = sorted({key for entry in entries for key in entry.config if _of_stream(key) is stream})
    varied = [key for key in keys if len({entry.config.get(key) for entry in entries}) > 1]
    values = {key: {entry.config[key] for entry in entries if key in entry.config} for key in varied}
    told = [key for key in varied if not _implied(key, varied, entries)]
    return [
        tuple(_told(key, entry.config[key], values[key]) for key in told if key in entry.config) for entry in entries
    ]


def _implied(key: str, varied: Sequence[str], entries: Sequence[Entry]) -> bool:
    """Whether a setting is one that only some classes have, the same wherever the class is the same."""
    classes = [k for k in varied if k.endswith("._target_") and k != key and key.startswith(k.removesuffix("_target_"))]
    if not classes or all(key in entry.config for entry in entries):
        return False
    alike = _grouped(entries, lambda entry: json.dumps([entry.config.get(k) for k in classes]))
    return all(len({entry.config.get(key) for entry in own}) == 1 for own in alike.values())


def _told(key: str, value: str, among: Collection[str]) -> str:
    if not key.endswith("_target_"):
        return f"{key}={value}"
    names = {target.split(".")[-1] for target in among}  # a class is told by its own name where that is enough
    return f"{key.removesuffix('._target_')}={value.split('.')[-1] if len(names) == len(among) else value}"


def _grouped(entries: Iterable[Entry], key: Callable[[Entry], str]) -> dict[str, list[Entry]]:
    groups = defaultdict(list)
    for entry in entries:
        groups[key(entry)].append(entry)
    return groups


def _leaves(node: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield above + key, value if isinstance(value, str) else json.dumps(value)
