"""Entry point of ``mixmo``: help, version and unknown commands are handled before torch is imported."""

import os
import signal
import threading


def main() -> int:
    """Run the command line (:func:`mixmo.cli.main.main`); an interrupt during imports ends the process at once.

    A ``KeyboardInterrupt`` within an import would print a traceback, or be mistaken for a missing module.
    """
    replace = threading.current_thread() is threading.main_thread()
    replace = replace and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if replace:
        signal.signal(signal.SIGINT, _exit)
    from mixmo.cli.main import main as run

    return run(loaded=_restore_handler if replace else None)


def _exit(*_: object) -> None:
    os.write(2, b"mixmo: stopped.\n")
    os._exit(130)


def _restore_handler() -> None:
    """Let interrupts raise ``KeyboardInterrupt`` again."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
