#!/usr/bin/env python3
"""The pages of the documentation, as far as they can be made and looked at without Quarto.

    pages.py make [FOLDER]      _proc/ (made by nbdev's proc_nbs) to HTML in FOLDER, by pandoc, in a frame as wide as Quarto's
    pages.py check [FOLDER]     the same, then everything that must hold of it, in words and in headless Chromium
    pages.py planted            the same, then faults planted one at a time: each check must notice its own

Set-up: pip install '.[site]'; for the checks in a browser '.[browser]' and Chromium as well (without it they are left out, and said so).
"""
import collections, configparser, html, json, os, posixpath, re, shutil, sys, tempfile
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
text = lambda s: s if isinstance(s, str) else ''.join(s)
CODE, PRINTED, FIRST_SCREEN = 100, 85, 900

# --- from a notebook to Markdown, as Quarto does it

def directives(src):
    "`{name: value}` of the `#| name: value` lines, and the source without them"
    found = dict(re.findall(r'^#\|[ \t]*([\w-]+)[ \t]*:?[ \t]*(.*)$', src, re.M))
    return {k: v.strip().strip('"') for k, v in found.items()}, re.sub(r'^#\|.*\n?', '', src, flags=re.M).strip('\n')

BROKEN = 'THIS CELL HAS FAILED:'
ASIDE = {}                                               # what pandoc need not read: {mark: HTML}

def aside(raw):
    mark = f'@@{len(ASIDE)}@@'
    ASIDE[mark] = raw
    return f'```{{=html}}\n{mark}\n```'

def shown(o, alt, asis):
    "An output of a cell"
    data = o.get('data', {})
    for kind in ('image/png', 'image/jpeg', 'image/gif'):
        if kind in data: return aside(f'<img alt="{html.escape(alt)}" src="data:{kind};base64,{re.sub(chr(10), "", text(data[kind]))}">')
    for kind in ('image/svg+xml', 'text/html'):
        if kind in data: return aside(text(data[kind]))
    if 'text/markdown' in data: return text(data['text/markdown'])
    plain = text(o.get('text') or data.get('text/plain', ''))
    return plain if asis else f'``` {{.printed}}\n{plain.rstrip()}\n```'

def markdown_of(path):
    "A page as (front matter, Markdown)"
    if path.suffix == '.qmd':
        whole = path.read_text(encoding='utf-8')
        include = lambda m: (ROOT/'_proc'/m[1]).read_text(encoding='utf-8')
        whole = re.sub(r'\{\{< include (\S+) >\}\}', include, whole)
        head, body = re.match(r'---\n(.*?)\n---\n(.*)', whole, re.S).groups()
        return front(head), body
    meta, parts = {}, []
    for c in json.loads(path.read_text(encoding='utf-8'))['cells']:
        src = text(c['source'])
        if c['cell_type'] == 'raw': meta |= front(src.strip().strip('-'))
        if c['cell_type'] == 'markdown': parts.append(src)
        if c['cell_type'] != 'code': continue
        d, src = directives(src)
        no = {k for k, v in d.items() if v.lower() == 'false'}
        if 'include' in no: continue
        cell = [f'``` {{.python .source}}\n{src}\n```'] if src and 'echo' not in no else []
        if cell and d.get('code-fold') == 'true': cell = [f'<details><summary>Code</summary>\n\n{cell[0]}\n\n</details>']
        if 'output' not in no:
            alt, asis = d.get('fig-alt') or d.get('fig-cap') or '', d.get('output') == 'asis'
            if any(o['output_type'] == 'error' for o in c.get('outputs', [])): cell += [f'{BROKEN} {src[:50]}']
            cell += [f'::: {{.cell-output .cell-output-display}}\n{shown(o, alt, asis)}\n:::' for o in c.get('outputs', []) if o.get('name') != 'stderr' and o['output_type'] != 'error']
        parts.append('\n\n'.join(cell))
    return meta, '\n\n'.join(p for p in parts if p.strip())

def front(yaml_text):
    import yaml
    return yaml.safe_load(yaml_text) or {}

# --- and to HTML

