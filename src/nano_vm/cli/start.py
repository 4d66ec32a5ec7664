"""What the `nano-vm` script calls: while the command line is being imported, Ctrl-C just ends the process."""

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
