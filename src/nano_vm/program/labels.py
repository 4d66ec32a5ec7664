"""Labels: what is known of where a value comes from, and who may see it (SPEC §9, `spec/labels.md`).

A label is a set of bits in a small integer; 0 is a value that the program's author vouches for. Labels only gather
bits on their way through templates, arguments, lists and child runs; what takes UNTRUSTED away again is named in
`spec/labels.md`, section 4.
"""

from __future__ import annotations

from typing import Any, Final

UNTRUSTED: Final = 1  # made by a model, a user or somebody else's machine
SECRET: Final = 2  # must not reach a model
PRIVATE: Final = 4  # personal data
SEALED: Final = SECRET | PRIVATE  # is stored encrypted only
ALL: Final = UNTRUSTED | SECRET | PRIVATE

# What an author writes, for an input, an event or the output of a tool. Nobody vouches for where a secret comes from.
DECLARED: Final[dict[str, int]] = {"trusted": 0, "untrusted": UNTRUSTED, "secret": SECRET | UNTRUSTED}

_NAMES = ((UNTRUSTED, "untrusted"), (SECRET, "secret"), (PRIVATE, "private"))


def of_input(rule: Any) -> int:
    """The label of an input, from its schema: untrusted unless it says otherwise."""
    if not isinstance(rule, dict):
        return UNTRUSTED
    return DECLARED[rule.get("label", "untrusted")] | (PRIVATE if rule.get("private") is True else 0)


def of_output(label: int, declared: str | None) -> int:
    """The label of a tool's output.

    Args:
        label: of its arguments, together.
        declared: the tool's `output_label`. It speaks of trust and secrecy; what was made of personal data stays so.
    """
    if declared is None:
        return label
    if declared == "secret":
        return label | SECRET
    return DECLARED[declared] | (label & PRIVATE)


def named(label: int) -> str:
    """A label in words: `trusted`, or the names of its bits."""
    return ", ".join(name for bit, name in _NAMES if label & bit) or "trusted"