STYLE = """*{box-sizing:border-box}:root{color-scheme:light dark}body{margin:0;font:17px/1.5 sans-serif}
nav.top{height:58px;background:#2780e3}.grid{display:grid;grid-template-columns:260px minmax(0,960px) 210px;gap:1rem;max-width:1460px;margin:0 auto;padding:0 1rem}
@media(max-width:991px){.grid{grid-template-columns:minmax(0,1fr)}.side{display:none}}
main{padding-top:1.5rem}h1{font-size:2rem;margin:.5rem 0}h2{margin-top:2rem;border-bottom:1px solid #8884}pre{overflow-x:auto;line-height:1.45;margin:.4rem 0 1rem}
.source{background:#8881;padding:.4rem;border-radius:4px}.source pre{margin:0}p:has(>math[display=block]){overflow-x:auto;overflow-y:hidden}table{border-collapse:collapse}td,th{padding:.2rem .6rem;text-align:left;border-bottom:1px solid #8884}
"""

def address(path, meta):
    "Where a page lies on the site: without the number in its name, as nbdev has it"
    folder = path.parent.as_posix()
    name = meta.get('output-file') or re.sub(r'^\d+[a-z]?_', '', path.stem) + '.html'
    return posixpath.join('' if folder == '.' else folder, name)

KNOWN = {}                                               # {source: (address, front matter)} of pages made before

def make(proc, dest, only=None):
    "Every page below `proc` as HTML below `dest`: `{source: (address, front matter)}`"
    import pypandoc
    there = sorted(p for p in Path(proc).rglob('*') if p.suffix in ('.ipynb', '.qmd') and '_docs' not in p.parts)
    pages, texts = {}, {}
    for p in there:
        rel = p.relative_to(proc)
        if only and rel.as_posix() not in only and rel.as_posix() in KNOWN: pages[rel.as_posix()] = KNOWN[rel.as_posix()]; continue
        meta, body = markdown_of(p)
        pages[rel.as_posix()] = KNOWN[rel.as_posix()] = address(rel, meta), meta
        texts[rel.as_posix()] = body
    for rel, (at, meta) in pages.items():
        if only and rel not in only: continue
        body = pypandoc.convert_text(texts[rel], 'html', format='markdown', extra_args=['--mathml', '--wrap=none'])
        def goes(m):
            target, _, anchor = html.unescape(m[1]).partition('#')
            if re.match(r'[a-z]+:', target) or not target: return m[0]
            other = posixpath.normpath(posixpath.join(posixpath.dirname(rel), target))
            if other not in pages: return m[0]
            to = posixpath.relpath(pages[other][0], posixpath.dirname(at) or '.')
            return f'href="{html.escape(to + ("#" + anchor if anchor else ""))}"'
        body = re.sub(r'href="([^"]*)"', goes, body)
        body = re.sub(r'@@\d+@@', lambda m: ASIDE.get(m[0], m[0]), body)
        title = f'<h1>{html.escape(str(meta["title"]))}</h1><p><em>{html.escape(str(meta.get("description") or ""))}</em></p>' if 'title' in meta else ''
        up = '../'*at.count('/')
        out = Path(dest)/at
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
                       f'<title>{html.escape(str(meta.get("title") or meta.get("pagetitle") or at))}</title><style>{STYLE}</style><link rel="stylesheet" href="{up}styles.css">'
                       f'<nav class="top"></nav><div class="grid"><div class="side"></div><main class="content">{title}\n{body}</main><div class="side"></div></div></html>', encoding='utf-8')
    for f in Path(proc).rglob('*') if not only else ():       # and what lies beside the pages
        to = Path(dest)/f.relative_to(proc)
        if f.is_file() and f.suffix not in ('.ipynb', '.qmd', '.yml') and '_docs' not in f.parts:
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(f, to)
    return pages

# --- what must hold, in words

class Reader(HTMLParser):
    "What a page has: ids, links, pictures, headings, code"
    def __init__(self, page):
        super().__init__()
        self.ids, self.links, self.images, self.headings, self.code, self.words = collections.Counter(), [], [], [], [], []
        self.kind, self.heading, self.script = None, None, False
        self.feed(page)
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if a.get('id'): self.ids[a['id']] += 1
        if tag == 'a' and a.get('href'): self.links.append(a['href'])
        if tag == 'img': self.images.append(a)
        if tag in ('script', 'style'): self.script = True
        if tag == 'pre': self.kind = (a.get('class') or '') + (' wraps' if 'pre-wrap' in (a.get('style') or '') else ''); self.code.append((self.kind, ''))
        if re.fullmatch('h[1-6]', tag): self.heading = tag; self.headings.append((tag, ''))
    def handle_endtag(self, tag):
        if tag == 'pre': self.kind = None
        if tag in ('script', 'style'): self.script = False
        if tag == self.heading: self.heading = None
    def handle_data(self, data):
        if self.script: return
        if self.kind is not None: self.code[-1] = self.kind, self.code[-1][1] + data
        else: self.words.append(data)
        if self.heading: self.headings[-1] = self.headings[-1][0], self.headings[-1][1] + data

