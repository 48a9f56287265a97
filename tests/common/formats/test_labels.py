from components.common.formats.labels import BOX_COLUMNS, to_csv


def test_rows_end_with_a_newline_whatever_the_platform() -> None:
    assert to_csv([BOX_COLUMNS, ["a,b", "Mass", "1", "2", "3", "4"]]) == b'image,label,x,y,width,height\n"a,b",Mass,1,2,3,4\n'
