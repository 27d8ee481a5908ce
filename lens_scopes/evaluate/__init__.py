"""Faithfulness: does the model's answer hang on the tokens that a method points at.

Ablation curves and leave-one-out as in arXiv 2601.16407 (section on evaluation), and a paired comparison of methods.
The default differs from the authors' protocol: attribution and evaluation aim at one token, the clean prediction of the
prompt's last position. ``protocol="paper"`` does what the authors did (see ``lens_scopes.evaluate.protocol``).
"""

from lens_scopes.evaluate.curve import FULL_CURVE, Curve, ablation_curve
from lens_scopes.evaluate.leave_one_out import leave_one_out, rank_of_top
from lens_scopes.evaluate.methods import METHODS, Question, attribute
from lens_scopes.evaluate.table import Table, compare_methods

__all__ = [
    "FULL_CURVE",
    "METHODS",
    "Curve",
    "Question",
    "Table",
    "ablation_curve",
    "attribute",
    "compare_methods",
    "leave_one_out",
    "rank_of_top",
]
