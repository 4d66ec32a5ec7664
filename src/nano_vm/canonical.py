"""Canonical bytes of JSON values (RFC 8785, JCS) and their digests.

Everything that is hashed, compared or stored passes through here. Values are I-JSON (RFC 7493): `None`,
`bool`, `str`, `int` within ±(2^53-1), finite `float`, `list`, `tuple` (read back as a list) and `dict` with
string keys, of exactly these types. The only subclasses accepted are enums that are themselves strings or
integers; they stand for their plain value. The normative text is `spec/canonical.md`, the vectors
`spec/vectors/canonical.json`.

Two paths give the same bytes. msgspec's encoder differs from RFC 8785 only in how it writes some floats and
in the order of keys that mix characters beyond U+FFFF with U+E000-U+FFFF; `_is_plain` recognises values free
of both (and free of everything msgspec would accept but JSON does not have), all others take the exact path.
"""

from __future__ import annotations

import hashlib
import re
from enum import Enum
from typing import Annotated, Any, NoReturn

import msgspec

from nano_vm.errors import InputError, Place

__all__ = [
    "DEPTH_MAX",
    "INT_MAX",
    "check_size",
    "decode",
    "digest",
    "digest_value",
    "encode",
    "encode_scalar",
    "is_canonical",
    "is_simple",
    "normalize",
    "pointer",
]

DEPTH_MAX = 128
"""How many arrays and objects may contain one another; a scalar has depth 0, `[]` has depth 1."""

INT_MAX = 2**53 - 1
"""The largest integer that every JSON reader holds exactly (RFC 7493 section 2.2)."""

_INT_MIN = -INT_MAX
# Inside this band a float with a fraction is written alike, and without an exponent, by msgspec and
# ECMAScript.
_FLOAT_PLAIN_MIN = 1e-3
_FLOAT_PLAIN_MAX = 1e15

_dumps = msgspec.json.Encoder(order="deterministic").encode
_loads = msgspec.json.Decoder().decode
_sha256 = hashlib.sha256

encode_scalar = msgspec.json.Encoder().encode
"""The canonical bytes of an integer within ±(2^53-1), a boolean or null; checks nothing."""

# A UTF-8 lead byte of a character beyond U+FFFF: only with one of these can UTF-8 and UTF-16 orders differ.
_ASTRAL = re.compile(rb"[\xf0-\xf4]").search
_DIGITS_TO_ZERO = bytes(0x30 if 0x30 <= byte <= 0x39 else 0x2E for byte in range(256))
_SIXTEEN_DIGITS = b"0" * 16

SIMPLE_DEPTH_MAX = 6


def _simple() -> Any:
    """The type of simple values: no floats, no integer that not every reader holds exactly, and not deep."""
    scalar: Any = None | bool | str | Annotated[int, msgspec.Meta(ge=_INT_MIN, le=INT_MAX)]
    simple = scalar
    for _ in range(SIMPLE_DEPTH_MAX):
        simple = scalar | list[simple] | dict[str, simple]  # type: ignore[valid-type]
    return simple


_loads_simple = msgspec.json.Decoder(_simple()).decode


def encode(value: Any) -> bytes:
    """Returns the RFC 8785 bytes of a JSON value.

    Raises:
        InputError: `VALUE_NOT_JSON` for a type JSON does not have, `VALUE_NUMBER` for a number that is not
        finite
            or an integer beyond ±(2^53-1), `VALUE_STRING` for an unpaired surrogate (in keys too),
            `VALUE_TOO_DEEP` beyond `DEPTH_MAX`. `place.path` is the JSON Pointer of the culprit.
    """
    kind = type(value)
    if kind is str:
        try:
            return _dumps(value)
        except UnicodeEncodeError:
            pass
    elif kind is dict or kind is list or kind is tuple:
        if _is_plain(value, 1):
            try:
                data = _dumps(value)
            except UnicodeEncodeError:
                pass  # the exact path says where
            else:
                if data.isascii() or _ASTRAL(data) is None:
                    return data
    elif (kind is int and _INT_MIN <= value <= INT_MAX) or kind is bool or value is None:
        return _dumps(value)
    return _exact(value)


def normalize(value: Any) -> tuple[Any, bytes]:
    """Returns the value as it will be read back from its canonical bytes, and these bytes.

    The value shares no mutable object with the argument: tuples have become lists, enums their plain values,
    floats with an integral value within ±(2^53-1) ints. So a run that goes on and one that was recovered hold
    equal values.

    Raises:
        InputError: as `encode`.
    """
    kind = type(value)
    if kind is str:
        try:
            return value, _dumps(value)
        except UnicodeEncodeError:
            pass
    elif kind is dict or kind is list or kind is tuple:
        if _is_plain(value, 1):
            try:
                data = _dumps(value)
            except UnicodeEncodeError:
                pass
            else:
                if data.isascii() or _ASTRAL(data) is None:
                    return _loads(data), data  # plain values hold no number that needs `decode`'s care
    elif (kind is int and _INT_MIN <= value <= INT_MAX) or kind is bool or value is None:
        return value, _dumps(value)
    data = _exact(value)
    return decode(data), data


