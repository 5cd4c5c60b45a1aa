"Configurations, the command line, the playground."
from .._places import front

__getattr__ = front(__name__)
