"""Adapter files to adapter files in another dialect, in batches. Installed as `diffadapt.converters`; nothing here yet."""
