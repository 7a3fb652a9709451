from .bfloat16 import BFloat16 as BFloat16
from .onnx import Onnx as Onnx
from .program import Program as Program
from .standalone import Standalone as Standalone
from .weights import Weights as Weights
