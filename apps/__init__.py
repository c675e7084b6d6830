"""Applications on top of the package, such as the mixer. Installed as `diffadapt.apps`; nothing here yet."""
