import pytest

from tests import licences


def test_every_locked_package_has_an_accepted_licence() -> None:
    assert licences.refused() == {}
    assert len(licences.licences()) > 100


def test_every_decision_is_needed() -> None:
    assert set(licences.DECIDED) <= set(licences.locked())


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("MIT", True),
        ("Apache Software License; BSD License", True),
        ("Apache-2.0 OR GPL-2.0-or-later", True),
        ("MIT AND GPL-3.0-only", False),
        ("GNU General Public License v3 (GPLv3)", False),
        ("GNU Affero General Public License v3", False),
        ("LGPL-2.1", False),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", True),
        ("Some Licence of Our Own", False),
        ("", False),
    ],
)
def test_accepted_expressions(licence: str, allowed: bool) -> None:
    assert licences.is_allowed(licence) is allowed
