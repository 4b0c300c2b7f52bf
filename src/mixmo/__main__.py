"""``python -m mixmo`` is ``mixmo``: what torchrun and launchers of ranks start."""

import sys

from mixmo.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
