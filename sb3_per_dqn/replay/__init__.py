"""Prioritized replay: the sum tree, where observations live, and the buffer that joins them."""
