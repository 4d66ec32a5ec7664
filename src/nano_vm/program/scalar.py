"""From an offset within a string to where that character stands in the author's file.

A condition is a YAML or JSON string. When its 17th character is wrong, the caret has to stand under that
character in the file, past quotes, escapes, folds and indentation.
"""

from __future__ import annotations

from collections.abc import Iterator

_SIMPLE_ESCAPES = frozenset('0abt\tnvfre "/\\N_LP')
_HEX_ESCAPES = {"x": 2, "u": 4, "U": 8}


def source_index(text: str, start: int, end: int, style: str, value: str, offset: int) -> int:
    """Returns the index in `text` of `value[offset]`.

    Args:
        start, end: where the scalar stands in `text`, quotes or block header included.
        style: `"'"`, `'"'`, `"|"`, `">"` or `""` for plain.
        offset: 0 … len(value); an offset at the end points behind the last character.
    """
    raw = text[start:end]
    offset = max(0, min(offset, len(value)))
    if style == "" and raw[: len(value)] == value:
        return start + offset
    # White space moves when lines are folded or indented, everything else stays in order: the n-th character
    # that is not white space in the value is the n-th in the source.
    wanted = sum(1 for character in value[:offset] if not character.isspace())
    lead = 0  # how many spaces of the value stand between the last such character and the offset
    while lead < offset and value[offset - lead - 1].isspace():
        lead += 1
    at_space = offset < len(value) and value[offset].isspace()
    last = start
    for count, (index, width) in enumerate(_visible(raw, style)):
        if count == wanted and not at_space:
            return start + index
        if count == wanted:
            break
        last = start + index + width
    return last + (lead if at_space else 0)


def _visible(raw: str, style: str) -> Iterator[tuple[int, int]]:
    """Yields index and width of everything in `raw` that stands for a character which is not white space."""
    if style == '"':
        yield from _double_quoted(raw)
        return
    index, stop = (1, len(raw) - 1) if style == "'" else (_body(raw) if style else 0, len(raw))
    while index < stop:
        character = raw[index]
        if style == "'" and character == "'":
            yield index, 2
            index += 2
            continue
        if not character.isspace():
            yield index, 1
        index += 1


def _body(raw: str) -> int:
    # A block scalar begins with its header: `|`, `>-`, `|2 # comment`.
    found = raw.find("\n")
    return found + 1 if found >= 0 else len(raw)


def _double_quoted(raw: str) -> Iterator[tuple[int, int]]:
    index, stop = 1, len(raw) - 1
    while index < stop:
        character = raw[index]
        if character != "\\":
            if not character.isspace():
                yield index, 1
            index += 1
            continue
        kind = raw[index + 1] if index + 1 < stop else ""
        width = 2 + _HEX_ESCAPES.get(kind, 0)
        if kind in _HEX_ESCAPES:
            digits = raw[index + 2 : index + width]
            code = int(digits, 16) if digits else 0
            following = raw[index + width : index + width + 6]
            if 0xD800 <= code < 0xDC00 and following[:2] == "\\u":
                width += 6  # JSON writes characters beyond U+FFFF as a pair
            if code >= 0xD800 or not chr(code).isspace():
                yield index, width
        elif kind in _SIMPLE_ESCAPES and kind in '0abe"/\\':
            yield index, width
        index += width
