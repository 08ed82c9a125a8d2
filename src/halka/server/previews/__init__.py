"""A training before it begins: what it would read of its data, and the memory and time that it would need."""
