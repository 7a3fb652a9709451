"""What several processes share. exchange.py has the assertions that need two processes."""

from pathlib import Path

import pytest
import torch
from launch import torchrun
from torch import nn

from nas.errors import ConfigError, DeviceError
from nas.runtime import distributed
from nas.runtime.distributed import Share
from nas.runtime.rng import random_state
from nas.runtime.runtime import find_device, seed_layers
from nas.training import batch_norm
from nas.training.batch_norm import synchronised


def test_two_processes_exchange(tmp_path):
    ended = torchrun(Path(__file__).parents[1] / "support" / "exchange.py", tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"downloaded", "done 0", "done 1"}


@pytest.mark.long  # test_two_processes_exchange runs each time
def test_two_processes_with_branches_ignored_labels_and_dropout(tmp_path):
    ended = torchrun(Path(__file__).parents[1] / "support" / "branches.py", tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"done 0", "done 1"}


def test_one_process_is_left_alone():
    assert (distributed.world(), distributed.share(), distributed.first()) == (1, Share(0, 1), True)
    assert distributed.agreed("x") == "x"
    assert distributed.first_to("speak")
    assert distributed.first_to("speak")
    tensors = [torch.ones(2), torch.ones(3)]
    assert all(mean is tensor for mean, tensor in zip(distributed.means(tensors), tensors, strict=True))
    assert distributed.averaged([1.0, float("inf")]) == [1.0, float("inf")]
    distributed.check_equal_gates([torch.rand(3)])
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
    parameters[0].sum().backward()
    distributed.complete(parameters)
    assert [parameter.grad is None for parameter in parameters] == [False, True]
    assert distributed.of_all("x") == ["x"]
    before = torch.get_rng_state()
    seed_layers(3)
    assert torch.equal(torch.get_rng_state(), before)
    assert "others" not in random_state()
    with distributed.first_on_machine_first():
        pass


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64, torch.bool])
def test_a_digest_tells_every_bit_and_every_place(dtype, monkeypatch):
    tensor = (torch.arange(12) % 2).to(dtype).view(3, 4)
    changed, swapped = tensor.clone(), tensor.flip(1)
    changed[2, 2] = 1
    digest, *others = distributed.digest_each([tensor, changed, swapped, torch.zeros_like(tensor)]).tolist()
    assert len({digest, *others}) == 4
    assert all(abs(one) <= 2**62 for one in (digest, *others))
    monkeypatch.setattr(distributed, "BUCKET", 5)  # in several pieces
    assert distributed.digest_each([tensor.T.contiguous().T]).tolist() == [digest]


def test_shares_are_the_batch_in_order():
    batch = torch.arange(12).view(6, 2)
    for of in (1, 2, 3, 6):
        assert torch.equal(torch.cat([Share(index, of).rows(batch) for index in range(of)]), batch)


@pytest.mark.parametrize(("of", "fix"), [(2, 8), (3, 9), (4, 8), (16, 16)])
def test_a_batch_that_cannot_be_shared_equally(of, fix):
    problem = rf"search\.batch_size is 7, which {of} processes cannot share equally; .* multiple of {of}, e\.g\. {fix}$"
    with pytest.raises(ConfigError, match=problem):
        Share(0, of).check(7, "search.batch_size")
    Share(0, of).check(fix, "search.batch_size")


def test_buckets_hold_one_kind_each_and_not_too_much(monkeypatch):
    monkeypatch.setattr(distributed, "BUCKET", 10)
    sizes = [4, 6, 1, 30, 2]
    tensors = [torch.zeros(size) for size in sizes] + [torch.zeros(3, dtype=torch.float64)]
    assert list(distributed.buckets(tensors)) == [[0, 1], [2], [3], [4], [5]]
    assert list(distributed.buckets([])) == []


@pytest.fixture
def second_of_two(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(distributed, "share", lambda: Share(1, 2))
    monkeypatch.setattr(distributed, "number_on_machine", lambda: 1)


# -- batch norms


class Normed(nn.Module):
    def __init__(self, affine):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=affine))
        self.norms = nn.ModuleDict({"last": nn.BatchNorm1d(4, momentum=0.3)})

    def forward(self, x):
        return self.norms["last"](self.body(x).mean((2, 3)))


@pytest.mark.parametrize("affine", [False, True])
def test_synchronised_norms_are_put_back_with_what_they_learnt(second_of_two, monkeypatch, affine):
    monkeypatch.setattr(batch_norm, "on_cpu", lambda norms: False)
    model, x = Normed(affine).eval(), torch.rand(5, 3, 2, 2)
    before, parameters, state = list(model.modules()), list(model.parameters()), model.state_dict()
    expected = model(x)
    with synchronised(model):
        norms = batch_norm.batch_norms(model)
        assert [type(norm) for norm in norms] == [nn.SyncBatchNorm] * 2
        assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
        assert list(model.state_dict()) == list(state)
        assert norms[1].momentum == 0.3
        assert torch.equal(model(x), expected)
        model.train()
        norms[1].running_mean += 1.0
        norms[1].num_batches_tracked += 1
    assert all(module is same for module, same in zip(model.modules(), before, strict=True))
    assert all(module.training for module in model.modules())
    assert model.norms["last"].running_mean.tolist() == [1.0] * 4
    assert model.norms["last"].num_batches_tracked == 1
    assert torch.allclose(model.eval()(x), expected - 1, atol=1e-4)


def test_on_a_cpu_norms_stay_and_the_first_process_says_so_once(second_of_two, monkeypatch, capsys):
    batch_norm.say_statistics_differ.cache_clear()
    monkeypatch.setattr(distributed, "first", lambda: True)
    model = Normed(affine=True)
    for _ in range(2):
        with synchronised(model):
            assert type(model.norms["last"]) is nn.BatchNorm1d
    with synchronised(nn.Linear(2, 2)):
        pass
    assert capsys.readouterr().err == (
        "warning: on CPUs each of the 2 processes has its own batch norms: they use the statistics of its share of "
        "a batch, and those of the first process are kept\n"
    )


def test_one_process_has_its_own_norms(capsys):
    with synchronised(model := Normed(affine=True)):
        assert type(model.norms["last"]) is nn.BatchNorm1d
    assert capsys.readouterr().err == ""


# -- devices


def test_each_process_has_a_gpu_of_its_own(second_of_two, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("auto") == find_device("cuda") == torch.device("cuda:1")
    assert find_device("cpu") == torch.device("cpu")
    with pytest.raises(DeviceError, match=r"'cuda:1' cannot be shared by 2 processes, expected auto, cuda or cpu"):
        find_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceError, match=r"has 1 GPUs, expected one for each process, got process 2; .*device=cpu"):
        find_device("auto")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert find_device("auto") == torch.device("cpu")
    with pytest.raises(DeviceError, match="has 0 GPUs"):
        find_device("cuda")


@pytest.mark.parametrize(("index", "of", "expected"), [(0, 2, "a"), (1, 2, "b"), (2, 3, "a")])
def test_each_process_takes_the_state_that_it_gave(index, of, expected, monkeypatch):
    monkeypatch.setattr(distributed, "share", lambda: distributed.Share(index, of))
    assert distributed.of_this_process(["a", "b"]) == expected
