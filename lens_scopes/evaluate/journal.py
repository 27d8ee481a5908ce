"""The rows of a table while it is being computed: one line of JSON per prompt, appended, so that a run can go on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_scopes.host import Host
from lens_scopes.host.hooks import hooks_of
from lens_scopes.results import files
from lens_scopes.results.provenance import digest
from lens_scopes.results.sameness import untold
from lens_scopes.scopes.protocol import data_of


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


def told_hooks(host: Host) -> dict[str, Any]:
    """The user's own hooks, so that others are told apart.

    Raises:
        ValueError: a hook that reads what has no identity in data.

    """
    found = hooks_of(host)
    if why := untold(found):
        msg = (
            f"resume cannot tell whether the hooks in force are the same in a later run: {why}; compare without resume"
        )
        raise ValueError(msg)
    return found


def told_method(name: str, method: Any) -> Any:
    """A method so that another one of the same name is told apart.

    Raises:
        ValueError: a function that reads what has no identity in data: a model, a file.

    """
    if isinstance(method, str):
        return method
    data = data_of(method)
    if why := untold(data):
        msg = (
            f"resume cannot tell whether {name!r} is the same method in a later run: {why}; give it numbers, texts and "
            "tensors alone (a method gets the model as question.model), or compare without resume"
        )
        raise ValueError(msg)
    return data
