#!/usr/bin/env python3
"""The playground in a real browser: headless Chromium, driven by Playwright, against Voilà on the loopback address.

    browser.py [FOLDER]     presses, drags and reads what nbs/7_app/05_playground.ipynb shows with a kernel, then the recordings stored
                            in it without one; exits 1 on an error of a page. FOLDER: where screenshots go.

Set-up (Debian): apt-get install chromium; pip install '.[browser]'
"""
import contextlib, json, os, re, shutil, socket, subprocess, sys, tempfile, time, urllib.error, urllib.request
from pathlib import Path
from playwright.sync_api import sync_playwright

NOTEBOOK = Path('nbs/7_app/05_playground.ipynb')
FLAGS = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
text = lambda s: s if isinstance(s, str) else ''.join(s)

@contextlib.contextmanager
def voila(folder):
    "The notebook without its last cell, which would export, served on a free port; yields the address"
    nb = json.loads(NOTEBOOK.read_text(encoding='utf-8'))
    nb['cells'] = [c for c in nb['cells'] if 'nbdev_export' not in text(c['source'])]
    nb['metadata'] = {'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'}}
    (page := Path(folder)/'playground.ipynb').write_text(json.dumps(nb), encoding='utf-8')
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    log = open(Path(folder)/'voila.log', 'w')
    home = {f'{k}_DIR': f'{folder}/{k}' for k in ('JUPYTER_DATA', 'JUPYTER_CONFIG', 'JUPYTER_RUNTIME')} | {'IPYTHONDIR': f'{folder}/ipython'}
    server = subprocess.Popen([sys.executable, '-m', 'voila', str(page), '--no-browser', f'--port={port}', '--Voila.ip=127.0.0.1'],
                              stdout=log, stderr=log, env=os.environ | home)
    try:
        wait(lambda: answers(f'http://127.0.0.1:{port}/static/') or server.poll() is not None, 60, 'Voilà did not start')
        yield f'http://127.0.0.1:{port}/'
    except BaseException: print(Path(log.name).read_text()[-3000:]); raise
    finally: server.terminate(); server.wait(20); log.close()

def answers(url):
    try: urllib.request.urlopen(url, timeout=2)
    except urllib.error.HTTPError: pass
    except OSError: return False
    return True

def wait(f, seconds, what):
    end = time.time() + seconds
    while not (got := f()):
        if time.time() > end: raise AssertionError(what)
        time.sleep(.05)
    return got

@contextlib.contextmanager
def page_of(browser, faults):
    "A page that reports what goes wrong on it; nothing outside this machine is asked"
    page = browser.new_page(viewport=dict(width=1200, height=1400))
    outside = lambda url: url.startswith('http') and not url.startswith('http://127.0.0.1')
    page.route(re.compile('^https?://(?!127\\.0\\.0\\.1)'), lambda r: r.abort())
    page.on('pageerror', lambda e: faults.append(f'page error: {e}'))
    page.on('requestfailed', lambda r: None if outside(r.url) or 'ERR_ABORTED' in str(r.failure) else faults.append(f'request failed: {r.url} {r.failure}'))
    page.on('console', lambda m: faults.append(f'console: {m.text} ({m.location.get("url")})') if m.type == 'error' and not outside(m.location.get('url') or '') else None)
    yield page
    page.close()

WATCH = """e => { window.took = []; let began = null;
    document.addEventListener('keydown', () => { began = performance.now(); }, true);
    new MutationObserver(() => { if (began !== null) window.took.push(performance.now() - began); began = null; }).observe(e, {childList: true, subtree: true}); }"""

