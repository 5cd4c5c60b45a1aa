__version__ = "0.1.0"

# Lazy: a name is imported from its module when it is first asked for, so that `import ddpm_sampling` loads neither torch nor numpy.
_home = {name: module for module, names in dict(
    schedules='RequestError Schedule',
    posteriors='posterior',
    denoisers='GaussianMixture denoiser',
    plans='Plan',
    loop='ddpm_step keyed_noise sample_steps',
    ddim='ddim_step encode slerp',
    solvers='dpmpp_step heun_step ipndm_step unipc_step',
    stochastic_solvers='adams_step',
    variances='analytic_var',
    likelihood='variational_bound',
    guidance='classifier_free clipping guided',
    inpainting='guided_x0 repaint',
    networks='CheckpointError',
    other_networks='Adapter save_checkpoint',
    checkpoints='Checkpoint bundled_checkpoints load_checkpoint',
    verify='self_test',
    images='image_grid to_uint8 write_png',
    samplers='sample',
    searched_steps='steps_of teach',
    trajectories='film_strip trajectory',
    animations='frame_of write_animation',
    pairs='difference paired_distance side_by_side',
    datasets='load_mnist read_images',
    features='extract inception_features mnist_features',
    references='mnist_reference reference_of',
    frechet='Estimate Moments fid fid_difference fid_floor fid_infinity frechet_distance',
    kernels='kid',
    quality='METRICS floor scores',
    comparisons='Job compare report',
    errors='errors_of',
    steering='class_guidance mnist_guide',
    bits='measure_bound',
    neighbours='closest memorisation prdc',
    pixels='diversity pixel_stats sliced_wasserstein',
    perceptual='LpipsMissing lpips_distance lpips_diversity',
    playground='Playground Playground2D',
).items() for name in names.split()}
__all__ = sorted(_home)

def __getattr__(name):
    if name not in _home: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    return getattr(import_module(f'{__name__}.{_home[name]}'), name)

def __dir__(): return sorted({*globals(), *__all__})
