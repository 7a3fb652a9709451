"""Published genotypes by name, GDAS' own skeleton, and the sets of operations of the published searches."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nas.data.spec import ImageSpec
from nas.methods.sampler import Gates
from nas.spaces.darts import Darts
from nas.spaces.published import PUBLISHED, from_text, resolve
from nas.supernet.choice import choices, gates
from nas.training.evaluate import count_parameters

CIFAR = ImageSpec(
    name="cifar", input_shapes=((3, 32, 32),), class_names=tuple("abcdefghij"), mean=(0.5,) * 3, std=(0.25,) * 3
)
CONCAT = "normal_concat=[2, 3, 4, 5]", "reduce_concat=[2, 3, 4, 5]"


# The papers say 3.4 M (GDAS) and 3.6 M (PC-DARTS); counted here once more: see `by_hand`.
@pytest.mark.parametrize(("name", "millions"), [("GDAS_V1", 3.4), ("PCDARTS", 3.6)])
def test_a_published_network_has_the_published_size(name, millions, ops_tables):
    space = Darts(ops=ops_tables["darts"], channels=36, cells=20)
    with space.sketching():
        found = count_parameters(space.network(CIFAR, resolve(name)))
    assert round(found / 1e6, 1) == millions
    assert found == by_hand(PUBLISHED[name].choices, channels=36, cells=20)


def by_hand(chosen, *, channels, cells):
    """Parameters of a network in DARTS' skeleton: convolutions without bias, norms with scale and shift."""

    def op(name, c, stride):
        kind, _, size = name.rpartition("_")
        k = int(size[0]) if size[0].isdigit() else 0
        separable = k * k * c + c * c + 2 * c
        if name == "skip_connect":
            return c * c + 2 * c if stride == 2 else 0
        return {"sep_conv": 2 * separable, "dil_conv": separable}.get(kind, 0)

    before_last = last = 3 * channels
    total, c = 27 * last + 2 * last, channels
    for index in range(cells):
        reduction = index in (cells // 3, 2 * cells // 3)
        c *= 1 + reduction
        total += (before_last + last) * c + 4 * c
        for key, name in chosen.items():
            kind, edge = key.split("/")
            if name is not None and (kind == "reduce") == reduction:
                total += op(name, c, 2 if reduction and int(edge.split("-")[0]) < 2 else 1)
        before_last, last = last, 4 * c
    return total + 10 * last + 10


@pytest.mark.parametrize("name", ["GDAS_V1", "PCDARTS"])
def test_a_published_genotype_has_two_operations_a_node_from_two_predecessors(name):
    chosen = PUBLISHED[name].choices
    for kind in ("normal", "reduce"):
        for node in range(2, 6):
            kept = [key for key, op in chosen.items() if op and key.startswith(f"{kind}/") and key.endswith(f"-{node}")]
            assert len(kept) == 2


def test_gdas_v1_is_the_genotype_of_its_authors():
    text = (
        "Genotype(normal=[('skip_connect', 0), ('skip_connect', 1), ('skip_connect', 0), ('sep_conv_5x5', 2), "
        "('sep_conv_3x3', 3), ('skip_connect', 0), ('sep_conv_5x5', 4), ('sep_conv_3x3', 3)], "
        f"{CONCAT[0]}, reduce=[('sep_conv_5x5', 0), ('sep_conv_3x3', 1), ('sep_conv_5x5', 2), ('sep_conv_5x5', 1), "
        f"('dil_conv_5x5', 2), ('sep_conv_3x3', 1), ('sep_conv_5x5', 0), ('sep_conv_5x5', 1)], {CONCAT[1]})"
    )
    assert resolve("GDAS_V1") == from_text(text)


def test_the_final_norm_is_a_batch_norm_and_a_relu_before_the_head(ops_tables):
    plain, gdas = (
        Darts(ops=ops_tables["darts_gdas"], channels=2, cells=3, final_norm=final).supernet(CIFAR).double()
        for final in (False, True)
    )
    missing = gdas.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert {"final.0.weight", "final.0.bias"} <= set(missing)
    assert all(name.startswith("final.0.") for name in missing)
    seen = []
    plain.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    found = choices(plain)
    widths = torch.tensor([1.0 / 8] * 8, dtype=torch.float64).expand(len(found), 8)
    with gates(found, Gates(widths).by_key(list(found), differentiable=False)):
        plain(images)
    with gates(choices(gdas), Gates(widths).by_key(list(found), differentiable=False)):
        scores = gdas(images)
    last = seen[0]
    mean, variance = last.mean((0, 2, 3), keepdim=True), last.var((0, 2, 3), unbiased=False, keepdim=True)
    pooled = F.relu((last - mean) / (variance + 1e-5).sqrt()).mean((2, 3))
    torch.testing.assert_close(scores, gdas.head.classifier(pooled), rtol=1e-12, atol=1e-12)


def test_operations_as_published(ops_tables):
    assert list(ops_tables["darts_without_none"]) == [name for name in ops_tables["darts"] if name != "none"]
    assert list(ops_tables["nas_bench_201_without_none"]) == [n for n in ops_tables["nas_bench_201"] if n != "none"]
    assert list(ops_tables["darts_gdas"]) == [
        "none", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5", "avg_pool_3x3",
        "max_pool_3x3",
    ]  # fmt: skip
    for name in ("avg_pool_3x3", "max_pool_3x3"):
        norms = [
            any(isinstance(module, nn.BatchNorm2d) for module in ops_tables[table][name](4, 4, 1, False).modules())
            for table in ("darts", "darts_without_none", "darts_gdas")
        ]
        assert norms == [True, True, False]
