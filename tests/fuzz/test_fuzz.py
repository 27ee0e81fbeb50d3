"""Recorded payloads, payloads that once found a defect, and some mutations: each is read, or refused with the declared
error."""

from __future__ import annotations

import random

import pytest

from fuzz import CORPUS
from fuzz.mutation import HOSTILE, MAX_BYTES, mutated
from fuzz.targets import TARGETS, Target

# Mutations of each target's payloads; `make fuzz` makes millions.
MUTATIONS = 40


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_payloads_and_mutations_of_them_are_read_or_are_the_one_declared_error(target: Target) -> None:
    payloads = target.payloads()
    for payload in [*payloads, *HOSTILE, b""]:
        target.run(payload)
    rng = random.Random(target.name)
    for _ in range(MUTATIONS):
        target.run(mutated(rng, payloads))


def test_each_target_has_payloads_and_each_folder_of_payloads_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < 500_000, "the corpus stays small"


def test_mutations_are_bounded_and_those_of_a_seed_are_the_same() -> None:
    payloads = [b'{"a":[1,"x",null]}', b"", b"x" * MAX_BYTES]
    first, second = ([mutated(random.Random(seed), payloads) for seed in range(200)] for _ in range(2))
    assert first == second
    assert len(set(first)) > 100
    assert max(map(len, first)) <= MAX_BYTES
