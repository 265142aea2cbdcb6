"""From raw text and examples to packed token shards, and from shards to batches. No torch."""
