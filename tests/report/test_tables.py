"""Printed tables: columns that stay whole, sections, intervals that rich does not take for tags."""

from drive_vlm.report.figures import new_figure, save
from drive_vlm.report.tables import console, interval, print_table, table, write_csv


def test_rows_sections_and_intervals(capsys):
    rate = {"low": 0.25, "high": 0.5}
    print_table("a title", ("name", "share"), [["first", f"40%{interval(rate, '.0%')}"], None, ["second", "-"]])
    text = capsys.readouterr().out
    assert "a title" in text and "40% [25%, 50%]" in text
    assert interval({"low": None, "high": None}) == ""
    assert interval(rate, "+.1f", 100) == " [+25.0, +50.0]"


def test_data_is_never_markup(capsys):
    """A tag that nothing opens ended the printing; a colon on both sides of a word became a picture."""
    rows = [["[/bold]", "[red]40%[/red]"], ["[link=x]", ":car: \\[1]"], ["$a_b$ <b>", "-"]]
    print_table("[/title] :warning:", ("[i]name", "share"), rows)
    text = capsys.readouterr().out
    for words in [*(cell for row in rows for cell in row), "[/title] :warning:", "[i]name"]:
        assert words in text, words


def test_a_name_in_a_picture_is_no_formula(tmp_path):
    figure = new_figure(3, 2)
    axes = figure.subplots()
    axes.bar(["$\\frac$", "a_b $ c $"], [1, 2])
    axes.set_title("costs $5, $\\x$ and more")
    save(figure, tmp_path / "new" / "picture.png")
    assert (tmp_path / "new" / "picture.png").stat().st_size > 1000


def test_numbers_stay_whole_and_names_make_room(capsys):
    console(40).print(table(None, ("name", "number"), [["n" * 60, "0.1234567890"]], whole=True))
    assert "0.1234567890" in capsys.readouterr().out


def test_csv_in_a_new_folder(tmp_path):
    write_csv(tmp_path / "new" / "a.csv", ("id", "text"), [[1, 'a "b", c']])
    assert (tmp_path / "new" / "a.csv").read_text().splitlines() == ["id,text", '1,"a ""b"", c"']
