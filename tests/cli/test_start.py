"""The modules that a command imports before it computes anything. They are counted, because import times vary."""

import os
import subprocess
import sys

import pytest

HELP = """
import importlib, sys
name = sys.argv[1]
sys.argv = [f"nas-{name}", *(sys.argv[2:] or ["--help"])]
try:
    importlib.import_module(f"nas.cli.{name}").main()
finally:
    print(len(sys.modules), *sorted({module.partition(".")[0] for module in sys.modules}), file=sys.stderr)
"""
HEAVY = {"torch", "torchvision", "numpy", "sklearn", "tensorboard", "rich", "PIL"}


@pytest.mark.parametrize(
    "name", ["search", *(pytest.param(name, marks=pytest.mark.long) for name in ("evaluate", "export"))]
)
def test_help_imports_nothing_heavy(name):
    done = subprocess.run([sys.executable, "-c", HELP, name], capture_output=True, text=True, check=True)
    assert "Powered by Hydra" in done.stdout or f"nas-{name}" in done.stdout
    count, *packages = done.stderr.split()
    assert not HEAVY & set(packages)
    assert int(count) < 800  # Hydra's own are 450


def test_a_damaged_configuration_is_refused_before_anything_heavy_is_imported(tmp_path):
    """A FIFO, which a reader would wait for."""
    (tmp_path / "manifest.json").write_text('{"status": "running"}')
    os.mkfifo(tmp_path / "config.yaml")
    done = subprocess.run([sys.executable, "-c", HELP, "run", f"resume={tmp_path}"], capture_output=True, text=True)
    error, last = done.stderr.strip().splitlines()
    assert "config.yaml cannot be read (a FIFO, expected a regular file)" in error
    assert not HEAVY & set(last.split())


def test_searches_side_by_side_are_a_launcher_of_hydra():
    """The launcher itself is Hydra's: here, that it can be chosen beside this project's settings."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    from hydra import compose, initialize_config_dir

    from nas.settings import configuration, schemas

    schemas.register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=str(configuration.directory())):
        cfg = compose("search", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], return_hydra_config=True)
    assert cfg.hydra.launcher["_target_"].endswith("JoblibLauncher")
    assert cfg.hydra.launcher.n_jobs == 2
