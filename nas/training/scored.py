"""Which examples of a data set a trained network is scored on: those held out of its training, or new ones."""

import sys
from typing import Any, Protocol, runtime_checkable

from nas.data.bundle import DataBundle
from nas.data.class_folders import SAMPLED
from nas.data.spec import DataSpec
from nas.errors import DataError
from nas.training.trained import Trained


@runtime_checkable
class Scorable(Protocol):
    """A data set family that can give all its examples to be scored, as those of another place than the training's."""

    def load(self) -> DataBundle: ...

    def to_score(self, spec: DataSpec, *, sample: tuple[str, ...]) -> tuple[DataBundle, int]:
        """The examples, as the test split, and how many of them the network was trained on, by `sample`."""
        ...

    def is_trained_on(self, trained_on: str) -> bool:
        """Whether the examples that are not held out here are exactly the training examples, as in a moved folder."""
        ...


def bundle_to_score(made: Any, trained: Trained, *, same: bool) -> DataBundle:
    """The data of a family, whose test split is to be scored. same: whether they are those of the training.

    Warns of images that the network was trained on. Raises DataError if what is held out of the set of the training is
    not what it was then.
    """
    if same or not isinstance(made, Scorable):
        data: DataBundle = made.load()
        if same:
            check_unseen(trained, data)
        return data
    data, seen = made.to_score(trained.spec, sample=trained.sample)
    if (seen or not trained.sample) and trained.trained_on is not None and made.is_trained_on(trained.trained_on):
        return made.load()
    if seen:
        least = "at least " if len(trained.sample) == SAMPLED else ""
        print(
            f"warning: {least}{seen:,} of the {len(data.test):,} images to score "
            "are copies of images that the network was trained on: the score is better than on new ones",
            file=sys.stderr,
        )
    return data


def check_unseen(trained: Trained, data: DataBundle) -> None:
    """Raises DataError if the test split of the set that the network was trained on is another one by now."""
    if data.held_out and trained.trained_on not in (None, data.trained_on):
        raise DataError(
            f"{data.spec.name!r} is not what it was when the network was trained: what is held out of it now may hold "
            "examples that the network has seen",
            fix="score it on others, e.g. those of a folder with train and test in it: data=image_folder data.root=...",
        )
