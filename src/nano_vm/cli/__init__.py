"""The command line `nano-vm` (`docs/reference/cli.md`): one module per command, imported when it is chosen."""
