"""The compiled kernels; :mod:`qafila.quant` is the way to reach them."""
