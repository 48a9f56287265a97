"""Header values whose spelling is not to be trusted: the view, and the manufacturer, a free text."""

import re

from components.common.dicom.elements import Elements, items, text

VIEW_CODES = {
    "272479007": "PA",
    "R-40888": "PA",
    "R-10214": "PA",
    "399348003": "AP",
    "R-10206": "AP",
    "399173006": "LL",
    "R-10236": "LL",
    "399198007": "RL",
    "R-10232": "RL",
    "399067008": "LATERAL",
    "R-102CD": "LATERAL",
}
"""View Code Sequence in SNOMED's new and old codes (PS3.16 CID 4010) to View Position."""
LATERAL = "LATERAL"
LATERALS = ("LL", "RL", LATERAL)
_SPELLINGS = {
    "POSTEROANTERIOR": "PA",
    "POSTERIORANTERIOR": "PA",
    "ANTEROPOSTERIOR": "AP",
    "ANTERIORPOSTERIOR": "AP",
    "LEFTLATERAL": "LL",
    "LLATERAL": "LL",
    "LLAT": "LL",
    "LATLEFT": "LL",
    "RIGHTLATERAL": "RL",
    "RLATERAL": "RL",
    "RLAT": "RL",
    "LATRIGHT": "RL",
    "LAT": LATERAL,
    "LATERAL": LATERAL,
}
IDENTIFYING = (
    "PatientName",
    "PatientID",
    "OtherPatientIDs",
    "OtherPatientNames",
    "PatientBirthName",
    "PatientMotherBirthName",
    "ReferringPhysicianName",
    "PerformingPhysicianName",
    "OperatorsName",
    "InstitutionName",
    "InstitutionAddress",
    "AccessionNumber",
)
"""What people have been seen to type into the wrong field."""
_SHORTEST_NAME = 3
_GENERIC = {"MEDICAL", "SYSTEM", "SYSTEMS", "HEALTH", "HEALTHCARE", "IMAGING", "CENTER", "CENTRE", "THE", "AND", "INC", "LTD", "GMBH"}
"""Words that makers and hospitals both have."""


def read_view(elements: Elements) -> str:
    """View Position as `canonical_view` spells it, else what View Code Sequence means (PS3.3 C.8.11.5); empty if neither says."""
    view = canonical_view(text(elements, "ViewPosition"))
    if view:
        return view
    codes = items(elements, "ViewCodeSequence")
    return VIEW_CODES.get(text(Elements.of(codes[0]), "CodeValue"), "OTHER") if codes else ""


def canonical_view(view: str) -> str:
    """A view in upper case; the ways to write a frontal or lateral one become PA, AP, LL, RL or LATERAL (of an unknown side)."""
    view = view.strip().upper()
    return _SPELLINGS.get(re.sub(r"[^A-Z]", "", view), view)


def accepts(views: tuple[str, ...], view: str) -> bool:
    """Whether a canonical view is among the wanted ones; to want LATERAL is to want either side's."""
    wanted = {canonical_view(each) for each in views}
    return view in wanted or (LATERAL in wanted and view in LATERALS)


def read_manufacturer(elements: Elements) -> str:
    """Manufacturer in upper case; empty if it is missing or looks like something else.

    That is: it is written as a person's name is, has a long number, or a word that the header's names of people and places or
    its ids hold, too.
    """
    maker = text(elements, "Manufacturer").upper()
    if not maker or "^" in maker or re.search(r"\d{4}", maker):
        return ""
    others = " ".join(text(elements, keyword) for keyword in IDENTIFYING).upper()
    return "" if _names(maker) & _names(others) else maker


def _names(words: str) -> set[str]:
    return {word for word in re.findall(r"[^\W_]+", words) if len(word) >= _SHORTEST_NAME} - _GENERIC
