"""Quantities as people read them: FLOPs, bytes, seconds, shares and ages, always with their unit."""

from datetime import UTC, datetime

_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def flops_text(flops: float | None) -> str:
    """Such as `50.2 GFLOP`."""
    return "–" if flops is None else f"{_with_prefix(flops)}FLOP"


def bytes_text(num_bytes: float) -> str:
    """Decimal units, such as `1.5 MB`."""
    return f"{_with_prefix(num_bytes)}B" if num_bytes >= 1000 else f"{num_bytes:.0f} B"


def _with_prefix(value: float) -> str:
    power = 0
    while abs(value) >= 999.5 and power < len(_PREFIXES) - 1:
        value, power = value / 1000, power + 1
    digits = 0 if power == 0 or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f} {_PREFIXES[power]}"


def seconds_text(seconds: float | None) -> str:
    """Such as `4.5 s`, `3 min 20 s` or `2 h 05 min`."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02d} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02d} min"


def range_text(seconds: tuple[float, float]) -> str:
    """Such as `18–25 min` or `40 s – 4 min`; one value when both ends read the same."""
    low, high = (_rounded(one) for one in seconds)
    if low == high:
        return low
    (number, unit), (_, other) = low.split(), high.split()
    return f"{number}–{high}" if unit == other else f"{low} – {high}"


def _rounded(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / _MINUTE:.0f} min" if seconds < 2 * _HOUR else f"{seconds / _HOUR:.1f} h"


def share_text(share: float | None, digits: int = 0) -> str:
    """A share of 1 in percent."""
    return "–" if share is None else f"{share * 100:.{digits}f} %"


def accuracy_text(accuracy: float | None) -> str:
    return "–" if accuracy is None else f"{accuracy:.3f}"


def nats_text(nats: float | None) -> str:
    return "–" if nats is None else f"{nats:.3f} nats" if nats < 10 else f"{nats:.1f} nats"


def times_text(ratio: float | None) -> str:
    """Such as `15×`, `5.5×`."""
    return "–" if ratio is None else f"{ratio:.0f}×" if ratio >= 20 else f"{ratio:.1f}×"


def age_text(moment: datetime | None, now: datetime | None = None) -> str:
    """Such as `3 min ago`. A moment without a zone counts as UTC."""
    if moment is None:
        return "–"
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    seconds = ((now or datetime.now(UTC)) - aware).total_seconds()
    if seconds < 5:
        return "just now"
    if seconds < _MINUTE:
        return f"{seconds:.0f} s ago"
    if seconds < _HOUR:
        return f"{seconds // _MINUTE:.0f} min ago"
    if seconds < _DAY:
        return f"{seconds // _HOUR:.0f} h ago"
    return f"{seconds // _DAY:.0f} d ago"


def moment_text(moment: datetime) -> str:
    """To the second and with its zone, which is UTC: for labels, which an age would change."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return f"{aware.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def wait_text(moment: datetime | None, now: datetime | None = None) -> str:
    """Until a moment, such as `in 30 s`; `now` when it has passed or there is none."""
    seconds = 0.0 if moment is None else (moment - (now or datetime.now(UTC))).total_seconds()
    return "now" if seconds < 1 else f"in {seconds_text(round(seconds))}"


def elapsed_seconds(start: datetime | None, end: datetime | None) -> float | None:
    """Seconds from start to end, or to now while there is no end."""
    if start is None:
        return None
    first = start if start.tzinfo else start.replace(tzinfo=UTC)
    last = end or datetime.now(UTC)
    return ((last if last.tzinfo else last.replace(tzinfo=UTC)) - first).total_seconds()
