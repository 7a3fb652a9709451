import pytest
import torch
from torch import Tensor

from nas.data.bundle import Split
from nas.data.split import StreamSplit, TensorSplit, fits_in_memory
from nas.errors import DataError

CPU = torch.device("cpu")
IMAGES = torch.arange(40).to(torch.uint8).view(10, 1, 2, 2)
LABELS = torch.arange(10) % 3


class Source:
    """An ImageSource of IMAGES; reading number `broken` fails."""

    def __init__(self, broken: int | None = None) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == self.broken:
            raise DataError(f"image {index} is damaged; see the log", fix="repair it")
        return IMAGES[index], int(LABELS[index])


SPLITS = {
    "tensor": lambda: TensorSplit(IMAGES, LABELS),
    "stream": lambda: StreamSplit(Source(), LABELS, workers=0),
    "workers": lambda: StreamSplit(Source(), LABELS, workers=1),
}


@pytest.fixture(params=SPLITS)
def split(request: pytest.FixtureRequest) -> Split:
    made: Split = SPLITS[request.param]()
    return made


def test_batches_follow_the_order(split: Split) -> None:
    order = [torch.tensor([3, 1]), torch.tensor([9, 0, 3])]
    for _ in range(2):  # a second pass reuses the workers
        got = list(split.batches(order, device=CPU))
        assert len(got) == 2
        for (images, labels), indices in zip(got, order, strict=True):
            assert images.dtype == torch.uint8
            assert labels.dtype == torch.int64
            assert torch.equal(images, IMAGES[indices])
            assert torch.equal(labels, LABELS[indices])


def test_a_new_pass_may_start_before_the_last_one_ended(split: Split) -> None:
    abandoned = split.batches([torch.tensor([k]) for k in range(10)], device=CPU)
    next(abandoned)
    images, _ = next(split.batches([torch.tensor([7])], device=CPU))
    assert torch.equal(images, IMAGES[7:8])


def test_an_empty_order_has_no_batches(split: Split) -> None:
    assert list(split.batches([], device=CPU)) == []


def test_a_subset_of_a_subset_selects_twice(split: Split) -> None:
    part = split.subset(torch.tensor([8, 6, 4, 2])).subset(torch.tensor([3, 0]))
    assert len(part) == 2
    assert torch.equal(part.labels, LABELS[[2, 8]])
    ((images, labels),) = part.batches([torch.tensor([0, 1])], device=CPU)
    assert torch.equal(images, IMAGES[[2, 8]])
    assert torch.equal(labels, LABELS[[2, 8]])


def test_a_pass_leaves_the_global_generator_alone(split: Split) -> None:
    before = torch.get_rng_state()
    list(split.batches([torch.tensor([0])], device=CPU))
    assert torch.equal(torch.get_rng_state(), before)


def test_tensor_subsets_share_the_pixels() -> None:
    split = TensorSplit(IMAGES, LABELS)
    assert split.subset(torch.tensor([1]))._pixels is split._pixels


def test_tensor_split_rejects_what_is_not_uint8_nchw() -> None:
    with pytest.raises(DataError, match=r"expected uint8 images \(N, C, H, W\) and N labels, got torch.float32"):
        TensorSplit(IMAGES.float(), LABELS)
    with pytest.raises(DataError, match=r"labels \(9,\)"):
        TensorSplit(IMAGES, LABELS[:9])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_a_data_error_from_any_process(workers: int) -> None:
    split = StreamSplit(Source(broken=5), LABELS, workers=workers)
    with pytest.raises(DataError) as caught:
        list(split.batches([torch.tensor([0, 5]), torch.tensor([1])], device=CPU))
    assert str(caught.value) == "image 5 is damaged; see the log; repair it"


def test_fits_in_memory_counts_one_byte_a_value() -> None:
    assert fits_in_memory(images=1024, shape=(1, 32, 32), limit_mb=1)
    assert not fits_in_memory(images=1025, shape=(1, 32, 32), limit_mb=1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_holds_one_copy_for_all_subsets(split: Split) -> None:
    device = torch.device("cuda")
    parts = [split.subset(torch.arange(5)), split.subset(torch.arange(5, 10))]
    for part, expected in zip(parts, (IMAGES[:5], IMAGES[5:]), strict=True):
        ((images, labels),) = part.batches([torch.arange(5)], device=device)
        assert images.device.type == labels.device.type == "cuda"
        assert torch.equal(images.cpu(), expected)
    if isinstance(split, TensorSplit):
        resident = [part._pixels.on(device).data_ptr() for part in parts]  # type: ignore[attr-defined]
        assert resident[0] == resident[1]
