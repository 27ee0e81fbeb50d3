"""The number of examples of property tests: small for a developer's run, larger before a release (`make test-long`)."""

from __future__ import annotations

import os

# Set by `make test-long`.
LONG = bool(os.environ.get("KLINESYNC_TEST_LONG"))
# Factor of the number of examples in that run.
TIMES_AS_MANY = 20
# For properties without a number of their own.
EXAMPLES = 40


def examples(usual: int) -> int:
    """The number of examples for a property whose usual number is `usual`."""
    return usual * TIMES_AS_MANY if LONG else usual
