"""The processes as a grid: who shares what with whom.

Inner to outer the order is tensor, context, pipeline, data, as in Llama 3 (arXiv 2407.21783 section 3.3.2): those that
speak most with each other are neighbours, on one machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from qafila.train.parallel.layout import Layout

# Outer to inner. Experts are shared by neighbours among the data-parallel processes.
_DIMENSIONS = ("replicate", "outer", "expert", "pipeline", "context", "tensor")


@dataclass(frozen=True)
class Mesh:
    """The grid of processes of a layout; every process of the world makes it at the same time."""

    layout: Layout
    grid: DeviceMesh
    weights: DeviceMesh
    """Processes over which a layer's weights are sharded, preceded by the copies where there are any."""
    expert_weights: DeviceMesh
    """The same for experts, which are divided over ``expert`` already."""
    batches: DeviceMesh
    """Processes that read batches of their own."""

    @staticmethod
    def start(layout: Layout, device: str = "cpu") -> Mesh:
        """Make the groups of ``layout``; torch.distributed runs already, with as many processes as the layout has."""
        assert dist.get_world_size() == layout.world
        sizes = (
            layout.replicate,
            layout.shard // layout.expert,
            layout.expert,
            layout.pipeline,
            layout.context,
            layout.tensor,
        )
        grid = init_device_mesh(device, sizes, mesh_dim_names=_DIMENSIONS)
        # Context-parallel processes hold the same weights, so these are sharded over them too.
        weights = grid["outer", "expert", "context"]._flatten("weights")
        expert_weights = grid["outer", "context"]._flatten("expert_weights")
        batches = grid["replicate", "outer", "expert"]._flatten("batches")
        if layout.replicate > 1:
            weights = DeviceMesh._concatenate([grid["replicate"], weights])
            expert_weights = DeviceMesh._concatenate([grid["replicate"], expert_weights])
        return Mesh(layout, grid, weights, expert_weights, batches)

    @property
    def tensor(self) -> DeviceMesh:
        """Processes that share every matrix."""
        return self.grid["tensor"]

    @property
    def context(self) -> DeviceMesh:
        """Processes that share every row."""
        return self.grid["context"]

    @property
    def pipeline(self) -> DeviceMesh:
        """Processes that share the layers."""
        return self.grid["pipeline"]

    @property
    def expert(self) -> DeviceMesh:
        """Processes that share the experts."""
        return self.grid["expert"]

    @property
    def batch_rank(self) -> int:
        """Which share of every step's rows this process reads, below ``layout.data``."""
        return self.batches.get_local_rank()

    def added_up(self, values: Tensor, over: DeviceMesh) -> Tensor:
        """The sum over the processes of ``over``, on the CPU."""
        total = values.detach().to(self.grid.device_type, copy=True)
        dist.all_reduce(total, group=over.get_group())
        return total.cpu()
