"""The rows of a table while it is being computed: one line of JSON per prompt, appended, so that a run can go on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.results import files
from lens_scopes.results.provenance import digest


@dataclass(frozen=True, eq=False)
class Journal:
    """What is known so far, by the number of the prompt."""

    path: Path | None
    known: dict[int, Float[Tensor, "method measure"]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: str | Path | None, asked: Mapping[str, Any]) -> "Journal":
        """Read what an earlier run left, or begin; without a path nothing is kept.

        Args:
            path: the file.
            asked: everything that the rows depend on. Its fingerprint is the first line.

        Raises:
            ValueError: the file belongs to another comparison.

        """
        if path is None:
            return cls(None)
        path = files.path_of(path)
        header = json.dumps({"comparison": digest(asked)})
        # A line that an interrupted run left unfinished has no end of line: it is dropped.
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
        if lines and lines[0] != header:
            msg = (
                f"{path} holds rows of another comparison (other prompts, methods, options, model or seed); write "
                "another path, or delete it"
            )
            raise ValueError(msg)
        files.write(path, "".join(f"{line}\n" for line in lines or [header]))
        found = [json.loads(line) for line in lines[1:]]
        return cls(
            path, {row["prompt"]: torch.tensor(row["values"], dtype=torch.float64, device="cpu") for row in found}
        )

    def __contains__(self, number: int) -> bool:
        """Whether the row of a prompt is known."""
        return number in self.known

    def add(self, number: int, values: Float[Tensor, "method measure"]) -> None:
        """Keep a row, at once."""
        self.known[number] = values
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"prompt": number, "values": values.tolist()}) + "\n")

    def stack(self) -> Float[Tensor, "method prompt measure"]:
        """All rows, in the order of the prompts."""
        return torch.stack([self.known[number] for number in sorted(self.known)], 1)
