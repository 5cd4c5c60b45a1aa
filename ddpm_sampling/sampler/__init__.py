"The mathematics: schedules, posteriors, denoisers, plans, the loop, and its steps."
from importlib import import_module
from .._places import front

# These add methods to Schedule, GaussianMixture and Plan, which are there whatever else is imported.
for module in 'plans', 'guidance', 'inpainting', 'flow_maps': import_module(f'{__name__}.{module}')

__getattr__ = front(__name__)
