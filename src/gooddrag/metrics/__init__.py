"""How good is an edit? Metrics that know no method, as methods know no metric."""

from gooddrag.metrics.accuracy import DraggingAccuracy
from gooddrag.metrics.distance import MeanDistance
from gooddrag.metrics.features import Dift
from gooddrag.metrics.fidelity import ImageFidelity
from gooddrag.metrics.score import collection, score
from gooddrag.metrics.true_handle import SceneFit, TrueHandle
from gooddrag.metrics.truth import TruthError

__all__ = [
    "Dift",
    "DraggingAccuracy",
    "ImageFidelity",
    "MeanDistance",
    "SceneFit",
    "TrueHandle",
    "TruthError",
    "collection",
    "score",
]
