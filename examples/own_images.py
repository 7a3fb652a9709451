"""An architecture for your own images: a folder for each class, here made up.

python examples/own_images.py
"""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import nas


def make_images(folder: Path, count: int) -> Path:
    """Squares and rings of random colours, in <folder>/<class>/."""
    random = np.random.default_rng(count)
    for name in ("ring", "square"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.zeros((16, 16, 3), dtype=np.uint8)
            pixels[4:12, 4:12] = random.integers(64, 256, 3)
            if name == "ring":
                pixels[6:10, 6:10] = 0
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def main(epochs: int = 10) -> float:
    with tempfile.TemporaryDirectory() as directory:
        train, test = make_images(Path(directory, "train"), 40), make_images(Path(directory, "test"), 10)
        space = nas.spaces.NasBench201(channels=4, cells=1)
        found = nas.search(space, train, image_size=16, epochs=epochs, batch_size=16)  # never sees the test images
        print(found.genotype.to_json())
        net = nas.retrain(space, found.genotype, train, test=test, image_size=16, epochs=epochs, batch_size=16)
        assert net.result is not None  # as there is a test split
        print(f"accuracy on new images: {net.result['test_accuracy']:.1%}")
        return net.result["test_accuracy"]


if __name__ == "__main__":
    main()
