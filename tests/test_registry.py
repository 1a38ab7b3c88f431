from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path

import pytest

from mainspring.errors import MissingPackageError
from mainspring.registry import Entry, Registry


@pytest.fixture
def tools() -> Registry:
    return Registry(
        "tool",
        {
            "ordered": "collections:OrderedDict",
            "absent": Entry("a_package_that_is_not_there:thing", needs="a-package"),
            "broken": "another_package_that_is_not_there:thing",
        },
    )


def test_a_name_gives_what_its_path_says(tools: Registry) -> None:
    assert tools["ordered"] is OrderedDict


def test_nothing_is_imported_before_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "late_tool_module.py").write_text("tool = 'made'\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("tool", {"late": "late_tool_module:tool"})
    assert "late" in registry
    assert "late_tool_module" not in sys.modules
    assert registry["late"] == "made"
    assert "late_tool_module" in sys.modules


def test_an_unknown_name_is_told_apart_by_the_closest_one(tools: Registry) -> None:
    with pytest.raises(ValueError, match=r"^unknown tool 'orderd'; did you mean 'ordered'\?$"):
        tools["orderd"]


def test_an_unknown_name_far_from_all_gets_the_list(tools: Registry) -> None:
    with pytest.raises(ValueError, match="^unknown tool 'zzz'; one of: ordered, absent, broken$"):
        tools["zzz"]


def test_a_missing_package_is_named_as_pip_knows_it(tools: Registry) -> None:
    with pytest.raises(MissingPackageError, match="^tool 'absent' needs a-package: pip install a-package$") as raised:
        tools["absent"]
    assert raised.value.name == "a_package_that_is_not_there"


def test_a_path_that_needs_nothing_fails_with_the_error_itself(tools: Registry) -> None:
    with pytest.raises(ModuleNotFoundError, match="another_package_that_is_not_there") as raised:
        tools["broken"]
    assert not isinstance(raised.value, MissingPackageError)


def test_a_package_that_is_there_but_broken_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_tool_module.py").write_text("raise ImportError('wrong libc')\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("tool", {"x": Entry("broken_tool_module:x", needs="broken-tool")})
    with pytest.raises(ImportError, match="wrong libc"):
        registry["x"]


def test_users_add_objects_paths_and_entries(tools: Registry) -> None:
    tools.add("mine", len)
    tools.add("path", "math:sqrt")
    tools.add("entry", Entry("math:floor"))
    assert tools["mine"] is len
    assert tools["path"](4) == 2
    assert tools["entry"](2.5) == 2
    assert tools.names() == ("ordered", "absent", "broken", "path", "entry", "mine")
    assert list(tools) == list(tools.names())
    assert len(tools) == 6


def test_an_added_name_can_be_added_again(tools: Registry) -> None:
    tools.add("mine", "math:sqrt")
    assert tools["mine"](4) == 2
    tools.add("mine", len)
    assert tools["mine"] is len


def test_a_name_of_the_package_is_not_replaced(tools: Registry) -> None:
    with pytest.raises(ValueError, match="tool 'ordered' is a name of mainspring"):
        tools.add("ordered", dict)
    assert tools["ordered"] is OrderedDict


@pytest.mark.parametrize("path", ["module", "module:", ":attribute", "module.attribute"])
def test_a_path_without_module_and_attribute_is_refused_at_once(path: str) -> None:
    with pytest.raises(ValueError, match="package.module:attribute"):
        Registry("tool", {"x": path})
