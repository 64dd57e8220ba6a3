"""Long-term memory: stores of compressed blocks, and the search of their index keys."""
