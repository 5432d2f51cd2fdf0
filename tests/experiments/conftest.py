"""What tests of several experiments share."""

from dataclasses import replace

import pytest

from coalora_lib.experiments.makers import in_order
from coalora_lib.experiments.methods import METHODS


@pytest.fixture
def few_steps(monkeypatch):
    """Polishing as it is would take most of the time of the tests of recovery."""
    for slug, parts in (
        ("recovery-in-order-polished", {}),
        ("recovery-in-order-compensated-polished", {"compensated": True}),
    ):
        polished = replace(METHODS[slug], fitter=in_order(5, **parts))
        monkeypatch.setitem(METHODS, slug, polished)
