"""What a training step asks of torch: operators called and waits of the host, counted, not timed.

Writes tests/step_counts.json, with which ``tests/test_step_counts.py`` compares. After a change that is meant to make
steps cost more or less, renew it and commit it with the change::

    python scripts/step_counts.py             # counts anew, and says what has changed
    python scripts/step_counts.py --look er   # of one case: which operators, and how often

Counted are five updates in the second task, when memories are full and teachers and penalties act. An operator is an
``aten::`` call that the profiler sees and that no other one makes: in forward and backward, in the optimizer, and in
what is around them. The host waits where it reads what a device may still be computing: ``.item()``, ``bool(tensor)``,
``.tolist()``, or a result whose size depends on values. Here everything is the host's, so this is an upper bound of
what waits for an accelerator: the loss is looked at in each update, there in every 100th.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from continual import config as configs
from continual.choices import choices
from continual.models import mlp
from continual.seeding import generator
from scenarios.sources.base import TensorSource
from scenarios.split import split

FILE = Path(__file__).resolve().parents[1] / "tests/step_counts.json"
BARE = "bare loop"
BATCH, UPDATES, COUNTED = 10, 24, 5  # rows of an update; updates of a task, which fill a memory; those that count
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount", "tolist")
SETTINGS = {
    "packnet": ("train.head=per_task",),
    "rar": ("strategy.rar.n_repeats=2",),
    "redo": ("strategy.redo.every=5",),
    "rwalk": ("strategy.rwalk.window=5",),
}


class Counts(TypedDict):
    """Of ``COUNTED`` updates."""

    operators: int
    waits: int


def cases() -> dict[str, tuple[str, ...]]:
    """Overrides of each case: every strategy, optimizer and head, and replay from every memory."""
    found = {choice.name: (f"strategy={choice.name}", *SETTINGS.get(choice.name, ())) for choice in choices("strategy")}
    for memory in (choice.name for choice in choices("memory")):
        late = ("strategy.er.remember=end",) if memory == "herding" else ()
        found[f"er, memory={memory}"] = ("strategy=er", f"memory@strategy.er.memory={memory}", *late)
    found["er, store=indices"] = ("strategy=er", "strategy.er.memory.store=indices")
    found |= {f"er, head={head}": ("strategy=er", f"train.head={head}") for head in ("seen", "current", "per_task")}
    found |= {f"optimizer={choice.name}": (f"optimizer={choice.name}",) for choice in choices("optimizer")}
    return found


def count(name: str) -> Counter[str]:
    """How often the counted updates of a case call each operator, and how often the host waits in each way."""
    if name == BARE:
        return _count_bare()
    stream = _stream()
    config = configs.compose("model.hidden=[16,16]", "track=none", *cases()[name])
    learner = configs.build_learner(config, stream.spec)
    first, second = stream
    for _ in learner.learn(first):
        pass
    updates = learner.learn(second)
    next(updates)  # what begins with the task does not count
    with counting() as found:
        for _ in islice(updates, COUNTED):
            pass
    return found


def summary(found: Counter[str]) -> Counts:
    waits = sum(n for name, n in found.items() if name.startswith("wait "))
    return {"operators": found.total() - waits, "waits": waits}


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Fills a counter by name of operator, waits as ``wait <operator>``, when it is left."""
    found: Counter[str] = Counter()
    tolist = Tensor.tolist

    def counted(tensor: Tensor) -> Any:
        found["wait tolist"] += 1
        return tolist(tensor)

    Tensor.tolist = counted  # type: ignore[method-assign]  # no operator shows it
    try:
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            yield found
    finally:
        Tensor.tolist = tolist  # type: ignore[method-assign]
    for event in profiler.events():
        name = event.name.removeprefix("aten::")
        if name == event.name:
            continue
        found[name] += not _within_operator(event)
        if name in WAITS:
            found[f"wait {name}"] += 1


def _within_operator(event: Any) -> bool:
    """Whether another operator makes this call."""
    while (event := event.cpu_parent) is not None:
        if event.name.startswith("aten::"):
            return True
    return False


def _stream() -> Any:
    n = 2 * UPDATES * BATCH
    x = torch.randint(256, (n, 4, 4), dtype=torch.uint8, generator=generator(0, "images"))
    y = torch.arange(n) % 6
    return split(TensorSource(x, y, x[:6], y[:6]), n_tasks=2, kind="task")


def _count_bare() -> Counter[str]:
    """The same of a plain loop over rows that lie in tensors, without anything that it can do without."""
    x, y = (column.split(BATCH) for column in (_stream().inputs.x, _stream().inputs.y))
    network = mlp(_stream().spec, [16, 16])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with counting() as found:
        for rows, labels in islice(zip(x, y, strict=True), COUNTED):
            optimizer.zero_grad()
            cross_entropy(network(rows.float().mul_(1 / 255)).logits, labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return found


def summaries() -> dict[str, Counts]:
    """Of the bare loop and every case."""
    return {name: summary(count(name)) for name in (BARE, *cases())}


def version() -> str:
    """The version of torch without its last part, which changes no operators."""
    return ".".join(torch.__version__.split(".")[:2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--look", metavar="CASE", choices=[BARE, *cases()], help="show one case, write nothing")
    case = parser.parse_args().look
    torch.set_num_threads(1)
    if case:
        print("\n".join(f"{n:6} {name}" for name, n in count(case).most_common()))
        return
    written = json.loads(FILE.read_text(encoding="utf-8"))["counts"] if FILE.exists() else {}
    found = summaries()
    for name, counts in found.items():
        if counts != written.get(name):
            print(f"{name}: {written.get(name, 'nothing')} -> {counts}")
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(counts)}" for name, counts in found.items())
    about = f"{COUNTED} updates of {BATCH} rows, counted by scripts/step_counts.py"
    head = f'  "about": {json.dumps(about)},\n  "torch": {json.dumps(version())},\n'
    FILE.write_text(f'{{\n{head}  "counts": {{\n{lines}\n  }}\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
