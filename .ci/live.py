#!/usr/bin/env python3
"""The live page in a real browser: headless Chromium, driven by Playwright, opens what nbs/7_app/09_live.ipynb stores, from the disk.

    live.py [FOLDER] [--planted FAULT]   draws with every sampler and compares with Python, to one grey level and the noise bit for bit;
                                         stops, moves the slider, reads the page without scripts; then plants faults, which must be
                                         noticed. FOLDER: where screenshots go. FAULT: plant that one (weight, noise, level) and go on.

Set-up (Debian): apt-get install chromium; pip install '.[browser]'
"""
import argparse, base64, copy, json, re, shutil, sys, tempfile, time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
import numpy as np, torch
from playwright.sync_api import sync_playwright
from ddpm_sampling import load_checkpoint, sample
from ddpm_sampling.app.live import live_page
from ddpm_sampling.basics.arrays import to_uint8
from ddpm_sampling.sampler.noise import keyed_noise

NOTEBOOK = Path('nbs/7_app/09_live.ipynb')
FLAGS = '--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
SECONDS = 2.                                             # an evaluation may take, on a machine that has other work
text = lambda s: s if isinstance(s, str) else ''.join(s)

def stored(folder, box=lambda s: s, weights=lambda s: s):
    "The page as the notebook stores it, its weights beside it, as on the site; each may be changed on the way"
    outputs = [h for c in json.loads(NOTEBOOK.read_text(encoding='utf-8'))['cells'] for o in c.get('outputs', [])
               if 'ddpm-live' in (h := text(o.get('data', {}).get('text/html', '')))]
    assert len(outputs) == 1, f'{len(outputs)} live pages are stored in {NOTEBOOK.name}, 1 expected'
    source = {name: Path(f'ddpm_sampling/assets/live.{name}').read_text(encoding='utf-8') for name in ('js', 'html')}
    parts = [source['js'], *re.split('__STILL__|__ENGINE__|__ASKED__', source['html'])]
    assert all(part in outputs[0] for part in parts), f'the page stored in {NOTEBOOK.name} is not of the assets live.js and live.html: run it'
    (folder := Path(folder)/'7_app').mkdir(parents=True)
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>live</title>'
    style = '<style>:root{color-scheme:light dark}body{max-width:960px;margin:1em auto;padding:0 1em;font-family:sans-serif}</style>'
    (page := folder/'09_live.html').write_text(head + style + box(outputs[0]) + '</html>', encoding='utf-8')
    (folder/'live').mkdir()
    for f in NOTEBOOK.parent.glob('live/*.js'): (folder/'live'/f.name).write_text(weights(f.read_text(encoding='utf-8')), encoding='utf-8')
    return page

def one_weight(script):
    "The same script with a bias of the network's first layer 0.1 larger"
    before, data, after = re.fullmatch(r'(.* = ")(.*)(";\s*)', script, re.S).groups()
    data = bytearray(base64.b64decode(data))
    start = 8 + int.from_bytes(data[:8], 'little')
    at = start + json.loads(data[8:start])['input_conv.bias']['data_offsets'][0]
    data[at:at+2] = (np.frombuffer(data[at:at+2], np.float16) + np.float16(.1)).tobytes()
    return before + base64.b64encode(data).decode() + after

def instead(old, new):
    def change(s):
        assert s.count(old) == 1, f'{old!r} stands {s.count(old)} times in the page'
        return s.replace(old, new)
    return change

FAULTS = dict(weight=dict(weights=one_weight), noise=dict(box=instead('k1 = 0n;', 'k1 = 1n;')),
              level=dict(box=instead('(x, {t, abar_t}) => {', '(x, {t, abar_t}) => { t = Math.max(t - 1, 1);')))

@contextmanager
def page_of(browser, faults, url, width=1280, scheme='light', **more):
    "A page that reports what goes wrong on it"
    context = browser.new_context(viewport=dict(width=width, height=800), color_scheme=scheme, **more)
    page = context.new_page()
    page.on('pageerror', lambda e: faults.append(f'page error: {e}'))
    page.on('console', lambda m: faults.append(f'console: {m.text}') if m.type in ('error', 'warning') else None)
    page.on('request', lambda r: faults.append(f'asks the network: {r.url}') if not r.url.startswith(('file:', 'blob:', 'data:')) else None)
    page.goto(url)
    yield page
    context.close()

