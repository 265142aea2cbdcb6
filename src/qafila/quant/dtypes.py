"""Element and block types of weights: names, sizes and GGUF numbers."""

from __future__ import annotations

from enum import Enum

from qafila.errors import ConfigError


class DType(Enum):
    """A weight type: (GGUF type number or -1, elements per block, bytes per block).

    Plain types have one element per block. Sources: ggml ``ggml-common.h`` (block structs) and ``ggml.h`` (type
    numbers).
    """

    F32 = (0, 1, 4)
    F16 = (1, 1, 2)
    Q4_0 = (2, 32, 18)
    Q4_1 = (3, 32, 20)
    Q5_0 = (6, 32, 22)
    Q5_1 = (7, 32, 24)
    Q8_0 = (8, 32, 34)
    Q2_K = (10, 256, 84)
    Q3_K = (11, 256, 110)
    Q4_K = (12, 256, 144)
    Q5_K = (13, 256, 176)
    Q6_K = (14, 256, 210)
    IQ4_NL = (20, 32, 18)
    I8 = (24, 1, 1)
    I16 = (25, 1, 2)
    I32 = (26, 1, 4)
    I64 = (27, 1, 8)
    F64 = (28, 1, 8)
    BF16 = (30, 1, 2)
    U8 = (-1, 1, 1)
    BOOL = (-2, 1, 1)

    @property
    def ggml_type(self) -> int:
        """The type's number in a GGUF file; negative where GGUF has none."""
        return self.value[0]

    @property
    def block_size(self) -> int:
        """Elements per block (1 for plain types)."""
        return self.value[1]

    @property
    def block_bytes(self) -> int:
        """Bytes per block."""
        return self.value[2]

    @property
    def quantised(self) -> bool:
        """Whether elements come in blocks that share scales."""
        return self.block_size > 1

    @property
    def floating(self) -> bool:
        """Whether it is a plain floating-point type."""
        return self in (DType.F32, DType.F16, DType.BF16, DType.F64)

    @property
    def bits_per_weight(self) -> float:
        """Bits one element takes on disk, scales included."""
        return 8 * self.block_bytes / self.block_size

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of ``shape`` (row-major, blocks along the last dimension).

        Raises:
            ConfigError: the last dimension is not a whole number of blocks.
        """
        count = 1
        for size in shape:
            count *= size
        if self.block_size > 1 and (not shape or shape[-1] % self.block_size):
            raise ConfigError(f"rows of {shape[-1] if shape else 0} do not divide into {self.name} blocks")
        return count // self.block_size * self.block_bytes
