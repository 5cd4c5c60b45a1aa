#!/usr/bin/env python3
"""The small checks of .ci/run, one a subcommand; each prints what it found and exits 1 where something is wrong.

    checks.py ran LOG [--no-skips] NOTEBOOK…   exactly these notebooks ran, all well
    checks.py wants-data LOG                   prints the notebooks whose code names the data, or that skipped in LOG
    checks.py stored                           what the tracked notebooks and files hold
    checks.py grid FOLDER                      the one PNG below FOLDER shows 8×8 pictures
    checks.py archives FOLDER                  wheel and sdist hold what is tracked, and are small
    checks.py rooms [FOLDER]                   imports of the package lead downward, never in a circle
    checks.py order [--write]                  the guide and the sidebar of the site say the order of the folders
    checks.py widths                           no long lines of code, no wide printed lines
"""
import ast, base64, json, re, subprocess, sys, tarfile, zipfile
from pathlib import Path

MACHINE = re.compile(r'(?:^|[^A-Za-z0-9._/-])(/(?:work|farm|root|home|tmp)/[A-Za-z][^\s"\']*)', re.M)
FIGURE_KB, WHEEL_MB = 210, 50

def tracked(*paths): return subprocess.run(['git', 'ls-files', '-z', *paths], capture_output=True, text=True, check=True).stdout.split('\0')[:-1]
def text(o): return o if isinstance(o, str) else ''.join(o)

def ran(log, *args):
    "Faults of the run recorded in `log` by .ci/hook, and a table of it"
    expected, rows = {Path(a).name for a in args if not a.startswith('-')}, [json.loads(l) for l in Path(log).read_text().splitlines()]
    for r in sorted(rows, key=lambda r: r['notebook']):
        print(f"{r['notebook']:34}{r['cells']:4} cells {r['seconds']:6.1f} s" + ''.join(f'\n    {s}' for s in r['skipped']))
    names = [r['notebook'] for r in rows]
    print(f'{len(names)} notebooks ran, {len(expected)} expected')
    yield from (f'did not run: {n}' for n in sorted(expected - set(names)))
    yield from (f'ran {names.count(n)} times, {n in expected:d} expected: {n}' for n in sorted(set(names)) if names.count(n) != (n in expected))
    yield from (f'ran no cell: {r["notebook"]}' for r in rows if not r['cells'])
    yield from (f'failed: {r["notebook"]}' for r in rows if not r['ok'])
    if '--no-skips' in args: yield from (f'{r["notebook"]}: {s}' for r in rows for s in r['skipped'])

