"""Checks the licences of the packages in requirements.lock: `python -m tests.licences` lists them and fails if one is not accepted.

Licences are read from the metadata of the installed packages. DECIDED lists packages whose metadata states no licence, and packages
whose licence needed a decision.
"""

import re
import sys
from email.message import Message
from importlib import metadata

from tests import ROOT

PERMISSIVE = (
    "MIT",
    "BSD",
    "APACHE",
    "PSF",
    "PYTHON SOFTWARE FOUNDATION",
    "ISC",
    "ZLIB",
    "HPND",
    "CC0",
    "UNLICENSE",
    "ZOPE",
    "BSL-1.0",
    "0BSD",
)
WEAK_COPYLEFT = ("MPL", "MOZILLA PUBLIC")
"""Copyleft that covers only changes to the package's own files; this project makes none."""
VENDOR = ("NVIDIA",)
"""CUDA's licence allows use and redistribution as part of an application."""
ALLOWED = (*PERMISSIVE, *WEAK_COPYLEFT, *VENDOR)
DECIDED = {
    "asyncssh": "EPL-2.0 OR GPL-2.0-or-later; a dependency of DVC for SSH remotes, used unmodified under EPL-2.0",
    "cuda-toolkit": "NVIDIA Proprietary; a metapackage without files",
    "grandalf": "GPL-2.0 OR EPL-1.0; draws DVC's graphs, used unmodified under EPL-1.0",
    "huey": "MIT; stated in its repository, not in its metadata",
    "mlcroissant": "Apache-2.0; stated in its repository, not in its metadata",
    "psycopg2-binary": "LGPL-3.0 with exceptions; used unmodified as a library",
    "pygit2": "GPL-2.0 with linking exception; used unmodified as a library, by DVC",
    "skops": "MIT; stated in its repository, not in its metadata",
}


def stated(package: Message) -> str:
    """Returns the licence in a package's metadata: the SPDX expression, else the classifiers, else the first line of the free text."""
    found = [item.rpartition(" :: ")[2] for item in package.get_all("Classifier", []) if item.startswith("License ::")]
    text = (package.get("License") or "").strip().splitlines()
    return package.get("License-Expression") or "; ".join(found) or (text[0] if text else "")


def is_allowed(licence: str) -> bool:
    """Returns whether a licence is accepted: all licences joined by AND, and at least one of those joined by OR."""
    if not licence:
        return False
    for needed in re.split(r"\bAND\b|;", licence.upper()):
        choices = [choice.strip(" ()") for choice in re.split(r"\bOR\b", needed)]
        if not any(
            "GPL" not in choice and "GENERAL PUBLIC" not in choice and any(name in choice for name in ALLOWED) for choice in choices
        ):
            return False
    return True


def locked() -> list[str]:
    """Returns the package names in requirements.lock."""
    return re.findall(r"^([A-Za-z0-9._-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)


def licences() -> dict[str, str]:
    """Returns licences by package name, for locked packages that are installed; the others are for other platforms."""
    found = {}
    for name in locked():
        try:
            found[name] = DECIDED.get(name) or stated(metadata.metadata(name))
        except metadata.PackageNotFoundError:
            continue
    return found


def refused() -> dict[str, str]:
    """Returns the licences that are neither accepted nor decided on."""
    return {name: licence for name, licence in licences().items() if name not in DECIDED and not is_allowed(licence)}


if __name__ == "__main__":
    for name, licence in sorted(licences().items()):
        sys.stdout.write(f"{name}: {licence}\n")
    if bad := refused():
        sys.exit(f"licences not accepted: {', '.join(bad)}; drop the packages, or add them with a decision to DECIDED in tests/licences.py")