def decode(data: bytes) -> Any:
    """Parses canonical bytes into the value that encodes to them again.

    JCS writes floats up to 1e21 as plain digits, so an integer beyond ±(2^53-1) was a float and is read as
    one. Bytes that are JSON without being canonical are read too: ask `is_canonical` where that matters.

    Raises:
        InputError: `VALUE_SYNTAX` when the bytes are not JSON, `VALUE_NUMBER` for a number beyond a double,
            `VALUE_TOO_DEEP` when nested beyond what can be read.
    """
    try:
        value = _loads(data)
    except msgspec.ValidationError:
        raise InputError("VALUE_NUMBER", "a number is beyond the range of a double") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        # From nothing: the parser's own message may quote the data, ours never do (STYLE section 6).
        raise InputError("VALUE_SYNTAX", "the bytes are not JSON", facts={"size": len(data)}) from None
    except RecursionError:
        raise InputError("VALUE_TOO_DEEP", f"nesting is deeper than {DEPTH_MAX}") from None
    # Sixteen digits in a row are the shortest integer beyond 2^53-1; looking for them costs less than parsing
    # did.
    if len(data) >= 16 and _SIXTEEN_DIGITS in data.translate(_DIGITS_TO_ZERO):
        return _with_floats(value)
    return value


def decode_canonical(data: bytes) -> Any:
    """`decode` of bytes that have to be canonical.

    Raises:
        InputError: as `decode`; `VALUE_SYNTAX` also when the value would be written otherwise.
    """
    try:
        # Of what this decoder reads, the plain encoder writes nothing otherwise than JCS but the order of astral keys.
        value = _loads_simple(data)
        if _dumps(value) == data and (data.isascii() or _ASTRAL(data) is None):
            return value
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        pass  # `decode` says what is wrong
    value = decode(data)
    if encode(value) != data:
        raise InputError("VALUE_SYNTAX", "the bytes are not canonical JSON", facts={"size": len(data)})
    return value


def is_simple(data: bytes) -> bool:
    """Tells cheaply that bytes are canonical and hold no number with a fraction, and nothing nested deeper than
    `SIMPLE_DEPTH_MAX`. False says nothing: ask `is_canonical`."""
    try:
        return _dumps(_loads_simple(data)) == data and data.isascii()
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False


def is_canonical(data: bytes) -> bool:
    """Tells whether bytes are exactly what `encode` would write for the value they hold."""
    try:
        return encode(decode(data)) == data
    except InputError:
        return False


def digest(data: bytes) -> str:
    """Returns `"sha256:"` and 64 lower-case hexadecimal digits for the given bytes."""
    return "sha256:" + _sha256(data).hexdigest()


def digest_value(value: Any) -> str:
    """Returns the digest of a value's canonical bytes. Raises as `encode`."""
    return "sha256:" + _sha256(encode(value)).hexdigest()


def check_size(data: bytes, limit: int, what: str) -> bytes:
    """Returns `data` if it holds at most `limit` bytes.

    Raises:
        InputError: `VALUE_TOO_LARGE`, naming `what` (a noun phrase: "the event payload") and both sizes.
    """
    if len(data) > limit:
        raise InputError(
            "VALUE_TOO_LARGE",
            f"{what} takes {len(data)} bytes, the limit is {limit}",
            help="pass a reference to the data instead of the data",
            facts={"size": len(data), "limit": limit},
        )
    return data


