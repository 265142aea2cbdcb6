"""What an engine tells about itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What the engine is doing, and what it did since it was made.

    Attributes:
        waiting: answers that wait for their turn, those of unread prompts included.
        running: answers under way.
        blocks: of the KV cache.
        blocks_used: held by answers under way.
        blocks_cached: held by nobody, with a known prefix that a later prompt may begin with.
        prefix_hit_tokens: prompt tokens that were found in the cache.
        preemptions: answers that had to give their blocks back and were computed again.
        steps: batches computed.
    """

    waiting: int
    running: int
    blocks: int
    blocks_used: int
    blocks_cached: int
    prefix_hit_tokens: int
    preemptions: int
    steps: int
