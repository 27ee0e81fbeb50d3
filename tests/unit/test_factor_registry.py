"""Factors are found through entry points; an unusable one stops the start with a sentence."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path

import pytest

from klinesync.core.errors import BadFlag
from klinesync.factor.graph import FactorGraph
from klinesync.factor.plugin import BadFactor, FactorSettings
from klinesync.factor.registry import GROUP, load_factors
from klinesync.factor.structure import structure

PLUGIN = """
from klinesync.factor.structure import structure

def none_at_all(settings):
    return []

def no_factors(settings):
    return ["pivot"]

def failing(settings):
    raise OSError("no such model")

not_callable = 7
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Distribution]:
    """An installed distribution `strange-factors` with a module `strange_factors`."""
    (tmp_path / "strange_factors.py").write_text(PLUGIN)
    folder = tmp_path / "strange_factors-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: strange-factors\nVersion: 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Distribution.at(folder)
    sys.modules.pop("strange_factors", None)


def point(plugin: Distribution, value: str) -> EntryPoint:
    (folder,) = Path(str(plugin.locate_file("."))).glob("*.dist-info")
    (folder / "entry_points.txt").write_text(f"[{GROUP}]\nstrange = {value}\n")
    (found,) = plugin.entry_points
    return found


def test_the_built_in_factors_come_through_the_same_door() -> None:
    names = [factor.name for factor in structure(FactorSettings())]
    assert [found.value for found in entry_points(group=GROUP, name="structure")] == [
        "klinesync.factor.structure:structure"
    ]
    assert set(names) <= {factor.name for factor in load_factors(FactorSettings())}
    assert set(names) <= set(FactorGraph(load_factors(FactorSettings())).names)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("strange_factors:failing", "cannot be used: OSError: no such model"),
        ("strange_factors:absent", "cannot be used: AttributeError"),
        ("absent_module:factors", "cannot be used: ModuleNotFoundError: No module named 'absent_module'"),
        ("strange_factors:not_callable", "cannot be used: TypeError"),
        ("strange_factors:no_factors", "gives a str, which is no Factor"),
    ],
)
def test_one_that_cannot_be_used_is_refused_with_the_name_of_its_distribution(
    plugin: Distribution, value: str, error: str
) -> None:
    with pytest.raises(BadFactor) as refused:
        load_factors(FactorSettings(), [point(plugin, value)])
    assert str(refused.value).startswith(f"factor strange: {value} of strange-factors {error}")


def test_one_that_has_no_factors_is_none(plugin: Distribution) -> None:
    assert load_factors(FactorSettings(), [point(plugin, "strange_factors:none_at_all")]) == []


def test_a_name_that_a_built_in_factor_has_is_refused(plugin: Distribution) -> None:
    points = [*entry_points(group=GROUP, name="structure"), point(plugin, "strange_factors:structure")]
    with pytest.raises(BadFactor, match="factor pivot: two factors have this name"):
        FactorGraph(load_factors(FactorSettings(), points))


@pytest.mark.parametrize(
    ("windows", "flag"),
    [
        ((0, 1), "factor_pivot_window_major"),
        ((1_001, 5), "factor_pivot_window_major"),
        ((50, 0), "factor_pivot_window_minor"),
        ((5, 6), "factor_pivot_window_minor"),
    ],
)
def test_pivot_windows_that_cannot_be_are_refused_by_the_name_of_their_flag(
    windows: tuple[int, int], flag: str
) -> None:
    with pytest.raises(BadFlag, match=f"flag {flag}:"):
        load_factors(FactorSettings(windows[0], windows[1]), entry_points(group=GROUP, name="structure"))
