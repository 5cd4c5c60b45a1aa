"How good are they? Features, distances, tables and reports."
from .._places import front

__getattr__ = front(__name__)
