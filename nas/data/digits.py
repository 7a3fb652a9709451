"""Scikit-learn's handwritten digits: 1,797 real images of 8x8 pixels that need no download."""

from dataclasses import dataclass

import torch

from nas.data.bundle import DataBundle
from nas.data.spec import ImageSpec
from nas.data.split import TensorSplit
from nas.data.statistics import channel_statistics
from nas.data.stratify import hold_out
from nas.data.transforms import Augment


@dataclass(frozen=True, kw_only=True)
class Digits:
    """The digits, with pixels scaled from 0..16 to 0..255. The test images are the same in every run.

    Source: Alpaydin and Kaynak 1998, UCI "Optical Recognition of Handwritten Digits", the test part.
    """

    test_fraction: float = 0.2
    crop_padding: int = 1
    flip: bool = False

    def load(self) -> DataBundle:
        from sklearn.datasets import load_digits  # takes half a second: imported only when used

        digits = load_digits()
        images = (torch.from_numpy(digits.images) * (255 / 16)).round().to(torch.uint8)[:, None]
        labels = torch.from_numpy(digits.target).long()
        train, test = hold_out(labels, test_fraction=self.test_fraction)
        mean, std = channel_statistics([images[train]])
        return DataBundle(
            spec=ImageSpec(
                name="digits",
                input_shapes=((1, 8, 8),),
                class_names=tuple(str(digit) for digit in range(10)),
                mean=mean,
                std=std,
            ),
            train=TensorSplit(images[train], labels[train]),
            test=TensorSplit(images[test], labels[test]),
            augment=Augment(crop_padding=self.crop_padding, flip=self.flip),
            trained_on=f"all but {self.test_fraction} of a class",
            held_out=True,
        )
