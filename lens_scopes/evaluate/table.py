"""Methods side by side on the same prompts: paired differences to a baseline, with intervals and corrected p-values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lens_scopes.evaluate.ablation import Ablation, Replace
from lens_scopes.evaluate.curve import (
    FRACTIONS,
    Curve,
    Mode,
    coinciding,
    counts,
    out_masks,
    per_token,
    ranked_positions,
    refuse_mode,
    shares,
)
from lens_scopes.evaluate.intervals import bootstrap_interval, holm, interval_text, sign_flip_p
from lens_scopes.evaluate.journal import Journal, told_hooks, told_method
from lens_scopes.evaluate.leave_one_out import divergence
from lens_scopes.evaluate.methods import REFERENCES, Method, attribute, named
from lens_scopes.evaluate.protocol import Protocol, ask
from lens_scopes.host.fingerprint import weights
from lens_scopes.host.prompts import Prompt
from lens_scopes.host.undo import guarded
from lens_scopes.results import files, labelled, wellformed
from lens_scopes.results.arguments import Integer, flag, integer, listed, probability, seeded, shown
from lens_scopes.results.provenance import Meta, versions
from lens_scopes.scopes.protocol import Scope
from lens_scopes.views import markup

if TYPE_CHECKING:
    import pandas as pd

AnyMethod = str | Scope | Method
RANK = "loo_rank_%"


@dataclass(frozen=True, eq=False, repr=False)
class Table:
    """One number per method, prompt and measure. Everything else is computed from these.

    Measures: the change of the clean prediction's log probability at each share of tokens taken out ("0.05", ...),
    their mean ("aopc"), and, where asked for, the leave-one-out rank of the method's first token in percent
    ("loo_rank_%"). For all of them lower is better.
    """

    values: Float[Tensor, "method prompt measure"]
    methods: tuple[str, ...]
    measures: tuple[str, ...]
    baseline: str
    seed: int = 0
    meta: Meta = field(default_factory=Meta)

    def __post_init__(self) -> None:
        """Check labels against the shape, and that the baseline is one of the methods."""
        coords = {"method": self.methods, "prompt": tuple(range(self.values.shape[1])), "measure": self.measures}
        labelled.check_labels(self.values, tuple(coords), coords)
        if self.baseline not in self.methods:
            msg = f"the baseline {self.baseline!r} is not among the methods {', '.join(self.methods)}"
            raise ValueError(msg)

    @property
    def means(self) -> Float[Tensor, "method measure"]:
        """Over prompts."""
        return self.values.mean(1)

    @cached_property
    def intervals(self) -> Float[Tensor, "2 method measure"]:
        """95 % studentised bootstrap intervals of the means; NaN for fewer than 10 prompts."""
        return bootstrap_interval(self.values.movedim(1, 0), seed=self.seed)

    @property
    def differences(self) -> Float[Tensor, "method prompt measure"]:
        """Method − baseline on the same prompt."""
        return self.values - self.values[self.methods.index(self.baseline)]

    @cached_property
    def difference_intervals(self) -> Float[Tensor, "2 method measure"]:
        """The same of the mean differences."""
        return bootstrap_interval(self.differences.movedim(1, 0), seed=self.seed)

    @cached_property
    def p(self) -> Float[Tensor, "method measure"]:
        """Paired sign-flip test of no difference, Holm-corrected for all methods of a measure; NaN for the baseline.

        References that nobody asked for are corrected with the others, and do not make their correction stricter.
        """
        others = [m for m, name in enumerate(self.methods) if name != self.baseline]
        found = torch.full(self.means.shape, torch.nan, dtype=torch.float64, device="cpu")
        if others:
            found[others] = sign_flip_p(self.differences[others].movedim(1, 0), self.seed)
            raw, added = found.clone(), self.meta.get("references", ())
            for family in (others, [m for m in others if self.methods[m] not in added]):
                if family:
                    found[family] = torch.stack([holm(column) for column in raw[family].T], 1)
        return found

    def curve(self, method: str) -> Curve:
        """The ablation curve of one method.

        Raises:
            KeyError: no such method.

        """
        index = labelled.index_of({"method": self.methods}, "method", method)
        shares = [i for i, name in enumerate(self.measures) if name not in ("aopc", RANK)]
        return Curve(self.values[index][:, shares], tuple(float(self.measures[i]) for i in shares), self.meta)

    def verdict(self, method: str, measure: str = "aopc", level: float = 0.05) -> str:
        """ "better", "worse" or "no difference" than the baseline, by the corrected test.

        Raises:
            KeyError: no such method or measure.

        """
        m = labelled.index_of({"method": self.methods}, "method", method)
        i = labelled.index_of({"measure": self.measures}, "measure", measure)
        if not self.p[m, i] < probability(level, "level"):
            return "no difference"
        return "better" if self.differences[m, :, i].mean() < 0 else "worse"

    def to_dataframe(self) -> "pd.DataFrame":
        """A row per method and measure: mean, its interval, difference to the baseline, its interval, corrected p.

        Intervals of fewer than 10 prompts are NaN.
        """
        columns = {
            "mean": self.means,
            "low": self.intervals[0],
            "high": self.intervals[1],
            "difference": self.differences.mean(1),
            "difference_low": self.difference_intervals[0],
            "difference_high": self.difference_intervals[1],
            "p_holm": self.p,
        }
        coords = {"method": self.methods, "measure": self.measures}
        return labelled.dataframe(columns, ("method", "measure"), coords, {})

    def per_prompt(self) -> "pd.DataFrame":
        """Long form: a row per method, prompt and measure."""
        coords = {"method": self.methods, "prompt": tuple(range(self.values.shape[1])), "measure": self.measures}
        return labelled.dataframe({"value": self.values}, tuple(coords), coords, {})

    def to_markdown(self, measures: Sequence[str] | None = None) -> str:
        """Means, and differences to the baseline with their intervals; * where the corrected p is below 0.05.

        Fewer than 10 prompts have no interval: "too few" stands in its place. Where prompts are so short that shares
        coincide, a sentence under the table says on how many.
        """
        columns, rows = self._cells(measures)
        lines = [" | ".join(columns), " | ".join("---" for _ in columns), *(" | ".join(row) for row in rows)]
        table = "\n".join(f"| {line} |" for line in lines)
        return f"{table}\n\n{said[0].upper()}{said[1:]}." if (said := self._coinciding()) else table

    def save(self, path: str | Path) -> Path:
        """Write to one safetensors file with a JSON header, whole or not at all."""
        header = {"methods": self.methods, "measures": self.measures, "baseline": self.baseline, "seed": self.seed}
        return files.save(path, "Table", {"values": self.values}, header | {"meta": self.meta}, self._of)

    @classmethod
    def load(cls, path: str | Path) -> "Table":
        """Read what ``save`` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a file that is cut short, of another kind or of another schema.

        """
        return files.load(path, "Table", cls._of)

    @classmethod
    def _of(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> "Table":
        wellformed.refuse_misfit(header, wellformed.TableHeader)
        values, prompts = tensors["values"], header["meta"].get("lengths", tensors["values"][0])
        wellformed.refuse_shape("values", values, len(header["methods"]), len(prompts), len(header["measures"]))
        wellformed.refuse_prompts(values, len(prompts), header["meta"])
        shares([float(name) for name in header["measures"] if name not in ("aopc", RANK)])
        labels = (tuple(header["methods"]), tuple(header["measures"]), header["baseline"], header["seed"])
        return cls(tensors["values"], *labels, header["meta"])

    def __repr__(self) -> str:
        """One line."""
        return f"Table({len(self.methods)} methods, {self.values.shape[1]} prompts; {', '.join(self.measures)})"

    def _repr_html_(self) -> str:
        """What ``to_markdown`` says, as HTML: escaped, no script."""
        columns, rows = self._cells(None)
        note = f"differences to {self.baseline} on the same prompts, 95 % intervals; * p < 0.05 (sign flips, Holm)"
        note = "; ".join(filter(None, (note, self._coinciding())))
        return markup.figure(repr(self), markup.numbers(columns, rows), note=note)

    def _coinciding(self) -> str:
        fractions = [float(name) for name in self.measures if name not in ("aopc", RANK)]
        return coinciding(fractions, self.meta.get("taken", ()))

    def _cells(self, measures: Sequence[str] | None) -> tuple[list[str], list[list[str]]]:
        if isinstance(measures, str) or not isinstance(measures, Sequence | None):
            msg = f"measures is a list of them, got {shown(measures)}; write e.g. ['aopc']"
            raise TypeError(msg)
        chosen = [labelled.index_of({"measure": self.measures}, "measure", name) for name in measures or self.measures]
        columns = ["method", *(text for i in chosen for text in (self.measures[i], f"Δ {self.measures[i]}"))]
        low, high = self.difference_intervals
        mean = self.differences.mean(1)
        rows = []
        for m, name in enumerate(self.methods):
            row = [name]
            for i in chosen:
                star = "*" if self.p[m, i] < 0.05 else ""
                ends = interval_text(float(low[m, i]), float(high[m, i]), self.values.shape[1])
                delta = f"{mean[m, i]:+.3f} {ends}{star}"
                row += [f"{self.means[m, i]:.3f}", "baseline" if name == self.baseline else delta]
            rows.append(row)
        return columns, rows


@guarded
def compare_methods(
    model: Any,
    prompts: Sequence[Prompt],
    methods: Sequence[str] | Mapping[str, AnyMethod],
    *,
    baseline: str = "gradient_x_input",
    seed: int = 0,
    fractions: Sequence[float] = FRACTIONS,
    replace: Replace = "zero",
    mode: Mode = "comprehensiveness",
    protocol: Protocol = None,
    skip: Sequence[Integer] = (),
    corpus: Sequence[Integer] | None = None,
    leave_one_out: bool = False,
    resume: str | Path | None = None,
) -> Table:
    """Ablate what each method ranks highest, on the same prompts, with the same draws, and compare pair by pair.

    Every table has two rows that need no attribution: the last tokens first, and the first one, <bos> where there is
    one, first. Tokens that several methods take out are taken out once.

    Args:
        model: a HookedTransformer or TransformerBridge, in eval mode. It is left as it came.
        prompts: see ``score``.
        methods: names (``lens_scopes.evaluate.METHODS``), or scopes and functions by the name that they get there.
        baseline: the method that differences are taken to; added if it is not among the methods.
        seed: of random rankings, resampled tokens, bootstrap and sign flips.
        fractions: see ``ablation_curve``.
        replace: see ``ablation_curve``.
        mode: see ``ablation_curve``.
        protocol: see ``ablation_curve``.
        skip: see ``ablation_curve``.
        corpus: see ``ablation_curve``.
        leave_one_out: also rank each method's first token among all tokens' leave-one-out effects.
        resume: a file (JSON lines) that rows are appended to as they come; those that it holds are not computed again.

    Raises:
        ValueError: see ``ablation_curve``; an unknown method; ``resume`` holds the rows of another comparison.
        TypeError: see ``ablation_curve``.

    """
    if not isinstance(baseline, str):
        msg = f"baseline is the name of a method, got {shown(baseline)}; write baseline='gradient_x_input'"
        raise TypeError(msg)
    seed, leave_one_out = seeded(seed), flag(leave_one_out, "leave_one_out (whether tokens are ranked by it)")
    fractions, skip = (
        shares(fractions),
        [integer(one, "skip is a list of positions; a position") for one in listed(skip)],
    )
    refuse_mode(mode)
    by_name: dict[str, AnyMethod] = named(methods)
    by_name.setdefault(baseline, baseline)
    references = [name for name in REFERENCES if name not in by_name]
    by_name |= {name: name for name in references}
    questions = ask(model, prompts, protocol, seed)
    measures = (*map(_label, fractions), "aopc", *((RANK,) if leave_one_out else ()))
    how: Meta = {
        "replace": replace,
        "mode": mode,
        "skip": skip,
        "protocol": protocol,
        "model": questions[0].host.name,
        "hooks": list(questions[0].host.hooked()),
        "lengths": [len(q.tokens) for q in questions],
        "taken": [counts(len(ranked_positions(q, skip, protocol)), fractions) for q in questions],
        "references": references,
    }
    ablation = Ablation.of(questions, replace, corpus, seed)
    asked = {"measures": measures, "seed": seed, "prompts": [q.ids for q in questions], "fractions": fractions}
    if resume is not None:
        host = questions[0].host
        told = {name: told_method(name, method) for name, method in by_name.items()}
        drawn = [ids.tolist() for ids in ablation.substitutes]
        asked |= {"methods": told, "weights": weights(host), "drawn": drawn, **told_hooks(host)}
    rows = Journal.open(resume, {**how, **asked})
    for number, question in enumerate(tqdm(questions, desc="comparing methods")):
        if number in rows:
            continue
        values = [per_token(attribute(question, method), question) for method in by_name.values()]
        masks = [out_masks(v, question, fractions, mode, skip, protocol) for v in values]
        out, alone = torch.cat(masks), torch.eye(len(question.tokens), dtype=torch.bool, device="cpu")
        kept = ranked_positions(question, skip, protocol)
        said = ablation.log_probs(question, number, torch.cat([out, alone[kept if leave_one_out else []]]))
        changes = said[: len(out), question.watched] - question.log_probs[question.watched]
        deltas = changes.cpu().reshape(len(values), len(fractions))
        columns = [*deltas.T, deltas.mean(1)]
        if leave_one_out:
            effects = divergence(question.log_probs, said[len(out) :], protocol).cpu()
            columns.append(_ranks(effects, kept, values))
        rows.add(number, torch.stack(columns, 1))
    return Table(rows.stack(), tuple(by_name), measures, baseline, seed, how | {"versions": versions()})


def _label(fraction: float) -> str:
    """A share as the name of its column, from which it can be read back."""
    return short if float(short := f"{fraction:g}") == fraction else repr(fraction)


def _ranks(effects: Float[Tensor, " kept"], kept: list[int], values: list[Tensor]) -> Float[Tensor, " method"]:
    """100 · rank / n of each method's first token by leave-one-out KL, among the tokens that are ranked at all."""
    order = effects.argsort(descending=True, stable=True).tolist()
    firsts = [int(v[kept].argmax()) for v in values]
    return torch.tensor([100 * order.index(first) / len(kept) for first in firsts], dtype=torch.float64, device="cpu")
