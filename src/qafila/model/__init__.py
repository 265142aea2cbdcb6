"""The readable PyTorch definition of every Llama: the oracle of the native engine, and what runs on GPUs.

Shapes stand in names: ``x_BTD`` is ``[batch, tokens, model dim]``; the letters are listed in :mod:`qafila.config`, and
``S`` counts the tokens that attention reads (the cached ones and the new ones), ``G = H / K`` the query heads that
share one key/value head, ``I`` the image states that cross-attention reads.
"""
