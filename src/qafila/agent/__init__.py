"""What a Llama may do by itself: tools, and the walls around them."""
