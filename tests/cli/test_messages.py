"""Messages of one line, where the message of Hydra or Python would not say what to do."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli.conftest import TINY, Outcome

Nas = Callable[..., Outcome]

MISTAKES = {
    "an added setting": (
        ("run", "+retrain.epoch=3"),
        "retrain.epoch is not a setting; did you mean retrain.epochs or retrain.policy?",
    ),
    "an added setting at the root": (("run", "+foo=3"), "foo is not a setting; --cfg job shows all settings"),
    "an added group": (
        ("search", "+experiment=quickstart"),
        "experiment is chosen already; write experiment=... without the +",
    ),
    "an unknown one of several formats": (
        ("run", "formats=[weights,tflite]"),
        "formats=tflite is not an option of formats; expected one of bfloat16, onnx, program, standalone, weights",
    ),
    "an unknown one of several regularisers": (
        ("search", "regulariser=[entropi]"),
        "regulariser=entropi is not an option of regulariser; expected one of beta_decay, "
        "beta_decay_by_epoch, entropy, latency, macs, none, parameters",
    ),
    "a group's option where its operations belong": (
        ("search", "space.ops=darts"),
        "space.ops is 'darts', expected operations by name; choose a group of operations on the command line, "
        "e.g. ops=darts; in Python, give a dict",
    ),
    "a group that stands in several places": (
        ("run", "optim=adamw"),
        "optim is a group that is chosen by its place, expected one of optim@arch_optim, optim@retrain.optim, "
        "optim@weight_optim; write e.g. optim@weight_optim=...",
    ),
    "a group at a place of its own": (
        ("retrain", "policy=trivial_augment"),
        "policy is a group that is chosen by its place, expected one of policy@retrain.policy; write e.g. "
        "policy@retrain.policy=...",
    ),
    "a group of other commands": (
        ("evaluate", "sampler=gdas"),
        "sampler is not a configuration group of nas-evaluate; see nas-evaluate --cfg job",
    ),
    "a directory for a checkpoint": (
        ("evaluate", "checkpoint=."),
        ". is a directory, expected a file; give a checkpoint.pt that the retrain stage wrote",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_line_of_ours_and_leaves_nothing(mistake: str, nas: Nas, tmp_path) -> None:
    (command, *arguments), expected = MISTAKES[mistake]
    if command == "run":
        arguments = [*(one for one in TINY if not one.startswith("formats")), *arguments]
    assert nas(command, *arguments) == Outcome(2, "", f"error: {expected}\n")
    assert list(tmp_path.iterdir()) == []


def test_what_a_group_leaves_open_may_be_added_to(nas: Nas) -> None:
    assert "width: 8" in nas("run", "space=custom", "+space.arguments.width=8", "--cfg", "job").out
    outcome = nas("run", *TINY, "+retrain.network.nodes=3", "search.epochs=0")
    assert outcome.err.startswith("error: search.epochs must be at least 1")


@pytest.mark.long  # starts commands of its own; test_ends.py has --help
def test_a_reader_that_stops_reading_gets_no_traceback(tmp_path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "nas.cli.search", *TINY, "search.epochs=1"],
        cwd=tmp_path,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "search: {epochs: 1}",
            "the settings of the preset experiment=mine are those of a group, which nothing reads, got "
            "{'search': {'epochs': 1}}; begin its file with the line # @package _global_",
        ),
        (
            "search: {epochs: 1\n",
            "DIR/mine/experiment/mine.yaml at line 2, column 1 is no YAML (expected ',' or '}', but got '<stream end>')"
            "; correct it",
        ),
    ],
)
def test_a_preset_of_the_users_that_says_nothing(content: str, message: str, nas: Nas, tmp_path) -> None:
    preset = tmp_path / "mine" / "experiment" / "mine.yaml"
    preset.parent.mkdir(parents=True)
    preset.write_text(content)
    told = nas("search", "experiment=mine", "--config-dir", "mine")
    assert told == Outcome(2, "", f"error: {message.replace('DIR', str(tmp_path))}\n")
    assert not Path("runs").exists()
