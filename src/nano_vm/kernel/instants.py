"""Points and spans of time as programs write them, in integer milliseconds.

Written out instead of taken from `datetime`, whose parser accepts more from one Python version to the next:
the same journal must give the same timers anywhere (P5).
"""

from __future__ import annotations

import re
from typing import Any

from nano_vm.errors import NanoVMError

SECONDS_MAX = 315_576_000_000  # 10,000 years

_RFC3339 = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,9}))?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
).fullmatch
_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def milliseconds(seconds: Any) -> int:
    """A span in seconds as milliseconds, halves to even.

    Raises:
        NanoVMError: BAD_DELAY when it is not a number from 0 to 10,000 years.
    """
    if type(seconds) not in (int, float) or not 0 <= seconds <= SECONDS_MAX:
        raise NanoVMError("BAD_DELAY", "`seconds` is not a number from 0 to 10,000 years")
    span: int = round(seconds * 1_000)
    return span


def instant(until: Any) -> int:
    """An RFC 3339 time or epoch seconds as epoch milliseconds (digits beyond are cut off); what is before
    1970 is 0.

    Raises:
        NanoVMError: BAD_INSTANT for anything else, a leap second included.
    """
    if type(until) in (int, float) and 0 <= until <= SECONDS_MAX:
        point: int = round(until * 1_000)
        return point
    found = _RFC3339(until) if type(until) is str else None
    if found is None:
        raise _bad_instant()
    year, month, day, hour, minute, second = (int(part) for part in found.groups()[:6])
    zone_hour, zone_minute = int(found[9] or 0), int(found[10] or 0)
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if not (1 <= month <= 12 and hour <= 23 and minute <= 59 and second <= 59):
        raise _bad_instant()
    if not 1 <= day <= _DAYS[month - 1] + (leap and month == 2) or zone_hour > 23 or zone_minute > 59:
        raise _bad_instant()
    offset = (zone_hour * 60 + zone_minute) * (-1 if found[8] == "-" else 1)
    seconds = (_days_before(year, month, day) * 24 + hour) * 3_600 + (minute - offset) * 60 + second
    return max(seconds * 1_000 + int((found[7] or "").ljust(3, "0")[:3]), 0)


def _days_before(year: int, month: int, day: int) -> int:
    """Days from 1970-01-01 in the proleptic Gregorian calendar."""
    # Years are counted from March, so that the leap day is the last of its year.
    year -= month <= 2
    era_day = 365 * year + year // 4 - year // 100 + year // 400
    return era_day + (153 * ((month - 3) % 12) + 2) // 5 + day - 1 - 719_468


def _bad_instant() -> NanoVMError:
    return NanoVMError(
        "BAD_INSTANT",
        "`until` is neither an RFC 3339 time with a zone nor epoch seconds",
        help="write it like 2026-01-31T12:00:00Z",
    )
