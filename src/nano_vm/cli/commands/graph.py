"""Draw a program, or a run of it, as SVG, Mermaid or Graphviz text.

nano-vm graph refund.yaml                  the program, as Mermaid
nano-vm graph refund.yaml --format svg > refund.svg      needs no other program
nano-vm graph refund.yaml --format dot | dot -Tpng > refund.png
nano-vm graph --run ID                     the run: steps coloured by how they stand
"""

from __future__ import annotations

import argparse

from nano_vm.cli import exits
from nano_vm.cli.console import Console
from nano_vm.cli.session import Session
from nano_vm.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", nargs="?", help="a program")
    parser.add_argument("--run", metavar="ID", help="a run, by its trace id")
    parser.add_argument(
        "--format", choices=("mermaid", "dot", "svg"), default="mermaid", help="(default: mermaid)"
    )


def execute(args: argparse.Namespace, console: Console) -> int:
    from nano_vm.compiler import compile_program
    from nano_vm.observe import drawing
    from nano_vm.observe.svg import run_svg, svg
    from nano_vm.program import Program

    if (args.file is None) is (args.run is None):
        raise InputError(
            "USAGE", "name a program file, or a run with --run", help="nano-vm graph program.yaml"
        )
    draw = drawing.mermaid if args.format == "mermaid" else drawing.dot
    if args.run is not None:
        with Session(args) as session:
            trace = session.engine.trace(args.run)
            text = run_svg(trace) if args.format == "svg" else draw(trace.program, trace.steps)
    else:
        program = compile_program(Program.from_file(args.file))
        text = svg(program) if args.format == "svg" else draw(program)
    console.document({"format": args.format, "text": text})
    console.line(text.rstrip("\n"))
    return exits.DONE