over = lambda page, seconds=180: page.wait_for_function('window.ddpmLive.run?.over', timeout=1000*seconds)
said = lambda page: page.inner_text('.ddpm-live .said')
pixels = lambda page: page.evaluate("[...document.querySelectorAll('.ddpm-live canvas')].map(c => c.toDataURL())")

def draw(page, sampler, n, steps, seed):
    "Draw as the form says; x_T and the images as float32, and seconds per evaluation"
    value = page.locator('select[name=sampler] option').evaluate_all('(os, s) => os.find(o => o.value.split(" ")[1] == s).value', sampler)
    page.get_by_role('combobox', name='sampler').select_option(value)
    page.get_by_role('combobox', name='steps').select_option(str(steps))
    page.get_by_role('combobox', name='digits').select_option(str(n))
    page.get_by_label('seed').fill(str(seed))
    page.get_by_role('button', name=re.compile('Draw')).click()
    over(page)
    run = page.evaluate('(({states, spent, done}) => ({each: spent/done/1000, ends: states.map(s => [s[0], s.at(-1)].map(v => [...v.x]))}))(ddpmLive.run)')
    x_T, x = np.float32(run['ends']).transpose(1, 0, 2)
    return x_T, torch.from_numpy(x), run['each']

def half(ck):
    "The checkpoint with its weights rounded as they travel"
    net = copy.deepcopy(ck.net)
    with torch.no_grad(): [p.copy_(p.half().float()) for p in net.parameters()]
    return replace(ck, net=net)

def compare(page, asked):
    "Images and noise of the page beside Python's"
    for name, sampler, n, steps, seed in asked:
        x_T, x, each = draw(page, sampler, n, steps, seed)
        python = sample(half(load_checkpoint(name)), n, sampler=sampler, steps=steps, seed=seed).flatten(1)
        assert (x_T == keyed_noise(seed, range(n), (1024,)).numpy()).all(), f'{sampler}: x_T is not the noise of seed {seed}'
        grey = (to_uint8(x).int() - to_uint8(python).int()).abs().max().item()
        print(f'{name}, {sampler}, {n} images, {steps} steps, seed {seed}: {grey} grey levels apart at most ({(x - python).abs().max():.0e}), {each:.2f} s an evaluation')
        assert grey <= 1, f'{sampler}: {grey} grey levels from Python'
        assert each < SECONDS, f'{sampler}: {each:.2f} s an evaluation'

ALL = [('mnist-consistency', 'consistency', 9, 1, 7), ('mnist-consistency', 'consistency', 4, 4, 2**53 + 1), ('mnist', 'ddim', 4, 10, 7),
       ('mnist', 'ddpm', 4, 20, 7), ('mnist', 'adams', 4, 10, 2**64 - 1)]

def bits(page):
    "Noise of other levels and far images, from the engine in the page"
    keys = [(7, 0, 1000), (7, 5, 1), (2**64 - 1, 2**40, 999)]
    run = '(new Function(ddpmLive.engine + "; return keyedNoise")())'
    for seed, i, t in keys:
        z = page.evaluate(f'[...{run}({seed}n, {i}n, 1024, {t})]')
        assert np.array_equal(np.float32(z), keyed_noise(seed, [i], (1024,), t)[0].numpy()), f'noise of {seed, i, t}'
    print(f'noise of {len(keys)} keys: the same bits')

