"""Run published protocols, judge each against its reference, and render the table of what was reproduced.

Each row runs its seeds through the public API and writes ``docs/reproduction/<row>.json``; the table
``docs/REPRODUCTION.md`` is rendered from these files and nothing else. The data are looked for where
``CONTINUAL_DATA`` says::

    python scripts/reproduce.py --list
    python scripts/reproduce.py --row split_mnist_mir_er
    python scripts/reproduce.py --row split_mnist_batch_er --resume --seeds 5    # the first 5, less those it holds
    python scripts/reproduce.py --all
    python scripts/reproduce.py --render

A row's file is written after each seed, so that a long row can be run in pieces with ``--resume``.
"""

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from origin import code_state

import continual
from continual.statistics import Estimate, interval
from continual.types import Record

ROOT = Path(__file__).parents[1]
RESULTS, TABLE = ROOT / "docs" / "reproduction", ROOT / "docs" / "REPRODUCTION.md"
PACKAGES = ("continual", "torch", "numpy", "scikit-learn", "hydra-core")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: of its result file.
        protocol: what is run, in words.
        overrides: what is run, as ``continual run`` takes it; without seed, tracking and output.
        metric: of the run's metrics, or a function of this name in MEASURES; reported in percent.
        reference: the figure to reach, in percent.
        source: of the reference.
        seeds: how many runs; 1 if nothing is random.
        first: the first seed.
        rule: how it is judged, see ``verdict``: ``reference``, ``band``, ``falls``, ``holds`` or ``shown``.
        notes: what else was tried, and what the protocol leaves open.
    """

    name: str
    protocol: str
    overrides: tuple[str, ...]
    metric: str
    reference: float
    source: str
    seeds: int = 10
    first: int = 0
    rule: str = "reference"
    notes: str = ""

    @property
    def tolerance(self) -> float:
        """Points by which the mean may differ from the reference."""
        return 0.1 if self.seeds == 1 else 2.0

    def command(self, seeds: int) -> str:
        """The runs of this row as a command."""
        return shlex.join(["continual", "run", "-m", *self.overrides, self.range(seeds), "track=none"])

    def range(self, seeds: int) -> str:
        """The override that names the seeds."""
        return f"seed=range({self.first},{self.first + seeds})" if self.first else f"seed=range({seeds})"


MIR = (
    "5 tasks of 2 digits and 1000 rows each, every row once, 10 rows an update, MLP 784-400-400-10, SGD lr 0.1, "
    "inputs in [0, 1], all 10 logits compete; class order and rows by seed; mean over tasks of the accuracy on all "
    "test rows at the end. "
)
REPLAY = (
    "Reservoir of 500 rows, {} replayed per update without replacement and none of the current task; the mean loss of "
    "the replayed rows is added to the mean loss of the arrived ones, as in the authors' code. "
)
ER = ("strategy=er", "strategy.er.memory.capacity=500")
MIR_ER = ("experiment=split_mnist_mir", *ER, "strategy.er.exclude_current=true", "strategy.er.strength=1")
MIR_REPLAY = (
    "Maximally interfered retrieval: 50 candidates drawn without replacement from a reservoir of 500 rows, none of the "
    "current task; the 10 whose loss a plain step on the arrived rows raises most are replayed; the mean loss of the "
    "replayed rows is added to the mean loss of the arrived ones, as in the authors' code. "
)
MIR_MIR = (
    "experiment=split_mnist_mir",
    "strategy=mir",
    "strategy.mir.memory.capacity=500",
    "strategy.mir.exclude_current=true",
    "strategy.mir.strength=1",
    "strategy.mir.n_candidates=50",
    "strategy.mir.n_replay=10",
)
PAIRED = "The reading and the seeds of the ER rows of this protocol, so that the runs are paired."
NOISE = "A fifth of the training labels is swapped for the other class of the task. "
FLOOR = (
    "Streaming linear discriminant analysis of {}, one pass, no replay, any order of rows; accuracy on all test rows. "
)
FOURIER = "2000 random Fourier features (gamma 0.02; drawn by the seed)"
PERMUTED = (
    "20 tasks of 60,000 rows, each MNIST with its pixels in another order (the first too), every row once, 128 rows "
    "an update, MLP 784-100-100-10, inputs in [0, 1]; mean over tasks of the accuracy on all test rows at the end. "
)
PERMUTED_MEMORY = "Reservoir of 200 rows, 128 of them replayed per update without replacement. "
BATCH = (
    "5 tasks of 2 digits, class order by seed, 2000 updates of 128 rows each, MLP 784-400-400-{}, one Adam 1e-3 "
    "carried over, inputs in [0, 1]; mean over tasks of the accuracy on all test rows at the end. "
)
CLASS_BATCH = BATCH.format(10) + "Class-incremental: no task labels, all 10 logits compete. "
DOMAIN_BATCH = BATCH.format(2) + "Domain-incremental: the label is which of the task's two digits; no task labels. "
TASK_BATCH = BATCH.format(10) + "Task-incremental: task labels in training and at test, the task's two logits compete. "
KINDS = {
    "class": (CLASS_BATCH, ()),
    "domain": (DOMAIN_BATCH, ("scenario.kind=domain",)),
    "task": (TASK_BATCH, ("scenario.kind=task", "train.head=per_task")),
}
BATCH_ER = ("strategy=er", "strategy.er.n_replay=128", "strategy.er.remember=end", "strategy.er.weighting=tasks")
BATCH_LWF = (
    "Learning without forgetting, temperature 2, weight 1 (strength 0.25, which is multiplied by the temperature's "
    "square here), {}."
)
LWF = ("strategy=lwf", "strategy.lwf.temperature=2", "strategy.lwf.strength=0.25")
PLASTICITY = (
    "The same 10,000 MNIST images under 500 permutations of the pixels one after the other, 16 images an update, each "
    "once and predicted before it is learned, boundaries hidden; MLP 784-100-100-10, {}, inputs in [0, 1]; change of "
    "the online accuracy, in points: mean over the last tenth of the permutations minus mean over the first tenth. "
)
OPTIMIZERS = {
    "adam": ("Adam lr 1e-3", ()),
    "adam_1e-4": ("Adam lr 1e-4", ("optimizer.lr=0.0001",)),
    "sgd": ("SGD lr 0.01", ("optimizer=sgd", "optimizer.lr=0.01")),
    "sgd_1e-3": ("SGD lr 1e-3", ("optimizer=sgd", "optimizer.lr=0.001")),
}
HELD = -1.0
SHAPE = (
    "Said before any run: it falls if the whole interval is below 0, it holds if the whole interval is at or above "
    f"{HELD:g}. Strength and replacement rate are those that the authors chose in their sweep, as are Adam's 1e-3 and "
    "SGD's 0.01; a tenth of either is the protocol's other rate. Of the first 100 permutations alone, seen before: "
    "backpropagation -4.4 with Adam 1e-3 and +8.1 with SGD 0.01, L2 +0.8 and +7.8, continual backpropagation +0.3 and "
    "+5.9 (n = 3 each); and of all 500, seed 0 of backpropagation with SGD 0.01: -2.4."
)
PUBLISHED = "van de Ven et al. 2022, mean ± standard error, n = 20"
RECALLED = "van de Ven et al. 2022, from memory: a band, not a gate"
RERUN = "independent re-run"
TRIED = (
    "The seeds are 20 to 49: no run of them was looked at before this reading was fixed. Other readings, tried on "
    "seeds 0 to 19 or 0 to 9 (mean, standard deviation, n): one mean over arrived and replayed rows, class order by "
    "seed: {}; the same with classes in the order of their numbers: {}; two means, order by number: {}."
)
ANY_CLASS = (
    " Runs by number had an earlier draw of the noise. Noise over all classes, order by seed: any other class, one "
    "mean {}, two means {}; any of the ten, one mean {}."
)
SHRUNK = (
    "Judged by 2 points because the features are drawn by the seed; the difference is several times the spread over "
    "seeds. With 1e-4 of the identity, as on pixels. The features are scaled by sqrt(2 / 2000); on unscaled ones the "
    "same shrinkage is 1e-7 of ours (learner.shrinkage=1e-7), which gave {} in two seeds, apart from this script."
)


def batch_rows(
    name: str,
    protocol: str,
    overrides: tuple[str, ...],
    references: Mapping[str, tuple[float, str]],
    strengths: Mapping[str, str] | None = None,
    notes: str = "",
) -> tuple[Row, ...]:
    """Rows of ``split_mnist_batch`` of one strategy: a reference and its source by kind, a strength by kind if any.

    ``references`` by kind: the figure, and what stands behind it; a figure from memory is a band.
    """
    return tuple(
        Row(
            f"split_mnist_batch_{name}" + ("" if kind == "class" else f"_{kind}"),
            KINDS[kind][0] + protocol.format(strengths[kind] if strengths else ""),
            (
                "experiment=split_mnist_batch",
                *KINDS[kind][1],
                *overrides,
                *((f"strategy.{name}.strength={strengths[kind]}",) if strengths else ()),
            ),
            "average_accuracy",
            reference,
            source,
            rule="band" if source.startswith(RECALLED) else "reference",
            notes=notes,
        )
        for kind, (reference, source) in references.items()
    )


def plasticity_rows(name: str, claim: str, overrides: tuple[str, ...], rule: str) -> tuple[Row, ...]:
    """Rows of ``permuted_mnist_plasticity`` of one strategy, one for each of OPTIMIZERS."""
    return tuple(
        Row(
            f"plasticity_{name}_{optimizer}",
            PLASTICITY.format(spelled) + claim,
            ("experiment=permuted_mnist_plasticity", *chosen, *overrides),
            "online_accuracy_change",
            HELD if rule == "holds" else 0.0,
            "Kumar et al. 2023: a shape, no figure",
            seeds=3,
            rule=rule,
            notes=SHAPE,
        )
        for optimizer, (spelled, chosen) in OPTIMIZERS.items()
    )


ROWS = (
    Row(
        "split_mnist_mir_none",
        MIR + "No replay.",
        ("experiment=split_mnist_mir",),
        "average_accuracy",
        18.85,
        f"{RERUN}, standard deviation 0.55; published 19.0 ± 0.2",
        seeds=30,
        first=20,
        notes="Tried apart from this script: class order by number, 19.25 (standard deviation 0.16, n = 10).",
    ),
    Row(
        "split_mnist_mir_er",
        MIR + REPLAY.format(10),
        MIR_ER,
        "average_accuracy",
        84.95,
        f"{RERUN}, standard deviation 2.66, n = 10; published 82.1 ± 1.5",
        seeds=30,
        first=20,
        notes=TRIED.format("83.11, 3.03, 20", "82.17, 2.50, 10", "82.96, 3.54, 10"),
    ),
    Row(
        "split_mnist_mir_er_40",
        MIR + REPLAY.format(40),
        (*MIR_ER, "strategy.er.n_replay=40"),
        "average_accuracy",
        86.46,
        f"{RERUN}, standard deviation 1.22",
        seeds=30,
        first=20,
        notes=TRIED.format("85.77, 1.19, 20", "85.44, 1.09, 10", "84.83, 4.77, 10"),
    ),
    Row(
        "split_mnist_mir_noise_er",
        MIR + REPLAY.format(10) + NOISE,
        (*MIR_ER, "operator=noise", "operator.noise.rate=0.2"),
        "average_accuracy",
        77.94,
        f"{RERUN}, standard deviation 6.57",
        seeds=30,
        first=20,
        notes=TRIED.format("77.74, 4.12, 20", "78.88, 2.91, 10", "77.18, 5.45, 10")
        + ANY_CLASS.format("79.09, 3.80, 20", "79.13, 4.46, 20", "80.68, 2.75, 20"),
    ),
    Row(
        "split_mnist_mir_noise_er_40",
        MIR + REPLAY.format(40) + NOISE,
        (*MIR_ER, "strategy.er.n_replay=40", "operator=noise", "operator.noise.rate=0.2"),
        "average_accuracy",
        80.94,
        f"{RERUN}, standard deviation 3.27",
        seeds=30,
        first=20,
        notes=TRIED.format("78.14, 3.33, 20", "79.59, 2.34, 10", "79.97, 4.42, 10")
        + ANY_CLASS.format("80.71, 2.48, 20", "81.15, 3.78, 20", "81.19, 2.13, 20"),
    ),
    Row(
        "split_mnist_mir_mir",
        MIR + MIR_REPLAY,
        MIR_MIR,
        "average_accuracy",
        88.19,
        f"{RERUN}, standard deviation 1.81, n = 10; published 87.6 ± 0.7",
        seeds=30,
        first=20,
        notes=f"{PAIRED} Against ER on the same seeds (20 to 29) the difference is +3.19 (interval 1.68 to 4.70), the "
        "reference's is +3.24.",
    ),
    Row(
        "split_mnist_mir_noise_mir",
        MIR + MIR_REPLAY + NOISE,
        (*MIR_MIR, "operator=noise", "operator.noise.rate=0.2"),
        "average_accuracy",
        76.65,
        f"{RERUN}, standard deviation 6.07",
        seeds=50,
        first=20,
        notes=f"{PAIRED} 20 seeds more than theirs, because after 30 the half-width was 2.50 (mean 73.80). Other "
        "readings, tried on seeds 0 to 9 (mean, standard deviation): this one 70.33, 6.01; one mean over arrived and "
        "replayed rows 71.30, 4.41; classes in the order of their numbers 77.31, 3.71. Against ER on the same seeds "
        "(20 to 49) the difference is -5.33 (interval -8.13 to -2.82), the reference's is -1.29.",
    ),
    Row(
        "permuted_mnist_online_none",
        PERMUTED + "SGD lr 0.2, as in the authors' code; no replay.",
        ("experiment=permuted_mnist_online",),
        "average_accuracy",
        41.41,
        f"{RERUN}, standard deviation 1.73, n = 2; published 40.70 ± 2.33",
        seeds=20,
        notes="The protocol names no learning rate; 0.2 is that of the authors' code. With 0.1: 47.38, 52.90 and 44.16 "
        "in seeds 0 to 2, apart from this script.",
    ),
    Row(
        "permuted_mnist_online_er",
        PERMUTED + PERMUTED_MEMORY + "SGD lr 0.2; one mean over arrived and replayed rows.",
        (
            "experiment=permuted_mnist_online",
            "strategy=er",
            "strategy.er.memory.capacity=200",
            "strategy.er.n_replay=128",
        ),
        "average_accuracy",
        70.63,
        f"{RERUN}, standard deviation 0.24, n = 2; published 72.37 ± 0.87",
    ),
    Row(
        "permuted_mnist_online_derpp",
        PERMUTED + PERMUTED_MEMORY + "SGD lr 0.1; one draw for the logits and one for the labels, each of weight 1.",
        (
            "experiment=permuted_mnist_online",
            "optimizer.lr=0.1",
            "strategy=derpp",
            "strategy.derpp.memory.capacity=200",
            "strategy.derpp.n_replay=128",
            "strategy.derpp.strength=1",
            "strategy.derpp.label_strength=1",
        ),
        "average_accuracy",
        83.32,
        f"{RERUN}, n = 1; published 83.58 ± 0.59",
    ),
    *batch_rows("none", "No replay.", (), {"class": (19.9, RECALLED)}),
    *batch_rows(
        "joint",
        "All rows at once instead, 10,000 updates: the upper bound.",
        ("scenario.n_tasks=1", "train.iterations=10000"),
        {"class": (98.2, RECALLED)},
    ),
    *batch_rows(
        "ewc",
        "Elastic weight consolidation, a penalty per task, Fisher information by the network's labels, strength {}.",
        (
            "strategy=ewc",
            "strategy.ewc.mode=separate",
            "strategy.ewc.labels=model",
            "strategy.ewc.chunk=16",
            "strategy.ewc.max_pull=null",
        ),
        {
            "class": (20.01, f"{PUBLISHED}: 20.01 ± 0.06"),
            "domain": (63.95, f"{PUBLISHED}: 63.95 ± 1.90"),
            "task": (98.64, f"{PUBLISHED}: 98.64 ± 0.22"),
        },
        {"class": "1e9", "domain": "1e10", "task": "1e5"},
        "The strengths are the authors', who write the same formula. They sum the expectation over the network's own "
        "labels, here it is estimated, without bias, by one backward pass a row. With the rows' labels (the empirical "
        "Fisher), n = 3: class-incremental 19.87 ± 0.22, domain-incremental 64.92 ± 12.41, task-incremental 90.06 ± "
        "16.25.",
    ),
    *batch_rows(
        "si",
        "Synaptic intelligence, strength {}, damping 0.1.",
        ("strategy=si", "strategy.si.damping=0.1", "strategy.si.max_pull=null"),
        {"class": (21.2, RECALLED), "domain": (66.9, RECALLED), "task": (99.2, RECALLED)},
        {"class": "5000", "domain": "50000", "task": "10"},
        "Strengths and damping are the authors', who write the same formula. Their path counts the penalty's gradient "
        "too and their importance may be negative; here the path is of the task loss alone and the importance is cut "
        "at 0.",
    ),
    *batch_rows(
        "er",
        "After each task 100 random rows of each of its classes are stored; 128 of the stored rows are replayed per "
        "update; in task t the loss is 1/t of the arrived rows' mean and 1 - 1/t of the replayed rows' mean.",
        (*BATCH_ER, "memory@strategy.er.memory=ring", "strategy.er.memory.capacity=1000"),
        {"class": (90.00, f"{RERUN}, n = 1; published 88.8 ± 0.2"), "task": (98.98, RECALLED)},
    ),
    *batch_rows(
        "er",
        "A uniform sample of 1000 of the rows of all tasks so far, taken when each ends; 128 of them are replayed per "
        "update; in task t the loss is 1/t of the arrived rows' mean and 1 - 1/t of the replayed rows' mean.",
        (*BATCH_ER, "strategy.er.memory.capacity=1000"),
        {"domain": (93.75, RECALLED)},
        notes="The authors keep 100 rows of each label of each task, so 200 after the first task and 1000 in the end.",
    ),
    *batch_rows(
        "agem",
        "A-GEM: after each task 100 random rows of each of its classes are stored; the reference gradient is of 128 of "
        "the stored rows.",
        ("strategy=agem", "strategy.agem.memory.capacity=1000", "strategy.agem.n_replay=128"),
        {"class": (65.1, f"{RECALLED}: 65.1 ± 3.6")},
    ),
    *batch_rows(
        "lwf",
        BATCH_LWF.format("one softmax over all 10 classes"),
        (*LWF, "strategy.lwf.softmax=all"),
        {"class": (21.9, RECALLED)},
        notes="With the softmax over the classes that the teacher has learned instead: 19.90 ± 0.14, n = 2.",
    ),
    *batch_rows(
        "lwf",
        BATCH_LWF.format("times the number of earlier tasks"),
        (*LWF, "strategy.lwf.weighting=tasks"),
        {"domain": (71.2, RECALLED)},
    ),
    *batch_rows(
        "lwf",
        BATCH_LWF.format("a softmax for each earlier task, and the sum of them"),
        (*LWF, "strategy.lwf.softmax=per_task", "strategy.lwf.weighting=tasks"),
        {"task": (99.6, RECALLED)},
    ),
    *batch_rows(
        "icarl",
        "iCaRL with 100 exemplars of each class, as many replayed as mix them evenly into the task's rows, the old "
        "network's targets at temperature 2.",
        (
            "strategy=icarl",
            "strategy.icarl.capacity=1000",
            "strategy.icarl.n_per_class=100",
            "strategy.icarl.temperature=2",
        ),
        {"class": (92.5, f"{RECALLED}: 92.5 ± 0.1")},
        notes="With the old network's targets as they are: 89.18 ± 3.05, n = 3. The authors herd towards the class's "
        "mean at length 1, here towards the mean of features at length 1.",
    ),
    *plasticity_rows(
        "none",
        "Backpropagation alone: it falls.",
        (),
        "falls",
    ),
    *plasticity_rows(
        "l2_init",
        "L2 regularisation towards the initial weights, strength 0.01: it holds.",
        ("strategy=l2_init", "strategy.l2_init.strength=0.01"),
        "holds",
    ),
    *plasticity_rows(
        "continual_backprop",
        "Continual backpropagation, replacement rate 1e-3, maturity 100, decay 0.99: it holds.",
        (
            "strategy=continual_backprop",
            "strategy.continual_backprop.rate=0.001",
            "strategy.continual_backprop.maturity=100",
            "strategy.continual_backprop.decay=0.99",
        ),
        "holds",
    ),
    Row(
        "split_fashion_online_er",
        "5 tasks of 2 classes and 12,000 rows each, in arrivals of 10 rows, every row once, boundaries hidden; "
        "MLP 784-256-256-10, SGD lr 0.1; reservoir of 500 rows, 128 replayed per update without replacement, the "
        "current task included; class order and rows by seed; mean over tasks of the accuracy at the end.",
        ("experiment=split_fashion_online", *ER, "strategy.er.n_replay=128"),
        "average_accuracy",
        78.19,
        f"{RERUN}, standard deviation 0.46, n = 2",
    ),
    Row(
        "electricity_last_label",
        "45,312 rows in time order, one at a time; the answer is the label before. Accuracy over all rows.",
        ("experiment=electricity_prequential",),
        "last_label_accuracy",
        85.3,
        f"published 85.33, {RERUN} 85.3",
        seeds=1,
    ),
    Row(
        "electricity_linear",
        "45,312 rows in time order, each predicted and then learned, one at a time; softmax regression on the 7 "
        "numbers and the one-hot day, SGD lr 0.1 without schedule. Accuracy over all rows.",
        ("experiment=electricity_prequential",),
        "prequential_accuracy",
        82.2,
        "peers' figure for a logistic regression of theirs, not a gate",
        seeds=3,
        rule="shown",
    ),
    Row(
        "slda_mnist",
        FLOOR.format("raw pixels of MNIST"),
        ("experiment=slda_mnist",),
        "stream_accuracy",
        87.41,
        RERUN,
        seeds=1,
    ),
    Row(
        "slda_fashion",
        FLOOR.format("raw pixels of Fashion-MNIST"),
        ("experiment=slda_fashion",),
        "stream_accuracy",
        81.57,
        RERUN,
        seeds=1,
    ),
    Row(
        "slda_rff_mnist",
        FLOOR.format(f"{FOURIER} of MNIST"),
        ("experiment=slda_mnist", "learner.n_features=2000"),
        "stream_accuracy",
        95.81,
        RERUN,
        notes=SHRUNK.format("95.87 and 95.93"),
    ),
    Row(
        "slda_rff_fashion",
        FLOOR.format(f"{FOURIER} of Fashion-MNIST"),
        ("experiment=slda_fashion", "learner.n_features=2000"),
        "stream_accuracy",
        85.79,
        RERUN,
        notes=SHRUNK.format("85.73 and 85.72"),
    ),
)


def online_accuracy_change(records: Iterable[Record], share: float = 0.1) -> float:
    """Mean online accuracy over the last ``share`` of the tasks minus that over the first, in [-1, 1].

    A task's is the mean of its rows' ``prequential_accuracy``; of T tasks max(1, round(share * T)) are a share.
    """
    right: dict[int, float] = {}
    rows: dict[int, float] = {}
    n = 0.0  # rows of the record of the same moment, which comes first
    for record in records:
        if record.at == "arrival" and record.task is not None and record.metric == "prequential_rows":
            n = record.value
            rows[record.task] = rows.get(record.task, 0.0) + n
        if record.at == "arrival" and record.task is not None and record.metric == "prequential_accuracy":
            right[record.task] = right.get(record.task, 0.0) + n * record.value
    accuracy = [right[task] / rows[task] for task in sorted(right)]
    n_share = max(1, round(share * len(accuracy)))
    return fmean(accuracy[-n_share:]) - fmean(accuracy[:n_share])


MEASURES: Mapping[str, Callable[[continual.Run], float]] = {
    "online_accuracy_change": lambda run: online_accuracy_change(run.records)
}


def half_width(estimate: Estimate) -> float | None:
    """The larger of the interval's two sides; None if it has none."""
    if estimate.low is None or estimate.high is None:
        return None
    return max(estimate.mean - estimate.low, estimate.high - estimate.mean)


