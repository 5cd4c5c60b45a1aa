"The ground floor: errors, whole files, estimates, recipes; what every room uses."
from .._places import front

__getattr__ = front(__name__)
