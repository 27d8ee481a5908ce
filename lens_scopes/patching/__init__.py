"""Cause: what a scope predicts that activation patching will do, what it does, and the two side by side.

>>> import lens_scopes as ls
>>> predicted = ls.patching.predict(model, clean, corrupted, ls.Semantic(" Mary", " John"))   # doctest: +SKIP
>>> measured = ls.patching.measure(model, clean, corrupted, ls.Semantic(" Mary", " John"))    # doctest: +SKIP
>>> ls.patching.compare(predicted, measured).spearman                                       # doctest: +SKIP
"""

from lens_scopes.patching.ablate import ablate
from lens_scopes.patching.compare import Comparison, compare
from lens_scopes.patching.measure import measure
from lens_scopes.patching.metric import ScopeMetric, metric
from lens_scopes.patching.predict import predict
from lens_scopes.patching.screen import screen
from lens_scopes.results.prediction import Prediction

__all__ = ["Comparison", "Prediction", "ScopeMetric", "ablate", "compare", "measure", "metric", "predict", "screen"]
