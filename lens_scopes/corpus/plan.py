"""The plan of a run: which prompts go together, and what is asked of them. Made once, and kept beside the results.

A unit is some prompts of about one length. What is done is the units whose file is there, so that nothing else has to
be remembered.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_scopes.corpus.parts import names as result_names
from lens_scopes.corpus.rows import Row
from lens_scopes.results import files
from lens_scopes.results.labelled import whole
from lens_scopes.results.provenance import digest, plain
from lens_scopes.results.sameness import untold

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
PLAN, RUN = "plan.parquet", "run.json"
#: The columns of the plan itself; those after them are the input's own.
COLUMNS = ("unit", "row", "id", "length", "asked", "problem")


@dataclass(frozen=True, eq=False)
class Plan:
    """The prompts of a run in units, and the question."""

    out: Path
    table: "pa.Table"
    """A row per prompt, unit by unit."""
    question: Mapping[str, Any]
    """Everything that the numbers depend on, JSON-like."""

    @classmethod
    def make(cls, out: Path, rows: Sequence[Row], question: Mapping[str, Any], unit_tokens: int) -> "Plan":
        """Order prompts by length, longest first, and cut them into units; nothing is written yet.

        Raises:
            ValueError: a column with the name of one of the results'.

        """
        import pyarrow as pa

        extra = list(dict.fromkeys(str(name) for row in rows for name in row.extra))
        taken = [name for name in extra if name in (*COLUMNS, *result_names())]
        if taken:
            msg = f"results have a column {taken[0]!r} of their own, and so have these prompts; rename theirs"
            raise ValueError(msg)

        order = sorted(range(len(rows)), key=lambda n: (-rows[n].length, n))
        units, filled, unit = [], 0, 0
        for n in order:
            if filled and filled + rows[n].length > unit_tokens:
                unit, filled = unit + 1, 0
            units.append(unit)
            filled += max(1, rows[n].length)
        own = pa.table(
            {
                "unit": pa.array(units, pa.int32()),
                "row": pa.array(order, pa.int64()),
                "id": pa.array([whole(rows[n].id) for n in order], pa.string()),
                "length": pa.array([rows[n].length for n in order], pa.int64()),
                "asked": pa.array([rows[n].as_json() for n in order], pa.string()),
                "problem": pa.array([whole(rows[n].problem) for n in order], pa.string()),
            }
        )
        for name in extra:
            own = own.append_column(name, _column([rows[n].extra.get(name) for n in order]))
        return cls(out, own, plain(question))

    @classmethod
    def read(cls, out: str | Path) -> "Plan":
        """The plan of a run that was begun.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it was written by a version that this one does not understand.

        """
        import pyarrow.parquet as pq

        out = files.folder_of(out)
        if not (out / RUN).is_file():
            msg = f"there is no run in {out}: no {RUN}; write the folder that was given to ls.corpus.run"
            raise FileNotFoundError(msg)
        written = json.loads((out / RUN).read_text(encoding="utf-8"))
        if written.get("format") != FORMAT:
            msg = f"{out / RUN} has format {written.get('format')}, this version reads format {FORMAT}"
            raise ValueError(msg)
        return cls(out, pq.read_table(out / PLAN), written["question"])

    def write(self) -> None:
        """Write the plan, and then what says that it is there."""
        import pyarrow.parquet as pq

        buffer = io.BytesIO()
        pq.write_table(self.table, buffer, compression="zstd")
        files.write(self.out / PLAN, buffer.getvalue())
        about = {"format": FORMAT, "question": self.question, "prompts": len(self), "units": self.units}
        files.write(self.out / RUN, json.dumps(about, indent=1))

    def __len__(self) -> int:
        """How many prompts."""
        return self.table.num_rows

    @property
    def units(self) -> int:
        """How many units."""
        return 1 + self.table["unit"][-1].as_py()

    def slices(self) -> Iterator[tuple[int, "pa.Table"]]:
        """Unit by unit, its number and its rows."""
        start = 0
        for unit, rows in groupby(self.table["unit"].to_pylist()):
            size = len(list(rows))
            yield unit, self.table.slice(start, size)
            start += size

    @property
    def digest(self) -> str:
        """The question in one word, which every part carries."""
        return digest(self.question)

    def refuse_other(self, question: Mapping[str, Any]) -> None:
        """Refuse to go on with a run that asked something else.

        Raises:
            ValueError: naming the field that differs, and both values; or a function that cannot be told from others.

        """
        asked = plain(question)
        why = untold(self.question) or untold(asked)
        if why:
            msg = (
                f"{self.out} holds a run already, and whether this asks the same cannot be told: of a function of its "
                f"scope or hooks {why}; write another folder, or give the function numbers, texts and tensors alone"
            )
            raise ValueError(msg)
        for name in dict.fromkeys((*self.question, *asked)):
            was, now = self.question.get(name), asked.get(name)
            if was != now:
                said = f"{name} was {_said(was)}, and is {_said(now)} now"
                said += " (another function)" if _said(was) == _said(now) else ""
                msg = f"{self.out} holds a run of another question: {said}; write another folder, or ask the same"
                raise ValueError(msg)


def digest_of_rows(rows: Sequence[Row]) -> str:
    """The prompts of a run, all that was given with them, and their order."""
    state = hashlib.blake2b(digest_size=16)
    for row in rows:
        state.update(json.dumps([row.id, row.as_json(), plain(row.extra), row.problem], default=str).encode())
    return f"{len(rows)} prompts, {state.hexdigest()}"


def _said(value: Any) -> str:
    return str(value["text"]) if isinstance(value, Mapping) and "text" in value else repr(value)


def _column(values: list[Any]) -> "pa.Array":
    """Values of one type as they are, of several as JSON."""
    import pyarrow as pa

    try:
        found = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, UnicodeError):
        return pa.array([None if one is None else json.dumps(plain(one)) for one in values], pa.string())
    return found.cast(pa.string()) if pa.types.is_null(found.type) else found
