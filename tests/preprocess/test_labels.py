import math
from pathlib import Path

import pytest

from components.common.errors import UserError
from components.preprocess.labels import Box, Table
from components.preprocess.layouts import table as layout
from components.preprocess.params import Preprocess


def read(folder: Path, labels_csv: str | None = None, boxes_csv: str | None = None, unknown: str = "ignore") -> Table:
    for name, text in (("labels.csv", labels_csv), ("boxes.csv", boxes_csv)):
        if text is not None:
            (folder / name).write_text(text, encoding="utf-8")
    return layout.read(str(folder), Preprocess.model_validate({"unknown_labels": unknown}), None)


def test_both_files_are_optional(tmp_path: Path) -> None:
    table = read(tmp_path)
    assert table == Table() and table.labels(table.record("a", "1.2")) == ()


@pytest.mark.parametrize(("policy", "uncertain"), [("ignore", math.nan), ("ones", 1.0), ("zeros", 0.0)])
def test_values_and_the_policy_for_minus_one(tmp_path: Path, policy: str, uncertain: float) -> None:
    table = read(tmp_path, "\ufeffimage,patient,B,view,A\r\nx.dcm,p1,1,PA,0\r\n1.2.3, , -1 ,,\r\n\r\n", unknown=policy)
    assert table.findings == ("B", "A")
    by_path, by_uid = table.record("x.dcm", "9"), table.record("y", "1.2.3")
    assert by_path and by_uid and (by_path.labels, by_path.patient, by_path.view) == ((1.0, 0.0), "p1", "PA")
    assert by_uid.labels == pytest.approx((uncertain, math.nan), nan_ok=True)
    assert all(math.isnan(value) for value in table.labels(table.record("unnamed", "")))


def test_quoted_cells_count_lines_right(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"labels.csv line 4: A is 'yes'"):
        read(tmp_path, 'image,A,patient\nx,1,"two\nlines"\ny,yes,p\n')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: lacks the column image"),
        ("file,A\nx,1\n", "line 1: lacks the column image"),
        ("image,A,A\nx,1,1\n", "line 1: every column needs a name"),
        ("image,A,\nx,1,1\n", "line 1: every column needs a name"),
        ("image,A\nx,2\n", "line 2: A is '2'"),
        ("image,A\nx,1,0\n", "line 2: has 3 cells"),
        ("image,A\n,1\n", "line 2: names no image"),
        ("image,A\nx,1\ny,0\nx,1\n", "line 4: names the same image as line 2"),
        ('image,A\n"x,1\n', "not valid CSV"),
    ],
)
def test_mistakes_in_labels_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"labels.csv.*{message}"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x,Nodule,1,2,3", "line 3: has 5 cells"),
        ("x,Nodule,1,2,zero,4", "line 3: x, y, width and height"),
        ("x,Nodule,1,2,0,4", "line 3: x, y, width and height"),
        ("x,Nodule,1,2,nan,4", "line 3: x, y, width and height"),
        ("x,Nodule,inf,2,3,4", "line 3: x, y, width and height"),
    ],
)
def test_mistakes_in_boxes_name_the_line(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(UserError, match=f"boxes.csv.*{message}"):
        read(tmp_path, None, f"image,label,x,y,width,height\nx,Nodule,1,2,3,4\n{row}\n")


def test_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes("image,Erguß\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        layout.read(str(tmp_path), Preprocess(), None)


def test_an_image_named_twice_is_refused(tmp_path: Path) -> None:
    table = read(tmp_path, "image,A\nx.dcm,1\n1.2.3,0\n")
    with pytest.raises(UserError, match="lines 2 and 3 name the same image"):
        table.record("x.dcm", "1.2.3")


def test_boxes_are_clipped_to_the_image(tmp_path: Path) -> None:
    table = read(tmp_path, None, "image,label,x,y,width,height\n1.2,Nodule,-5,10,20,100\nx.dcm,Mass,90,0,30,5\n1.2,Far,200,0,5,5\n")
    assert table.boxes_within("x.dcm", "", 60, 100) == [Box(3, "Mass", 90, 0, 10, 5)]
    assert table.boxes_within("y", "1.2", 60, 300)[0] == Box(2, "Nodule", 0, 10, 15, 50)
    with pytest.raises(UserError, match=r"boxes.csv line 4: the box lies outside its image of 100 x 60"):
        table.boxes_within("y", "1.2", 60, 100)


def test_digests_change_with_the_content(tmp_path: Path) -> None:
    first, second = read(tmp_path, "image,A\nx,1\n").digests, read(tmp_path, "image,A\nx,0\n").digests
    assert set(first) == {"labels.csv"} and first != second
