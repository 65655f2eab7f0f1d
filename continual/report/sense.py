"""What the numbers of a comparison mean: which way is better, which rows bound the others, and their colours."""

from collections.abc import Iterable, Mapping

from continual.report.compare import Block, Row

BETTER: Mapping[str, int] = {
    **dict.fromkeys(
        (
            "calibration_error",
            "cumulative_forgetting",
            "dormant_fraction",
            "forgetting",
            "forward_equivalents_per_row",
            "intransigence",
            "negative_flips",
            "peak_bytes",
            "relative_negative_flips",
            "samples_to_threshold",
            "seconds",
            "stability_gap",
            "windowed_forgetting",
        ),
        -1,
    ),
    **dict.fromkeys(
        ("blind_accuracy", "effective_rank", "evaluation_period", "last_label_accuracy", "probe_rows", "weight_norm"), 0
    ),
}
"""-1: less is better; 0: neither; 1, more is better, for all others."""

COSTS = frozenset({"forward_equivalents_per_row", "peak_bytes", "seconds"})
"""What is spent, not what is reached."""

OVER_TIME = frozenset(
    {
        "anytime_accuracy",
        "learning_curve_area",
        "min_accuracy",
        "samples_to_threshold",
        "stability_gap",
        "windowed_forgetting",
        "windowed_plasticity",
        "worst_case_accuracy",
    }
)
"""What depends on when and on how many rows a run was evaluated."""

ROLES: Mapping[str, str] = {
    "continual.learners.slda": "floor",
    **dict.fromkeys(("continual.learners.joint", "continual.learners.cumulative"), "bound"),
}
"""Modules of the learners between which the others should lie: the closed form, and all rows at once."""


def role(row: Row) -> str | None:
    """``floor``, ``bound``, or None for a row that is neither."""
    run = next(iter((*row.runs.values(), *row.left_out)))
    return ROLES.get(run.config.get("learner._target_", "").rpartition(".")[0])


def colours(blocks: Iterable[Block]) -> dict[str, int]:
    """{label: number of its colour}, 0 for the label that was run first in any block: new runs change no colour."""
    first: dict[str, str] = {}
    for row in (row for block in blocks for row in block.rows):
        began = min(str(run.manifest["created"]) for run in (*row.runs.values(), *row.left_out))
        first[row.label] = min(began, first.get(row.label, began))
    return {label: number for number, label in enumerate(sorted(first, key=lambda label: first[label]))}
