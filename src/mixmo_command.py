"""What the command ``mixmo`` starts: help, the version and a misspelt word are answered before torch is imported."""

import os
import signal
import threading


def main() -> int:
    """Run the command line (:func:`mixmo.cli.main.main`); an interrupt while modules are imported ends it at once.

    An exception in the middle of an import would be shown as a traceback, or be taken for a missing module.
    """
    waits = threading.current_thread() is threading.main_thread()
    waits = waits and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if waits:
        signal.signal(signal.SIGINT, _end)
    from mixmo.cli.main import main as run

    return run(loaded=_listen if waits else None)


def _end(*_: object) -> None:
    os.write(2, b"mixmo: stopped.\n")
    os._exit(130)


def _listen() -> None:
    """Raise ``KeyboardInterrupt`` at an interrupt from now on."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
