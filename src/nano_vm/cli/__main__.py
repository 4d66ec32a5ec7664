"""`python -m nano_vm.cli`."""

from nano_vm.cli.main import entrypoint

entrypoint()
