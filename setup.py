"Packaging for nbdev 2: every fact is read from settings.ini; pkg_resources, gone from setuptools 82, is not needed."
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

root = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(root/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

# The relative links of README.md hold within the repository: a package index needs whole addresses, of pictures the raw file.
readme = (root/'README.md').read_text(encoding='utf-8')
for kind, link in ('raw', r'(!\[[^]]*\]\()'), ('blob', r'((?<!!)\[[^]]*\]\()'):
    readme = re.sub(link + r'(?!\w+:|#)', rf"\1{cfg['git_url']}/{kind}/{cfg['branch']}/", readme)

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'],
    license='Apache-2.0', license_files=['LICENSE'],
    long_description=readme, long_description_content_type='text/markdown',
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Science/Research',
                 'Programming Language :: Python :: 3', 'Topic :: Scientific/Engineering :: Artificial Intelligence'],
    packages=find_packages(include=['ddpm_sampling', 'ddpm_sampling.*']), include_package_data=True, zip_safe=False,
    python_requires='>=' + cfg['min_python'],
    install_requires=cfg['requirements'].split(), extras_require={name: cfg[f'{name}_requirements'].split() for name in ('dev', 'lpips', 'browser', 'site')},
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': ['ddpm_sampling=ddpm_sampling._modidx:d']},
)
