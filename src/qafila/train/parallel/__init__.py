"""Parallelism, applied to the plain model from outside: sharded data, tensor, context, pipeline and expert."""
