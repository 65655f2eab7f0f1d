"""The tables of the catalogue, as data: streams, and which rows each one has.

A row's label names YAMLs of conf/, with "+" between strategies; after ", " comes how it differs from their defaults.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import yaml

from continual.choices import choices, conf_directory

GROUPS = ("strategy", "learner", "optimizer", "model")
ABOUT = {choice.name: choice.about for group in (*GROUPS[::-1], "memory") for choice in choices(group)}

POLICIES = tuple(choice.name for choice in choices("memory") if choice.name != "reservoir")
VARIANTS: dict[str, tuple[str, ...]] = {  # what it means, and its overrides
    **{name: (ABOUT[name], f"memory@{{home}}={name}") for name in POLICIES},
    "herding": (ABOUT["herding"], "memory@{home}=herding", "strategy.er.remember=end"),
    "with replacement": ("one draw may hold a row twice", "{home}.replacement=true"),
    "head=all": ("all classes compete", "train.head=all"),
    "head=seen": ("the classes that have arrived compete", "train.head=seen"),
    "head=current": ("arrived rows compete among the classes of their experience", "train.head=current"),
    "head=per_task": ("rows compete among the classes of their task", "train.head=per_task"),
    "head=growing": ("outputs are made as classes arrive", "train.head=growing"),
    "head=multi_head": ("an own head for each task", "train.head=multi_head"),
}
DIGITS = ("experiment=split_digits", "track=none")
BASELINES = ("none", "ema_teacher", "er", "er+ema_teacher", "buffer_knn", "last_label", "cumulative", "joint")
MEMORIES = tuple(f"er, {variant}" for variant in (*POLICIES, "with replacement"))
HEADS = tuple(f"{name}, {variant}" for name in ("none", "er") for variant in VARIANTS if variant.startswith("head="))
ROBUST = ("er+gce", "er+small_loss", "er+label_refurbishment", "er+teacher_weight")
ONLINE = ("scenario=online", "train.epochs=1", "probe=prequential")
DRIFTING = (*BASELINES, *MEMORIES, "buffer_knn, fifo", "derpp", "slda")
SGD = ("none", "ema_teacher", "er", "er+ema_teacher", "cumulative", "joint")
CLOSED = ("buffer_knn", "ncm", "slda", "ranpac")


def remembers(strategy: str) -> bool:
    """Whether a strategy keeps rows of the past, or replays in another way."""
    text = (conf_directory() / "strategy" / f"{strategy}.yaml").read_text(encoding="utf-8")
    node = yaml.safe_load(text)
    return "/memory@" in text or any("replay" in key or "capacity" in key for key in node.get(strategy, {}))


def everything() -> Iterator[str]:
    """Every strategy, alone and where it keeps nothing itself also with er; every optimizer and learner."""
    strategies = [choice.name for choice in choices("strategy")]
    yield from strategies
    yield from (f"er+{name}" for name in strategies if name != "none" and not remembers(name))
    yield "derpp+ema_teacher"
    yield from (choice.name for choice in choices("optimizer") if choice.name not in ("sgd", "adam", "adamw"))
    learners = [choice.name for choice in choices("learner")]
    yield from (name for name in learners if name != "sgd" and not name.startswith("avalanche/"))


@dataclass(frozen=True)
class Stream:
    """One table.

    Attributes:
        name: of its result file.
        about: what arrives.
        overrides: what makes it.
        rows: labels.
        own: {label: overrides that only this row needs here}.
        note: how to read it.
        shown: metrics in percent; the first is the one that pairs are compared by.
        data: what has to lie in the data folder; without it the table is left as it is.
    """

    name: str
    about: str
    overrides: tuple[str, ...]
    rows: tuple[str, ...]
    own: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    note: str = ""
    shown: tuple[str, ...] = ("average_accuracy", "forgetting", "anytime_accuracy")
    data: str = ""


STREAMS = (
    Stream(
        "class",
        "Class-incremental: 5 tasks of 2 digits, labels of tasks hidden.",
        DIGITS,
        (*everything(), *MEMORIES, *(label for label in HEADS if not label.endswith("=all"))),
        note="Without a word about them, `er` has a reservoir, draws without replacement, and all classes compete.",
    ),
    Stream(
        "task",
        "Task-incremental: the same, and everybody is told the task.",
        (*DIGITS, "scenario.kind=task", "train.head=per_task"),
        (*BASELINES, "ewc", "si", "lwf", "packnet", *(label for label in HEADS if not label.endswith("=per_task"))),
        own={"packnet": ("train.head=all",)},
        note="Without a word about it, a row's head is `per_task`; PackNet has masks of its own.",
    ),
    Stream(
        "noise",
        "Class-incremental, a fifth of the training labels wrong.",
        (*DIGITS, "operator=noise", "operator.noise.rate=0.2"),
        (*BASELINES, "derpp", *ROBUST, "slda"),
    ),
    Stream(
        "online",
        "Online and class-incremental: each row once, 10 at a time, and nobody tells when a task begins.",
        (*DIGITS, *ONLINE),
        DRIFTING,
        own=dict.fromkeys(("cumulative", "joint"), ("learner.every=10",)),
        note="Old classes must be kept. *Prequential* is the accuracy on rows before they are learned. The bounds "
        "train after every 100 rows.",
        shown=("average_accuracy", "forgetting", "prequential_accuracy"),
    ),
    Stream(
        "drift",
        "Online, and labels change: all digits come all the time, and after each pass over them every label means "
        "another digit.",
        (
            *DIGITS,
            *ONLINE,
            "scenario.kind=data",
            "operator=[repeat,drift]",
            "operator.repeat.laps=5",
            "operator.drift.concepts=5",
        ),
        DRIFTING,
        own=dict.fromkeys(("cumulative", "joint"), ("learner.every=10",)),
        note="Five passes, five meanings, none of which agree on any label: old rows are wrong, so the bounds, which "
        "keep all of them, bound nothing here. Forgetting is what is asked for, so only the prequential accuracy is "
        "shown. The bounds train after every 100 rows.",
        shown=("prequential_accuracy",),
    ),
    Stream(
        "electricity",
        "Real drift: electricity prices of New South Wales, up or down, row by row, by softmax regression.",
        ("experiment=electricity_prequential", "track=none", "scenario.max_rows=10000"),
        (*BASELINES, "er, fifo", "buffer_knn, fifo", "slda"),
        own=dict.fromkeys(("cumulative", "joint"), ("learner.every=2500",)),
        note="The first 10,000 rows in time order, each predicted, then learned, in updates of one row. Neighbours "
        "have like labels, so that the last label is the baseline to beat. The bounds train after every 2,500 rows. "
        "This table needs `elec2/Electricity.arff.xz` in the data folder.",
        shown=("prequential_accuracy",),
        data="elec2/Electricity.arff.xz",
    ),
    Stream(
        "backbone",
        "Over a frozen transformer with random weights: the stream of the first table.",
        DIGITS,
        (*BASELINES, "l2p", "coda_prompt", "lora", "ncm", "slda", "ranpac"),
        own={
            **dict.fromkeys(SGD, ("model=vit", "model.frozen=true")),
            **dict.fromkeys(CLOSED, ("model@learner.backbone=vit",)),
        },
        note="Prompts and adapters are made for a backbone trained on much data. **This one was never trained**, so "
        "these figures show that the methods run and what they cost and hold, not how good they are. Plain rows train "
        "a head on the frozen features. A pass counts as one forward-equivalent also where the backbone is asked twice "
        "(`l2p`, `coda_prompt`).",
    ),
)
PAIRS = (
    ("ema_teacher", "none"),
    ("er", "none"),
    ("er, fifo", "none"),
    ("er+ema_teacher", "er"),
    ("derpp+ema_teacher", "derpp"),
    *((label, "er") for label in MEMORIES),
    ("buffer_knn, fifo", "buffer_knn"),
)


def row(label: str) -> tuple[str, tuple[str, ...]]:
    """What a row is, and its overrides."""
    name, _, variant = label.partition(", ")
    *first, last = parts = name.split("+")
    about = ", and ".join([*first, ABOUT[last]])
    group = next((g for g in GROUPS if (conf_directory() / g / f"{name}.yaml").exists()), None)
    chosen = f"{group}={name}" if group else f"strategy=[{','.join(parts)}]"
    if not variant:
        return about, (chosen,)
    also, *overrides = VARIANTS[variant]
    home = "learner.memory" if group == "learner" else f"strategy.{name}.memory"
    return f"{about}; {also}", (chosen, *(text.format(home=home) for text in overrides))
