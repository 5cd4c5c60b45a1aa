"Where things are: the fronts of the rooms, and the modules of 0.1 under their old names."
import sys
from importlib import import_module
from importlib.util import spec_from_loader
from pkgutil import iter_modules
from warnings import warn

PACKAGE = __package__

def front(room):
    "What a room shows: its modules, and the names that these define, loaded when they are asked for"
    def get(name):
        modules = [m.name for m in iter_modules(import_module(room).__path__)]
        if name in modules: return import_module(f'{room}.{name}')
        if not name.startswith('_'):
            for m in (import_module(f'{room}.{m}') for m in modules):
                if hasattr(m, name): return getattr(m, name)
        raise AttributeError(f'module {room!r} has no attribute {name!r}')
    return get

def _in(room, names): return {name: f'{room}.{name}' for name in names.split()}

MOVED = {
    **_in('sampler', 'schedules posteriors denoisers plans ddim stochastic_solvers variances'),
    **_in('sampler', 'likelihood guidance inpainting'), **_in('sampling', 'searched_steps steering'),
    **_in('pictures', 'animations pairs'), **_in('app', 'configurations requests'),
    **_in('quality', 'datasets features frechet references kernels neighbours pixels perceptual bits'),
    'loop': 'sampler.loop sampler.noise',
    'solvers': 'sampler.odes sampler.multistep',
    'verify': 'networks.verify',
    'errors': 'networks.error_curves',
    'checkpoints': 'networks.checkpoints networks.loading basics.files',
    'other_networks': 'networks.adapters networks.folders networks.safe_files',
    'samplers': 'sampler.samplers sampling.resolving sampling.front_door',
    'images': 'pictures.grids basics.arrays basics.files',
    'trajectories': 'pictures.trajectories pictures.film_strips',
    'comparisons': 'quality.comparisons quality.curves quality.reports',
    'training': 'students.training',
    'playground': 'app.watching app.playground'}

class OldNames:
    "Finds a module of 0.1: an empty one, filled with what its successors define"
    @staticmethod
    def find_spec(name, path=None, target=None):
        package, _, old = name.rpartition('.')
        return spec_from_loader(name, OldNames) if package == PACKAGE and old in MOVED else None

    @staticmethod
    def create_module(spec): return None

    @staticmethod
    def exec_module(module):
        new = [f'{PACKAGE}.{m}' for m in MOVED[module.__name__.rpartition('.')[2]].split()]
        warn(f'{module.__name__} is now {", ".join(new)}', DeprecationWarning, stacklevel=2)
        for m in map(import_module, new):
            module.__dict__.update({k: v for k, v in vars(m).items() if not k.startswith('__')})

def watch_for_old_names():
    if OldNames not in sys.meta_path: sys.meta_path.append(OldNames)
