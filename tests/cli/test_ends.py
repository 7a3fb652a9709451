"""Commands that only print: the version, and help whose reader has gone."""

import os
import subprocess
import sys

import pytest

from nas import __version__


def test_the_version_is_that_of_this_project(nas):
    assert nas("run", "--version") == (0, f"gumbel-nas {__version__}\n", "")


def test_help_of_hydra(nas):
    outcome = nas("run", "--hydra-help")
    assert outcome.code == 0
    assert "--multirun" in outcome.out


@pytest.mark.skipif(os.name == "nt", reason="needs pipes of Unix")
def test_help_ends_quietly_where_nobody_reads_on():
    code = "import sys; sys.argv = ['nas-export', '--help']; from nas.cli import export; export.main()"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
