"""Colours of the pages that have to be told apart from what is written on them."""

import re

from metasae.explore.web.page_files import STATIC


def luminance(colour):
    """WCAG 2.2: relative luminance of #rrggbb."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_letters_of_children_can_be_read_on_their_colours_in_both_themes():
    css = (STATIC / "style.css").read_text()
    (ink,) = re.findall(r"\.swatch \{[^}]*[ ;]color: (#[0-9a-f]{3});", css)
    backs = re.findall(r"--child-\d: (#[0-9a-f]{6})", css)
    assert len(backs) == 10
    for back in backs:
        pale, dark = sorted((luminance(back), luminance("#" + "".join(2 * digit for digit in ink[1:]))), reverse=True)
        assert (pale + 0.05) / (dark + 0.05) >= 4.5, back
