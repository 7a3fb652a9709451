"""The labels of examples that have several, as of an image each pixel may have one."""

import torch

from nas.data.bundle import Split
from nas.data.spec import DataSpec
from nas.errors import DataError

IGNORED = -100  # what torch's losses leave out: the label of a pixel that nobody has labelled, say
READ_AHEAD = 64  # examples that are looked at together


def check_labels(split: Split, spec: DataSpec, what: str) -> None:
    """Reads the whole split, where it is not in memory. what: which one it is, for messages.

    Raises DataError for a label that is neither a class nor IGNORED, and for an example that has no other: a batch of
    such has no loss. Of examples with one label the data set knows all, and has checked them.
    """
    if not spec.class_names or not spec.target_shape:
        return
    order = torch.arange(len(split))
    # A split of its own: the processes that read ahead here shall not stay, nor read for the CPU later on.
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
                f"{spec.num_classes - 1}, and {IGNORED} for what is to be left out",
                fix="correct its __getitem__, name all classes in data.classes, and leave items without labels out",
            )