def with_kernel(browser, url, shots, faults):
    with page_of(browser, faults) as page:
        answer = page.goto(url, timeout=180_000)
        assert answer.ok, f'Voilà answers {answer.status}'
        go = page.locator('button', has_text='Sample')
        go.wait_for(timeout=60_000)
        if n := page.locator('text=/Traceback|Error: /').count(): faults.append(f'{n} tracebacks on the page')
        widgets = page.locator('.widget-vbox').filter(has=go).first
        picture = widgets.locator('img.widget-image')

        go.click()
        done = widgets.get_by_text(re.compile('done in'))
        done.first.wait_for(timeout=60_000)
        end = wait(lambda: picture.first.is_visible() and picture.first.screenshot(), 10, 'no picture after sampling')
        print('sampled:', done.first.inner_text())
        handle = widgets.locator('.widget-hslider').filter(has_text='time').locator('.noUi-handle')
        handle.focus()
        for _ in range(6): page.keyboard.press('ArrowLeft')
        wait(lambda: picture.first.screenshot() != end, 10, 'the picture does not follow the time slider')
        for _ in range(6): page.keyboard.press('ArrowRight')
        wait(lambda: picture.first.screenshot() == end, 10, 'back at the end the picture is another')
        print('time slider: the picture changes, and is the old one at the end')

        wish = widgets.locator('select:visible').filter(has_text='any').first
        wish.select_option('7'); go.click()
        widgets.get_by_text(re.compile('to 7 with scale 4')).first.wait_for(timeout=60_000)
        done.first.wait_for(timeout=60_000)
        assert picture.first.screenshot() != end, 'the digit wished for changes nothing'
        print('steered:', widgets.get_by_text(re.compile('to 7 with scale 4')).first.inner_text())
        page.screenshot(path=shots/'steered.png')
        wish.select_option('any')

        widgets.get_by_label('compare with').check()
        go.click()
        widgets.get_by_text(re.compile('differ by')).first.wait_for(timeout=120_000)
        assert [p.is_visible() for p in picture.all()] == [True]*3, 'two runs and their differences should be shown'
        print('compared:', widgets.get_by_text(re.compile('differ by')).first.inner_text())
        page.screenshot(path=shots/'digits.png')
        widgets.get_by_label('compare with').uncheck()

        widgets.locator('select:visible').nth(1).select_option('ddpm')
        steps = widgets.locator('.widget-hslider').filter(has_text='steps').first.locator('.noUi-handle')
        steps.focus(); page.keyboard.press('End')
        go.click()
        widgets.get_by_text(re.compile(r'\d+ of 101 states')).first.wait_for(timeout=60_000)
        page.locator('button', has_text='Stop').click()
        widgets.get_by_text(re.compile('stopped in')).first.wait_for(timeout=30_000)
        print('stopped:', widgets.get_by_text(re.compile('stopped in')).first.inner_text())

        plane = page.locator('.widget-vbox').filter(has=page.locator('.widget-html svg')).filter(has_text='spread').last
        drawing = lambda: page.locator('.widget-html svg[role=img]').last.evaluate('e => e.outerHTML')
        sliders, took = plane.locator('.widget-hslider'), []
        page.locator('.widget-html:has(svg[role=img])').last.evaluate(WATCH)
        for name, key, times in (('steps', 'ArrowRight', 8), ('η', 'ArrowRight', 8), ('time', 'ArrowLeft', 40)):
            sliders.filter(has_text=name).locator('.noUi-handle').focus()
            before, seen = drawing(), len(took)
            for _ in range(times):
                page.keyboard.press(key)
                time.sleep(.15)
            took += page.evaluate('window.took.splice(0)')
            assert drawing() != before, f'the drawing does not follow {name}'
            print(f'plane: {name} moves the points; from key to picture {sorted(took[seen:])[len(took[seen:])//2]:.0f} ms (median of {len(took) - seen})')
        before = drawing()
        plane.locator('select').nth(2).select_option('quadratic')
        wait(lambda: drawing() != before, 10, 'the drawing does not follow the spacing')
        before = drawing()
        plane.locator('select').nth(3).select_option('2')
        wait(lambda: drawing() != before, 10, 'the drawing does not follow the petal')
        page.locator('.widget-html svg[role=img]').last.scroll_into_view_if_needed()
        page.screenshot(path=shots/'plane.png')

def without_kernel(browser, folder, shots, faults):
    "The recordings stored in the notebook, each in a page that only the file system serves"
    outputs = [o for c in json.loads(NOTEBOOK.read_text(encoding='utf-8'))['cells'] for o in c.get('outputs', [])]
    players = [h for o in outputs if 'ddpm-player' in (h := text(o.get('data', {}).get('text/html', '')))]
    assert len(players) == 2, f'{len(players)} recordings are stored in {NOTEBOOK.name}, 2 expected'
    assert not any('widget-view' in k for o in outputs for k in o.get('data', {})), 'a widget is stored, which without its kernel shows nothing'
    (file := Path(folder)/'static.html').write_text('<!doctype html><meta charset="utf-8">' + '\n'.join(players), encoding='utf-8')
    with page_of(browser, faults) as page:
        page.goto(file.as_uri())
        page.set_viewport_size(dict(width=800, height=700))
        for i, box in enumerate(page.locator('.ddpm-player').all()):
            stage, time_, pick = box.locator('.stage'), box.locator('input'), box.locator('select')
            shown, seen = lambda: stage.inner_html(), set()
            for name in pick.locator('option').all_inner_texts():
                pick.select_option(name)
                end = shown()
                time_.focus(); page.keyboard.press('ArrowLeft')
                assert shown() != end, f'{name}: the slider changes nothing'
                page.keyboard.press('End')
                assert shown() == end and box.locator('output').inner_text() == 't = 0', f'{name}: the end is not the end'
                seen.add(end)
            assert len(seen) == pick.locator('option').count(), 'two runs end alike'
            box.locator('button').click()
            wait(lambda: box.locator('output').inner_text() == 't = 1000', 2, 'Play does not begin with the noise')
            wait(lambda: box.locator('output').inner_text() == 't = 0', 15, 'Play does not come to an end')
            for img in stage.locator('img').all(): assert img.evaluate('e => e.complete && e.naturalWidth > 0'), 'a frame is no image'
            print(f'recording {i + 1}: {len(seen)} runs can be chosen, scrubbed and played without a kernel')
        page.screenshot(path=shots/'static.png', full_page=True)

if __name__ == '__main__':
    if sys.argv[1:2] in (['-h'], ['--help']): sys.exit(__doc__)
    chromium = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if not chromium: sys.exit('no Chromium found: apt-get install chromium')
    faults = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        shots = Path(sys.argv[1] if len(sys.argv) > 1 else folder); shots.mkdir(parents=True, exist_ok=True)
        browser = p.chromium.launch(executable_path=chromium, args=FLAGS)
        without_kernel(browser, folder, shots, faults)
        with voila(folder) as url: with_kernel(browser, url, shots, faults)
        browser.close()
    print(*(f'WRONG: {f}' for f in faults), sep='\n', end='\n' if faults else '')
    sys.exit(bool(faults))
