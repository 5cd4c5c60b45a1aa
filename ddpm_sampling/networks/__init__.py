"Networks and the files that they come in."
from .._places import front

__getattr__ = front(__name__)
