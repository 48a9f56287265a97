"""Cron expressions of five fields, in UTC, and as Kubeflow reads them.

Kubeflow's have six fields and begin with the seconds. It takes five fields as well, but reads the minutes as seconds, the hours as minutes
and so on (github.com/robfig/cron, version 1), so that an expression must never be passed on as it is.
"""

import re
from datetime import UTC, date, datetime, time, timedelta

from components.common.errors import UserError

EXAMPLE = "'0 2 * * *' for 02:00 each day"
_DAYS = 5 * 366  # how far the next time is looked for; Kubeflow gives up after five years, too
_FIELDS: tuple[tuple[str, int, int, list[str]], ...] = (
    ("minute", 0, 59, []),
    ("hour", 0, 23, []),
    ("day", 1, 31, []),
    ("month", 1, 12, ["", "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]),
    ("weekday", 0, 7, ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]),
)
"""Name, lowest and highest value of each field, and words for its values. Sunday is 0 and 7."""
_ITEM = re.compile(r"(?:\*|(\w+)-(\w+))(?:/(\d+))?|(\w+)")


class Cron:
    """The times of a cron expression."""

    def __init__(self, text: str):
        """Raises UserError if there are not five fields, one is malformed or out of range, or the time never comes."""
        fields = text.split()
        if len(fields) != len(_FIELDS):
            raise UserError(f"--cron {text!r}: has {len(fields)} fields, not minute, hour, day, month and weekday, such as {EXAMPLE}")
        minutes, hours, self._days, self._months, weekdays = (
            _values(text, field, *known) for field, known in zip(fields, _FIELDS, strict=True)
        )
        self._weekdays = {value % 7 for value in weekdays}
        self._minutes, self._hours = sorted(minutes), sorted(hours)
        # A date fits if both day and weekday do; or either, if neither field begins with a star.
        self._either = not any(field.startswith("*") for field in (fields[2], fields[4]))
        if 7 in weekdays and fields[4] != "*":
            fields[4] = ",".join(map(str, sorted(self._weekdays)))
        self.kubeflow = " ".join(["0", *fields])
        if self.next(datetime.now(UTC)) is None:
            raise UserError(f"--cron {text!r}: never comes, since no such month has that day; correct it")

    def next(self, after: datetime) -> datetime | None:
        """Returns the first time after another one; None if there is none in five years."""
        for day in (after.date() + timedelta(days) for days in range(_DAYS)):
            if self._fits(day):
                times = (datetime.combine(day, time(hour, minute, tzinfo=UTC)) for hour in self._hours for minute in self._minutes)
                if found := next((each for each in times if each > after), None):
                    return found
        return None

    def _fits(self, day: date) -> bool:
        found = (day.day in self._days, day.isoweekday() % 7 in self._weekdays)
        return day.month in self._months and (any if self._either else all)(found)


def _values(text: str, field: str, name: str, low: int, high: int, words: list[str]) -> set[int]:
    """Returns the values of a field."""
    values: set[int] = set()
    for item in field.split(","):
        found = _ITEM.fullmatch(item.lower())
        if not found:
            raise UserError(f"--cron {text!r}: {name} {item!r} is not *, a number, a range such as 1-5, */2 or a list of these; correct it")
        first, last, step, single = found.groups()
        bounds = [low, high] if not (first or single) else [_number(each, words) for each in (first or single, last or single)]
        if not low <= bounds[0] <= bounds[1] <= high or step == "0":
            raise UserError(f"--cron {text!r}: {name} {item!r} is not from {low} to {high}; correct it")
        values |= set(range(bounds[0], bounds[1] + 1, int(step or 1)))
    return values


def _number(text: str, words: list[str]) -> int:
    return words.index(text) if text in words else int(text) if text.isdecimal() else -1