def settings():
    c = configparser.ConfigParser(delimiters=['='], interpolation=None)
    c.read(ROOT/'settings.ini', encoding='utf-8')
    return c['DEFAULT']

def links(read, s):
    "Links that lead nowhere"
    site = s['doc_host'].rstrip('/') + s['doc_baseurl']
    for at, page in read.items():
        for href in page.links:
            if href.startswith(site + '/'): to, _, anchor = href[len(site) + 1:].partition('#')
            elif re.match(r'[a-z]+:', href): continue
            else:
                to, _, anchor = href.partition('#')
                to = posixpath.normpath(posixpath.join(posixpath.dirname(at), to)) if to else at
            if to in ('', '.'): to = 'index.html'
            if to not in read:
                if not to.startswith('..') and (ROOT/'nbs'/to).is_file(): continue
                yield f'{at}: a link to {href}, which is not there'
            elif anchor and anchor not in read[to].ids: yield f'{at}: a link to {href}: {to} has no {anchor}'

def alternatives(read, s):
    "Pictures without a word for those who do not see them"
    for at, page in read.items():
        for img in page.images:
            if not (img.get('alt') or '').strip(): yield f'{at}: a picture without alternative text ({img.get("src", "")[:50]})'

def code_widths(read, s):
    "Lines of code or of output that a laptop cuts"
    for at, page in read.items():
        for kind, body in page.code:
            most = PRINTED if 'printed' in kind else CODE
            yield from (f'{at}: a line of {len(line)} characters: {line[:60]}' for line in body.splitlines() if len(line) > most and 'bibtex' not in kind and 'wraps' not in kind)

HOLLOW = {BROKEN: 'an error on the page', 'NoneType': 'a type that is none', '*args, **kwargs': 'a signature that says nothing', 'Call self as a function': 'an inherited docstring',
          'Initialize self.': 'an inherited docstring', 'Return repr(self)': 'an inherited docstring', 'Built-in mutable sequence': 'an inherited docstring'}

def entries(read, s):
    "Entries of the reference that say nothing"
    for at, page in read.items():
        if 'entries' in at or 'failures' in at: continue       # they speak of such
        for kind, body in page.code:
            if re.search(r'\b(source|printed)\b', kind): continue    # code of the notebook; an entry has sourceCode alone
            if '](http' in body: yield f'{at}: a raw link of Markdown in code: {body[:60]!r}'
            yield from (f'{at}: {what}: {body[:70]!r}' for word, what in HOLLOW.items() if word in body)
        for tag, title in page.headings:
            if re.search(r'(^|\.)__\w+__$', title): yield f'{at}: an entry for {title}'
        yield from (f'{at}: {HOLLOW[w]}: {w}' for w in HOLLOW if w != '*args, **kwargs' and w != 'NoneType' and any(w in t for t in page.words))

def whole(read, s):
    "Titles, ids, the sidebar, the footer: what a page and the site have once"
    for at, page in read.items():
        heads = [t for t, _ in page.headings if t == 'h1']
        if len(heads) != 1: yield f'{at}: {len(heads)} titles'
        yield from (f'{at}: the id {i} stands {n} times' for i, n in page.ids.items() if n > 1)

def frame(pages, proc, s):
    "The sidebar leads to every page, the footer tells the version"
    side, site = (Path(proc)/'sidebar.yml').read_text(encoding='utf-8'), (Path(proc)/'_quarto.yml').read_text(encoding='utf-8')
    yield from (f'{rel}: no entry in the sidebar' for rel in pages if rel not in side)
    named = re.findall(r'([\w/]+\.(?:ipynb|qmd))', side + site)
    yield from (f'sidebar or _quarto.yml: {rel} is not there' for rel in dict.fromkeys(named) if rel not in pages)
    if f'{s["lib_name"]} {s["version"]} ' not in site: yield f'_quarto.yml: the footer does not tell version {s["version"]}'

