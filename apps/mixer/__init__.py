"""The mixer: a page on which adapters are blended, and the same as endpoints."""
