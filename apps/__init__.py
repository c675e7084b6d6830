"""Applications on top of the package, such as the demo. Installed as `diffadapt.apps`."""
