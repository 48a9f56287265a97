from components.common.html import numbers

NAN = float("nan")


def test_numbers_have_a_typographic_minus_and_a_dash_for_undefined_values() -> None:
    assert [numbers.number(value) for value in (0.12345, -0.5, NAN)] == ["0.123", "\u22120.500", "–"]
    assert [numbers.signed(value) for value in (0.5, -0.5, NAN)] == ["+0.500", "\u22120.500", "–"]
    assert [numbers.probability(value) for value in (0.0004, 0.25, NAN)] == ["< 0.001", "0.250", "–"]
    assert [numbers.share(value) for value in (0.1, NAN)] == ["10.0 %", "–"]
    assert [numbers.percent(value) for value in (0.95, 0.999)] == ["95 %", "99.9 %"]


def test_limits() -> None:
    assert numbers.limits((0.5, 0.4, 0.6)) == "0.400 to 0.600"
    assert numbers.limits((0.1, -0.2, 0.4), signs=True) == "\u22120.200 to +0.400"
    assert numbers.limits((0.5, NAN, NAN)) == "no interval"


def test_lists_and_counts() -> None:
    assert numbers.listing(["a"]) == "a" and numbers.listing(["a", "b", "c"]) == "a, b and c"
    assert numbers.plural(1, "image") == "1 image" and numbers.plural(1200, "image") == "1,200 images"
    assert numbers.words("val_auroc_macro") == "Val AUROC macro"