def pointer(path: list[str | int] | tuple[str | int, ...]) -> str:
    """Returns the JSON Pointer (RFC 6901) of a path of keys and indexes; the whole document is `""`."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


_TEXTS, _INTEGERS = {str}, {int}
_HARMLESS = {str, bool, type(None)}


def _is_plain(value: Any, depth: int) -> bool:
    """Tells whether a container can be left to msgspec, but for surrogates and the order of astral keys.

    This is most of the cost of encoding a small object: what holds scalars of one kind is looked at without a loop, and
    the branches of the loop are ordered by how common they are.
    """
    if depth > DEPTH_MAX:
        return False
    if type(value) is dict:
        if len(value) > 3:
            if set(map(type, value)) != _TEXTS:
                return False
        else:
            for key in value:
                if type(key) is not str:
                    return False
        value = value.values()
    if len(value) > 3:
        kinds = set(map(type, value))
        if kinds == _INTEGERS:
            low: int = min(value)
            high: int = max(value)
            return low >= _INT_MIN and high <= INT_MAX
        if kinds <= _HARMLESS:
            return True
    for item in value:
        kind = type(item)
        if kind is str:
            continue
        if kind is int:
            if not (_INT_MIN <= item <= INT_MAX):
                return False
        elif kind is dict or kind is list or kind is tuple:
            if not _is_plain(item, depth + 1):
                return False
        elif kind is float:
            if not (_FLOAT_PLAIN_MIN <= item < _FLOAT_PLAIN_MAX) or item.is_integer():
                return False
        elif kind is not bool and item is not None:
            return False
    return True


def _exact(value: Any) -> bytes:
    """The exact path: any value, in Python, with the place of whatever is wrong."""
    out: list[bytes] = []
    _write(value, out, [])
    return b"".join(out)


def _write(value: Any, out: list[bytes], path: list[str | int]) -> None:
    kind = type(value)
    if kind is str:
        out.append(_write_string(value, path))
    elif value is None or kind is bool:
        out.append(_dumps(value))
    elif kind is int:
        if not (_INT_MIN <= value <= INT_MAX):
            _refuse("VALUE_NUMBER", "an integer is beyond ±(2^53-1)", path, "pass it as a string")
        out.append(b"%d" % value)
    elif kind is float:
        out.append(_write_float(value, path))
    elif kind is dict:
        _write_object(value, out, path)
    elif kind is list or kind is tuple:
        _check_depth(path)
        out.append(b"[")
        for index, item in enumerate(value):
            if index:
                out.append(b",")
            path.append(index)
            _write(item, out, path)
            path.pop()
        out.append(b"]")
    else:
        _write(_plain_of_enum(value, path), out, path)


def _write_object(value: dict[Any, Any], out: list[bytes], path: list[str | int]) -> None:
    _check_depth(path)
    members: list[tuple[bytes, str, Any]] = []
    seen: set[str] = set()
    for key, item in value.items():
        name = key if type(key) is str else _plain_of_enum(key, path, key=True)
        if type(name) is not str or name in seen:
            _refuse("VALUE_NOT_JSON", "the keys of an object are not distinct strings", path)
        seen.add(name)
        # `surrogatepass` only lets a bad key come as far as `_write_string`, which refuses it with its place.
        members.append((name.encode("utf-16-be", "surrogatepass"), name, item))
    members.sort(key=_utf16_of)
    out.append(b"{")
    for position, (_, name, item) in enumerate(members):
        if position:
            out.append(b",")
        out.append(_write_string(name, path))
        out.append(b":")
        path.append(name)
        _write(item, out, path)
        path.pop()
    out.append(b"}")


def _utf16_of(member: tuple[bytes, str, Any]) -> bytes:
    return member[0]


def _write_string(value: str, path: list[str | int]) -> bytes:
    try:
        return _dumps(value)
    except UnicodeEncodeError:
        _refuse(
            "VALUE_STRING", "a string holds an unpaired surrogate", path, "replace it before passing it on"
        )


def _write_float(value: float, path: list[str | int]) -> bytes:
    """ECMA-262 `Number::toString` (section 6.1.6.1.20), from Python's equally short `repr`."""
    if value != value or value in (float("inf"), float("-inf")):
        _refuse("VALUE_NUMBER", "a number is not finite", path, "pass null or a string")
    if value == 0:
        return b"0"
    sign, text = ("-", repr(-value)) if value < 0 else ("", repr(value))
    mantissa, _, exponent_text = text.partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    # The value is 0.DIGITS times ten to the power of `point`.
    point = len(whole) + int(exponent_text or 0) - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0")
    count = len(digits)
    if count <= point <= 21:
        written = digits + "0" * (point - count)
    elif 0 < point <= 21:
        written = digits[:point] + "." + digits[point:]
    elif -6 < point <= 0:
        written = "0." + "0" * -point + digits
    else:
        written = digits[0] + ("." + digits[1:] if count > 1 else "") + f"e{point - 1:+d}"
    return (sign + written).encode("ascii")


def _plain_of_enum(value: Any, path: list[str | int], *, key: bool = False) -> Any:
    if isinstance(value, Enum) and isinstance(value, str | int):
        plain = value.value
        if type(plain) is str or type(plain) is int:
            return plain
    what = "a key" if key else "a value"
    name = type(value).__name__
    remedy = "keys are strings" if key else "pass null, booleans, numbers, strings, lists and dicts"
    _refuse("VALUE_NOT_JSON", f"{what} of type `{name}` is not JSON", path, remedy, type=name)


def _check_depth(path: list[str | int]) -> None:
    if len(path) >= DEPTH_MAX:
        # The pointer of the outermost levels is enough to find the place and bounds the error.
        _refuse("VALUE_TOO_DEEP", f"nesting is deeper than {DEPTH_MAX}", path[:8], limit=DEPTH_MAX)


def _refuse(
    code: str, message: str, path: list[str | int], help: str | None = None, **facts: Any
) -> NoReturn:
    # A pointer may hold a key with a surrogate; errors must be printable.
    where = pointer(path).encode("utf-8", "backslashreplace").decode("utf-8")
    raise InputError(code, message, place=Place(path=where), help=help, facts=facts)


def _with_floats(value: Any) -> Any:
    """Gives integers beyond the safe range back as the floats they were; containers are changed in place."""
    kind = type(value)
    if kind is int:
        if _INT_MIN <= value <= INT_MAX:
            return value
        try:
            return float(value)
        except OverflowError:
            raise InputError("VALUE_NUMBER", "a number is beyond the range of a double") from None
    if kind is list or kind is dict:
        for key, item in value.items() if kind is dict else enumerate(value):
            inner = type(item)
            if inner is int or inner is dict or inner is list:
                value[key] = _with_floats(item)
    return value
