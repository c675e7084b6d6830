"""Adapters that begin here: the methods by name, their untrained tensors, and where they start."""
