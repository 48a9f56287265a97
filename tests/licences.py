"""The licences of what requirements.lock installs: `python -m tests.licences` lists them and fails where one is not agreed to.

They are read from the installed packages' own metadata. A licence that these do not state, or that asks for a decision, stands in
DECIDED with that decision.
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
"""Their terms hold for changes to their own files; we make none."""
VENDOR = ("NVIDIA",)
"""CUDA's terms allow use and redistribution with an application."""
ALLOWED = (*PERMISSIVE, *WEAK_COPYLEFT, *VENDOR)
DECIDED = {
    "asyncssh": "EPL-2.0 OR GPL-2.0-or-later; of DVC's SSH remotes, taken under EPL-2.0 and not changed",
    "cuda-toolkit": "NVIDIA Proprietary; a package without files that names CUDA's",
    "grandalf": "GPL-2.0 OR EPL-1.0; draws DVC's graphs, taken under EPL-1.0 and not changed",
    "huey": "MIT; says so in its repository, not in its metadata",
    "psycopg2-binary": "LGPL-3.0 with exceptions; loaded as a library and not changed",
    "pygit2": "GPL-2.0 with linking exception; loaded by DVC as a library and not changed",
    "skops": "MIT; says so in its repository, not in its metadata",
}


def stated(package: Message) -> str:
    """The licence in a package's metadata: the expression, else the classifiers, else the first line of the free text."""
    found = [item.rpartition(" :: ")[2] for item in package.get_all("Classifier", []) if item.startswith("License ::")]
    text = (package.get("License") or "").strip().splitlines()
    return package.get("License-Expression") or "; ".join(found) or (text[0] if text else "")


def is_allowed(licence: str) -> bool:
    """Whether every licence that must be kept is agreed to; of alternatives one suffices."""
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
    """Names in requirements.lock."""
    return re.findall(r"^([A-Za-z0-9._-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)


def licences() -> dict[str, str]:
    """Licence by name of each locked package that is installed here; others are for other platforms."""
    found = {}
    for name in locked():
        try:
            found[name] = DECIDED.get(name) or stated(metadata.metadata(name))
        except metadata.PackageNotFoundError:
            continue
    return found


def refused() -> dict[str, str]:
    """Those that nobody has agreed to."""
    return {name: licence for name, licence in licences().items() if name not in DECIDED and not is_allowed(licence)}


if __name__ == "__main__":
    for name, licence in sorted(licences().items()):
        sys.stdout.write(f"{name}: {licence}\n")
    if bad := refused():
        sys.exit(f"not agreed to: {', '.join(bad)}; do without them, or add them with a decision to DECIDED in tests/licences.py")
