"""Many requests, one model: scheduling, the paged KV cache, sampling and grammars over a runner."""
