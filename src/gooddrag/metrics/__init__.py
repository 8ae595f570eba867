"""How good is an edit? Metrics that know no method, as methods know no metric."""

from gooddrag.metrics.accuracy import DraggingAccuracy
from gooddrag.metrics.distance import MeanDistance
from gooddrag.metrics.endpoints import Gemini, OpenAICompatible
from gooddrag.metrics.features import Dift
from gooddrag.metrics.fidelity import ImageFidelity
from gooddrag.metrics.gscore import GScore, Judge
from gooddrag.metrics.score import collection, score
from gooddrag.metrics.statistics import Interval, bootstrap_difference, bootstrap_mean
from gooddrag.metrics.true_handle import SceneFit, TrueHandle
from gooddrag.metrics.truth import TruthError

__all__ = [
    "Dift",
    "DraggingAccuracy",
    "GScore",
    "Gemini",
    "ImageFidelity",
    "Interval",
    "Judge",
    "MeanDistance",
    "OpenAICompatible",
    "SceneFit",
    "TrueHandle",
    "TruthError",
    "bootstrap_difference",
    "bootstrap_mean",
    "collection",
    "score",
]
