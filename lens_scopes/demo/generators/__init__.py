"""List the five generators by kind; each is a function (random generator, held out or not) -> Draft."""

from collections.abc import Callable
from random import Random

from lens_scopes.demo.draft import Draft
from lens_scopes.demo.generators import induction, ioi, persona, series, translation

GENERATORS: dict[str, Callable[[Random, bool], Draft]] = {
    "induction": induction.draft,
    "ioi": ioi.draft,
    "translation": translation.draft,
    "persona": persona.draft,
    "series": series.draft,
}
