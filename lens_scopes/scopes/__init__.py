"""The scopes: recipes from the final state of a model to the cotangents that are pulled back through its Jacobian."""

from lens_scopes.scopes.continuation import Continuation
from lens_scopes.scopes.direction import Direction
from lens_scopes.scopes.entropy import Entropy
from lens_scopes.scopes.fisher import Fisher
from lens_scopes.scopes.metric import Metric
from lens_scopes.scopes.semantic import Semantic
from lens_scopes.scopes.temperature import Temperature

__all__ = ["Continuation", "Direction", "Entropy", "Fisher", "Metric", "Semantic", "Temperature"]
