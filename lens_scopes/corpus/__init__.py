"""Data sets of prompts: a run that scores them into a folder, can be killed and goes on, and what it left there."""

from lens_scopes.corpus.driver import run
from lens_scopes.corpus.read import Corpus, open

__all__ = ["Corpus", "open", "run"]
