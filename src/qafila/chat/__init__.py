"""Talking with a model: the `Llama` facade."""
