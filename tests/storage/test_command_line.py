import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import nas
from nas.storage.command_line import choice, pasted, setting
from nas.storage.run_directory import command_line

TEXTS = (
    *("runs/2026-01-01_a.b", "a b, lr=1", "null", "True", "12", "1e3", "", "-x", "x:y", "a=b", "a{b}", "(a)", "[a]"),
    *(
        "a'b",
        'a"b',
        'a\\"b',
        "a\\",
        'a\\\\"',
        "$HOME",
        "${x}",
        "ä ö",
        "!x",
        "`ls`",
        "a#b",
        "~/x",
        "a*b",
        "a;b",
        "a\nb\t",
    ),
)


def test_a_printed_setting_is_read_as_it_was_meant() -> None:
    printed = " ".join(setting("resume", text) for text in TEXTS)
    words = subprocess.run(["bash", "-c", f"printf '%s\\0' {printed}"], capture_output=True, check=True, text=True)
    for text, word in zip(TEXTS, words.stdout.split("\0"), strict=False):
        node = OmegaConf.create({"resume": None})
        OmegaConf.update(node, "resume", OverridesParser.create().parse_override(word).value())
        assert str(node.resume) == text


def test_a_printed_command_is_the_one_that_was_given() -> None:
    command = ["nas-run", *(f"name={text}" for text in TEXTS)]
    printed = pasted(command)
    assert "\n" not in printed
    words = subprocess.run(["bash", "-c", f"printf '%s\\0' {printed}"], capture_output=True, check=True, text=True)
    assert words.stdout.split("\0")[:-1] == command


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (setting("resume", "runs/a"), "resume=runs/a"),
        (setting("resume", "a b"), "resume='\"a b\"'"),
        (choice("may_change", ["search.epochs", "data"]), "'may_change=[search.epochs,data]'"),
    ],
)
def test_no_more_quotes_than_it_takes(got: str, expected: str) -> None:
    assert got == expected


@pytest.mark.parametrize(
    ("started", "name"),
    [
        ("/usr/bin/nas-run", "nas-run"),
        (Path(nas.__file__).parent / "cli" / "run.py", "nas-run"),
        ("my/run.py", "run.py"),
    ],
)
def test_the_recorded_command_is_one_that_a_person_types(started, name, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(started), "seed=1"])
    assert command_line() == [name, "seed=1"]
