"""Generator B: a synthetic warehouse with its truth and its incidents, on which perception is judged.

Written apart from the generator that perception is trained on: bodies, plans, lens, light and painter are its own.
"""

from stille.evals.warehouse.incidents import Incident, incidents
from stille.evals.warehouse.stream import FrameTruth, warehouse

__all__ = ["FrameTruth", "Incident", "incidents", "warehouse"]
