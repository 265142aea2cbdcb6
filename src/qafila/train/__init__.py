"""One training loop; an objective is a batch and a loss."""
