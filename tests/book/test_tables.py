from coalora_lib.book import table


def test_table_is_markdown():
    assert table(("a", "b"), [(1, "2")]).data == "| a | b |\n| :-- | --: |\n| 1 | 2 |"
