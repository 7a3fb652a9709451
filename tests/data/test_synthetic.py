import pytest
import torch

from nas.data import synthetic
from nas.data.loader import Loader
from nas.data.synthetic import Synthetic
from nas.errors import ConfigError


def test_has_the_asked_for_shape_and_is_a_function_of_the_seed() -> None:
    a, b, c = (Synthetic(train=30, test=7, classes=3, channels=2, size=5, seed=seed).load() for seed in (1, 1, 2))
    assert a.spec.input_shape == (2, 5, 5)
    assert a.spec.num_classes == 3
    assert (len(a.train), len(a.test)) == (30, 7)
    assert torch.bincount(a.train.labels).tolist() == [10, 10, 10]
    assert a.spec == b.spec
    assert a.spec != c.spec


def test_drawing_in_parts_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Synthetic(train=30).load()
    monkeypatch.setattr(synthetic, "CHUNK", 400)  # two images at a time
    parts = Synthetic(train=30).load()
    assert parts.spec == whole.spec
    assert list(parts.train.contents()) == list(whole.train.contents())


@pytest.mark.parametrize("sizes", [{"train": 10**12}, {"classes": 10**9}, {"size": 10**6}, {"channels": 10**12}])
def test_rejects_more_pixels_than_a_machine_can_draw(sizes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"pixels are .* in all, expected at most 268435456; set data\.train=256"):
        Synthetic(**sizes).load()


def test_a_linear_model_learns_it() -> None:
    bundle = Synthetic().load()

    def whole(split: object) -> tuple[torch.Tensor, torch.Tensor]:
        loader = Loader(
            split,  # type: ignore[arg-type]
            spec=bundle.spec,
            batch_size=256,
            device=torch.device("cpu"),
            shuffle=False,
            drop_last=False,
            what="batch_size",
        )
        return next(loader.epoch(0))

    (images, labels), (test_images, test_labels) = whole(bundle.train), whole(bundle.test)
    targets = torch.nn.functional.one_hot(labels).float()
    weights = torch.linalg.lstsq(images.flatten(1), targets).solution
    assert ((test_images.flatten(1) @ weights).argmax(1) == test_labels).float().mean() > 0.9


@pytest.mark.parametrize(("field", "value"), [("classes", 1), ("channels", 0), ("size", 0), ("train", 0), ("test", -1)])
def test_rejects_sizes_that_cannot_be(field: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{field} must be at least [12], got {value}; set data\.{field}="):
        Synthetic(**{field: value}).load()
