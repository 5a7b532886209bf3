"""What each measure of atomicity says of each pair of dictionaries with a known answer, as Markdown (docs/measures.md
shows it).

    python -m benchmarks.cases [--seeds 12]

A cell says what the measure finds in the second dictionary: `more` or `less` atomic where the 95% interval over worlds
leaves out 0, else `=`; `-` where it has no number. It is fooled, and marked with !, where it says `more` of a case that
is not, or does not say `more` of one that is.
"""

import argparse

from tools.case_measures import TABLES, Reading, read_case
from tools.cases import CASES

SIGNS = {"same": "=", "none": "-"}


def is_fooled(reading: Reading, truth: str) -> bool:
    return (reading.says == "more") != (truth == "more atomic")


def table(labels: list[str], readings: dict[str, dict[str, Reading]], truth: dict[str, str]) -> str:
    """Markdown with a row for each case and a column for each measure; the last row counts how often it is fooled."""
    lines = [
        "| case | in truth | " + " | ".join(label.replace("|", "\\|") for label in labels) + " |",
        "|---|---|" + "---|" * len(labels),
    ]
    for name, by_label in readings.items():
        cells = []
        for label in labels:
            says = by_label[label].says
            cells.append(SIGNS.get(says, says) + (" !" if is_fooled(by_label[label], truth[name]) else ""))
        in_truth = "more" if truth[name] == "more atomic" else "not more"
        lines.append(f"| {name.replace('_', ' ')} | {in_truth} | " + " | ".join(cells) + " |")
    counts = [sum(is_fooled(readings[name][label], truth[name]) for name in readings) for label in labels]
    lines.append("| *fooled* | | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=12, help="worlds drawn for each case")
    seeds = range(options.parse_args().seeds)
    truth = {name: CASES[name](0).says for name in CASES}
    readings = {name: read_case(name, seeds) for name in CASES}
    print(f"{len(seeds)} worlds for each case, drawn from seeds 0 to {len(seeds) - 1}.")
    for title, measures in TABLES.items():
        print(f"\n**{title}**\n\n{table(list(measures), readings, truth)}")


if __name__ == "__main__":
    main()
