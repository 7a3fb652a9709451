from .custom import Custom as Custom
from .darts import Darts as Darts
from .darts_imagenet import DartsImageNet as DartsImageNet
from .edge_ops import EdgeOps as EdgeOps
from .mbconv import MBConv as MBConv
from .nas_bench_201 import NasBench201 as NasBench201
from .nas_bench_201_table import NasBench201Table as NasBench201Table
from .ops import (
    DilConv as DilConv,
    InvertedResidual as InvertedResidual,
    Noise as Noise,
    ReLUConvBN as ReLUConvBN,
    SearchNormalised as SearchNormalised,
    SepConv as SepConv,
    Zero as Zero,
    avg_pool as avg_pool,
    max_pool as max_pool,
    skip_connect as skip_connect,
)
from .published import resolve as resolve
