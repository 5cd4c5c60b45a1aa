"""Trains the two small CIFAR-10 readers that ship: `features` (residual, for the Fréchet distance) and `judge` (plain, a second opinion).

    python gpu/features.py --data gpu/cifar10_jpeg.npz --out "$OUT" --minutes 2.8        # on a GPU
    python gpu/features.py --smoke --out tmp/smoke                                       # on a CPU, under a minute

Both trainings follow a learning rate over *elapsed time*, so that the budget holds even if other jobs share the GPU.
Writes {out}/cifar10_{features,judge}.pt (state dict, half precision) and .json (record). Needs torch, numpy, Pillow only."""
import time; T0 = time.time()
import argparse, copy, hashlib, io, json, math, multiprocessing, os, sys
from pathlib import Path
import numpy as np, torch, torch.nn.functional as F
from PIL import Image
from torch import nn

# ---------------------------------------------------------------- the networks (for the notebook)
def _conv(i, o, k=3, stride=1): return nn.Conv2d(i, o, k, stride, k//2, bias=False), nn.BatchNorm2d(o)

class Residual(nn.Module):
    "Two convolutions and a way around them"
    def __init__(self, i, o, stride=1):
        super().__init__()
        self.body = nn.Sequential(*_conv(i, o, 3, stride), nn.GELU(), *_conv(o, o))
        self.skip = nn.Identity() if (i, stride) == (o, 1) else nn.Sequential(nn.AvgPool2d(stride), *_conv(i, o, 1))
    def forward(self, x): return F.gelu(self.skip(x) + self.body(x))

class ColorNet(nn.Module):
    "A small residual classifier of 32×32 colour images whose last hidden layer serves as features"
    def __init__(self, c_in=3, classes=10, c=32, dim=128):
        super().__init__()
        self.body = nn.Sequential(
            *_conv(c_in, c), nn.GELU(), Residual(c, c),
            Residual(c, 2*c, 2), Residual(2*c, 2*c), Residual(2*c, 2*c), Residual(2*c, 4*c, 2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4*c, dim, bias=False), nn.BatchNorm1d(dim, affine=False), nn.GELU())
        self.head = nn.Linear(dim, classes)
    def features(self, x): return self.body(x)             # (b,3,32,32) in [-1,1] -> (b,dim)
    def forward(self, x): return self.head(self.body(x))   # -> logits (b,classes)

def color_judge(a=40, b=80, c=144):
    "A classifier of another build, after VGG: no way around, ReLU, largest values; (b,3,32,32) in [-1,1] -> logits (b,10)"
    def stage(i, o): return *_conv(i, o), nn.ReLU(), *_conv(o, o), nn.ReLU()
    return nn.Sequential(*stage(3, a), nn.MaxPool2d(2), *stage(a, b), nn.MaxPool2d(2), *stage(b, c), nn.MaxPool2d(8),
                         nn.Flatten(), nn.Dropout(.1), nn.Linear(c, 10))

# ---------------------------------------------------------------- what they learn by
RECIPES = dict(
    features=dict(seed=0, lr=.4, weight_decay=5e-4, batch_size=512, smoothing=.05, shift=4, border='reflect', cutout=8, light=0.,
                  share=.55),  # little smoothing: it would press each class into a point, and the features are for distances
    judge=dict(seed=1, lr=.2, weight_decay=5e-4, batch_size=512, smoothing=.1, shift=3, border='constant', cutout=0, light=.2,
               share=1.))      # share: of the time still left
COMMON = dict(optimizer='SGD nesterov .9, no decay of norms and biases', warm_up=.2, schedule='linear up, linear to 0 over elapsed time',
              ema=.995, flips=True)

def say(*a): print(f'[{time.time() - T0:6.1f}s]', *a, flush=True)

# ---------------------------------------------------------------- images
_src = None
def _decode(which):
    data, o = _src
    return np.stack([np.asarray(Image.open(io.BytesIO(data[o[i]:o[i+1]].tobytes())).convert('RGB')) for i in which])

def load(file, n_train=None, n_test=None):
    "uint8 images (n,32,32,3) and labels, for training and test"
    global _src
    z, out = np.load(file), []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    for part, n in (('train', n_train), ('test', n_test)):
        o, y = z[f'{part}_offsets'], z[f'{part}_labels']
        picks = np.arange(0, len(y), len(y)//min(n or len(y), len(y)))  # evenly: the file is sorted by class
        _src = z[f'{part}_jpeg'], o
        spans = np.split(picks, range(1000, len(picks), 1000))
        try:
            if len(spans) < 4 or cores < 2: raise RuntimeError('not worth it')
            with multiprocessing.get_context('fork').Pool(min(cores, 16)) as pool: parts = pool.map_async(_decode, spans, 1).get(60)
        except Exception as e:
            if len(spans) >= 4: say('decoding in one process:', repr(e))
            parts = list(map(_decode, spans))
        out += [torch.from_numpy(np.concatenate(parts)), torch.from_numpy(y[picks].astype(np.int64))]
    return out

def as_net(x):  # (n,h,w,c) uint8 -> (n,c,h,w) in [-1,1], channels_last in memory
    return x.permute(0, 3, 1, 2).float()/127.5 - 1

def augmented(padded, idx, flip, r, g):
    "The images `idx`, shifted, perhaps mirrored, perhaps with a grey square or other light; (n,3,32,32) in [-1,1]"
    n, s, dev = len(idx), r['shift'], padded.device
    at = torch.arange(32, device=dev)
    dy, dx = torch.randint(0, 2*s + 1, (2, n, 1), generator=g, device=dev)
    rows, cols = at + dy, torch.where(flip[:, None], 31 - at, at) + dx
    x = as_net(padded[idx[:, None, None], rows[:, :, None], cols[:, None, :]])
    if r['light']:
        by = r['light']*(2*torch.rand((2, n, 1, 1, 1), generator=g, device=dev) - 1)
        x = (x*(1 + by[0]) + by[1]).clamp(-1, 1)
    if k := r['cutout']:
        cy, cx = torch.randint(0, 32, (2, n, 1), generator=g, device=dev)
        inside = lambda c: (at >= c - k//2) & (at < c - k//2 + k)
        x = x.masked_fill((inside(cy)[:, :, None] & inside(cx)[:, None, :])[:, None], 0.)
    return x.contiguous(memory_format=torch.channels_last)

AMP = [os.environ.get('AMP_CPU') == '1']  # on a CPU off, unless asked for
def cast(dev): return torch.autocast(dev.type, torch.bfloat16, enabled=AMP[0])

@torch.no_grad()
def logits(net, images, size=1000): # float32 unless under autocast
    return torch.cat([net(as_net(b).contiguous(memory_format=torch.channels_last)).float() for b in images.split(size)])

def hits(out, labels): return out.argmax(1).eq(labels).double().mean().item()

def floats(net): return [v for v in net.state_dict().values() if v.is_floating_point()]

# ---------------------------------------------------------------- training
def fit(name, net, data, deadline, dev, compile_it=False, epochs=None):
    "(`net` averaged over the last steps, in eval mode; record)"
    x, y, tx, ty = data
    r = dict(RECIPES[name]); began = time.time()
    bs = min(r['batch_size'], max(32, len(x)//8)); steps = len(x)//bs
    if r['border'] == 'reflect':
        at = torch.arange(-r['shift'], 32 + r['shift'], device=dev).abs(); at = 31 - (31 - at).abs()
        padded = x[:, at][:, :, at].contiguous()
    else: padded = F.pad(x, (0, 0, *(r['shift'],)*4), value=128)  # grey rather than black
    net = net.to(dev).to(memory_format=torch.channels_last).train()
    for m in net.modules():
        if isinstance(m, Residual): nn.init.zeros_(m.body[-1].weight)  # start as the way around
    g = torch.Generator(dev).manual_seed(r['seed'])
    start = copy.deepcopy(net.state_dict())

    def optimizer():
        ps = [p for p in net.parameters() if p.requires_grad]
        return torch.optim.SGD([dict(params=[p for p in ps if p.ndim > 1], weight_decay=r['weight_decay']),
                                dict(params=[p for p in ps if p.ndim < 2], weight_decay=0.)], r['lr'], momentum=.9, nesterov=True)
    def step(model, opt, idx, flip):
        with cast(dev): out = model(augmented(padded, idx, flip, r, g))
        loss = F.cross_entropy(out.float(), y[idx], label_smoothing=r['smoothing'])
        opt.zero_grad(set_to_none=True); loss.backward(); opt.step()
        return loss.detach()

    # a few steps off the record: cuDNN chooses its kernels, torch.compile (if asked for) compiles, we learn the speed
    model, idx, flip = net, torch.arange(bs, device=dev), torch.zeros(bs, dtype=torch.bool, device=dev)
    if compile_it:
        try: model = torch.compile(net); step(model, optimizer(), idx, flip)
        except Exception as e: say('no torch.compile:', repr(e)[:200]); model = net
    try: step(model, optimizer(), idx, flip).item()
    except RuntimeError as e:
        if not AMP[0]: raise
        AMP[0] = False; say('no bfloat16:', repr(e)[:200])
    opt = optimizer()
    off, timed = (5, 15) if dev.type == 'cuda' else (1, 1)
    for i in range(off + timed):
        if i == off: last.item(); t = time.time()
        last = step(model, opt, idx, flip)
    last.item(); sec = (time.time() - t)/timed
    net.load_state_dict(start)
    ema = copy.deepcopy(net).eval(); src, avg = floats(net), floats(ema)
    clock = time.time(); budget = max(deadline - clock, 1.)
    say(f'{name}: {bs}×{steps} steps an epoch, {1e3*sec:.1f} ms a step, so about {budget/(sec*steps):.1f} epochs in {budget:.0f} s')

    opt, done, epoch, stop, restarts, curve = optimizer(), 0, 0, False, 0, []
    base = torch.rand(len(x), generator=g, device=dev) < .5
    while not stop:
        losses = []
        mirrored = base ^ bool(epoch % 2)  # each image alternates, after a random start
        for idx in torch.randperm(len(x), generator=g, device=dev)[:steps*bs].split(bs):
            p = done/(epochs*steps) if epochs else (time.time() - clock)/budget
            if p >= 1: stop = True; break
            lr = r['lr']*(p/.2 if p < .2 else (1 - p)/.8)
            for q in opt.param_groups: q['lr'] = max(lr, r['lr']*.02 if p < .2 else 0.)
            losses.append(step(model, opt, idx, mirrored[idx])); done += 1
            torch._foreach_lerp_(avg, src, 1 - min(COMMON['ema'], (1 + done)/(10 + done)))
        if losses:
            epoch += len(losses) == steps
            loss = torch.stack(losses).mean().item()
            if not math.isfinite(loss) and restarts < 3:  # too bold: once more from the start, at half the rate, in the time left
                restarts += 1; r['lr'] /= 2; say(f'{name}: loss {loss}, again with lr {r["lr"]}')
                net.load_state_dict(start); ema.load_state_dict(start); opt, done, epoch, curve = optimizer(), 0, 0, []
                clock = time.time(); budget = max(deadline - clock, 1.); stop = False; continue
            with cast(dev): acc = hits(logits(ema, tx), ty)
            curve.append(round(acc, 4))
            say(f'{name}: epoch {done/steps:6.2f}  time {min(p, 1):4.0%}  lr {opt.param_groups[0]["lr"]:.3f}  loss {loss:.3f}  accuracy {acc:.2%}')
    for a, b in zip(ema.buffers(), net.buffers()):
        if not a.is_floating_point(): a.copy_(b)
    record = dict(epochs=round(done/steps, 2), steps=done, batch_size=bs, seconds=round(time.time() - began, 1), seed=r['seed'],
                  restarts=restarts, recipe={**COMMON, **{k: v for k, v in r.items() if k not in ('share', 'seed', 'batch_size')}},
                  compiled=model is not net, bfloat16=AMP[0], curve=curve)
    return ema.float().eval(), record

# ---------------------------------------------------------------- counting and keeping
def madds(net):
    "Multiply-adds of convolutions and linear layers for one image"
    n, hooks = [0], []
    def count(m, _, out): n[0] += m.weight.numel()*(out[0, 0].numel() if isinstance(m, nn.Conv2d) else 1)
    for m in net.modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)): hooks.append(m.register_forward_hook(count))
    with torch.no_grad(): net.eval()(torch.zeros(1, 3, 32, 32))
    for h in hooks: h.remove()
    return n[0]

def write(path, data): # whole or not at all
    tmp = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    with open(tmp, 'wb') as f: f.write(data); f.flush(); os.fsync(f.fileno())
    os.replace(tmp, path)

def save(out, name, net, record):
    buf = io.BytesIO()
    torch.save({k: v.cpu().contiguous() for k, v in net.state_dict().items()}, buf)
    record = {**record, 'bytes': len(buf.getvalue()), 'sha256': hashlib.sha256(buf.getvalue()).hexdigest()}
    write(out/f'cifar10_{name}.pt', buf.getvalue())
    write(out/f'cifar10_{name}.json', json.dumps(record, indent=1).encode())
    return record

def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument('--minutes', type=float, help='wall-clock time for both, from start to end (2.8; smoke: .5)')
    ap.add_argument('--out', default='tmp/features', type=Path)
    ap.add_argument('--data', type=Path)
    ap.add_argument('--device', default=None)
    ap.add_argument('--nets', default='features,judge')
    ap.add_argument('--epochs', type=int, help='a fixed number for each net, in place of the time')
    ap.add_argument('--compile', action='store_true')
    ap.add_argument('--smoke', action='store_true')
    a = ap.parse_args()
    minutes = a.minutes or (.5 if a.smoke else 2.8)
    file = a.data or next((p for p in map(Path, ('gpu/cifar10_jpeg.npz', 'shared/data/cifar10_jpeg.npz'))
                           if p.exists()), Path('gpu/cifar10_jpeg.npz'))
    a.out.mkdir(parents=True, exist_ok=True)
    images = load(file, *((800, 300) if a.smoke else ()))   # before CUDA starts, for the sake of fork
    dev = torch.device(a.device or ('cuda' if torch.cuda.is_available() and not a.smoke else 'cpu'))
    AMP[0] |= dev.type == 'cuda'
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # float32 shall mean float32
    data = [t.to(dev) for t in images]; tx, ty = data[2:]
    say(f'{len(images[0])}+{len(images[2])} images on {torch.cuda.get_device_name(dev) if dev.type == "cuda" else dev}, torch {torch.__version__}')

    end, preds, names = T0 + 60*minutes - (3 if dev.type == 'cuda' else 1), {}, a.nets.split(',')
    for i, name in enumerate(names):
        torch.manual_seed(RECIPES[name]['seed'])
        net = ColorNet() if name == 'features' else color_judge()
        size = dict(parameters=sum(p.numel() for p in net.parameters()), multiply_adds=madds(net))
        say(name, size)
        torch.backends.cudnn.benchmark = True
        now = time.time(); share = 1. if i == len(names) - 1 else RECIPES[name]['share']
        net, record = fit(name, net, data, now + max(end - now, 2)*share, dev, a.compile, a.epochs)
        torch.backends.cudnn.benchmark = False
        full = logits(net, tx)
        half = copy.deepcopy(net).half()            # the weights that ship...
        read = copy.deepcopy(half).float()          # ...and as they are read: rounded, but reckoning in float32
        low = logits(read, tx)
        preds[name] = low.argmax(1)
        per_class = [round(low.argmax(1)[ty == k].eq(k).double().mean().item(), 4) for k in range(10)]
        record = dict(kind=f'cifar10_{name}', build='ColorNet(c=32, dim=128)' if name == 'features' else 'color_judge()', **size,
                      accuracy=hits(full, ty), accuracy_half=hits(low, ty), flipped_by_rounding=int((full.argmax(1) != low.argmax(1)).sum()),
                      accuracy_train=hits(logits(read, data[0][::5]), data[1][::5]), per_class=per_class,
                      images=[len(data[0]), len(tx)], data=hashlib.sha256(file.read_bytes()).hexdigest(), **record,
                      device=torch.cuda.get_device_name(dev) if dev.type == 'cuda' else 'cpu', torch=torch.__version__, smoke=a.smoke)
        if name == 'features':                      # are the features in good shape?
            with torch.no_grad(): f = torch.cat([read.features(as_net(b)) for b in tx.split(1000)]).double()
            eig = torch.linalg.eigvalsh(torch.cov(f.T).cpu()).clamp(min=0)
            record['feature_rank'] = round((eig.sum()**2/eig.pow(2).sum()).item(), 2)  # participation ratio, of 128
        record = save(a.out, name, half, record)
        back = type(net)() if name == 'features' else color_judge()
        back.load_state_dict(torch.load(a.out/f'cifar10_{name}.pt', weights_only=True)); back.eval()
        off = (logits(back, images[2][:64]) - low[:64].cpu()).abs().max().item()
        say(f'{name}: read back on the CPU, logits differ by at most {off:.1e}', '' if off < 1e-2 else '-- TOO MUCH')
        say(f'{name}: test accuracy {record["accuracy"]:.2%}, with half-precision weights {record["accuracy_half"]:.2%}, '
            f'training {record["accuracy_train"]:.2%}, {record["epochs"]} epochs in {record["seconds"]} s, {record["bytes"]} bytes')
    if len(preds) > 1:
        x, y = list(preds.values())[:2]
        say(f'the two agree on {x.eq(y).double().mean().item():.2%} of the test images')
    say('done')

if __name__ == '__main__': main()
