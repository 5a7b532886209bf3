"""Colours of the pages that have to be told apart from what is written on them."""

import re

from metasae.explore.web.page_files import STATIC


def luminance(colour):
    """WCAG 2.2: relative luminance of #rrggbb."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    pale, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (pale + 0.05) / (dark + 0.05)


def mixed(colour, under, share):
    """As color-mix in srgb. share: of the colour, 0 to 1."""
    pairs = [(int(colour[i : i + 2], 16), int(under[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(share * above + (1 - share) * below):02x}" for above, below in pairs)


def test_text_can_be_read_on_the_strongest_shade_in_both_themes():
    css = (STATIC / "style.css").read_text()
    strongest = max(int(share) for share in re.findall(r"--p: (\d+)%", css)) / 100
    themes = re.findall(r":root(?:\[data-theme=\"dark\"\])? \{\n(.*?)\n\}", css, re.DOTALL)
    assert len(themes) == 2
    for theme in themes:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6});", theme))
        colours = {
            name: c if len(c) == 7 else "#" + "".join(2 * digit for digit in c[1:]) for name, c in colours.items()
        }
        shades = [name for name in colours if name.startswith(("heat-", "shade-"))]
        assert len(shades) == 13
        for name in shades:
            assert contrast(colours["ink"], mixed(colours[name], colours["card"], strongest)) >= 4.5, name


def test_the_letters_of_children_can_be_read_on_their_colours_in_both_themes():
    css = (STATIC / "style.css").read_text()
    (ink,) = re.findall(r"\.swatch \{[^}]*[ ;]color: (#[0-9a-f]{3});", css)
    backs = re.findall(r"--child-\d: (#[0-9a-f]{6})", css)
    assert len(backs) == 10
    for back in backs:
        assert contrast(back, "#" + "".join(2 * digit for digit in ink[1:])) >= 4.5, back
