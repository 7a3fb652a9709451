import re
from collections.abc import Sequence

import pytest

from nas.errors import ConfigError
from nas.settings.signature_check import typed


def target(
    *,
    switch: bool = False,
    count: int | None = None,
    rate: float = 0.5,
    root: str = "",
    names: Sequence[str] | None = None,
    inner: object = None,
    size: "int" = 1,
) -> None: ...


def of_target(**values: object) -> dict[str, object]:
    return {"_target_": f"{__name__}.target", **values}


@pytest.mark.parametrize(
    "values",
    [
        {"switch": True, "count": 3, "rate": 1, "root": "a", "names": ["b"], "inner": ["anything"], "size": 2},
        {"count": None, "rate": 0.1, "names": None, "inner": {"a": "b"}},
        {"rate": {"_target_": "builtins.float"}, "unknown": 3},
    ],
)
def test_what_fits_is_left_as_it_is(values: dict[str, object]) -> None:
    assert typed(of_target(**values), where="group") == of_target(**values)


def test_whole_numbers_are_texts_where_texts_are_expected() -> None:
    given = {"inner": [of_target(root=2024, names=[1, "b", 3])]}
    assert typed(given, where="") == {"inner": [of_target(root="2024", names=["1", "b", "3"])]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"switch": 1}, "group.switch must be true or false, got 1; set group.switch=true"),
        ({"count": True}, "group.count must be a whole number or null, got True; set group.count=1"),
        ({"count": 1.0}, "group.count must be a whole number or null, got 1.0; set group.count=1"),
        ({"rate": "high"}, "group.rate must be a number, got 'high'; set group.rate=0.5"),
        ({"rate": None}, "group.rate must be a number, got null; set group.rate=0.5"),
        ({"root": None}, "group.root must be text, got null; set group.root=abc"),
        ({"root": ["a"]}, "group.root must be text, got ['a']; set group.root=abc"),
        ({"names": "none"}, "group.names must be a list or null, got 'none'; set group.names=[none]"),
        ({"names": ["a", 0.5]}, "group.names[1] must be text, got 0.5; set group.names[1]=abc"),
        ({"size": "1"}, "group.size must be a whole number, got '1'; set group.size=1"),
        ({"inner": [of_target(size="1")]}, "group.inner[0].size must be a whole number, got '1'"),
    ],
)
def test_what_does_not_fit_is_an_error(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        typed(of_target(**values), where="group")
