"""Differentiable architecture search that trains one sampled network a step."""

__version__ = "0.1.0"
