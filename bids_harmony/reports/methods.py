"""The methods paragraph of a report: what ran on these scans, with its references."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

_MASKS = {
    "deepbet": "found with deepbet [@fisch2024]",
    "multi-atlas": "found by multi-atlas label fusion in the manner of MASS [@doshi2013], with "
    "ANTs [@avants2011]",
    "bet": "found with FSL BET [@smith2002]",
    "precomputed": "taken from a mask given with the data",
    "skip": "taken as everything that is not background, without skull stripping",
    "stripped": "recognised as stripped beforehand and kept as it was",
}
_REGISTRATIONS = {
    "ants": "by ANTs [@avants2011] through antspyx [@tustison2021]",
    "flirt": "by FSL FLIRT [@jenkinson2002]",
}


def mask_kind(record: Mapping[str, Any]) -> str:
    """Name how a scan's brain mask was made; ``stripped`` for scans that came without skull."""
    mask = record.get("mask") or {}
    method = str(mask.get("method", "unknown"))
    return "stripped" if mask.get("detected") else method


def registration_kind(record: Mapping[str, Any]) -> str:
    """Name the registration that ran; of an older record, what its options and contract say."""
    if method := (record.get("affine") or {}).get("method"):
        return str(method)
    processing = record.get("processing") or {}
    asked = str(processing.get("registration", "auto"))
    contract = processing.get("contract") or {}
    return str(contract.get("registration", "ants")) if asked == "auto" else asked


def methods_html(records: Sequence[Mapping[str, Any]]) -> str:
    """Write the methods of the scans that were finished, with references.

    Parameters
    ----------
    records : sequence of mapping
        Records of a participant's scans (:mod:`bids_harmony.qc.record`).

    Returns
    -------
    str
        HTML: paragraphs, the list of references and their BibTeX.
    """
    done = [record for record in records if record.get("status") != "error"]
    if not done:
        return "<p>No scan was finished, so there is nothing to report in a methods section.</p>"
    text = "\n\n".join(_paragraphs(done))
    entries = bibliography()
    keys = list(dict.fromkeys(re.findall(r"\[@(\w+)\]", text)))
    numbers = {key: n for n, key in enumerate(keys, start=1)}
    text = re.sub(
        r"\[@(\w+)\]",
        lambda match: f'<a href="#ref-{match[1]}">[{numbers[match[1]]}]</a>',
        text,
    )
    paragraphs = "".join(f"<p>{p}</p>" for p in text.split("\n\n"))
    references = "".join(f'<li id="ref-{key}">{_reference(entries[key])}</li>' for key in keys)
    bibtex = escape("\n\n".join(entries[key]["bibtex"] for key in keys))
    return (
        "<p>You may use this text unchanged (CC0).</p>"
        f'{paragraphs}<h3>References</h3><ol class="references">{references}</ol>'
        f"<details><summary>BibTeX</summary><pre>{bibtex}</pre></details>"
    )


def bibliography() -> dict[str, dict[str, str]]:
    """Read ``boilerplate.bib``: key to fields, with the entry itself as ``bibtex``."""
    text = (files("bids_harmony.data") / "boilerplate.bib").read_text(encoding="utf-8")
    entries = {}
    for entry in text.strip().split("\n\n"):
        match = re.match(r"@\w+\{(\w+),", entry)
        if match is None:
            raise ValueError(f"not a BibTeX entry: {entry[:40]}")
        fields = dict(re.findall(r"^\s+(\w+) = \{(.*)\},?$", entry, flags=re.MULTILINE))
        entries[match[1]] = {**fields, "bibtex": entry}
    return entries


def _reference(entry: Mapping[str, str]) -> str:
    authors = [name.strip() for name in entry["author"].split(" and ")]
    short = [_initials(name) for name in authors if name != "others"]
    listed = ", ".join(short[:6]) + (", et al." if "others" in authors or len(short) > 6 else ".")
    where = f"<em>{escape(entry['journal'])}</em>"
    if "volume" in entry:
        where += f" {entry['volume']}" + (f"({entry['number']})" if "number" in entry else "")
    where += f": {entry['pages'].replace('--', '–')}"
    url = escape(entry["url"], quote=True)
    link = f'<a href="{url}">{url}</a>'
    return f"{escape(listed)} {escape(entry['title'])}. {where} ({entry['year']}). {link}"


