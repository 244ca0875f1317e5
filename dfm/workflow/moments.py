"""When the data of a run ended, from whatever text says so: moments compare as moments, not as text."""

from __future__ import annotations

import datetime
import re

from dfm.errors import SettingsError

_ZONE = r"Z|[+-]\d{2}:?\d{2}"
_HOUR = r"[01]\d|2[0-3]"
_MOMENT = re.compile(
    r"(?<!\d)(?P<year>\d{4})(?:-(?P<month>\d{2})(?:-(?P<day>\d{2}))?|(?P<month2>\d{2})(?P<day2>\d{2})"
    r"|(?P<mark>[/.])(?P<month3>\d{2})(?P=mark)(?P<day3>\d{2}))"
    rf"(?:[T ](?P<hour>\d{{2}}):?(?P<minute>\d{{2}})(?::?(?P<second>\d{{2}})(?:\.\d+)?)?(?P<zone>{_ZONE})?"
    rf"|(?<!\d{{4}}-\d\d)T(?P<hour2>{_HOUR})(?:(?P<zone2>{_ZONE})|(?![-+.:\d]))"
    rf"|(?<=\d[-/.]\d\d[-/.]\d\d)(?:[-_/ ](?P<hour3>{_HOUR})(?=/|$)|/hour=(?P<hour4>{_HOUR}|\d(?!\d))))?(?!\d)"
)
"""ISO 8601, extended or basic, a day or a month alone, anywhere in a text (Airflow's run ids hold one); a day as
folders have it, 2026/11/29 or 2026.11.29; and a day with an hour at the end of a text or of a folder's name, as hourly
data are kept: 2026-11-29-08, day=2026-11-29/hour=08, 2026/11/29/08."""
_NUMBER = re.compile(r"-?\d+")
_YEAR, _PART, _DAY = r"(?:19|20|21)\d\d", r"\d{1,2}", r"(?:0?[1-9]|[12]\d|3[01])"
_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)"
)
_DATE = re.compile(
    rf"(?<!\d)(?:{_YEAR}([./-]){_PART}\1{_PART}|{_PART}([./-]){_PART}\2{_YEAR}|(?<![.v])\d\d([./-])\d\d\3\d\d"
    rf"|{_YEAR}[/-]{_PART}|{_PART}[/-]{_YEAR})(?!\d)"
    rf"|(?<![a-z0-9]){_MONTH}[-./, ]*{_DAY}(?![a-z0-9])"
    rf"|(?<![a-z0-9]){_DAY}[-./, ]*{_MONTH}(?![a-z]|\d{{1,3}}(?!\d))",
    re.IGNORECASE,
)
"""A date in another form than those of a moment: its text does not sort by time."""


def moment_of(text: str) -> datetime.datetime | None:
    """The moment in a text, in UTC; without a zone it is in UTC. None where there is none."""
    found = _MOMENT.search(text)
    if not found:
        return None
    year, month = found["year"], found["month"] or found["month2"] or found["month3"]
    day = found["day"] or found["day2"] or found["day3"] or 1
    hour = next((int(found[name]) for name in ("hour", "hour2", "hour3", "hour4") if found[name]), 0)
    minute, second = (int(found[name] or 0) for name in ("minute", "second"))
    try:
        wall = datetime.datetime(int(year), int(month), int(day), hour, minute, second, tzinfo=datetime.UTC)
    except ValueError:
        return None
    zone = (found["zone"] or found["zone2"] or "Z").replace(":", "")
    if zone == "Z":
        return wall
    ahead = datetime.timedelta(hours=int(zone[1:3]), minutes=int(zone[3:]))
    return wall - ahead if zone[0] == "+" else wall + ahead


def check_order(order: str) -> None:
    """SettingsError where an order is meant as a date and is no moment: as text it would sort by the day first."""
    if moment_of(order) is None and (found := _DATE.search(order)):
        raise SettingsError(
            f"order {order!r} holds a date ({found[0]}) that is no moment of ISO 8601, so that nothing says which of "
            "two is earlier. Write it as 2026-11-30 or 2026-11-30T08:00"
        )


def are_comparable(first: str, second: str) -> bool:
    """Whether two orders are both moments, or both none."""
    return (moment_of(first) is None) == (moment_of(second) is None)


def is_earlier(first: str, second: str) -> bool:
    """Whether one order lies before another one: as moments, as whole numbers, or else as text.

    A moment and a text without one cannot be compared: then neither is earlier.
    """
    moments = moment_of(first), moment_of(second)
    if moments[0] is not None and moments[1] is not None:
        return moments[0] < moments[1]
    if _NUMBER.fullmatch(first) and _NUMBER.fullmatch(second):
        return int(first) < int(second)
    return moments == (None, None) and first < second