def behaves(page):
    "Stop, slider, progress, names of controls"
    for name, role in dict(seed='spinbutton', digits='combobox', sampler='combobox', steps='combobox', time='slider').items():
        assert page.get_by_role(role, name=name, exact=True).count() == 1, f'no {role} is called {name}'
    page.get_by_role('combobox', name='sampler').select_option(label='ddpm, ancestral')
    page.get_by_role('combobox', name='steps').select_option('1000')
    page.get_by_role('combobox', name='digits').select_option('16')
    assert '16000 evaluations' in said(page), said(page)
    page.get_by_role('button', name=re.compile('Draw')).click()
    bar = lambda: page.locator('.ddpm-live progress').evaluate('e => e.hidden ? -1 : e.value')
    page.wait_for_function('window.ddpmLive.run.done > 3', timeout=60_000)
    before = bar(); page.wait_for_function('n => window.ddpmLive.run.done > n', arg=before + 2, timeout=60_000)
    assert bar() > before > 0, 'the bar does not move'
    assert 'of 16000 evaluations' in page.inner_text('.ddpm-live .count')
    page.get_by_role('button', name='Stop').click()
    began = time.time(); over(page, 2)
    done = page.evaluate('ddpmLive.run.done'); time.sleep(.7)
    assert said(page).startswith('stopped') and page.evaluate('ddpmLive.run.done') == done, 'it goes on'
    print(f'stopped within {time.time() - began - .7:.2f} s: {said(page)}')
    draw(page, 'ddim', 4, 6, 3)
    end, slider = pixels(page), page.get_by_role('slider', name='time')
    slider.focus(); page.keyboard.press('ArrowLeft'); page.keyboard.press('ArrowLeft')
    there = page.inner_text('.ddpm-live .time output')
    assert pixels(page) != end and there == 't = 201', f'the slider changes nothing: {there}'
    page.keyboard.press('Home')
    assert page.inner_text('.ddpm-live .time output') == 't = 1000' and len(set(pixels(page))) == 2
    page.keyboard.press('End')
    assert pixels(page) == end and page.inner_text('.ddpm-live .time output') == 't = 0', 'the end is not the end'
    assert slider.evaluate('e => e.ariaValueText') == 't = 0'
    page.get_by_label('seed').fill(''); page.get_by_role('button', name=re.compile('Draw')).click()
    assert page.evaluate('ddpmLive.run.over') == 'done', 'it draws without a seed'
    print('slider: from t = 1000 to 0 and back; draws again after a stop; wants a seed')

def around(browser, folder, url, shots, faults):
    "Narrow, dark, without scripts, without weights, and as one file"
    for width, scheme in ((1280, 'light'), (1280, 'dark'), (390, 'light'), (390, 'dark')):
        with page_of(browser, faults, url, width, scheme) as page:
            over(page)
            wide = page.evaluate('document.documentElement.scrollWidth')
            assert wide <= width, f'{wide} pixels wide at {width}'
            page.screenshot(path=shots/f'live_{width}_{scheme}.png')
    with page_of(browser, faults, url, java_script_enabled=False) as page:
        still = page.locator('.ddpm-live .still')
        assert still.locator('img').bounding_box()['width'] > 100 and 'scripts run' in still.inner_text(), 'nothing is shown without scripts'
        assert not page.locator('.ddpm-live form').is_visible() and not page.locator('.ddpm-live canvas').first.is_visible()
        page.screenshot(path=shots/'live_noscript.png')
    alone = Path(folder)/'alone'; alone.mkdir()
    shutil.copy(Path(url.removeprefix('file://')), alone/'page.html')
    missing = []
    with page_of(browser, missing, (alone/'page.html').as_uri()) as page:
        page.wait_for_function("document.querySelector('.said').textContent.includes('not beside')", timeout=10_000)
        assert page.locator('.ddpm-live .still').is_visible(), 'without weights the picture is gone'
    mine = live_page(alone/'mine.html', {'mine': load_checkpoint('mnist')}, n=4, seed=3)
    with page_of(browser, faults, mine.as_uri()) as page:
        compare(page, [('mnist', 'adams', 4, 4, 3)])
    print('at 390 and 1280 pixels, light and dark; without scripts and without weights the picture stays; one file of live_page draws')

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', nargs='?'); parser.add_argument('--planted', choices=FAULTS)
    args = parser.parse_args()
    chromium = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if not chromium: sys.exit('no Chromium found: apt-get install chromium')
    torch.set_num_threads(1)
    faults = []
    with tempfile.TemporaryDirectory() as tmp, sync_playwright() as p:
        shots = Path(args.folder or tmp); shots.mkdir(parents=True, exist_ok=True)
        browser = p.chromium.launch(executable_path=chromium, args=FLAGS)
        url = stored(f'{tmp}/site', **FAULTS.get(args.planted, {})).as_uri()
        with page_of(browser, faults, url) as page:
            began = time.time(); over(page)
            print(f'opened, and nine digits drawn {time.time() - began:.1f} s later: {said(page)}')
            compare(page, ALL)
            bits(page)
            behaves(page)
        around(browser, tmp, url, shots, faults)
        for name, change in FAULTS.items():
            with page_of(browser, faults, stored(f'{tmp}/{name}', **change).as_uri()) as page:
                try: compare(page, [('mnist', 'ddim', 1, 4, 7)])
                except AssertionError as e: print(f'planted, {name}: noticed ({e})')
                else: faults.append(f'planted, {name}: not noticed')
        browser.close()
    print(*(f'WRONG: {f}' for f in faults), sep='\n', end='\n' if faults else '')
    sys.exit(bool(faults))
