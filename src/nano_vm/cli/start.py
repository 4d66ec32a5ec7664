"""What the `nano-vm` script calls: until the command line is there, Ctrl-C ends the process, and Python says nothing."""

from __future__ import annotations

import signal


def entrypoint() -> None:
    """Bring the command line in and run it. Before that nothing has begun that a signal could interrupt."""
    is_heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # and is not ignored, say
    if is_heard:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from nano_vm.cli import main

    if is_heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    main.entrypoint()
