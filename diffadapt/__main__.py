"""`python -m diffadapt`."""

from __future__ import annotations

import sys

from diffadapt.command import main

if __name__ == "__main__":
    sys.exit(main())
