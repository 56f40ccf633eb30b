"""Printed tables: columns that stay whole, sections, intervals that rich does not take for tags."""

from drive_vlm.report.tables import console, interval, print_table, table, write_csv


def test_rows_sections_and_intervals(capsys):
    rate = {"low": 0.25, "high": 0.5}
    print_table("a title", ("name", "share"), [["first", f"40%{interval(rate, '.0%')}"], None, ["second", "-"]])
    text = capsys.readouterr().out
    assert "a title" in text and "40% [25%, 50%]" in text
    assert interval({"low": None, "high": None}) == ""
    assert interval(rate, "+.1f", 100) == r" \[+25.0, +50.0]"


def test_numbers_stay_whole_and_names_make_room(capsys):
    console(40).print(table(None, ("name", "number"), [["n" * 60, "0.1234567890"]], whole=True))
    assert "0.1234567890" in capsys.readouterr().out


def test_csv_in_a_new_folder(tmp_path):
    write_csv(tmp_path / "new" / "a.csv", ("id", "text"), [[1, 'a "b", c']])
    assert (tmp_path / "new" / "a.csv").read_text().splitlines() == ["id,text", '1,"a ""b"", c"']
