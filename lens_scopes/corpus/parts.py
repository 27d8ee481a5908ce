"""The results of a run: one Parquet file for each unit, whole or not there, with a name that the plan gives."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lens_scopes.results import files
from lens_scopes.results.flow import Flow
from lens_scopes.results.labelled import precision, whole
from lens_scopes.results.provenance import Meta
from lens_scopes.results.scores import Scores

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "parts"
_HEADER = b"lens_scopes"
_DIMS = ("target_pos", "site", "pos", "head")


def _schema() -> "pa.Schema":
    """What a part has for each prompt, besides what the plan has. Everything but error is null of a prompt that failed.

    Numbers are doubles whatever their own precision is, split by bytes, so that the digits which they do not have take
    no room.
    """
    import pyarrow as pa

    numbers, token = pa.list_(pa.float64()), [("id", pa.int32()), ("text", pa.string()), ("p", pa.float64())]
    token = [*token, ("rank", pa.int32())]
    return pa.schema(
        [
            ("error", pa.string()),
            ("error_kind", pa.string()),
            ("token_ids", pa.list_(pa.int32())),
            ("tokens", pa.list_(pa.string())),
            ("positions", pa.list_(pa.int32())),
            ("targets", pa.list_(pa.struct([*token, ("versus", pa.struct(token))]))),
            ("units", pa.string()),
            ("shape", pa.list_(pa.int32())),  # target_pos, site, pos, head; 0 for an axis that is not there
            ("scores", numbers),
            ("stderr", numbers),
            ("probes", numbers),
            ("total", pa.float64()),  # of the flow, as heads and residual
            ("heads", numbers),  # by layer: its heads, then its MLP
            ("residual", pa.float64()),
            ("seconds", pa.float64()),
            ("meta", pa.string()),  # JSON: everything else about how they were obtained
        ]
    )


def names() -> tuple[str, ...]:
    """The columns of results, which no column of the input may be called."""
    return tuple(_schema().names)


@dataclass(frozen=True)
class Answer:
    """What became of one prompt: its results, or why there are none."""

    scores: Scores | None = None
    flow: Flow | None = None
    error: str | None = None
    kind: str | None = None
    seconds: float = 0.0

    def row(self) -> dict[str, Any]:
        """As a part has it."""
        if self.scores is None:
            return {"error": whole(self.error or ""), "error_kind": self.kind, "seconds": self.seconds}
        found, flow = self.scores, self.flow
        meta = {key: value for key, value in found.meta.items() if key not in ("token_ids", "positions", "targets")}
        sizes = dict(zip(found.dims, found.values.shape, strict=True))
        row = {
            "token_ids": found.meta.get("token_ids"),
            "tokens": [whole(token) for token in found.tokens],
            "positions": found.meta.get("positions"),
            "targets": [None if one is None else _target(one) for one in found.meta.get("targets", ())],
            "units": found.units,
            "shape": [sizes.get(dim, 0) for dim in _DIMS],
            "scores": _flat(found.values),
            "stderr": _flat(found.stderr),
            "probes": _flat(found.probes),
            "seconds": self.seconds,
            "meta": json.dumps(meta),
        }
        if flow is not None:
            parts = torch.cat([flow.heads.sum(0), flow.mlps.sum(0)[:, None]], 1)
            row |= {"total": float(flow.total.sum()), "heads": _flat(parts), "residual": flow.residual}
        return row


def scores_of(row: Mapping[str, Any], sites: Sequence[str]) -> Scores:
    """The Scores that a row was made of."""
    meta: Meta = json.loads(row["meta"])
    targets: list[Any] = [
        one and {key: value for key, value in one.items() if value is not None} for one in row["targets"]
    ]
    meta |= {"token_ids": row["token_ids"], "positions": row["positions"], "targets": targets}
    sizes = dict(zip(_DIMS, row["shape"], strict=True))
    shape = [size for size in sizes.values() if size]
    labels = {"target_pos": tuple(row["positions"]), "site": tuple(sites)}
    coords = {dim: labels.get(dim, tuple(range(size))) for dim, size in sizes.items() if size}
    dtype = precision(getattr(torch, meta["dtype"]), row["units"])
    values = torch.tensor(row["scores"], dtype=dtype, device="cpu").reshape(shape)
    probes = row["probes"]
    if probes is not None:
        probes = torch.tensor(probes, dtype=dtype, device="cpu").reshape(-1, *shape)
    return Scores(values, tuple(coords), coords, tuple(row["tokens"]), meta, probes)


def path_of(out: Path, unit: int) -> Path:
    """Where the results of a unit are, once they are there."""
    return out / FOLDER / f"part-{unit:06d}.parquet"


def write(out: Path, planned: "pa.Table", answers: Sequence[Answer], sites: Sequence[str], digest: str) -> None:
    """Write the results of a unit, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = planned.drop_columns(["length", "asked", "problem"])
    rows = [answer.row() for answer in answers]
    for field in _schema():
        table = table.append_column(field, pa.array([row.get(field.name) for row in rows], field.type))
    header = {"digest": digest, "sites": list(sites)}
    table = table.replace_schema_metadata({_HEADER: json.dumps(header).encode()})
    split = [f"{name}.list.element" for name in ("scores", "stderr", "probes", "heads")]
    texts = ["error", "tokens.list.element", "units", "meta"]
    buffer = io.BytesIO()
    options: dict[str, Any] = {"use_dictionary": texts, "use_byte_stream_split": split}
    pq.write_table(table, buffer, compression="zstd", **options)
    files.write(path_of(out, planned["unit"][0].as_py()), buffer.getvalue())


def sites_of(path: Path) -> tuple[str, ...]:
    """The sites of a part's scores."""
    import pyarrow.parquet as pq

    return tuple(json.loads(pq.read_schema(path).metadata[_HEADER])["sites"])


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a part."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=256):
            yield from batch.to_pylist()


def done(out: Path, planned: Mapping[int, int], digest: str) -> set[int]:
    """The units whose results are there and can be read.

    Args:
        out: the folder of the run.
        planned: by unit, how many prompts it has.
        digest: of the question.

    Raises:
        ValueError: a part of another run.

    """
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    found = set()
    for unit in planned:
        path = path_of(out, unit)
        try:
            read = pq.read_metadata(path)
        except (OSError, ArrowException):  # not there, or cut short
            continue
        header = json.loads((read.metadata or {}).get(_HEADER, b"{}"))
        if header.get("digest") != digest or read.num_rows != planned[unit]:
            msg = f"{path} belongs to another run; write another folder, or delete that file"
            raise ValueError(msg)
        found.add(unit)
    return found


def clear(out: Path) -> None:
    """Delete what an interrupted run left half-written. Only for whoever holds the folder's lock."""
    for path in (out / FOLDER).iterdir():
        if not path.match("part-*.parquet"):
            path.unlink(missing_ok=True)


def _flat(values: Tensor | None) -> Any:
    return None if values is None else values.double().flatten().numpy()


def _target(target: Mapping[str, Any]) -> dict[str, Any]:
    versus = target.get("versus")
    return {**target, "text": whole(target["text"])} | ({} if versus is None else {"versus": _target(versus)})