def _initials(name: str) -> str:
    family, _, given = name.partition(", ")
    return f"{family} {''.join(part[0] for part in re.split(r'[ -]', given) if part)}".strip()


def _paragraphs(records: Sequence[Mapping[str, Any]]) -> list[str]:
    first = records[0]
    processing = first.get("processing") or {}
    contract = processing.get("contract") or {}
    template = escape(str(processing.get("template", "the template")))
    source = (
        " [@fonov2011], as nilearn ships it," if template.startswith("MNI152NLin2009aSym") else ""
    )
    resolution = contract.get("resolution", 2)
    tools = processing.get("tools") or {}
    if source and "nilearn" in tools:
        source = source.replace("nilearn", f"nilearn {escape(str(tools['nilearn']))}")
    nipype = f" {escape(str(tools['nipype']))}" if "nipype" in tools else ""
    masks = [_made(record.get("mask"), mask_kind(record), _MASKS) for record in records]
    affines = [
        _made(record.get("affine"), registration_kind(record), _REGISTRATIONS)
        for record in records
    ]
    paragraphs = [
        f"Scans were processed with bids_harmony {escape(str(processing.get('version', '')))}, a "
        f"BIDS App on Nipype{nipype} [@gorgolewski2011]. Each T1-weighted scan was checked and "
        f"brought to RAS orientation without resampling. The brain was {_each(masks)}. It was "
        f"registered to the template {template}{source} with 12 degrees of freedom "
        f"{_each(affines)}, smoothed to the resolution of the "
        f"template's {resolution} mm grid where it was finer, and resampled to that grid once, "
        f"linearly. {_scaling(contract)} Quality metrics were computed in the manner of MRIQC "
        "[@esteban2017]; a registration whose likeness to the template passed fixed limits was "
        "refused.",
    ]
    if bundle := first.get("bundle"):
        reference = bundle.get("reference_site")
        site = f" ({escape(str(reference))})" if reference else ""
        low, high = contract.get("slice_mm", (-28, 52))
        paragraphs.append(
            f"The scan was harmonized to the reference site{site} by one monotone intensity "
            "mapping for all scans of its site, which takes the quantiles of their intensities "
            "14 to 22 mm under the surface of the brain mask to those of the reference at equal "
            "ages. As in Bashyam and colleagues [@bashyam2020] [@bashyam2022], predictions were "
            "made from the scan before and after that map by "
            f"networks trained at the reference site, as the median over axial slices from z = "
            f"{low:g} mm to z = {high:g} mm and, where the bundle has one, the mean of that and "
            "of ridge regression on a map of grey matter. Weights came from the bundle "
            f"{escape(str(bundle.get('name')))}, version {escape(str(bundle.get('version')))} "
            f"(SHA-256 {escape(str(bundle.get('sha256', ''))[:12])}…)."
        )
        if "torch" in tools:
            paragraphs[-1] += f" The networks ran on PyTorch {escape(str(tools['torch']))}."
    return paragraphs


def _made(step: Mapping[str, Any] | None, kind: str, words: Mapping[str, str]) -> str:
    """Say how a mask or an affine was made, by which version of what and, of FSL's, how called."""
    said, step = words.get(kind, escape(kind)), step or {}
    if "tool" not in step:
        return said
    command = f", <code>{escape(str(step['command']))}</code>" if step.get("command") else ""
    return f"{said} ({escape(str(step['tool']))} {escape(str(step.get('version')))}{command})"


def _each(phrases: Sequence[str]) -> str:
    """Say how, and for how many scans each, where they differ."""
    counts = Counter(phrases)
    if len(counts) == 1:
        return phrases[0]
    return "; ".join(
        f"{phrase} ({n} scan{'s' if n > 1 else ''})" for phrase, n in sorted(counts.items())
    )


def _scaling(contract: Mapping[str, Any]) -> str:
    shading, grey = contract.get("shading_order", 0), contract.get("grey", 0)
    text = (
        "intensities were mapped along straight lines so that cerebrospinal fluid is 0, grey "
        f"matter {grey:g} and white matter 1"
    )
    if shading:
        text = f"slow shading was divided out (a polynomial of order {shading}) and {text}"
    return f"{text[0].upper()}{text[1:]}; the background is 0."