def anchors(read, s):
    "Public names without an entry on their page"
    sys.path.insert(0, str(ROOT))
    from importlib import import_module
    from ddpm_sampling._modidx import d
    for home, syms in d['syms'].items():
        public = [n for n in getattr(import_module(home), '__all__', []) if f'{home}.{n}' in syms]
        for n in public:
            at = syms[f'{home}.{n}'][0].partition('#')[0]
            if at in read and n.lower() not in read[at].ids: yield f'{at}: no entry for {n}'

WORDS = [links, alternatives, code_widths, entries, whole, anchors]

# --- and in a browser

PICTURE = """() => { const seen = [...document.querySelectorAll('main img, main svg, main canvas, main video, main .ddpm-player, main .ddpm-live, main pre[style*="pre-wrap"]')].filter(e => e.getBoundingClientRect().height > 20);
    return seen.length ? Math.round(seen[0].getBoundingClientRect().top + window.scrollY) : -1 }"""
WIDER = """() => { const wide = document.documentElement.scrollWidth - window.innerWidth; if (wide <= 0) return '';
    const e = [...document.querySelectorAll('main *')].find(e => e.getBoundingClientRect().right > window.innerWidth + 1 && !e.closest('pre, table, math, .display')); return wide + ' pixels, ' + (e ? e.outerHTML.slice(0, 90) : '?') }"""
CUT = "() => [...document.querySelectorAll('main img')].filter(e => !e.complete || !e.naturalWidth || e.getBoundingClientRect().right > document.querySelector('main').getBoundingClientRect().right + 1).length"

def in_browser(dest, addresses, no_picture=()):
    "Faults that only a browser sees; yields nothing where none is to be had"
    try: from playwright.sync_api import sync_playwright
    except ImportError: print('playwright is not installed: the pages were not opened in a browser'); return
    chromium = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if not chromium: print('Chromium is not here: the pages were not opened in a browser'); return
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=['--no-sandbox', '--disable-gpu'])
        page, errors = browser.new_page(), []
        page.on('pageerror', lambda e: errors.append(str(e)))
        page.route(re.compile('^https?://'), lambda r: r.abort())
        for at in addresses:
            errors.clear()
            for width, height in ((1280, FIRST_SCREEN), (390, 844)):
                page.set_viewport_size(dict(width=width, height=height))
                if width == 1280: page.goto((Path(dest)/at).resolve().as_uri())
                if wide := page.evaluate(WIDER): yield f'{at}: wider than a screen of {width} pixels by {wide}'
                if n := page.evaluate(CUT): yield f'{at}: {n} pictures are cut, or do not load, at {width} pixels'
                if width == 1280 and at not in no_picture:
                    top = page.evaluate(PICTURE)
                    if not 0 <= top < FIRST_SCREEN - 80: yield f'{at}: no picture on the first screen (the first begins at {top})'
            yield from (f'{at}: {e}' for e in errors)
        browser.close()

NO_PICTURE = {'api.html', 'references.html', 'glossary.html', 'changelog.html', 'licence.html', 'how_do_i.html', '9_basics/entries.html'}   # lists, to look things up in

READ = {}                                                # pages that were read: {address: Reader}

def check(dest, proc, only=None, browser=True):
    "All faults of the pages; only: of these sources, where the others have been looked at"
    s, pages = settings(), make(proc, dest, only)
    READ.update({at: Reader((Path(dest)/at).read_text(encoding='utf-8')) for rel, (at, _) in pages.items() if not only or rel in only})
    read = {at: READ[at] for at, _ in pages.values()}
    for f in WORDS: yield from f(read, s)
    yield from frame(pages, proc, s)
    if browser: yield from in_browser(dest, [at for at, _ in pages.values() if not only or at in [pages[o][0] for o in only]], NO_PICTURE)
    if not only: print(f'{len(read)} pages, {sum(len(p.links) for p in read.values())} links, {sum(len(p.images) for p in read.values())} pictures, '
          f'{sum(len(p.code) for p in read.values())} blocks of code')

# --- planted faults

