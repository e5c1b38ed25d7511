"""Images in, masks out: tiling, the way back to a file's grid, and the files themselves."""

from hssl.prediction.predict import predict
from hssl.prediction.predictor import Predictor, ahead

__all__ = ["Predictor", "ahead", "predict"]
