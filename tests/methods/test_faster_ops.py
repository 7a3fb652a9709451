"""The Triton kernels against torch's own operations.

Without a GPU they run in Triton's interpreter, in a process of their own: Triton must be imported for it.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from replayed_search import Again, batch, searcher
from torch import nn

from nas.methods.cuda_graphs import faster_ops
from nas.methods.cuda_graphs.faster_ops import FasterOps
from nas.methods.sampler import GDAS
from nas.supernet.choice import Choice

TRITON_CAME = "triton" in sys.modules
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_GPU = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
)
on_devices = pytest.mark.parametrize("device", ["cpu"] if INTERPRETED else [ON_GPU])

# kernel, stride, padding, dilation, channels, type. A padding of three is wider than the border of a 3x3 kernel.
CONVS = [
    (3, 1, 3, 1, 5, torch.float32),
    (3, 2, 1, 1, 16, torch.bfloat16),
    (3, 1, 0, 2, 48, torch.bfloat16),
    (3, 2, 2, 2, 5, torch.float32),
    (5, 2, 2, 1, 16, torch.float32),
    (5, 1, 4, 2, 16, torch.bfloat16),
]
if not INTERPRETED:  # where each takes a second
    CONVS += [
        (5, 1, 2, 1, 5, torch.float32),
        (5, 2, 4, 2, 20, torch.float32),
        (3, 1, 2, 2, 144, torch.float16),
        (5, 1, 4, 2, 64, torch.float32),
    ]
POOLS = [F.max_pool2d, F.avg_pool2d]


@pytest.mark.long  # Triton's interpreter takes 20 seconds; nothing runs by Triton unless it is asked for
@pytest.mark.skipif(INTERPRETED or importlib.util.find_spec("triton") is None, reason="runs the tests below by Triton")
def test_in_the_interpreter():
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-p", "no:cacheprovider", "-m", "not gpu"]
    env = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def image(channels, device, dtype=torch.float32, shape=(2, 7, 6)):
    n, height, width = shape
    x = torch.randn(n, channels, height, width).to(device, dtype)
    return x.to(memory_format=torch.channels_last).requires_grad_()


def pool(function, stride):
    leaves_out = {"count_include_pad": False} if function is F.avg_pool2d else {}
    return lambda x: function(x, 3, stride, 1, **leaves_out)


def outcome(function, *given):
    """The output, the gradients of what it is given, and the name of the operation that ran."""
    output = function(*given)
    slope = torch.linspace(-1, 1, output.numel(), device=output.device).view_as(output)
    gradients = torch.autograd.grad(output, given, slope.to(output.dtype))
    return [output, *gradients], output.grad_fn.name()


def assert_close(found, expected, dtype):
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    for one, two in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert torch.allclose(one.float(), two, rtol=tolerance, atol=tolerance * two.abs().max().item())


@pytest.fixture(autouse=True)
def _all_kinds(monkeypatch):
    """Also, what torch computes on a GPU is not rounded to TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(
        faster_ops, "WORTH_IT", {"depthwise_3x3", "depthwise_5x5", "dilated_depthwise", "avg_pool", "max_pool"}
    )


@on_devices
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation", "channels", "dtype"), CONVS)
def test_depthwise_convolution(kernel, stride, padding, dilation, channels, dtype, device, monkeypatch):
    from nas.methods.cuda_graphs import nhwc_depthwise

    monkeypatch.setattr(nhwc_depthwise, "PARTS", 2)  # so that a part has several tiles
    x = image(channels, device, dtype, (2, 7, 6) if channels < 20 else (1, 7, 6))
    weight = torch.randn(channels, 1, kernel, kernel).to(device, dtype).requires_grad_()

    def conv(x, weight):
        return F.conv2d(x, weight, None, stride, padding, dilation, channels)

    with FasterOps():
        found, name = outcome(conv, x, weight)
    assert name == "DepthwiseConvBackward"
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert found[1].is_contiguous(memory_format=torch.channels_last)
    expected, name = outcome(conv, *(one.detach().float().requires_grad_() for one in (x, weight)))
    assert name == "ConvolutionBackward0"
    assert_close(found, expected, dtype)


