"Grids, films and comparisons by eye."
from .._places import front

__getattr__ = front(__name__)
