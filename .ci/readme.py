#!/usr/bin/env python3
"""README.md is nbs/index.ipynb: `nbdev_readme` without Quarto.

    python3 .ci/readme.py             write README.md and the pictures it shows
    python3 .ci/readme.py --check     change nothing; exit 1 where they differ
    python3 .ci/readme.py --block sh 2    print the second ```sh block of README.md; without a number all of them

Markdown cells stay as they are, but for relative links, which count from the root of the repository. Code cells become
fenced blocks, followed by what they printed; the directives of nbdev and Quarto (`hide`, `echo`, `output`, …) are obeyed.
Pictures go to nbs/index_files/, named by the id of their cell. Needs the standard library alone.
"""
import base64, json, posixpath, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK, PICTURES = 'nbs/index.ipynb', 'nbs/index_files'
HEAD = '<!-- Made from nbs/index.ipynb by .ci/readme.py: edit the notebook, not this file. -->\n'

def text(o): return o if isinstance(o, str) else ''.join(o)

def directives(src):
    "`{name: value}` of the `#| name: value` lines, and the source without them"
    found = re.findall(r'^[ \t]*#[ \t]*\|[ \t]*(\w[\w-]*)[ \t:]*(.*)$', src, re.M)
    return dict(found), re.sub(r'^[ \t]*#[ \t]*\|.*\n?', '', src, flags=re.M).strip('\n')

OUTSIDE = {'changelog.qmd': '../CHANGELOG.md', 'licence.qmd': '../LICENSE'}     # pages that show a file of the root

def relink(md):
    "Relative links of the notebook, seen from the root"
    def f(m): return m[1] + posixpath.normpath(posixpath.join(posixpath.dirname(NOTEBOOK), OUTSIDE.get(m[2], m[2]))) + m[3]
    return re.sub(r'(\]\()(?![a-z]+:|[#/])([^)\s]+)(\))', f, md)

def output(o, name, alt, pictures):
    "One output of a cell as Markdown; a picture is added to `pictures` under `name`"
    data = o.get('data', {})
    if 'image/png' in data:
        pictures[name] = base64.b64decode(text(data['image/png']))
        return f'![{alt}]({name})'
    if 'text/markdown' in data: return relink(text(data['text/markdown']).strip('\n'))
    shown = text(o['text']) if o.get('name') == 'stdout' else text(data.get('text/plain', ''))
    return re.sub(r'^(?=.)', '    ', shown.rstrip(), flags=re.M)

def render():
    "The text of README.md, and its pictures as `{path: bytes}`"
    parts, pictures = [], {}
    for cell in json.loads((ROOT/NOTEBOOK).read_text(encoding='utf-8'))['cells']:
        src = text(cell['source'])
        if cell['cell_type'] == 'markdown': parts.append(relink(src.strip('\n')))
        if cell['cell_type'] != 'code': continue
        d, src = directives(src)
        no = {k for k, v in d.items() if v.strip().lower() == 'false'}
        if {'hide', 'default_exp'} & d.keys() or 'include' in no: continue
        if src and 'hide_input' not in d and not {'echo', 'code'} & no: parts.append(f'```python\n{src}\n```')
        if 'hide_output' in d or 'output' in no: continue
        alt = d.get('fig-alt', '').strip('"')
        parts += [output(o, f"{PICTURES}/{cell['id']}-{i}.png", alt, pictures) for i, o in enumerate(cell['outputs'])]
    return HEAD + '\n' + '\n\n'.join(p for p in parts if p) + '\n', pictures

def block(lang, n=None):
    "The `n`-th fenced block of README.md in `lang`, or all of them"
    found = re.findall(rf'^```{lang}\n(.*?)^```$', (ROOT/'README.md').read_text(encoding='utf-8'), re.M | re.S)
    return found[int(n) - 1] if n else ''.join(found)

def main(args):
    if args[:1] == ['--block']: return print(block(*args[1:]), end='')
    readme, pictures = render()
    want = {'README.md': readme.encode(), **pictures}
    old = {str(p.relative_to(ROOT)) for p in (ROOT/PICTURES).glob('*')}
    if args == ['--check']:
        wrong = [f for f in want if not (ROOT/f).is_file() or (ROOT/f).read_bytes() != want[f]] + sorted(old - want.keys())
        return f'differ from {NOTEBOOK}: {", ".join(wrong)}; run python3 .ci/readme.py' if wrong else None
    if args: return __doc__
    for f in old - want.keys(): (ROOT/f).unlink()
    for f, b in want.items():
        (ROOT/f).parent.mkdir(exist_ok=True)
        (ROOT/f).write_bytes(b)

if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
