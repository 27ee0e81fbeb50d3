"""How far tests look: as far as is worth a developer's waiting or, with `make test-long`, as before a release."""

from __future__ import annotations

import os

# Set by `make test-long`.
LONG = bool(os.environ.get("KLINESYNC_TEST_LONG"))
# So many times as many examples a property are drawn then.
TIMES_AS_MANY = 20
# Of a property that names no number.
EXAMPLES = 40


def examples(usual: int) -> int:
    """How many examples of a property are drawn, where the usual run draws `usual`."""
    return usual * TIMES_AS_MANY if LONG else usual
