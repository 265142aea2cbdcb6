"""Questions to documents: passages found by their words and by their meaning, answers that say where they stand."""
