"""Tables as CSV files that a spreadsheet opens without running what is in them."""

import pandas as pd

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def csv_of(frame: pd.DataFrame) -> str:
    """The table as CSV; text that a spreadsheet would take for a formula has `'` before it (owasp.org, CSV injection)."""
    shown = frame.rename(columns=_harmless)
    for column in shown.columns:
        if not pd.api.types.is_numeric_dtype(shown[column]):
            shown[column] = shown[column].map(_harmless)
    return shown.to_csv(index=False)


def _harmless(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value