def verdict(row: Row, estimate: Estimate) -> str:
    """By the row's rule; whatever has a half-width above ``row.tolerance`` is ``undecided, n = ...``.

    ``reference``: ``reproduced`` if the mean is within ``row.tolerance`` of the reference, else ``differs``. One run
    where seeds matter is undecided. ``band``: the same for a published figure from memory, which is no gate: ``in the
    band`` or ``outside the band``. ``falls`` and ``holds`` judge a change: the whole interval is below the reference,
    or not below it. ``shown``: a figure of another model; there is no verdict.
    """
    difference = estimate.mean - row.reference
    if row.rule == "shown":
        return f"no gate ({difference:+.2f})"
    width = 0.0 if row.seeds == 1 else half_width(estimate)
    if width is None or width > row.tolerance:
        return f"undecided, n = {estimate.n}"
    if row.rule in ("falls", "holds"):
        low, high = estimate.low or 0.0, estimate.high or 0.0
        as_said = high < row.reference if row.rule == "falls" else low >= row.reference
        return "reproduced" if as_said else f"does not {row.rule.removesuffix('s')} ({difference:+.2f})"
    near, far = ("in the band", "outside the band") if row.rule == "band" else ("reproduced", "differs")
    return near if abs(difference) <= row.tolerance else f"{far} ({difference:+.2f})"


