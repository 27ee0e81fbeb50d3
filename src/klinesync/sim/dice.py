"""Seeded numbers with random access: the n-th number of a key, without the n-1 before it.

The mixing function is splitmix64's finaliser (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators).
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_TO_UNIT = 2.0**-53
_NP_GOLDEN = np.uint64(_GOLDEN)
_NP_MIX_1 = np.uint64(_MIX_1)
_NP_MIX_2 = np.uint64(_MIX_2)
_NP_30, _NP_27, _NP_31, _NP_11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)


def dice_key(*parts: object) -> int:
    """A 64-bit key made of the text of `parts`."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def unit(key: int, index: int) -> float:
    """The number at `index` of `key`, uniform in [0, 1)."""
    z = (index * _GOLDEN + key) & _MASK
    z = ((z ^ (z >> 30)) * _MIX_1) & _MASK
    z = ((z ^ (z >> 27)) * _MIX_2) & _MASK
    z ^= z >> 31
    return (z >> 11) * _TO_UNIT


def units(key: int, index: NDArray[np.int64]) -> NDArray[np.float64]:
    """`unit(key, i)` for every i of `index`, in its shape."""
    z = index.astype(np.uint64) * _NP_GOLDEN + np.uint64(key)
    z = (z ^ (z >> _NP_30)) * _NP_MIX_1
    z = (z ^ (z >> _NP_27)) * _NP_MIX_2
    z ^= z >> _NP_31
    return (z >> _NP_11).astype(np.float64) * _TO_UNIT
