__version__ = "0.2.0"

from ._places import watch_for_old_names

# Lazy: a name is imported from its module when it is first asked for,
# so that `import ddpm_sampling` loads neither torch nor numpy.
_home = {name: module for module, names in {
    'basics.errors': 'CheckpointError RequestError',
    'basics.arrays': 'to_uint8 to_unit',
    'basics.estimates': 'Estimate',
    'basics.recipes': 'Recipe',
    'basics.per_image': 'PerImage',
    'sampler.schedules': 'SCHEDULES Schedule',
    'sampler.posteriors': 'posterior',
    'sampler.denoisers': 'GaussianMixture denoiser',
    'sampler.plans': 'Plan',
    'sampler.loop': 'ddpm_step sample_steps',
    'sampler.noise': 'keyed_noise',
    'sampler.ddim': 'ddim_step encode slerp',
    'sampler.odes': 'heun_step',
    'sampler.multistep': 'dpmpp_step ipndm_step unipc_step',
    'sampler.stochastic_solvers': 'adams_step',
    'sampler.variances': 'analytic_var',
    'sampler.likelihood': 'variational_bound',
    'sampler.guidance': 'classifier_free clipping guided',
    'sampler.inpainting': 'guided_x0 repaint',
    'sampler.flow_maps': 'consistency_step',
    'sampler.samplers': 'SAMPLERS',
    'networks.checkpoints': 'Checkpoint',
    'networks.adapters': 'Adapter',
    'networks.safe_files': 'save_checkpoint',
    'networks.loading': 'bundled_checkpoints bundled_names load_checkpoint',
    'networks.verify': 'self_test',
    'networks.error_curves': 'errors_of',
    'sampling.front_door': 'sample',
    'sampling.bulk': 'sample_images',
    'sampling.searched_steps': 'steps_of teach',
    'sampling.steering': 'class_guidance mnist_guide',
    'pictures.grids': 'as_pictures image_grid write_png',
    'pictures.trajectories': 'trajectory',
    'pictures.film_strips': 'film_strip',
    'pictures.animations': 'frame_of write_animation',
    'pictures.pairs': 'difference paired_distance side_by_side',
    'quality.datasets': 'load_mnist read_images',
    'quality.features': 'extract inception_features mnist_features',
    'quality.references': 'mnist_reference reference_of',
    'quality.frechet': 'Moments fid fid_difference fid_floor fid_infinity frechet_distance',
    'quality.kernels': 'kid',
    'quality.metrics': 'METRICS floor measurable scores',
    'quality.comparisons': 'Job compare',
    'quality.reports': 'report',
    'quality.bits': 'measure_bound',
    'quality.image_sets': 'measure_sets statistics_of',
    'quality.neighbours': 'closest memorisation prdc',
    'quality.pixels': 'diversity pixel_stats sliced_wasserstein',
    'quality.perceptual': 'LpipsMissing lpips_distance lpips_diversity',
    'students.runs': 'distill gains',
    'app.playground': 'Playground Playground2D',
}.items() for name in names.split()}
__all__ = sorted(_home)

def __getattr__(name):
    if name not in _home: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    return getattr(import_module(f'{__name__}.{_home[name]}'), name)

def __dir__(): return sorted({*globals(), *__all__})

watch_for_old_names()
