"From a checkpoint to images."
from .._places import front

__getattr__ = front(__name__)