def wants_data(log):
    "Names of the notebooks to run again with data"
    def code(f): return '\n'.join(text(c['source']) for c in json.loads(Path(f).read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code')
    names = {Path(f).name for f in tracked('nbs/*.ipynb') if re.search('DDPM_(DAY6|MNIST|CIFAR10)', code(f))}
    print(*sorted(names | {r['notebook'] for r in map(json.loads, Path(log).read_text().splitlines()) if r['skipped']}))
    return ()

def stored():
    "Faults in what is tracked: paths of a machine, outputs with errors or too large, notebooks that would not run or are not in the guide"
    for f in tracked():
        s = Path(f).read_text(encoding='utf-8', errors='replace')             # weights hold text, too
        yield from (f'{f}: path of a machine: {m}' for m in MACHINE.findall(s))
    notebooks = tracked('nbs/*.ipynb')
    yield from (f'tracked, but keeps notebooks from running: {f}' for f in tracked() if Path(f).name == '.notest')
    figures = []
    for f in notebooks:
        cells = json.loads(Path(f).read_text(encoding='utf-8'))['cells']
        if re.search(r'^skip_exec:\s*true', text(cells[0]['source']), re.M): yield f'{f}: skip_exec keeps it from running'
        outputs = [(c.get('id'), o) for c in cells for o in c.get('outputs', [])]
        ends = [c for c in cells if c['cell_type'] == 'code' and 'print(' in text(c['source']) and text(c['source']).rstrip().endswith(';')]
        yield from (f'{f}: cell {c.get("id")} prints, and ends with a semicolon, which loses it' for c in ends)
        yield from (f'{f}: cell {i} stores an error' for i, o in outputs if o['output_type'] == 'error')
        yield from (f'{f}: cell {i} stores a line SKIPPED:' for i, o in outputs if re.search('^SKIPPED:', text(o.get('text', '')), re.M))
        yield from (f'{f}: cell {i} stores a widget, which shows nothing without its kernel' for i, o in outputs if any('widget-view' in k for k in o.get('data', {})))
        figures += [(len(base64.b64decode(text(v)))/1000, f, i) for i, o in outputs for k, v in o.get('data', {}).items() if k in ('image/png', 'image/gif')]
    yield from (f'{f}: the figure of cell {i} has {kb:.0f} kB, {FIGURE_KB} allowed' for kb, f, i in figures if kb > FIGURE_KB)
    if figures: print(f'{len(notebooks)} notebooks, {len(figures)} figures, {sum(f[0] for f in figures):.0f} kB; the largest has {max(figures)[0]:.0f} kB ({max(figures)[1]})')

SECTIONS = {
    '1_sampler': 'The sampler', '2_networks': 'Networks', '3_sampling': 'Sampling', '4_pictures': 'Pictures',
    '5_quality': 'Quality', '6_students': 'Students', '7_app': 'Command line and playground',
    'commands': 'Commands', '8_studies': 'Studies',
    '9_basics': 'The ground floor'}

BEFORE = ['get_started.ipynb', 'how_do_i.ipynb', 'gallery.ipynb']
AFTER = ['api.ipynb', 'glossary.ipynb', 'references.ipynb', 'changelog.qmd', 'licence.qmd']

def order(*args):
    "Faults of the reading guide and the sidebar: both must have every notebook, in the order of folders and numbers"
    rank = {folder: i for i, folder in enumerate(SECTIONS)}
    there = sorted((str(Path(f).relative_to('nbs')) for f in tracked('nbs/*/*.ipynb')), key=lambda f: (rank.get(f.split('/')[0], 99), f))
    title = lambda f: next(m[1] for c in json.loads(Path(f'nbs/{f}').read_text(encoding='utf-8'))['cells'] if (m := re.match(r'# ([^:\n]+)', text(c['source']))))
    page = lambda f, words, by: [f'{by}- text: "{words}"', f'{by}  href: {f}']
    lines = ['website:', '  sidebar:', '    contents:', *page('index.ipynb', 'ddpm_sampling', ' '*6)]
    for f in BEFORE: lines += page(f, title(f), ' '*6)
    for folder, name in SECTIONS.items():
        lines += [f'      - section: "{name}"', '        contents:']
        for f in there:
            if f.startswith(f'{folder}/'): lines += page(f, f'{Path(f).stem[:2]} {title(f)}' if Path(f).stem[0].isdigit() else title(f), ' '*10)
    lines += ['      - section: "To look up"', '        contents:']
    for f in AFTER: lines += page(f, title(f) if f.endswith('.ipynb') else Path(f).stem.capitalize(), ' '*10)
    want, file = '\n'.join(lines) + '\n', Path('nbs/sidebar.yml')
    if '--write' in args: file.write_text(want, encoding='utf-8')
    if not file.exists() or file.read_text(encoding='utf-8') != want:
        yield 'nbs/sidebar.yml is not as the folders are: python3 .ci/checks.py order --write'
    guide = [text(c['source']) for c in json.loads(Path('nbs/index.ipynb').read_text(encoding='utf-8'))['cells']]
    rows = re.findall(r'^\| \[[^]]*\]\(([^)#]+\.ipynb)\) \|', '\n'.join(guide), re.M)
    titles = [t for t in re.findall(r'^### (.+)$', '\n'.join(guide), re.M) if t in SECTIONS.values()]
    if titles != [*SECTIONS.values()]: yield f'index.ipynb: sections of the guide are {titles}'
    if rows != there:
        yield from (f'index.ipynb: its guide lacks {f}' for f in there if f not in rows)
        yield from (f'index.ipynb: its guide names a stranger, {f}' for f in rows if f not in there)
        if sorted(rows) == there: yield 'index.ipynb: its guide has another order than the folders'
    print(f'{len(there)} notebooks in {len(SECTIONS)} sections')

CODE_WIDTH, OUTPUT_WIDTH = 100, 85

def widths():
    "Lines of code over 100 characters, and printed lines over 85, in the notebooks"
    n = 0
    for f in tracked('nbs/*.ipynb'):
        for c in json.loads(Path(f).read_text(encoding='utf-8'))['cells']:
            if c['cell_type'] != 'code': continue
            n += len(source := text(c['source']).splitlines())
            yield from (f'{f}: cell {c.get("id")}: {len(l)} characters: {l.strip()[:60]}…' for l in source if len(l) > CODE_WIDTH and not l.startswith('#|'))
            shown = [o.get('text') or o.get('data', {}).get('text/plain', '') for o in c['outputs'] if 'image/png' not in o.get('data', {})]
            yield from (f'{f}: cell {c.get("id")} prints {len(l)} characters: {l[:60]}…' for o in shown for l in text(o).splitlines() if len(l) > OUTPUT_WIDTH)
    print(f'{n} lines of code looked at')

def grid(folder):
    "Faults of the grid of digits below `folder`"
    import numpy as np
    from PIL import Image
    files = sorted(Path(folder).rglob('*.png'))
    if len(files) != 1: return (yield f'{len(files)} PNG files, one expected: {[f.name for f in files]}')
    a = np.asarray(Image.open(files[0]).convert('L'))/255
    h, w = a.shape
    print(f'{files[0].name}: {w} x {h} pixels, {files[0].stat().st_size/1000:.0f} kB')
    if h != w: return (yield 'not square')
    tiles = [a[i*h//8:(i + 1)*h//8, j*w//8:(j + 1)*w//8] for i in range(8) for j in range(8)]
    ink = np.array([t.mean() for t in tiles])
    print(f'share of ink in the 64 tiles: {ink.min():.3f} to {ink.max():.3f}')
    yield from (f'tile {i} is no digit: {t.mean():.3f} ink, brightest {t.max():.2f}' for i, t in enumerate(tiles) if not (.01 < t.mean() < .5 and t.max() > .6))
    if len({t.tobytes() for t in tiles}) < 64: yield 'some tiles are equal'

def archives(folder):
    "Faults of the wheel and the sdist in `folder`"
    wheels, sdists = sorted(Path(folder).glob('*.whl')), sorted(Path(folder).glob('*.tar.gz'))
    if (len(wheels), len(sdists)) != (1, 1): return (yield f'one wheel and one sdist expected, found {[f.name for f in wheels + sdists]}')
    in_wheel = set(zipfile.ZipFile(wheels[0]).namelist())
    in_sdist = {n.partition('/')[2] for n in tarfile.open(sdists[0]).getnames()}
    package = {f for f in tracked('ddpm_sampling') if not Path(f).name.startswith('.')}
    for f in wheels + sdists: print(f'{f.name}: {f.stat().st_size/1e6:.2f} MB')
    print(f'{len(package)} files of the package, {len([f for f in package if "/assets/" in f])} of them assets')
    if wheels[0].stat().st_size > WHEEL_MB*1e6: yield f'the wheel is larger than {WHEEL_MB} MB'
    yield from (f'not in the wheel: {f}' for f in sorted(package - in_wheel))
    yield from (f'in the wheel, but not tracked: {f}' for f in sorted(in_wheel - package) if '.dist-info/' not in f)
    yield from (f'not in the sdist: {f}' for f in sorted(package | {'settings.ini', 'setup.py', 'README.md', 'LICENSE', 'CHANGELOG.md'} - in_sdist) if f not in in_sdist)

ROOMS = 'basics sampler networks sampling pictures quality students app'.split()

def arrows(package):
    "(module, imported module, names) for every import between modules of rooms, also inside functions"
    for f in sorted(package.glob('*/*.py')):
        here = f'{f.parent.name}.{f.stem}'
        if f.parent.name == 'assets': continue
        for node in ast.walk(ast.parse(f.read_text(encoding='utf-8'))):
            if not isinstance(node, ast.ImportFrom): continue
            room = [[], [f.parent.name], []][node.level] + [p for p in (node.module or '').split('.') if p]
            if room[:1] == [package.name]: room = room[1:]
            elif not node.level: continue
            if len(room) > 1: yield here, '.'.join(room[:2]), [a.name for a in node.names]

def rooms(folder='ddpm_sampling'):
    "Arrows that lead upward, in a circle, or to what another room keeps to itself"
    found, rank = list(arrows(Path(folder))), {r: i for i, r in enumerate(ROOMS)}
    goes = {}
    for a, b, names in found:
        (ra, rb), private = (a.split('.')[0], b.split('.')[0]), [n for n in names if n[0] == '_']
        goes.setdefault(a, set()).add(b)
        if {ra, rb} - rank.keys(): yield f'{a} -> {b}: not a room of {", ".join(ROOMS)}'; continue
        if rank[rb] > rank[ra]: yield f'{a} -> {b}: upward'
        if ra != rb and private: yield f'{a} -> {b}: {", ".join(private)} belongs to the room {rb} alone'
    while ends := {a for a, bs in goes.items() if not bs & goes.keys() or a not in set().union(*goes.values())}:
        goes = {a: bs for a, bs in goes.items() if a not in ends}
    if goes: yield f'in a circle: {", ".join(sorted(goes))}'
    between = {(a.split('.')[0], b.split('.')[0]) for a, b, _ in found if a.split('.')[0] != b.split('.')[0]}
    print(f'{len({a for a, *_ in found})} modules with imports in {len(ROOMS)} rooms, {len(between)} arrows between rooms')

if __name__ == '__main__':
    checks = {'rooms': rooms, 'order': order, 'widths': widths, 'ran': ran, 'wants-data': wants_data, 'stored': stored, 'grid': grid, 'archives': archives}
    if sys.argv[1:2] == [] or sys.argv[1] not in checks: sys.exit(__doc__)
    faults = list(checks[sys.argv[1]](*sys.argv[2:]))
    print(*(f'WRONG: {f}' for f in faults), sep='\n', end='\n' if faults else '')
    sys.exit(bool(faults))
