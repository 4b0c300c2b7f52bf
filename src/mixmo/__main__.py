"""``python -m mixmo``, the same as ``mixmo``: for torchrun and other launchers."""

import sys

from mixmo.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
