"""What each measure of atomicity says of each pair of dictionaries with a known answer, as Markdown (docs/measures.md
shows it).

    python -m benchmarks.cases [--seeds 5]

A cell says what the measure finds in the second dictionary: `more` or `less` atomic where the 95% interval over worlds
leaves out 0, else `=`. It is fooled, and marked with !, where it says `more` of a case that is not, or does not say
`more` of one that is.
"""

import argparse

from tools.case_measures import MEASURES, read_case
from tools.cases import CASES


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=5, help="worlds drawn for each case")
    seeds = range(options.parse_args().seeds)
    truth = {name: CASES[name](0).says for name in CASES}
    readings = {name: read_case(name, seeds) for name in CASES}
    print(f"{len(seeds)} worlds for each case, drawn from seeds 0 to {len(seeds) - 1}.\n")
    print("| measure | " + " | ".join(name.replace("_", " ") for name in CASES) + " | fooled |")
    print("|---|" + "---|" * len(CASES) + "---:|")
    print(
        "| *in truth* | "
        + " | ".join("more" if truth[name] == "more atomic" else "not more" for name in CASES)
        + " | |"
    )
    for label in MEASURES:
        cells, fooled = [], 0
        for name in CASES:
            says = readings[name][label].says
            wrong = (says == "more") != (truth[name] == "more atomic")
            fooled += wrong
            cells.append({"same": "=", "none": "-"}.get(says, says) + (" !" if wrong else ""))
        print(f"| {label.replace('|', chr(92) + '|')} | " + " | ".join(cells) + f" | {fooled} |")


if __name__ == "__main__":
    main()
