"""View Position: reading it from a header, one spelling for each view, and which views are accepted."""

import re

from components.common.dicom.elements import Elements, items, text

LATERAL = "LATERAL"
LATERALS = ("LL", "RL", LATERAL)
_CODES = {
    "PA": ("272479007", "R-40888", "R-10214"),
    "AP": ("399348003", "R-10206"),
    "LL": ("399173006", "R-10236"),
    "RL": ("399198007", "R-10232"),
    LATERAL: ("399067008", "R-102CD"),
}
"""View Position -> View Code Sequence in SNOMED's new and old codes (PS3.16 CID 4010)."""
_SPELLINGS = {
    "PA": ("PA", "POSTEROANTERIOR", "POSTERIORANTERIOR"),
    "AP": ("AP", "ANTEROPOSTERIOR", "ANTERIORPOSTERIOR"),
    "LL": ("LEFTLATERAL", "LLATERAL", "LLAT", "LATLEFT"),
    "RL": ("RIGHTLATERAL", "RLATERAL", "RLAT", "LATRIGHT"),
    LATERAL: ("LAT", "LATERAL"),
}
_POSTURES = frozenset((
    "CHEST", "THORAX", "ERECT", "UPRIGHT", "STANDING", "SITTING", "SEATED", "SEMI", "SEMIERECT", "SEMIUPRIGHT", "SUPINE", "PRONE",
    "RECUMBENT", "PORTABLE", "MOBILE", "BEDSIDE", "STEHEND", "SITZEND", "LIEGEND", "DEBOUT", "ASSIS", "COUCHE", "SENTADO", "SUPINO",
))  # fmt: skip
"""Words beside a view that do not change the projection; LORDOTIC, AXIAL and DECUBITUS do."""
_BY_CODE = {code: view for view, codes in _CODES.items() for code in codes}
_BY_SPELLING = {spelling: view for view, spellings in _SPELLINGS.items() for spelling in spellings}


def read_view(elements: Elements) -> str:
    """Returns the canonical View Position, else the meaning of View Code Sequence (PS3.3 C.8.11.5); empty without either."""
    view = canonical_view(text(elements, "ViewPosition"))
    if view:
        return view
    codes = items(elements, "ViewCodeSequence")
    return _BY_CODE.get(text(Elements.of(codes[0]), "CodeValue"), "OTHER") if codes else ""


def canonical_view(view: str) -> str:
    """Returns a view in upper case, known spellings as PA, AP, LL, RL or LATERAL (side unknown); empty if it names a posture only."""
    view = view.strip().upper()
    words = re.findall(r"[^\W\d_]+", view)
    projection = "".join(word for word in words if word not in _POSTURES)
    return _BY_SPELLING.get(projection, view) if projection or not words else ""


def is_accepted(view: str, accepted: tuple[str, ...]) -> bool:
    """Whether a canonical view is among the accepted ones; LATERAL accepts a lateral view of either side."""
    canonical = {canonical_view(each) for each in accepted}
    return view in canonical or (LATERAL in canonical and view in LATERALS)
