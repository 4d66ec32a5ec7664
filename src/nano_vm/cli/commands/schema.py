"""Print the JSON Schema (2020-12) of programs or policies, for editors and for whoever writes them by machine.

nano-vm schema > nano-vm-program.schema.json
"""

from __future__ import annotations

import argparse
import json

from nano_vm.cli import exits
from nano_vm.cli.console import Console
from nano_vm.policy.fields import policy_schema
from nano_vm.program.schema import program_schema


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", choices=("program", "policy"), nargs="?", default="program", help="the schema of what"
    )


def execute(args: argparse.Namespace, console: Console) -> int:
    schema = policy_schema() if args.what == "policy" else program_schema()
    console.document(schema)
    console.line(json.dumps(schema, indent=2))
    return exits.DONE
