from qbheat_mm.text import join_names, printable


def test_a_message_is_one_line_whatever_the_names():
    assert printable('a\nb\x1b[31m\ud800 ü 図\u2028') == 'a\\nb\\x1b[31m\\ud800 ü 図\\u2028'
    assert join_names(['a\nb', 'c', 'd'], 2) == 'a\\nb, c and 1 more'
