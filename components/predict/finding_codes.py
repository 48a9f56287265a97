"""Codes of findings in reports: a standard one where there is one that means the same, else one of a private scheme."""

import re

from pydicom.sr.coding import Code

PRIVATE = "99CXRMLOPS"
"""Designator of the private scheme: PS3.16, section 8.2, reserves those that begin with 99. Its codes are the names of the findings."""
LONGEST_MEANING = 64  # characters of a Code Meaning

_INFILTRATE = Code("112121", "DCM", "Infiltrate")
_OPACITY = Code("112001", "DCM", "Opacity")
_EFFUSION = Code("60046008", "SCT", "Pleural effusion")
_EDEMA = Code("19242006", "SCT", "Pulmonary edema")
_EMPHYSEMA = Code("87433001", "SCT", "Pulmonary emphysema")
_FIBROSIS = Code("51615001", "SCT", "Fibrosis of lung")

IN_STANDARD = {
    "effusion": _EFFUSION,
    "pleural effusion": _EFFUSION,
    "infiltrate": _INFILTRATE,
    "infiltration": _INFILTRATE,
    "mass": Code("4147007", "SCT", "Mass"),
    "nodule": Code("27925004", "SCT", "Nodule"),
    "lung opacity": _OPACITY,
    "opacity": _OPACITY,
    "pneumothorax": Code("36118008", "SCT", "Pneumothorax"),
}
"""Codes that are in PS3.16, so that everybody who uses DICOM may use them. Keys are names as in the public data sets."""
SNOMED = {
    "atelectasis": Code("46621007", "SCT", "Atelectasis"),
    "cardiomegaly": Code("8186001", "SCT", "Cardiomegaly"),
    "consolidation": Code("95436008", "SCT", "Lung consolidation"),
    "edema": _EDEMA,
    "pulmonary edema": _EDEMA,
    "emphysema": _EMPHYSEMA,
    "pulmonary emphysema": _EMPHYSEMA,
    "fibrosis": _FIBROSIS,
    "pulmonary fibrosis": _FIBROSIS,
    "fracture": Code("125605004", "SCT", "Fracture of bone"),
    "pneumonia": Code("233604007", "SCT", "Pneumonia"),
}
"""Codes of SNOMED CT that PS3.16 lacks."""


def code_of(finding: str) -> Code:
    """Returns the code of a finding, which case, underscores and hyphens do not change."""
    name = re.sub(r"[\s_-]+", " ", finding.casefold()).strip()
    text = " ".join(finding.replace("\\", "/").split())
    return IN_STANDARD.get(name) or SNOMED.get(name) or Code(text, PRIVATE, text[:LONGEST_MEANING])
