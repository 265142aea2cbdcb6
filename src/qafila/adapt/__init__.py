"""Small trainable parts on a frozen model: LoRA and its relatives."""
