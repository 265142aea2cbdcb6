"""How many processes share what: the sizes of a layout, whether they fit a model, and what they cost. No torch.

Sources: Llama 3 (arXiv 2407.21783) section 3.3.2 and table 4.
"""

from __future__ import annotations

from dataclasses import dataclass

from qafila.config import ModelConfig
from qafila.errors import UsageError
from qafila.train.recipe import ParallelSection


@dataclass(frozen=True, slots=True)
class Layout:
    """Processes by what they share the work of.

    ``shard`` processes hold a share of the weights each and read batches of their own; ``replicate`` counts the copies
    of such a group; ``tensor`` processes share every matrix, ``context`` every row of the batch, ``pipeline`` the
    layers, of which a process holds ``virtual`` stages. ``expert`` of the ``shard`` processes share the experts of a
    mixture.
    """

    shard: int = 1
    replicate: int = 1
    tensor: int = 1
    context: int = 1
    pipeline: int = 1
    expert: int = 1
    virtual: int = 1

    @staticmethod
    def of(section: ParallelSection, world: int) -> Layout:
        """The layout that a recipe asks for on ``world`` processes.

        Raises:
            UsageError: the sizes do not multiply to ``world``: names them, and what would.
        """
        others = section.replicate * section.tensor * section.context * section.pipeline
        factors = (
            f"replicate {section.replicate} x tensor {section.tensor} x context {section.context}"
            f" x pipeline {section.pipeline}"
        )
        if section.data == 0:
            if world % others:
                raise UsageError(f"parallel: {factors} = {others} does not divide the {world} processes there are")
            shard = world // others
        elif section.data * others != world:
            product = section.data * others
            raise UsageError(
                f"parallel: data {section.data} x {factors} = {product}, but there are {world} processes:"
                f" start {product}, or set parallel.data to 0"
            )
        else:
            shard = section.data
        if shard % section.expert:
            raise UsageError(
                f"parallel.expert: {section.expert} must divide the {shard} data-parallel processes that it lies in"
            )
        return Layout(
            shard=shard,
            replicate=section.replicate,
            tensor=section.tensor,
            context=section.context,
            pipeline=section.pipeline,
            expert=section.expert,
            virtual=section.virtual_stages if section.pipeline_schedule == "interleaved" else 1,
        )

    @property
    def world(self) -> int:
        """All processes."""
        return self.data * self.tensor * self.context * self.pipeline

    @property
    def data(self) -> int:
        """Processes, or groups of them, that read batches of their own: DP of the papers."""
        return self.shard * self.replicate

    @property
    def stages(self) -> int:
        """Parts into which the layers are cut."""
        return self.pipeline * self.virtual

    def check(self, config: ModelConfig, *, sequence: int | None = None, micro_batches: int | None = None) -> None:
        """Refuse what cannot be computed.

        Args:
            config: the model.
            sequence: tokens of a row.
            micro_batches: micro-batches of an optimiser step, of one process.

        Raises:
            UsageError: names the key, the figure that does not divide, and a way out.
        """
        if self.tensor > 1:
            _divides("tensor", self.tensor, "query heads", config.n_heads)
            _divides("tensor", self.tensor, "key/value heads", config.n_kv_heads)
            _divides("tensor", self.tensor, "rows of the vocabulary", config.vocab_size + config.extra_embeddings)
            for width in sorted({plan.ffn_dim for plan in config.layers}):
                _divides("tensor", self.tensor, "feed-forward columns", width)
            if config.tie_embeddings and config.extra_embeddings:
                raise UsageError("parallel.tensor: a tied embedding with rows beyond the vocabulary cannot be shared")
        if self.world > 1 and config.cross_attention_layers:
            raise UsageError("parallel: layers of cross-attention are trained on one process only")
        if self.expert > 1:
            if config.moe is None:
                raise UsageError("parallel.expert: this model has no experts; leave it at 1")
            _divides("expert", self.expert, "experts", config.moe.n_experts)
        if self.pipeline > 1:
            self._check_pipeline(config, micro_batches)
        if sequence is not None:
            _divides(
                "context", 2 * self.context if self.context > 1 else 1, "tokens of a row (2 chunks each)", sequence
            )
            _divides("tensor", self.tensor, "tokens of a process's share of a row", sequence // self.context)

    def _check_pipeline(self, config: ModelConfig, micro_batches: int | None) -> None:
        if config.tie_embeddings:
            raise UsageError(
                "parallel.pipeline: embedding and head are one matrix in this model, but lie on the first and the last"
                " stage; use parallel.tensor or data instead"
            )
        if self.stages > config.n_layers:
            raise UsageError(f"parallel.pipeline: {self.stages} stages for {config.n_layers} layers; use fewer")
        if micro_batches is not None and micro_batches < self.pipeline:
            raise UsageError(
                f"parallel.pipeline: {micro_batches} micro-batches do not fill {self.pipeline} stages; raise"
                " train.batch or lower train.micro_batch"
            )
        if micro_batches is not None and self.virtual > 1 and micro_batches % self.pipeline:
            raise UsageError(
                f"parallel.pipeline: interleaving wants micro-batches in multiples of {self.pipeline}, not"
                f" {micro_batches}; change train.batch or train.micro_batch"
            )

    def stage_layers(self, n_layers: int) -> tuple[range, ...]:
        """The layers of every stage.

        The first stage also embeds and the last computes the loss: where layers do not divide evenly, these two get
        fewer, as in Llama 3, whose 126 layers are 16 stages of 8 with one less at both ends (section 3.3.2).
        """
        stages = self.stages
        sizes = [n_layers // stages] * stages
        # The middle is filled first, then the end, then the beginning.
        order = [*range(1, stages - 1), stages - 1, 0] if stages > 1 else [0]
        for stage in order[: n_layers % stages]:
            sizes[stage] += 1
        starts = [sum(sizes[:i]) for i in range(stages)]
        return tuple(range(start, start + size) for start, size in zip(starts, sizes, strict=True))

    def bubble(self, micro_batches: int) -> float:
        """Idle time of a pipeline as a share of its busy time: ``(PP - 1) / (V * M)`` (Llama 3, section 3.3.2)."""
        return (self.pipeline - 1) / (self.virtual * micro_batches)

    def tokens_per_step(self, sequence: int, rows: int) -> int:
        """Tokens of one optimiser step, if each data-parallel group takes ``rows`` rows of ``sequence`` tokens."""
        return sequence * rows * self.data


def _divides(key: str, by: int, what: str, value: int) -> None:
    if value % by:
        raise UsageError(f"parallel.{key}: {by} does not divide the {value} {what}; choose a divisor")
