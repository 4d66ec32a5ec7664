"""Tools from Python files named on the command line - never from a program."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from zlib import crc32

from nano_vm.errors import InputError, NanoVMError, Place
from nano_vm.tools.registry import _MARK, ToolSet


def load_tools(names: Sequence[str]) -> ToolSet:
    """The tools of the given files and modules: every function marked with `@tool`, else - in a module that marks
    none - every public function defined in it.

    Raises:
        InputError: TOOLS_UNREADABLE (no such file or module), TOOLS_FAILED (importing it raised), TOOLS_EMPTY,
            TOOLS_CONFLICT (two tools of one name). ProgramError: TOOL_SIGNATURE, TOOL_EFFECT.
    """
    tools = ToolSet()
    owner: dict[str, str] = {}
    for name in dict.fromkeys(names):
        module = _load(name)
        functions = _functions(module)
        if not functions:
            raise InputError(
                "TOOLS_EMPTY",
                f"`{name}` has no tools",
                help="define functions in it; mark them with @tool to say what they do",
            )
        for function in functions:
            spec = tools.add(function)
            if spec.name in owner:
                raise InputError(
                    "TOOLS_CONFLICT",
                    f"the tool `{spec.name}` is in `{owner[spec.name]}` and in `{name}`",
                    help='give one another name: @tool(name="…")',
                )
            owner[spec.name] = name
    return tools


def _functions(module: ModuleType) -> list[Callable[..., Any]]:
    named = list(vars(module).items())
    marked = [value for _, value in named if callable(value) and hasattr(value, _MARK)]
    if marked:
        return list({id(function): function for function in marked}.values())
    return [
        value
        for name, value in named
        if inspect.isfunction(value) and not name.startswith("_") and value.__module__ == module.__name__
    ]


def _load(name: str) -> ModuleType:
    is_file = name.endswith(".py") or os.sep in name
    try:
        return _load_file(Path(name)) if is_file else _load_module(name)
    except NanoVMError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(
            "TOOLS_FAILED",
            f"importing the tools raised `{type(error).__name__}`{_why(error)}",
            place=_place_of(error, name),
            help="mend the file; --debug shows the traceback",
        ) from error


def _why(error: BaseException) -> str:
    """What may be told of it: other messages may hold anything."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f": there is no module `{error.name}`"
    return f": {error.msg}" if isinstance(error, SyntaxError) else ""


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError("TOOLS_UNREADABLE", f"there is no tools file `{path}`", help="--tools FILE.py")
    path = path.resolve()
    module_name = f"nano_vm_tools_{path.stem}_{crc32(os.fsencode(path)):08x}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise InputError("TOOLS_UNREADABLE", f"`{path}` is not a Python file", help="--tools FILE.py")
    module = importlib.util.module_from_spec(spec)
    # As for a script, modules beside the file can be imported; dataclasses look their module up by name.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def _load_module(name: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise
        raise InputError(
            "TOOLS_UNREADABLE",
            f"there is no module `{name}`",
            help="--tools FILE.py, or a module that Python can import",
        ) from error


def _place_of(error: BaseException, name: str) -> Place:
    """The line of the tools file that failed."""
    if isinstance(error, SyntaxError) and error.filename:
        return Place(error.filename, error.lineno or 0, error.offset or 1)
    frames = traceback.extract_tb(error.__traceback__)
    wanted = Path(name).name
    for frame in reversed(frames):
        if Path(frame.filename).name == wanted:
            return Place(name, frame.lineno or 0, 1)
    return Place(name)