def measured(
    row: Row, seeds: int, output: str, code: Mapping[str, Any], before: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """What the row's file holds after each further seed; those of the file ``before`` are not run again.

    Runs that lie in ``output`` already are read.
    """
    values = dict(before["values"]) if before else {}
    seconds = before["seconds"] if before else 0.0
    earlier = [] if before is None else [*before.get("earlier_commits", []), before["commit"]]
    earlier = [commit for commit in dict.fromkeys(earlier) if commit != code["commit"]]
    origin = {"dirty": code["dirty"] or bool(before and before["dirty"])}
    origin |= {"earlier_commits": earlier} if earlier else {}
    for config in continual.expand([*row.overrides, row.range(seeds), "track=none", f"output={output}"]):
        seed = str(config.resolved["seed"])
        if seed not in values:
            began = time.perf_counter()
            run = continual.run_config(config)
            value = MEASURES[row.metric](run) if row.metric in MEASURES else run.metrics[row.metric]
            values[seed] = round(100 * value, 4)
            seconds += time.perf_counter() - began
            yield result(row, values, seconds, {**code, **origin})
        print(f"{row.name} seed {seed}: {row.metric} {values[seed]:.2f}", flush=True)


def result(row: Row, values: Mapping[str, float], seconds: float, code: Mapping[str, Any]) -> dict[str, Any]:
    """What the row's file holds."""
    estimate = interval(values.values())
    width = half_width(estimate)
    return {
        "row": row.name,
        "protocol": row.protocol.strip(),
        "command": row.command(len(values)),
        "metric": row.metric,
        "values": dict(values),
        "n": estimate.n,
        "mean": round(estimate.mean, 4),
        "deviation": None if estimate.deviation is None else round(estimate.deviation, 4),
        "interval": None
        if width is None
        else [round(end, 4) for end in (estimate.low, estimate.high) if end is not None],
        "half_width": None if width is None else round(width, 4),
        "method": "nothing is random" if row.seeds == 1 else estimate.method,
        "reference": row.reference,
        "source": row.source,
        "tolerance": None if row.rule == "shown" else row.tolerance,
        "verdict": verdict(row, estimate),
        "notes": row.notes,
        "seconds": round(seconds, 1),
        **code,
    }


def run_rows(
    rows: Sequence[Row], seeds: int | None, results: Path = RESULTS, table: Path = TABLE, resume: bool = False
) -> None:
    """Run each row; write its file and the page after each seed. Rows of one command share the runs that they have."""
    code = code_state(PACKAGES)
    results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as output:
        for row in rows:
            path = results / f"{row.name}.json"
            n = row.seeds if seeds is None or row.seeds == 1 else seeds
            before = found(row, path) if resume else None
            for facts in chain([before] if before else [], measured(row, n, output, code, before)):
                path.write_text(f"{json.dumps(facts, indent=2, ensure_ascii=False)}\n", encoding="utf-8")
                table.write_text(render(stored(results)), encoding="utf-8")
            facts = json.loads(path.read_text(encoding="utf-8"))
            print(f"{row.name}: {shown(facts)}, reference {row.reference}: {facts['verdict']}", flush=True)


def found(row: Row, path: Path) -> dict[str, Any] | None:
    """What the row's file holds, described and judged as the row is now; None if there is no file.

    UserError if it is of other runs than the row's.
    """
    if not path.is_file():
        return None
    facts = json.loads(path.read_text(encoding="utf-8"))
    if (facts["command"], facts["metric"]) != (row.command(facts["n"]), row.metric):
        raise continual.UserError(f"{path} is not of the runs of row {row.name}; run it without --resume")
    code = {name: facts[name] for name in ("commit", "dirty", "versions", "earlier_commits") if name in facts}
    return result(row, facts["values"], facts["seconds"], code)


def shown(facts: Mapping[str, Any]) -> str:
    """Mean and half-width, or the mean alone."""
    width = facts["half_width"]
    return f"{facts['mean']:.2f}" + ("" if width is None else f" ± {width:.2f}")


HEADER = """\
<!-- Rendered by `python scripts/reproduce.py --render` from docs/reproduction/*.json; do not edit. -->
# Reproduction

Published protocols, run by this package. All figures are accuracies in percent. *Ours* is the mean over n seeds ± the
larger side of its 95% interval. A row is **reproduced** if its mean differs from the reference by at most 2 points and
the half-width is at most 2 points; if nothing in it is random, by at most 0.1 points. With a wider interval it is
*undecided*, otherwise it *differs*. A figure that is known from memory only is a band of the same width, no gate: *in
the band* or *outside the band*. Where a change is judged, it has to *fall* (the whole interval below the reference) or
to *hold* (the whole interval at or above it).

Hyper-parameters are the protocol's, or this package's defaults where it names none; none was changed after a look at
these streams. What the protocol of `split_mnist_mir` leaves open (class order, how the two parts of the loss are added,
what label noise is) was tried on other seeds of these streams; each row lists the results.

`CONTINUAL_DATA` names the folder with the data; `python scripts/reproduce.py --row ROW` runs a row again and
`python scripts/reproduce.py --all` all of them. Per-seed values, commit and versions are in `docs/reproduction/`.

| row | reference | ours | n | verdict | command |
|---|---|---|---|---|---|
"""


def render(results: Sequence[Mapping[str, Any]]) -> str:
    """The page: the table, then what each row runs."""
    lines = [
        f"| [{r['row']}](#{r['row']}) | {r['reference']} | {shown(r)} | {r['n']} | {r['verdict']} | `{r['command']}` |"
        for r in results
    ]
    return HEADER + "\n".join([*lines, "", *map(_details, results)])


def _details(r: Mapping[str, Any]) -> str:
    changed = " with uncommitted changes" if r["dirty"] else ""
    if r.get("earlier_commits"):
        changed += f", some seeds {', '.join(commit[:12] for commit in r['earlier_commits'])}"
    versions = ", ".join(f"{name} {number}" for name, number in r["versions"].items() if number)
    facts = [
        f"## {r['row']}\n",
        f"{r['protocol']}\n",
        f"- Reference: {r['reference']} ({r['source']}); metric `{r['metric']}`; error bar: {r['method']}.",
        f"- Commit {r['commit'][:12]}{changed}; {versions}; {r['seconds']:.0f} seconds.",
    ]
    return "\n".join([*facts, *([f"- {r['notes']}"] if r["notes"] else []), ""])


def stored(results: Path = RESULTS) -> list[dict[str, Any]]:
    """The result files that there are, in the order of the rows."""
    paths = [results / f"{row.name}.json" for row in ROWS]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]


def chosen(names: Sequence[str]) -> list[Row]:
    """Rows by name."""
    known = {row.name: row for row in ROWS}
    for name in names:
        if name not in known:
            raise continual.UserError(f"--row {name} does not exist; choose from {', '.join(known)}")
    return [known[name] for name in names]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--row", nargs="+", metavar="NAME", help="run these rows and render the table")
    what.add_argument("--all", action="store_true", help="run all rows and render the table")
    what.add_argument("--list", action="store_true", help="say which rows there are")
    what.add_argument("--render", action="store_true", help="render the table from the result files")
    parser.add_argument("--seeds", type=int, metavar="N", help="run so many seeds where seeds matter")
    parser.add_argument("--resume", action="store_true", help="run only the seeds that the row's file does not hold")
    options = parser.parse_args(words)
    if options.list:
        print("\n".join(f"{row.name:30} {row.reference:6}  {row.command(row.seeds)}" for row in ROWS))
        return
    if options.row or options.all:
        run_rows(ROWS if options.all else chosen(options.row), options.seeds, resume=options.resume)
        return
    TABLE.write_text(render(stored()), encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except continual.UserError as error:
        sys.exit(f"reproduce: {error}")
