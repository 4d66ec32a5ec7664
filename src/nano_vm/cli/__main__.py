"""`python -m nano_vm.cli`."""

from nano_vm.cli.start import entrypoint

entrypoint()
