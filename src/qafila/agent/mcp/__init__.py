"""The Model Context Protocol both ways: other servers' tools for our model, and our tools for other clients."""
