"""Adapter files to other dialects, in batches. Installed as `diffadapt.converters`; nothing here yet."""
