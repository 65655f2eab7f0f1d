"""The laws, shipped, so that everybody can test their own parts: ``continual check strategy=mine``.

A law is a function that takes how to make its subject and raises AssertionError with what was broken and the likely
cause::

    for law in LEARNER_LAWS + NATIVE_LAWS:
        law(make_learner, make_stream)
    for law in STREAM_LAWS:
        law(make_stream)
    for law in MEMORY_LAWS:
        law(make_memory, capacity, labels_of_each_batch)
    neutral_element(make_learner_switched_off, make_learner_without, make_stream)
    strength_acts(make_learner_at_full_strength, make_learner_without, make_stream)

Every ``make_...`` gives a fresh object, each time of the same seed.
"""

from continual.contract.check import Finding, check_config
from continual.contract.learners import LEARNER_LAWS
from continual.contract.memories import MEMORY_LAWS, includes_uniformly, shares_equally
from continual.contract.native import NATIVE_LAWS
from continual.contract.strategies import STRATEGY_LAWS, neutral_element, strength_acts
from continual.contract.streams import STREAM_LAWS
from continual.contract.subject import Subject
from continual.contract.tools import Brief

__all__ = [
    "LEARNER_LAWS",
    "MEMORY_LAWS",
    "NATIVE_LAWS",
    "STRATEGY_LAWS",
    "STREAM_LAWS",
    "Brief",
    "Finding",
    "Subject",
    "check_config",
    "includes_uniformly",
    "neutral_element",
    "shares_equally",
    "strength_acts",
]
