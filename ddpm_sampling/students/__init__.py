"Networks that are trained here."
from .._places import front

__getattr__ = front(__name__)
