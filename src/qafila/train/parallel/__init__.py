"""How a model and its batches are laid over processes."""
