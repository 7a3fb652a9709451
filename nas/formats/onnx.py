"""Exports the network as ONNX, for runtimes outside of PyTorch."""

import contextlib
import importlib.util
import io
import warnings
from pathlib import Path

import torch

from nas.errors import ConfigError, described
from nas.formats.format import Artefact, Subject, UnavailableError
from nas.formats.program import exported

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class Onnx:
    """``model.onnx``, for batches of any size. Raises ConfigError if the packages of the extra ``onnx`` are missing."""

    def __init__(self) -> None:
        missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"formats=onnx needs {', '.join(missing)}, which is not installed",
                fix="pip install 'gumbel-nas[onnx]', or choose formats without onnx",
            )

    def write(self, subject: Subject, directory: Path) -> Artefact:
        file, names = "model.onnx", subject.variables
        program = exported(subject.network, subject.examples)
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")  # the exporter warns about itself
                written = torch.onnx.export(
                    program,
                    subject.examples,
                    input_names=list(names),
                    output_names=["y"],
                    dynamo=True,
                    verbose=False,
                )
                assert written is not None  # as dynamo=True
                content = written.model_proto.SerializeToString()  # one file
        except Exception as error:  # usually an operation that ONNX does not have
            raise UnavailableError(f"torch.onnx cannot write it ({described(error)})") from error
        (directory / file).write_bytes(content)  # outside of the try: a full disk is not an error of ONNX
        inputs = ", ".join(f'"{name}": np.asarray({name})' for name in names)
        return Artefact(
            file=file,
            about="ONNX, for batches of any size",
            needs=("onnxruntime",),
            code=f'import numpy as np\nimport onnxruntime\n\nsession = onnxruntime.InferenceSession("{file}")\n'
            f"(y,) = session.run(None, {{{inputs}}})\n",
            network=subject.network,
        )