def add(kind, source, **more): return lambda nb: nb['cells'].insert(3, dict(cell_type=kind, id='planted', metadata={}, source=source, **more))
def code(source, *outputs): return add('code', source, execution_count=None, outputs=list(outputs))
PNG = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='
said = lambda md: dict(output_type='execute_result', execution_count=None, metadata={}, data={'text/markdown': md, 'text/plain': ''})
picture = dict(output_type='display_data', metadata={}, data={'image/png': PNG})
FAULTS = [('which is not there', add('markdown', '[there](../1_sampler/no_such.ipynb)')), ('has no nowhere', add('markdown', '[there](../1_sampler/05_plans.ipynb#nowhere)')),
          ('without alternative', code('x', picture)), ('a line of', code('x = ' + '1 + '*40 + '1')), ('a line of', code('x', dict(output_type='stream', name='stdout', text='y'*90 + '\n'))),
          ('a type that is none', code('#| echo: false\n#| output: asis\nx', said('### f\n\n```python\nf(n:NoneType=None)\n```'))),
          ('a raw link', code('#| echo: false\n#| output: asis\nx', said('### f\n\n```python\nf(n) # [`f`](http://a.b)\n```'))),
          ('signature that says nothing', code('#| echo: false\n#| output: asis\nx', said('### f\n\n```python\nf(*args, **kwargs)\n```'))),
          ('inherited docstring', add('markdown', '*Call self as a function.*')), ('an entry for', add('markdown', '### Plan.\\_\\_init\\_\\_')), ('an error on the page', code('x', dict(output_type='error', ename='E', evalue='e', traceback=[]))), ('titles', add('markdown', '# Another title')),
          ('wider than a screen', add('markdown', '<div style="width:1500px">x</div>')), ('no picture on the first', add('markdown', 'word\n\n'*40)),
          ('do not load', add('markdown', '![a picture](no_such.png)')), ('no entry for', lambda nb: nb.update(cells=[c for c in nb['cells'] if 'def distinct(' not in json.dumps(c) and '### distinct' not in json.dumps(c)]))]

IN_BROWSER = 'wider than a screen', 'no picture on the first', 'do not load'

def planted(proc, dest):
    "Checks that let their fault pass; `dest` has the pages, and all have been looked at"
    name = '1_sampler/05_plans.ipynb'
    with tempfile.TemporaryDirectory() as d:
        box, pages = Path(d)/'proc', dict(KNOWN)
        shutil.copytree(proc, box, ignore=shutil.ignore_patterns('_docs'))
        good, n = (box/name).read_text(encoding='utf-8'), 0
        before = list(check(dest, box, {name}))
        if before: yield f'the page has faults already: {before[0]}'
        for words, plant in FAULTS:
            plant(nb := json.loads(good))
            (box/name).write_text(json.dumps(nb), encoding='utf-8')
            found = list(check(dest, box, {name}, browser=words in IN_BROWSER))
            n += any(words in f for f in found)
            if not any(words in f for f in found): yield f'not noticed: {words} ({found[:2]})'
        (box/name).write_text(good, encoding='utf-8')
        for file, old, new, words in (('_quarto.yml', 'ddpm_sampling 0', 'ddpm_sampling 9', 'does not tell version'), ('sidebar.yml', '1_sampler/05_plans.ipynb', '', 'no entry in the sidebar'),
                                      ('sidebar.yml', '1_sampler/05_plans.ipynb', '1_sampler/05_planned.ipynb', 'is not there')):
            whole_ = (box/file).read_text(encoding='utf-8')
            (box/file).unlink()
            (box/file).write_text(whole_.replace(old, new), encoding='utf-8')
            found = list(frame(pages, box, settings()))
            n += any(words in f for f in found)
            if not any(words in f for f in found): yield f'not noticed: {words} ({found[:2]})'
            (box/file).write_text(whole_, encoding='utf-8')
        print(f'{n} planted faults were noticed')

if __name__ == '__main__':
    what, folder = (sys.argv[1:] + [''])[0], sys.argv[2] if len(sys.argv) > 2 else None
    dest = folder or tempfile.mkdtemp(prefix='pages')
    if what not in ('make', 'check', 'planted'): sys.exit(__doc__)
    proc = ROOT/'_proc'
    if not proc.exists(): sys.exit("no _proc/: python -c 'from nbdev.serve import proc_nbs; proc_nbs(force=True)' makes it")
    if what == 'make': make(proc, dest); faults = []
    else: faults = list(check(dest, proc))
    if what == 'planted' and not faults: faults = list(planted(proc, dest))
    print(*(f'WRONG: {f}' for f in faults), sep='\n', end='\n' if faults else '')
    if not folder: shutil.rmtree(dest)
    sys.exit(bool(faults))
