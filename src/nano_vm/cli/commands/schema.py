"""Print the JSON Schema (2020-12) of programs, for editors and for whoever writes programs by machine.

nano-vm schema > nano-vm-program.schema.json
"""

from __future__ import annotations

import argparse
import json

from nano_vm.cli import exits
from nano_vm.cli.console import Console
from nano_vm.program.schema import program_schema


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("program",), nargs="?", default="program", help="the schema of what")


def execute(args: argparse.Namespace, console: Console) -> int:
    schema = program_schema()
    console.document(schema)
    console.line(json.dumps(schema, indent=2))
    return exits.DONE