@on_devices
@pytest.mark.parametrize(
    ("stride", "channels", "shape", "dtype"),
    [
        (1, 5, (1, 7, 6), torch.float32),
        (2, 5, (1, 7, 6), torch.float32),
        (1, 16, (2, 6, 7), torch.bfloat16),
        (2, 48, (1, 6, 5), torch.bfloat16),
        (1, 3, (2, 1, 2), torch.float32),
    ],
)
@pytest.mark.parametrize("function", POOLS, ids=["max", "average"])
def test_pooling(function, stride, channels, shape, dtype, device):
    x = image(channels, device, dtype, shape)
    with FasterOps():
        found, name = outcome(pool(function, stride), x)
    assert name in ("MaxPoolBackward", "AveragePoolBackward")
    expected, _ = outcome(pool(function, stride), x.detach().float().requires_grad_())
    assert_close(found, expected, dtype)
    if function is F.max_pool2d:
        assert torch.equal(found[0].float(), expected[0])


@on_devices
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("values", [[0.0, 1.0], [torch.nan, 0.0, 1.0], [-torch.inf]])
def test_max_pooling_of_ties_infinities_and_nan(values, stride, device):
    """Equal to ATen's: of equal values the first one gets the gradient, of several NaN the last."""
    picked = torch.randint(len(values), (1, 5, 7, 6))
    x = torch.tensor(values)[picked].to(device, memory_format=torch.channels_last).requires_grad_()
    with FasterOps():
        found, name = outcome(pool(F.max_pool2d, stride), x)
    assert name == "MaxPoolBackward"
    expected, _ = outcome(pool(F.max_pool2d, stride), x.detach().cpu().requires_grad_())
    for one, two in zip(found, expected, strict=True):
        assert torch.allclose(one.cpu(), two, equal_nan=True)


@on_devices
def test_a_gradient_of_another_layout(device):
    """One that is constant and takes no memory, as of a sum."""
    x = image(5, device)
    with FasterOps():
        outputs = [pool(function, 1)(x).sum() for function in POOLS]
        outputs.append(F.conv2d(x, torch.ones(5, 1, 3, 3, device=device), None, 1, 1, 1, 5).sum())
    found = torch.autograd.grad(sum(outputs), x)[0]
    outputs = [pool(function, 1)(x).sum() for function in POOLS]
    outputs.append(F.conv2d(x, torch.ones(5, 1, 3, 3, device=device), None, 1, 1, 1, 5).sum())
    assert torch.allclose(found, torch.autograd.grad(sum(outputs), x)[0], atol=1e-5)


@on_devices
def test_autocast(device):
    """The weight is rounded as autocast rounds it. Its gradient has the type of the weight."""
    conv = nn.Conv2d(16, 16, 3, 1, 2, 2, groups=16, bias=False).to(device)
    x = image(16, device)
    with torch.autocast(device, torch.bfloat16):
        expected = outcome(lambda x, _: conv(x), x, conv.weight)[0]
        with FasterOps():
            found, name = outcome(lambda x, _: conv(x), x, conv.weight)
    assert name == "DepthwiseConvBackward"
    assert [one.dtype for one in found] == [torch.bfloat16, torch.float32, torch.float32]
    for one, two in zip(found, expected, strict=True):
        assert torch.allclose(one.float(), two.float(), rtol=2e-2, atol=2e-2 * two.abs().max().item())


MODULES = {
    "MaxPoolBackward": nn.MaxPool2d(3, 2, 1),
    "AveragePoolBackward": nn.AvgPool2d(3, (1, 1), (1, 1), count_include_pad=False),
    "DepthwiseConvBackward": nn.Conv2d(4, 4, 3, 1, 2, 2, groups=4, bias=False),
}
OTHERS = {
    "bias": nn.Conv2d(4, 4, 3, 1, 2, 2, groups=4),
    "same": nn.Conv2d(4, 4, 3, 1, "same", groups=4, bias=False),
    "two outputs a group": nn.Conv2d(4, 8, 3, 1, 1, groups=4, bias=False),
    "one group": nn.Conv2d(4, 4, 3, 1, 1, bias=False),
    "two dilations": nn.Conv2d(4, 4, 3, 1, 1, (1, 2), groups=4, bias=False),
    "7x7": nn.Conv2d(4, 4, 7, 1, 3, groups=4, bias=False),
    "counts the padding": nn.AvgPool2d(3, 1, 1),
    "rounds up": nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "without padding": nn.MaxPool2d(3, 1),
    "stride of the kernel's size": nn.MaxPool2d(3, padding=1),
    "dilated maximum": nn.MaxPool2d(3, 1, 1, 2),
    "indices": nn.MaxPool2d(3, 1, 1, return_indices=True),
}


