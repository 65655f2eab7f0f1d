"""What the numbers of a comparison mean: which way is better, and which rows bound the others."""

from collections.abc import Mapping

from continual.report.compare import Row

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

ROLES: Mapping[str, str] = {"continual.learners.slda": "floor", "continual.learners.joint": "bound"}
"""Modules of the learners between which the others should lie: the closed form, and all rows at once."""


def role(row: Row) -> str | None:
    """``floor``, ``bound``, or None for a row that is neither."""
    run = next(iter((*row.runs.values(), *row.left_out)))
    return ROLES.get(run.config.get("learner._target_", "").rpartition(".")[0])
