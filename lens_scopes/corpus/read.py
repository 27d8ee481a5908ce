"""What a run has left in its folder, finished or not: counts, errors, Scores, and tables to ask questions of."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, overload

from lens_scopes.corpus import means, parts, queries
from lens_scopes.corpus.plan import Plan
from lens_scopes.results import prompt_means
from lens_scopes.results.arguments import Integer
from lens_scopes.results.profiles import By, Profile
from lens_scopes.results.scores import Scores

if TYPE_CHECKING:
    import duckdb
    import pandas as pd


def open(out: str | Path) -> "Corpus":
    """The results in the folder of a run, which may still be at work.

    Raises:
        FileNotFoundError: there is no run in it.
        ValueError: it was written by a version that this one does not understand.

    """
    return Corpus(Plan.read(out))


@dataclass(frozen=True, eq=False, repr=False)
class Corpus:
    """The results of a run, in its folder. Nothing is read before it is asked for.

    Example:
        >>> found = ls.corpus.open("runs/a")  # doctest: +SKIP
        >>> found.errors()  # doctest: +SKIP
        >>> found.sql("select token, avg(score) from tokens where site = 'hook_embed' group by token")  # doctest: +SKIP

    """

    plan: Plan

    @property
    def out(self) -> Path:
        """The folder."""
        return self.plan.out

    @property
    def done(self) -> int:
        """How many prompts have scores."""
        return self._counted[0]

    @property
    def failed(self) -> int:
        """How many prompts could not be scored; see ``errors``."""
        return self._counted[1]

    @property
    def todo(self) -> int:
        """How many prompts have no result yet."""
        return len(self.plan) - sum(self._counted)

    def errors(self) -> "pd.DataFrame":
        """A row per prompt that could not be scored: row, id, error_kind, error."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        columns = ["row", "id", "error_kind", "error"]
        found = [pq.read_table(path, columns=columns) for path in self._paths]
        failed = [table.filter(pc.field("error").is_valid()) for table in found]
        empty = self.plan.table.select(["row", "id"]).slice(0, 0)
        for name in columns[2:]:
            empty = empty.append_column(name, pa.array([], pa.string()))
        return pa.concat_tables([empty, *failed]).sort_by("row").to_pandas()

    @overload
    def scores(self) -> Iterator[Scores]: ...
    @overload
    def scores(self, id: str) -> Scores: ...
    def scores(self, id: str | None = None) -> Iterator[Scores] | Scores:
        """All Scores, unit by unit (longest prompts first), or those of one prompt.

        Raises:
            KeyError: no prompt has that id.
            ValueError: that prompt could not be scored, or is not done yet.

        """
        if id is None:
            return (scores for path in self._paths for scores in _scores(path))
        import pyarrow.compute as pc

        planned = self.plan.table.filter(pc.field("id") == str(id))
        if not planned.num_rows:
            msg = f"no prompt of {self.out} has the id {id!r}; .plan.table['id'] has those there are"
            raise KeyError(msg)
        path = parts.path_of(self.out, planned["unit"][0].as_py())
        if not path.is_file():
            msg = f"the prompt {id!r} is not done yet; ls.corpus.run(...) with this folder goes on"
            raise ValueError(msg)
        (row,) = (row for row in parts.rows_of(path) if row["id"] == str(id))
        if row["error"] is not None:
            msg = f"the prompt {id!r} has no scores: {row['error_kind']}: {row['error']}"
            raise ValueError(msg)
        return parts.scores_of(row, parts.sites_of(path))

    def prompts(self) -> "duckdb.DuckDBPyRelation":
        """A row per prompt, those that failed too: what a part holds (see ``corpus.parts``), as a DuckDB relation.

        Raises:
            ImportError: DuckDB is not installed.
            ValueError: no unit is done yet.

        """
        return self._tables().table("prompts")

    def tokens(self) -> "duckdb.DuckDBPyRelation":
        """A row per score, as a DuckDB relation: row, id, target_pos, site, pos, token, head, score, stderr.

        Raises:
            ImportError: see ``prompts``.
            ValueError: see ``prompts``.

        """
        return self._tables().table("tokens")

    def heads(self) -> "duckdb.DuckDBPyRelation":
        """A row per head and MLP of each prompt's flow, as a DuckDB relation: layer, head, kind, influence, share.

        Raises:
            ImportError: see ``prompts``.
            ValueError: see ``prompts``; or the run was made without flow=True.

        """
        self._refuse_without_flow()
        return self._tables().table("heads")

    def sql(self, text: str) -> "duckdb.DuckDBPyRelation":
        """A question in SQL about the views prompts, tokens and heads; ``.df()`` of the answer is a DataFrame.

        Raises:
            ImportError: see ``prompts``.
            ValueError: see ``prompts``.

        """
        return self._tables().sql(text)

    def profile(
        self, by: By = "site", *, site: str | None = None, top: Integer | None = None, bins: Integer = 10
    ) -> Profile:
        """Means over prompts with standard errors, as ``ls.profile`` of all Scores (by="head": Flows) gives them.

        Args:
            by: see ``ls.profile``.
            site: of which site, where the run has several and the profile is about one.
            top: by="token": the labels that most prompts have, by default 50.
            bins: see ``ls.profile``.

        Raises:
            ImportError: see ``prompts``.
            ValueError: see ``ls.profile``; a site that has to be named; heads of a run without flow=True or sites="z".

        """
        if by == "span":
            picked = (one if site is None else one.sel(site=site) for one in self.scores())
            return prompt_means.profile([one.aggregate("span") for one in picked], "span")
        if by == "head" and self.plan.question["flow"]:
            self._refuse_without_flow()
        return means.profile(self._tables(), self.plan, by, site, top, bins)

    def _refuse_without_flow(self) -> None:
        if not self.plan.question["flow"]:
            msg = f"the run in {self.out} has no flows; run it with flow=True, into another folder"
            raise ValueError(msg)

    @property
    def _paths(self) -> list[Path]:
        """The parts that are there, in the order of the plan."""
        return [path for unit, _ in self.plan.slices() if (path := parts.path_of(self.out, unit)).is_file()]

    @property
    def _counted(self) -> tuple[int, int]:
        """How many prompts have scores, and how many an error."""
        import pyarrow.parquet as pq

        errors = [pq.read_table(path, columns=["error"])["error"] for path in self._paths]
        failed = sum(len(one) - one.null_count for one in errors)
        return sum(map(len, errors)) - failed, failed

    @cached_property
    def _connection(self) -> "duckdb.DuckDBPyConnection":
        try:
            import duckdb
        except ImportError as missing:
            msg = "tables and profiles of a corpus need DuckDB: pip install 'lens-scopes[corpus]'"
            raise ImportError(msg) from missing
        return duckdb.connect()

    def _tables(self) -> "duckdb.DuckDBPyConnection":
        """The views, of the parts that are there now."""
        paths = self._paths
        if not paths:
            msg = f"no unit of the run in {self.out} is done yet; ls.corpus.run(...) with this folder goes on"
            raise ValueError(msg)
        question = self.plan.question
        views = {"prompts": queries.prompts(paths), "tokens": queries.tokens(question["sites"])}
        views["heads"] = queries.heads(question["layers"])
        for name, text in views.items():
            self._connection.execute(f"create or replace view {name} as {text}")
        return self._connection

    def __repr__(self) -> str:
        """One line."""
        done, failed = self._counted
        told = f"{done:,} of {len(self.plan):,} prompts done, {failed:,} failed"
        return f"Corpus({str(self.out)!r}: {self.plan.question['scope']['text']}, {told})"


def _scores(path: Path) -> Iterator[Scores]:
    sites = parts.sites_of(path)
    return (parts.scores_of(row, sites) for row in parts.rows_of(path) if row["error"] is None)
