from __future__ import annotations

import pytest
import torch

from qafila.config import ModelConfig
from qafila.model.cache import KVCache
from qafila.model.load import load_model
from qafila.model.random_weights import random_tensors

CONFIG = ModelConfig(
    dim=32, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=64, vocab_size=50, cross_attention_layers=(1,)
)


def test_truncating_forgets_the_later_tokens() -> None:
    model = load_model(CONFIG, random_tensors(CONFIG, 0))
    cache = model.new_cache(capacity=2)
    ids_BT = torch.arange(1, 21)[None]
    with torch.inference_mode():
        expected = model(ids_BT)
        model(ids_BT[:, :8], cache=cache)
        model(ids_BT[:, 10:], cache=cache)  # a turn that is taken back
        cache.truncate(8)
        assert cache.length == 8
        assert cache.positions_S.tolist() == list(range(8))
        actual = model(ids_BT[:, 8:], cache=cache)
    torch.testing.assert_close(actual, expected[:, 8:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cache_may_be_narrower_than_the_model(dtype: torch.dtype) -> None:
    model = load_model(CONFIG, random_tensors(CONFIG, 0))
    ids_BT = torch.arange(1, 21)[None]
    with torch.inference_mode():
        expected = model(ids_BT)
        actual = model(ids_BT, cache=model.new_cache(dtype=dtype))
    difference = (actual - expected).abs()
    # What attention reads is what was stored, even within one pass.
    assert difference.max() > 0
    assert difference.mean() < 0.02 * expected.std()


def test_bytes_are_what_the_configuration_says() -> None:
    """Cross-attention layers keep nothing."""
    cache = KVCache(CONFIG, batch=3, dtype=torch.float16, capacity=10)
    assert cache.nbytes == 3 * 10 * CONFIG.kv_bytes_per_token()


def test_growth_at_least_doubles() -> None:
    cache = KVCache(CONFIG, capacity=4)
    before = cache.nbytes
    new = torch.zeros(1, 2, 5, 8)
    for layer in (0, 2):
        keys, _ = cache.store(layer, new, new)
        assert keys.shape == (1, 2, 5, 8)
    assert cache.nbytes == 2 * before
