"""Opens trained networks, and prepares the data on which they are scored."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nas.api.arguments import runtime_on
from nas.api.run_records import plain
from nas.data import given
from nas.data.bundle import DataBundle
from nas.data.image_folder import ImageFolder
from nas.data.inputs import mapped
from nas.data.loader import Loader
from nas.data.spec import ImageSpec
from nas.errors import ConfigError
from nas.formats.export_trained import EXAMPLES
from nas.runtime import distributed
from nas.runtime.runtime import Runtime, device_of
from nas.settings.arguments import list_of, path_of
from nas.training.job import Job
from nas.training.scored import bundle_to_score
from nas.training.task import check_targets
from nas.training.trained import Trained, check_finite, final_result, scoring_loader


def opened(net: Any, *, allow: Sequence[Any], device: str | torch.device | Runtime) -> Trained:
    if isinstance(net, Trained):
        return net
    if not isinstance(net, str | Path):
        raise ConfigError(
            f"net is a {type(net).__name__}, expected what nas.retrain returned, or the directory of a run",
            fix="give the path of the run that the network was loaded from",
        )
    path = path_of(net, "net")
    path = path / "retrain" / "checkpoint.pt" if path.is_dir() else path
    trained = Trained.load(path, allow=list_of(allow, "allow"), runtime=runtime_on(device))
    return replace(trained, directory=path.absolute().parent.parent)


def score(trained: Trained, data: DataBundle, batch_size: int) -> dict[str, Any]:
    result = final_result(trained, scoring_loader(trained, data, runtime_of(trained), batch_size), data.spec)
    check_finite(result)
    return result


def runtime_of(trained: Trained) -> Runtime:
    """The runtime of the device that the network is on."""
    return Runtime(device=device_of(trained.network))


def data_to_score(test: Any, trained: Trained) -> DataBundle:
    """The given test split, prepared for a network. Raises DataError for labels that are no classes."""
    data = split_to_score(test, trained)
    check_targets(trained.task, data.spec, test=data.test)
    return data


def split_to_score(test: Any, trained: Trained) -> DataBundle:
    spec = trained.spec
    if isinstance(test, str | Path):
        size = spec.image_size if isinstance(spec, ImageSpec) else None
        channels = spec.channels if isinstance(spec, ImageSpec) else None
        return bundle_to_score(ImageFolder(root=str(test), image_size=size, channels=channels), trained, same=False)
    if given.is_family(test):
        return bundle_to_score(test, trained, same=trained.config.get("data") == plain(test))
    data = given.to_score(test, spec, given.Reading())
    if trained.trained_on is not None and data.trained_on == trained.trained_on and distributed.first():
        print(
            "warning: the examples to score are those that the network was trained on: the score is better than on new "
            "ones",
            file=sys.stderr,
        )
    return data


def training_examples(job: Job) -> Any:
    """A few inputs of the training, as the network gets them."""
    loader = Loader(
        job.data.train,
        spec=job.data.spec,
        batch_size=min(EXAMPLES, len(job.data.train)),
        device=torch.device("cpu"),
        shuffle=False,
        drop_last=False,
        what="train",
    )
    return mapped(torch.Tensor.clone, next(loader.epoch(0))[0])
