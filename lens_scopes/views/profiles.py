"""A Profile as HTML: its labels with means, standard errors and bars."""

from typing import TYPE_CHECKING

from lens_scopes.views import cells, markup

if TYPE_CHECKING:
    from lens_scopes.results.profiles import Profile

_LISTED = 40


def profile_html(profile: "Profile") -> str:
    """A self-contained fragment."""
    return markup.figure(profile.title, profile_body(profile))


def profile_body(profile: "Profile") -> str:
    """The same without its title; of very many labels those with the largest means, in their order."""
    means, errors, counts = profile.mean.tolist(), profile.stderr.tolist(), profile.prompts.tolist()
    largest = markup.bound([means])
    ranked = profile.mean.abs().argsort(descending=True, stable=True)[:_LISTED].tolist()
    kept = list(range(len(means))) if profile.ordered else sorted(ranked)
    rows, columns = [], [profile.by.replace("_", " "), "mean", "± stderr", "prompts"]
    for i in kept:
        length = [] if profile.lengths is None else [markup.number(profile.lengths[i])]
        told = [markup.number(means[i]), markup.number(errors[i]), str(counts[i])]
        rows.append([markup.named(profile.labels[i]), *length, *told])
    if profile.lengths is not None:
        columns.insert(1, "tokens")
    left = len(means) - len(kept)
    more = f"; {left} labels with smaller means are left out" if left else ""
    bars = [cells.bar(means[i], largest) for i in kept]
    note = f"{profile.unit}; standard errors over prompts{more}"
    return markup.numbers(columns, rows, bars) + markup.remark(note)