def names(output):
    return {one.grad_fn.name() for one in (output if isinstance(output, tuple) else [output]) if one.grad_fn}


@on_devices
@pytest.mark.parametrize("name", MODULES)
def test_what_is_covered(name, device, monkeypatch):
    monkeypatch.undo()  # of the kinds: these are worth it
    module, x = MODULES[name].to(device), image(4, device, shape=(1, 4, 4))
    with FasterOps():
        assert names(module(x)) == {name}
        assert names(module(x.contiguous())).isdisjoint(MODULES)
        assert names(module.double()(x.double())).isdisjoint(MODULES)
    module.float()


@on_devices
@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_covered_runs_as_ever(name, device):
    module, x = OTHERS[name].to(device), image(4, device, shape=(1, 9, 9))
    with FasterOps():
        output = module(x)
    assert names(output) == names(module(x))
    assert names(output).isdisjoint(MODULES)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter is asked for")
def test_without_a_gpu_nothing_changes():
    x = image(4, "cpu")
    with FasterOps():
        found = [names(module.to("cpu")(x)) for module in MODULES.values()]
    assert set.union(*found).isdisjoint(MODULES)


@pytest.mark.skipif(not INTERPRETED, reason="another test may have imported Triton")
def test_triton_is_imported_when_it_is_used():
    assert not TRITON_CAME


class Faster(Again):
    """Rehearses and records as the recorder of a GPU does with triton=True. ran: what ran by Triton."""

    def __init__(self):
        super().__init__()
        self.ran = set()

    def rehearsing(self):
        return FasterOps()

    def record(self, work, pool):
        def again():
            with FasterOps():
                work()
            if work.__self__._passed is not None:
                self.ran |= names_behind(work.__self__._passed[1].grad_fn) & set(MODULES)

        again()
        return super().record(again, pool)


def names_behind(node):
    """The names of an autograd node and of all that it leads to."""
    if node is None:
        return set()
    return {node.name()}.union(*(names_behind(one) for one, _ in node.next_functions))


@pytest.mark.skipif(not INTERPRETED, reason="Triton's interpreter runs it")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # a rehearsal runs on memory that nothing has written
def test_a_replayed_search_is_the_same(nas_bench_201, spec):
    """One step of each level, in channels_last, of the network whose every edge is pooling."""
    supernet = nas_bench_201.supernet(spec).to(memory_format=torch.channels_last)
    names = next(module.names for module in supernet.modules() if isinstance(module, Choice))
    images, labels = batch(0, dtype=torch.float32)
    examples = images.contiguous(memory_format=torch.channels_last), labels
    found = []
    for recorder in (None, faster := Faster()):
        made = searcher(supernet, GDAS(), recorder)
        with torch.no_grad():
            made.arch.logits[:] = 200.0 * F.one_hot(torch.tensor(names.index("avg_pool_3x3")), len(names))
        made.weight_step(examples, 1.0)
        gradients = [weight.grad.clone() for weight in made.supernet.parameters() if weight.grad is not None]
        made.arch_step(examples, examples, 1.0)
        found.append([*gradients, made.arch.logits.grad])
    assert faster.ran == {"AveragePoolBackward"}
    assert len(found[0]) == len(found[1]) > 10
    for one, two in zip(*found, strict=True):
        assert torch.allclose(one, two, rtol=1e-3, atol=1e-3 * one.abs().max().item() + 1e-7)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", MODULES)
def test_in_a_cuda_graph(name):
    module, x = MODULES[name].to("cuda"), image(4, "cuda", torch.bfloat16, (8, 16, 16))

    def work():
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False), FasterOps():
            return outcome(lambda x: module(x), x)[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        recorded = work()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    torch.cuda.synchronize()
    for one, two in zip(recorded, work(), strict=True):
        assert torch.equal(one, two)
