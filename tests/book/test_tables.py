from coalora_lib.book import table, with_interval


def test_table_is_markdown():
    assert table(("a", "b"), [(1, "2")]).data == "| a | b |\n| :-- | --: |\n| 1 | 2 |"


def test_an_interval_has_its_signs_and_holds_together():
    text = with_interval((0.126, -1.0, 2.5))
    assert text.split() == ["+0.13", "(-1.00", "to", "+2.50)"]
    assert text.split(" ") == ["+0.13", "(-1.00\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}+2.50)"]
