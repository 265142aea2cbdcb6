"""Block formats of quantised weights: types, and weights to and from float32."""

from __future__ import annotations

from qafila.quant.codec import dequantise, quantise
from qafila.quant.dtypes import DType

__all__ = ["DType", "dequantise", "quantise"]
