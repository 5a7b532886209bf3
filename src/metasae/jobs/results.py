"""`Run`, a finished run as an object: `metasae.run`, `measure` and `train` return it, and `Run(folder)` opens one."""

import html
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from metasae.arms.folder import Arm, RunFolder, read_object
from metasae.compare.catalogue import CATALOGUE
from metasae.errors import UserError
from metasae.jobs.plain_table import Table
from metasae.sae.sae import SAE


class Run:
    """A run folder with its SAEs, measures and report. Each is read when it is first used.

    folder: a run folder. comparison: the content of compare.json, if the caller has it. Raises UserError for a folder
    that is not a run folder.
    """

    def __init__(self, folder: str | Path, comparison: dict | None = None, keeper: Any = None):
        """keeper: an object to keep as long as this one; for a temporary folder the object that deletes it."""
        self.folder, self._keeper = Path(folder), keeper
        self._run = RunFolder(self.folder)
        # raises UserError for a folder that is not a run folder
        self._run.arms()
        if comparison is not None:
            self.comparison = comparison

    @property
    def arms(self) -> list[Arm]:
        """Every arm and seed: `.sae()`, `.meta()`, `.measures()`, `.metrics()`, `.folder`, `.name`, `.seed`."""
        return self._run.arms()

    @cached_property
    def saes(self) -> "Saes":
        """The trained SAEs: `run.saes["joint", 0]` by arm and seed, or `run.saes["joint"]` if the arm has one seed."""
        return Saes([arm for arm in self.arms if arm.is_trained], self.folder)

    @cached_property
    def comparison(self) -> dict:
        """The content of compare.json: conditions, arms, pairs, verdict. Raises UserError if nothing is measured."""
        return read_object(self.folder / "compare.json") or self._concluded()

    def table(self):
        """The main measures: a row for each, a column for each arm with its mean over seeds.

        A pandas DataFrame if pandas is installed, otherwise a `metasae.jobs.plain_table.Table`.
        """
        table = self._table()
        if find_spec("pandas") is None:
            return table
        import pandas

        return pandas.DataFrame(table.rows, columns=table.columns).set_index("measure")

    def report(self) -> Path:
        """The path of report.html, which is written if it is missing. Raises UserError if nothing is measured."""
        path = self.folder / "report.html"
        if not path.is_file():
            self._concluded()
        return path

    def __repr__(self) -> str:
        labels = ", ".join(arm.label for arm in self.arms)
        lines = [f"Run({self.folder}: {labels or 'no arm yet'})"]
        if self._is_measured:
            lines += [repr(self._table()), *self._verdict()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The table of measures and the verdict, for a notebook."""
        title = f"<p><b>{html.escape(str(self.folder))}</b></p>"
        if not self._is_measured:
            return f"{title}<p>nothing is measured yet</p>"
        verdict = "".join(f"<p>{html.escape(line)}</p>" for line in self._verdict())
        return title + self._table()._repr_html_() + verdict

    @property
    def _is_measured(self) -> bool:
        return "comparison" in self.__dict__ or any(arm.is_measured for arm in self.arms)

    def _table(self) -> Table:
        arms = self.comparison["arms"]
        rows = [
            [quantity.label, *(arm["means"].get(quantity.key) for arm in arms.values()), quantity.better or ""]
            for quantity in CATALOGUE
            if quantity.main
        ]
        measured = [row for row in rows if any(value is not None for value in row[1:-1])]
        return Table(["measure", *arms, "better"], measured)

    def _verdict(self) -> list[str]:
        return [line["text"] for line in self.comparison["verdict"]]

    def _concluded(self) -> dict:
        """The comparison, made now; its files are written too."""
        from metasae.jobs.conclude import conclude

        return conclude(self.folder, show=False)


class Saes(Mapping):
    """{(arm, seed): SAE}. An SAE is read when it is first used, and kept."""

    def __init__(self, arms: list[Arm], folder: Path):
        self._arms = {(arm.name, arm.seed): arm for arm in arms}
        self._folder, self._read = folder, {}

    def __getitem__(self, key: str | tuple[str, int]) -> SAE:
        """key: (arm, seed), or the name of an arm with one seed. Raises UserError, which lists the keys, for any
        other.
        """
        key = self._full(key)
        if key not in self._read:
            self._read[key] = self._arms[key].sae()
        return self._read[key]

    def __contains__(self, key: object) -> bool:
        return key in self._arms

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self._arms)

    def __len__(self) -> int:
        return len(self._arms)

    def __repr__(self) -> str:
        return f"<{len(self)} SAEs: {', '.join(map(str, self))}>"

    def _full(self, key: str | tuple[str, int]) -> tuple[str, int]:
        fitting = [pair for pair in self._arms if key in (pair, pair[0])]
        if len(fitting) == 1:
            return fitting[0]
        why = f"{key!r} is {len(fitting)} SAEs" if fitting else f"no SAE {key!r}"
        raise UserError(f"{why} in {self._folder}; there are {', '.join(map(str, self._arms)) or 'none'}")
