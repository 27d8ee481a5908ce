"""Text that is another token with, or without, a leading blank: said where the model finds that far likelier."""

from lens_scopes.results.warning import warn
from lens_scopes.scopes.state import FinalState

# A text is doubted where its twin is so many times likelier.
_LIKELIER = 10


def doubt(state: FinalState, text: str, found: int) -> None:
    """Warn where the token that was found for a text is far less likely than the text's twin."""
    twin = state.twin(text) if state.y.ndim == 1 else None
    if twin is not None and state.probs[twin[1]] >= _LIKELIER * state.probs[found]:
        other, p, q = twin[0], float(state.probs[found]), float(state.probs[twin[1]])
        msg = (
            f"the target {text!r} (id {found}, p {p:.2g}) differs by a blank from {other!r} (id {twin[1]}, "
            f"p {q:.2g}): the model finds that far likelier; write {other!r} if it is meant, else the id {found}"
        )
        warn(msg)
