"""What importing the package takes: no torch, and no module that Windows lacks."""

import subprocess
import sys

# On Windows these are not there.
UNIX = ("fcntl", "resource", "termios", "pwd", "grp", "tty", "pty")
CODE = f"""
import sys

sys.modules.update(dict.fromkeys({UNIX!r}))  # importing one of them is an error now
import nas

dir(nas)
assert not {{"torch", "numpy", "yaml", "hydra"}} & sys.modules.keys()
assert sum(name.partition(".")[0] == "nas" for name in sys.modules) == 1
nas.load, nas.search, nas.retrain, nas.evaluate, nas.export, nas.GDAS, nas.Choice, nas.Genotype, nas.errors.NasError
import nas.formats.load
assert not {{"hydra", "omegaconf"}} & sys.modules.keys()

import nas.cli.stages.retrain, nas.cli.stages.search
slow = "torch._dynamo", "torchvision", "sympy", "scipy", "onnx", "onnxruntime", "tensorboard", "timm", "transformers"
assert not {{*slow}} & sys.modules.keys(), {{*slow}} & sys.modules.keys()
"""


def test_importing_takes_nothing_that_is_not_needed():
    # A process of its own, as this one has imported everything.
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
