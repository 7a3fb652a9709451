"""Checks the labels of examples with several labels, e.g. one for each pixel of an image."""

import torch

from nas.data.bundle import Split
from nas.data.spec import DataSpec
from nas.errors import DataError

IGNORED = -100  # the label that torch's losses leave out, e.g. for a pixel that nobody has labelled
READ_AHEAD = 64  # examples that are checked together


def check_labels(split: Split, spec: DataSpec, what: str) -> None:
    """Checks every label of a split whose examples have several labels.

    Reads the whole split, even if it is not in memory. what: names the split in messages. Raises DataError for a label
    that is neither a class nor IGNORED, and for an example with IGNORED labels only: a batch of such examples has no
    loss. Examples with one label are not checked here: the data set has checked them.
    """
    if not spec.class_names or not spec.target_shape:
        return
    order = torch.arange(len(split))
    # A split of its own, because its worker processes end with it.
    batches = split.subset(order).batches(order.split(READ_AHEAD), device=torch.device("cpu"))
    for start, (_, targets) in zip(range(0, len(split), READ_AHEAD), batches, strict=True):
        labels = targets.flatten(1)
        counted = labels != IGNORED
        wrong = counted & ((labels < 0) | (labels >= spec.num_classes))
        refused = wrong.any(1) | ~counted.any(1)
        if refused.any():
            row = int(refused.nonzero()[0])
            strange = labels[row][wrong[row]].tolist()
            raise DataError(
                f"item {start + row} of the {what} set of {spec.name!r} has "
                f"{f'the label {strange[0]}' if strange else f'no label but {IGNORED}'}, expected labels from 0 to "
                f"{spec.num_classes - 1}, and {IGNORED} for labels to ignore",
                fix="correct its __getitem__, name all classes in data.classes, and leave items without labels out",
            )
