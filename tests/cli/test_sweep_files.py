"""The files that the jobs of a sweep left, whatever they hold: the table is shown, and nothing waits."""

import json
import os

import pytest

from nas.cli import sweep, sweep_table

JOB = {"number": 0, "settings": ["a=1"], "status": "finished", "command": ["nas-run"]}


def job(directory, number, result):
    place = directory / str(number)
    place.mkdir()
    (place / sweep.RECORD).write_text(json.dumps({**JOB, "number": number}))
    (place / "result.json").write_text(result if isinstance(result, str) else json.dumps(result))
    return place


@pytest.mark.parametrize(
    "result",
    ['{"objective": {"score": 1%s}}' % ("0" * 400), '{"objective": {"score": NaN}}', {"objective": [1]}, "[" * 100_000],
    ids=["huge", "nan", "list", "nested"],
)
def test_a_result_that_is_no_number_ranks_last(result, tmp_path):
    job(tmp_path, 0, result)
    job(tmp_path, 1, {"objective": {"score": 0.5}})
    assert [(row.number, row.value) for row in sweep_table.rows(tmp_path)] == [(1, 0.5), (0, None)]


def test_pipes_and_devices_are_passed_over(tmp_path):
    (job(tmp_path, 0, "{}") / "result.json").unlink()
    os.mkfifo(tmp_path / "0" / "result.json")
    for number, make in ((1, os.mkfifo), (2, lambda path: path.symlink_to("/dev/zero"))):
        (tmp_path / str(number)).mkdir()
        make(tmp_path / str(number) / sweep.RECORD)
    assert [(row.number, row.value) for row in sweep_table.rows(tmp_path)] == [(0, None)]


def test_a_result_with_a_large_table_is_ranked(tmp_path):
    """The confusions of 600 classes."""
    table = {str(true): {str(name): 1 for name in range(600)} for true in range(600)}
    job(tmp_path, 0, {"objective": {"score": 0.5}, "test_confusion": table})
    assert sweep_table.rows(tmp_path)[0].value == 0.5
