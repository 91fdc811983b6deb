"""Ages as tables give them, and the units they are in.

A unit that is not understood makes its column unusable: months read as years look like ages too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bids_harmony.text import is_missing, words_of

MAX_AGE = 120.0
#: What the units of an age may be called, with their length in years.
UNITS = {
    **dict.fromkeys(("year", "years", "yr", "yrs", "y", "yo", "a", "annum"), 1.0),
    **dict.fromkeys(("month", "months", "mo", "mos", "mon", "mth", "mths", "m"), 1 / 12),
    **dict.fromkeys(("week", "weeks", "wk", "wks", "w"), 7 / 365.25),
    **dict.fromkeys(("day", "days", "d"), 1 / 365.25),
}
#: Words that may stand beside them.
_BESIDE = frozenset(
    {"in", "of", "at", "age", "scan", "old", "decimal", "full", "completed", "whole", "rounded",
     "float", "integer"}
)  # fmt: skip
_AGE = re.compile(
    r"(?P<open>[<>]=?)?\s*(?P<number>[-+]?\d+(?:[.,]\d+)?)\s*(?P<plus>\+)?\s*"
    r"(?P<unit>[a-z][a-z\s./()]*)?\.?",
    re.IGNORECASE,
)
#: A unit in a description, but for lengths of time such as "6 months later" or "the day of".
_DESCRIBED = re.compile(
    r"(?i)(?P<years>\b(?:years?|yrs?)\b)"
    r"|(?:\bin\s(?:[^\W\d]+\s){0,3}|[(\[,:;/-]\s?)(?:months?|mos?|weeks?|wks?|days?)\b(?!\sof\b)"
    r"|(?<!\d)(?<!\d[\s-])\b(?:months|mos|weeks|wks|days)\b"
    r"(?!\s(?:after|before|prior|since|between|from|later|post|of\sthe)\b)"
)


def column_key(name: str) -> str:
    """Bring the name of a column and its key in a data dictionary to one form."""
    return re.sub(r"[\W_]+", "_", name.lower()).strip("_")


def units_of(entry: Any) -> tuple[str, str] | None:
    """Units in a column's entry and how it gives them; None where it gives none."""
    if not isinstance(entry, Mapping):
        entry = {"Description": entry}
    parts = {column_key(key): value for key, value in entry.items()}
    given = {
        str(value): None for key, value in entry.items()
        if column_key(key).startswith("unit") and value is not None
        and not (isinstance(value, str) and is_missing(value))
    }  # fmt: skip
    levels = parts.get("levels")
    if isinstance(levels, Mapping) and sum(not is_missing(key) for key in levels) > 1:
        return "?", "lists its Levels, which may be classes"
    described = _DESCRIBED.search(f"{parts.get('longname', '')} {parts.get('description', '')}")
    other = "" if described is None or described["years"] else _shown(described.group())
    if given:
        text = "' and '".join(given)
        if other and _years(text) == 1:
            return "?", f"gives its Units as '{_shown(text)}', and describes it as '{other}'"
        return text, f"gives its Units as '{_shown(text)}'"
    return ("?", f"gives no Units, and describes it as '{other}'") if other else None


def _shown(value: Any) -> str:
    text = " ".join(str(value).split()).encode("utf-8", "replace").decode()
    return text if len(text) <= 60 else text[:57] + "..."


def age_units(
    column: str, units: Mapping[str, tuple[str, str]], broken: str
) -> tuple[str | None, str | None]:
    """Units of an age column, None for years, and why it cannot be used."""
    text, how = units.get(column_key(column), (None, ""))
    if text is None and broken:
        return None, f"{broken}, and may give its units"
    own, short = _named(column)
    if text is None:
        if len(own) > 1 or (short and not own):
            return None, "its name does not say plainly whether it is in years"
        return next(iter(own.values()), None), None
    years = _years(text)
    if text == "?":
        return None, how
    if years is None:
        return None, f"{how}, which is not years, months, weeks or days"
    if own and years not in own:
        return None, f"{how}, which its name contradicts"
    return text, None


def _named(column: str) -> tuple[dict[float, str], bool]:
    """Units in a column's name by their length, and whether its last letter may be one."""
    # Not the time of a visit, as in age_12_months or age_month_6.
    text = re.sub(r"(?i)(year|month|week|day)[\W_]*\d+|\d+[\W_]*[a-z]*", " ", column)
    words = [re.sub("^age(?=[a-z])", "", word) for word in words_of(text)]
    own = {UNITS[word]: word for word in words if word in UNITS and len(word) > 1 and word != "yo"}
    return own, len(words) > 1 and words[-1] in ("m", "w", "d")


def _years(units: str) -> float | None:
    """Length of a unit in years; None where the text is not plainly one unit of time."""
    text = re.sub(r"\by[./]?\s?o\b", "yo", units.lower().replace("(s)", "s"))
    every = re.split(r"[\s()\[\].,:;/_-]+", text)
    words = [word for word in every if word and word not in _BESIDE]
    return UNITS.get(words[0]) if len(words) == 1 else None


def parse_age(text: str, units: str | None = None) -> tuple[float | None, str | None]:
    """Read an age in years.

    Parameters
    ----------
    text : str
        A cell such as ``35``, ``35.4``, ``035Y``, ``89+`` (how ages over 89 are published).
    units : str or None
        Units from the column's data dictionary; years where it has none.

    Returns
    -------
    age : float or None
        Years, 0 to 120; None where the cell holds no such age.
    note : str or None
        What had to be assumed, or why there is no age.

    Examples
    --------
    >>> parse_age("35.5")
    (35.5, None)
    >>> parse_age("89+")
    (89.0, "age '89+' was read as 89.")
    """
    if is_missing(text):
        return None, None
    usual = 1.0 if units is None or is_missing(units) else _years(units)
    if usual is None:
        return None, f"age '{text}' is in '{_shown(units)}', so it was not used."
    match = _AGE.fullmatch(text.strip())
    factor = (_years(match["unit"]) if match["unit"] else usual) if match else None
    if not match or factor is None or (match["open"] or "").startswith("<"):
        return None, f"age '{text}' is not a number of years, so it was not used."
    thousands = r"[,.]\d{3}$" if factor == UNITS["days"] else r",\d{3}$"
    if factor < 1 and re.search(thousands, match["number"]):
        return None, f"age '{text}' may be meant with or without decimals, so it was not used."
    age = round(float(match["number"].replace(",", ".")) * factor, 4)
    if not 0 <= age <= MAX_AGE:
        return None, f"age '{text}' is outside 0 to {MAX_AGE:.0f} years, so it was not used."
    own_unit = match["unit"] and not factor == usual == 1
    if match["plus"] or match["open"] or "," in text or own_unit:
        return age, f"age '{text}' was read as {age:g}."
    return age, None
