"""The model of a program: its document, its fields, its templates and its compiled form."""

from nano_vm.program.diagnostic import Diagnostic, render
from nano_vm.program.document import Document
from nano_vm.program.model import Program
from nano_vm.program.schema import program_schema
from nano_vm.program.tool_schema import ToolSchema

__all__ = ["Diagnostic", "Document", "Program", "ToolSchema", "program_schema", "render"]
