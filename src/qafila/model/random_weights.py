"""Random weights for a configuration: tests and benchmarks need a model's shape more often than its knowledge."""

from __future__ import annotations

import numpy as np

from qafila.config import ModelConfig
from qafila.parameters import parameter_shapes
from qafila.quant.dtypes import DType
from qafila.weights.tensor import LazyTensor, Tensor


def random_tensors(config: ModelConfig, seed: int, *, scale: float = 1.0) -> dict[str, LazyTensor]:
    """Float32 tensors for every parameter of ``config``, the same for the same seed.

    Matrices are normal with deviation ``scale / sqrt(inputs)``, so that activations keep their size through the layers
    and errors show in the logits; norm weights lie around one, gates between -1 and 1.
    """
    generator = np.random.default_rng(seed)
    tensors = {}
    for name, shape in parameter_shapes(config).items():
        values = generator.standard_normal(shape, dtype=np.float32)
        if name.endswith("norm.weight"):
            values = 1 + 0.2 * values
        elif name.endswith("_gate"):
            values = np.tanh(values)
        else:
            values *= scale / np.sqrt(shape[-1])
        data = np.ascontiguousarray(values, dtype="<f4").reshape(-1).view(np.uint8)
        tensors[name] = LazyTensor.of(Tensor(DType.F32, shape, data), origin=f"random seed {seed}")
    return tensors
