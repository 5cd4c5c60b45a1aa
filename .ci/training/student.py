#!/usr/bin/env python3
"""A few-step consistency student of the bundled MNIST DDPM: trajectory regression (stage A), consistency tuning (stage B).

Self-contained: torch, numpy, pillow. Everything is a function of the arguments and the seed, up to the number of
iterations that fit into --minutes. The features of the Fréchet distance take no part in the training.
"""
import time
T0 = time.time()
import argparse, json, math, os, re, signal, sys
from pathlib import Path
import numpy as np, torch, torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
NAME = '?'
clock = lambda: time.time() - T0
def say(*a): print(f'[{NAME} {clock():6.1f}s]', *a, flush=True)

# ---------------------------------------------------------------- the network (ddpm_sampling/networks.py)
def timestep_features(t, dim):
    f = torch.exp(-math.log(10000)*torch.arange(dim//2, dtype=torch.float32, device=t.device)/(dim//2 - 1))
    a = t[:, None].float()*f
    return torch.cat([a.sin(), a.cos()], dim=1)

class TimeEmbedding(nn.Module):
    def __init__(self, dim=128):
        super().__init__()
        self.dim = dim
        self.mlp = nn.Sequential(nn.Linear(dim, 4*dim), nn.SiLU(), nn.Dropout(0.), nn.Linear(4*dim, dim))
    def forward(self, t): return self.mlp(timestep_features(t, self.dim).to(self.mlp[0].weight.dtype))

class Block(nn.Module):
    def __init__(self, i, o, dim=128):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, i), nn.Conv2d(i, o, 3, padding=1)
        self.time_proj = nn.Linear(dim, o)
        self.norm2, self.conv2 = nn.GroupNorm(8, o), nn.Conv2d(o, o, 3, padding=1)
        self.skip = nn.Conv2d(i, o, 1) if i != o else nn.Identity()
    def forward(self, x, emb):
        h = self.conv1(F.silu(self.norm1(x))) + self.time_proj(F.silu(emb))[:, :, None, None]
        return self.conv2(F.silu(self.norm2(h))) + self.skip(x)

class UNet(nn.Module):
    "88 tensors; `exact`: the first and last convolution outside the autocast (their rounding is what the head amplifies)"
    exact = True
    def __init__(self, c_in=1, c_out=1, c=32, dim=128):
        super().__init__()
        self.time_embed = TimeEmbedding(dim)
        self.input_conv = nn.Conv2d(c_in, c, 3, padding=1)
        self.down1, self.down2, self.down3 = Block(c, c, dim), Block(c, 2*c, dim), Block(2*c, 4*c, dim)
        self.middle = Block(4*c, 4*c, dim)
        self.up3, self.up2, self.up1 = Block(8*c, 2*c, dim), Block(4*c, c, dim), Block(2*c, c, dim)
        self.output_conv = nn.Conv2d(c, c_out, 3, padding=1)
    def _edge(self, conv, x):
        if not self.exact: return conv(x)
        with torch.autocast(x.device.type, enabled=False): return conv(x.float())
    def forward(self, x, t):
        emb = self.time_embed(t)
        h1 = self.down1(self._edge(self.input_conv, x), emb)
        h2 = self.down2(F.avg_pool2d(h1, 2), emb)
        h3 = self.down3(F.avg_pool2d(h2, 2), emb)
        h = self.middle(F.avg_pool2d(h3, 2), emb)
        for skip, up in (h3, self.up3), (h2, self.up2), (h1, self.up1):
            h = up(torch.cat([F.interpolate(h, scale_factor=2.), skip.to(h.dtype)], dim=1), emb)
        return self._edge(self.output_conv, h)

def load_net(path, device):
    "(network in float32, the file's metadata)"
    f = torch.load(path, map_location='cpu', weights_only=True)
    tensors = {n: v.float() for n, v in f['model_state_dict'].items()}
    net = UNet(c=tensors['input_conv.weight'].shape[0], dim=tensors['time_embed.mlp.3.weight'].shape[0])
    net.load_state_dict(tensors)
    return net.to(device, memory_format=torch.channels_last), f.get('metadata', {})

# ---------------------------------------------------------------- optimizers (ddpm_sampling/training.py)
def as_matrix(kernel): return kernel.permute(0, 2, 3, 1).flatten(1)

class ConvMuon(torch.optim.Muon):
    def __init__(self, kernels, lr, weight_decay):
        self.kernels, self.matrices = kernels, [nn.Parameter(as_matrix(k.data)) for k in kernels]
        super().__init__(self.matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn='match_rms_adamw')
        if not all(m.data_ptr() == k.data_ptr() for m, k in zip(self.matrices, kernels)): raise ValueError('kernels must be channels_last')
    def step(self):
        for m, k in zip(self.matrices, self.kernels): m.grad = as_matrix(k.grad)
        super().step()

def make_optimizers(net, lr, lr_adamw, betas, weight_decay):
    kernels = [p for p in net.parameters() if p.ndim == 4 and min(p.shape[:2]) >= 8]
    inner = {id(p) for p in kernels}
    rest = [p for p in net.parameters() if id(p) not in inner]
    return dict(muon=ConvMuon(kernels, lr, weight_decay),
                adamw=torch.optim.AdamW(rest, lr_adamw, betas=tuple(betas), weight_decay=weight_decay, foreach=True))

class Ema:
    "An average of the weights: a decay such as 0.999 (shorter at the start), or 'p0.1': a power law as wide as a tenth of the run so far (Karras 2023)"
    def __init__(self, net, kind):
        self.kind, self.n = kind, 0
        self.net_params = list(net.parameters())
        self.params = [p.detach().clone() for p in self.net_params]
        if kind[0] == 'p':
            w, lo, hi = float(kind[1:]), 0., 1e4
            for _ in range(200):
                g = (lo + hi)/2
                lo, hi = (g, hi) if (g + 1)**.5/((g + 2)*(g + 3)**.5) > w else (lo, g)
            self.gamma = g
    @torch.no_grad()
    def update(self):
        self.n += 1
        d = (1 - 1/self.n)**(self.gamma + 1) if self.kind[0] == 'p' else min(float(self.kind), (1 + self.n)/(10 + self.n))
        torch._foreach_lerp_(self.params, self.net_params, 1 - d)

# ---------------------------------------------------------------- levels, head, losses
class Levels:
    "The linear schedule in float64, and float32 tables on the device"
    def __init__(self, device, T=1000, first=1e-4, last=.02):
        self.T, self.device = T, device
        self.abar = np.concatenate([[1.], np.cumprod(1 - np.linspace(first, last, T))])        # 0…T
        self.sigma = ((1 - self.abar)/self.abar)**.5                                           # σ̄, 0 at t = 0
        self.log_sigma = np.log(self.sigma[1:])                                                # of 1…T
        put = lambda v: torch.tensor(v, dtype=torch.float32, device=device)
        self.a, self.s, self.sig, self.logsig = put(self.abar**.5), put((1 - self.abar)**.5), put(self.sigma), put(self.log_sigma)
    def of(self, t): return self.a[t].view(-1, 1, 1, 1), self.s[t].view(-1, 1, 1, 1)
    def nearest(self, log_sigma):
        "Levels 1…T nearest in log σ̄ (tensor)"
        i = torch.searchsorted(self.logsig, log_sigma.contiguous()).clamp(1, self.T - 1)
        return torch.where(log_sigma - self.logsig[i - 1] < self.logsig[i] - log_sigma, i, i + 1)
    def path(self, n, u, spacing):
        "n decreasing levels from T, even in log σ̄ (or σ̄^(1/ρ)), all but the first moved down by the share u of a step"
        f, g = (np.log, np.exp) if spacing == 'log' else (lambda v: v**(1/float(spacing)), lambda v: v**float(spacing))
        hi, lo = f(self.sigma[self.T]), f(self.sigma[1])
        k = np.concatenate([[0.], np.arange(1, n) + u - .5])
        want = np.log(np.maximum(g(np.maximum(hi + (lo - hi)*k/(n - .5), lo)), self.sigma[1]))
        t = np.interp(want[::-1], self.log_sigma, np.arange(1, self.T + 1))[::-1]
        t = np.floor(t + .5).astype(int); t[0] = self.T
        t = np.maximum(t, np.arange(n, 0, -1))                       # room for those below
        for i in range(1, n): t[i] = min(t[i], t[i - 1] - 1)
        return t

def read(out, x, a, s, head, kappa):
    "f before it is clipped, from what the network says"
    if head == 'eps': return a*x - s*(out - s*x)/a.clamp(min=kappa)
    if head == 'v': return a*x - s*out
    return out                                                                                # x0

def saturated(f, how):
    if how == 'ste': return f + (f.clamp(-1, 1) - f).detach()        # the value clipped, the gradient as if not: errors at ±1 are 0 beyond it
    if how == 'leaky': return f.clamp(-1, 1) + .05*(f - f.clamp(-1, 1))
    if how == 'soft': return F.softplus(f + 1, beta=20.) - F.softplus(f - 1, beta=20.) - 1
    return f

def final(f, how):
    "The answer of the student, as a sampler uses it"
    return (saturated(f, 'soft') if how == 'soft' else f).clamp(-1, 1)

def losses(f, y, kind, c_pixel):
    "(b,): pseudo-Huber of the whole image ('huber', as published), of each pixel ('pixel'), or their mean ('mix')"
    e = (f - y).float().flatten(1)
    d = e.shape[1]
    if kind != 'pixel': whole = ((e.square().sum(1) + (.00054**2*d))**.5 - .00054*d**.5)/d**.5
    if kind == 'huber': return whole
    pixel = ((e.square() + c_pixel**2).sqrt() - c_pixel).mean(1)
    return pixel if kind == 'pixel' else (whole + pixel)/2

# ---------------------------------------------------------------- the teacher and its paths
class Teacher:
    def __init__(self, net, lv, dtype): self.net, self.lv, self.dtype = net.eval().requires_grad_(False), lv, dtype
    def eps(self, x, t):
        off = self.dtype == torch.float32
        with torch.autocast(x.device.type, dtype=torch.bfloat16 if off else self.dtype, enabled=not off): return self.net(x, t - 1).float()
    @torch.no_grad()
    def pair(self, x, t):
        "x̂₀ clipped, and the ε̂ that then explains x; t: (b,)"
        a, s = self.lv.of(t)
        x0 = ((x - s*self.eps(x, t))/a).clamp(-1, 1)
        return x0, (x - a*x0)/s
    @torch.no_grad()
    def walk(self, z, levels, keep=True):
        "DPM-Solver++(2M) from noise z: (states at the levels (L,b,…), end)"
        ab, sg = self.lv.abar, self.lv.sigma
        ends, x, xs, before, h_old = [*levels[1:], 0], z, [], None, None
        for t, r in zip(levels, ends):
            if keep: xs.append(x)
            x0, eps = self.pair(x, torch.full((len(x),), int(t), device=x.device))
            if r == 0: return xs, x0
            h = math.log(sg[t]/sg[r])
            nxt = ab[r]**.5*x0 + (1 - ab[r])**.5*eps
            if before is not None:
                gain = (1 - ab[r])**.5*(1/sg[r] - 1/sg[t])
                nxt = nxt + gain*(-h/(2*h_old))*(before - x0)
            x, before, h_old = nxt, x0, h

class Paths:
    "A ring of the teacher's paths, renewed as it is used"
    def __init__(self, teacher, lv, cap, L, chunk, spacing, snap, gen, rng):
        dev = lv.device
        self.teacher, self.lv, self.cap, self.L, self.chunk, self.spacing, self.snap, self.gen, self.rng = teacher, lv, cap, L, chunk, spacing, snap, gen, rng
        self.x = torch.zeros(cap, L, 1, 32, 32, device=dev)
        self.t = torch.zeros(cap, L, dtype=torch.long, device=dev)
        self.end = torch.zeros(cap, 1, 32, 32, device=dev)
        self.full = self.at = self.made = 0
    def more(self):
        levels = self.lv.path(self.L, self.rng.uniform(), self.spacing)
        z = torch.randn(self.chunk, 1, 32, 32, device=self.lv.device, generator=self.gen)
        xs, end = self.teacher.walk(z, levels)
        if self.snap: end = torch.where(end.abs() > 1 - self.snap, end.sign(), end)
        i = slice(self.at, self.at + self.chunk)                     # cap is a multiple of chunk
        self.x[i], self.t[i], self.end[i] = torch.stack(xs, 1), torch.tensor(levels, device=self.lv.device), end
        self.at = (self.at + self.chunk) % self.cap
        self.full, self.made = min(self.full + self.chunk, self.cap), self.made + self.chunk
    def pick(self, n): return torch.randint(self.full, (n,), device=self.lv.device, generator=self.gen)

# ---------------------------------------------------------------- Fréchet distance (ddpm_sampling/features.py, frechet.py, references.py)
def _stage(i, o, k, stride=1): return nn.Conv2d(i, o, k, stride, k//2, bias=False), nn.BatchNorm2d(o), nn.GELU()

class FeatureNet(nn.Module):
    def __init__(self, c_in=1, classes=10, c=16, dim=64):
        super().__init__()
        self.body = nn.Sequential(
            *_stage(c_in, c, 5, 2), *_stage(c, 2*c, 3), nn.AvgPool2d(2), *_stage(2*c, 4*c, 3), nn.AvgPool2d(2), nn.Flatten(),
            nn.Linear(64*c, dim, bias=False), nn.BatchNorm1d(dim, affine=False), nn.GELU())
        self.head = nn.Linear(dim, classes)

def moments(f):
    f = np.asarray(f, np.float64)
    c = f - f.mean(0)
    return f.mean(0), c.T@c/(len(f) - 1)

def _root(cov):
    lam, V = np.linalg.eigh(cov)
    return V*np.sqrt(np.where(lam > len(lam)*np.finfo(float).eps*lam[-1], lam, 0.))

def frechet_distance(a, b):
    A, B = _root(a[1]), _root(b[1])
    U, _, Vt = np.linalg.svd(B.T@A)
    return float(((a[0] - b[0])**2).sum() + ((A - B@U@Vt)**2).sum())

class precise:
    "float32 as it should be, for every figure"
    flags = torch.backends.cudnn, torch.backends.cuda.matmul
    def __enter__(self):
        self.was = [f.allow_tf32 for f in self.flags]
        for f in self.flags: f.allow_tf32 = False
    def __exit__(self, *_):
        for f, w in zip(self.flags, self.was): f.allow_tf32 = w

class Judge:
    def __init__(self, assets, device):
        self.net, self.device = FeatureNet(), device
        self.net.load_state_dict(torch.load(assets/'mnist_features.pt', map_location='cpu', weights_only=True))
        self.net.eval().requires_grad_(False).to(device)
        with np.load(assets/'mnist_reference.npz') as f:
            cov = f['cov'][0]
            self.ref, self.test = (f['mean'][0], (cov + cov.T)/2), f['test'].astype(np.float64)
    @torch.no_grad()
    def features(self, x):
        x8 = x.float().clamp(-1, 1).add(1).mul(127.5).round()
        with precise(): return np.concatenate([self.net.body(b/127.5 - 1).double().cpu().numpy() for b in x8.split(1000)])
    def __call__(self, x): return round(frechet_distance(moments(self.features(x)), self.ref), 3)
    def floor(self, n): return round(frechet_distance(moments(self.test[:n]), self.ref), 3)

# ---------------------------------------------------------------- evaluation
MIDDLE, FOUR = (121, 201, 301, 401), (1000, 501, 251, 101)

class Evaluation:
    "Samples of 1, 2 and 4 steps from the same noise each time, in float32"
    def __init__(self, a, lv, judge, net):
        self.a, self.lv, self.judge, self.n = a, lv, judge, a.eval_n
        self.net = UNet(c=net.input_conv.weight.shape[0]).to(lv.device, memory_format=torch.channels_last).eval().requires_grad_(False)
        g = torch.Generator().manual_seed(77)
        self.z = [torch.randn(self.n, 1, 32, 32, generator=g).to(lv.device) for _ in range(4)]
        self.seconds = 0.
    @torch.no_grad()
    def f(self, x, t):
        out = []
        for b in x.split(self.a.eval_batch):
            tt = torch.full((len(b),), t, device=b.device)
            out.append(final(read(self.net(b, tt - 1), b, *self.lv.of(tt), self.a.head, self.a.kappa), self.a.saturate))
        return torch.cat(out)
    def noised(self, x0, t, k):
        return self.lv.a[t]*x0 + self.lv.s[t]*self.z[k][:len(x0)]
    def samples(self):
        first = self.f(self.z[0], self.lv.T)
        yield '1', first
        for m in MIDDLE: yield f'2@{m}', self.f(self.noised(first, m, 1), m)
        x = first
        for k, t in enumerate(FOUR[1:]): x = self.f(self.noised(x, t, k + 1), t)
        yield '4', x
    def __call__(self, params):
        with precise(): return self.measured(params)
    def measured(self, params):
        start = time.time()
        for p, v in zip(self.net.parameters(), params): p.copy_(v)
        row, grids = {}, {}
        for name, x in self.samples():
            row[name] = self.judge(x)
            row[name + ' dark'] = self.judge(torch.where(x < -.8, -1., x))
            if name == '1':
                row['grain'] = round(float((x[(x > -1) & (x < -.8)] + 1).sum()/x.numel()), 5)  # mean rise of the dark pixels above black
            grids[name] = x[:64].cpu()
        two = min((f'2@{m}' for m in MIDDLE), key=row.get)
        row['score'] = round((row['1']*row[two]*row['4'])**(1/3), 4)
        self.seconds = time.time() - start
        return row, grids | {'2': grids[two]}
def shown(r):
    return (f"1: {r['1']:.2f} (dark {r['1 dark']:.2f}, grain {r['grain']:.4f}) | 2@{'/'.join(map(str, MIDDLE))}: "
            + '/'.join(f"{r[f'2@{m}']:.2f}" for m in MIDDLE) + f" (dark {'/'.join(f'''{r[f'2@{m} dark']:.2f}''' for m in MIDDLE)}) | 4: {r['4']:.2f} (dark {r['4 dark']:.2f})")

# ---------------------------------------------------------------- training
def load_mnist(path, split='train'):
    "ddpm_sampling.datasets.load_mnist: (n,1,32,32) uint8"
    grow = lambda b: F.interpolate(b.float(), size=32, mode='bilinear').round().to(torch.uint8)
    with np.load(path) as f: x8 = torch.from_numpy(f[f'{split}_images'])[:, None]
    return torch.cat([grow(b) for b in x8.split(5000)])

class Diverged(RuntimeError): pass

class Run:
    def __init__(self, a):
        self.a, self.device = a, torch.device(a.device)
        self.cuda = self.device.type == 'cuda'
        torch.manual_seed(a.seed)
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = a.dtype != 'fp32'    # training; evaluation switches it off
        self.lv = Levels(self.device)
        self.net, self.meta = load_net(a.teacher, self.device)
        teacher = load_net(a.teacher, self.device)[0]
        self.net.exact = teacher.exact = a.edges == 'fp32'
        self.net.train()
        dtypes = dict(bf16=torch.bfloat16, fp16=torch.float16, fp32=torch.float32, tf32=torch.float32)
        self.dtype, self.call = dtypes[a.dtype], self.net
        self.teacher = Teacher(teacher, self.lv, dtypes[a.teacher_dtype])
        self.gen = torch.Generator(self.device).manual_seed(a.seed*1000 + 1)
        self.paths = Paths(self.teacher, self.lv, a.buffer, a.levels, a.chunk, a.spacing, a.snap, self.gen, np.random.default_rng(a.seed))
        self.judge = Judge(Path(a.assets), self.device)
        self.eval = Evaluation(a, self.lv, self.judge, self.net)
        self.emas = [Ema(self.net, k) for k in a.emas.split(',')]
        self.data = None
        if a.data: self.data = (load_mnist(a.data).float()/127.5 - 1).to(self.device)
        self.level_p = torch.tensor(self.level_weights(), device=self.device, dtype=torch.float32)
        self.it = self.pairs = 0
        self.credit, self.curve, self.evals, self.keep = 0., [], [], {}
        self.deadline = a.minutes*60

    def level_weights(self):
        "Shares of the levels of a path in stage A: `low` below σ̄ = 0.15, 1 in the middle, `high` above σ̄ = 10, `top` at T"
        low, high, top = map(float, self.a.weights.split(','))
        sg = self.lv.sigma[self.lv.path(self.a.levels, .5, self.a.spacing)]
        w = np.where(sg < .15, low, np.where(sg > 10, high, 1.)); w[0] = top
        return w/w.sum()

    def ask(self, x, t, net=None):
        "f, saturated as in the loss, and as it was before"
        off = self.dtype == torch.float32
        with torch.autocast(self.device.type, dtype=torch.bfloat16 if off else self.dtype, enabled=not off): out = (self.call if net is None else net)(x, t - 1)
        raw = read(out.float(), x, *self.lv.of(t), self.a.head, self.a.kappa)
        return saturated(raw, self.a.saturate), raw

    def sync(self):
        if self.cuda: torch.cuda.synchronize()

    # ---- compiling, where it pays
    def try_compile(self):
        a, b = self.a, self.a.batch
        x, t = torch.randn(b, 1, 32, 32, device=self.device), torch.randint(1, 1001, (b,), device=self.device)
        def probe(call, n=6):
            for i in range(n + 3):
                if i == 3: self.sync(); s = time.time()
                f, _ = self.ask(x, t, call)
                losses(f, x, 'huber', .03).mean().backward()
            self.sync()
            for p in self.net.parameters(): p.grad = None
            return b*n/(time.time() - s)
        slow = probe(self.net)
        if not a.compile: return say(f'eager: {slow:.0f} pairs/s forward and backward (no optimizer)')
        s = time.time()
        def late(*_): raise TimeoutError(f'not ready after {a.compile_limit:g} s')
        was = signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, a.compile_limit)
        try:
            compiled = torch.compile(self.net, dynamic=False)
            fast = probe(compiled)
            say(f'compiled in {time.time() - s:.0f} s: {fast:.0f} pairs/s forward and backward against {slow:.0f} eager')
            if fast > .8*slow: self.call = compiled                       # other processes on the card make these rates noisy
        except Exception as e:
            self.call = self.net
            say(f'torch.compile failed after {time.time() - s:.0f} s, going on without it:', end_of(e))
        finally: signal.setitimer(signal.ITIMER_REAL, 0); signal.signal(signal.SIGALRM, was)
        for p in self.net.parameters(): p.grad = None

    # ---- the two stages: pairs and their targets
    def pairs_A(self, n):
        i = self.paths.pick(n)
        k = torch.multinomial(self.level_p, n, replacement=True, generator=self.gen)
        return self.paths.x[i, k], self.paths.t[i, k], self.paths.end[i], torch.ones(n, device=self.device)

    def levels_B(self, n):
        a = self.a
        mus = torch.tensor([float(m) for m in a.bmu.split(',')], device=self.device)
        mu = mus[torch.arange(n, device=self.device) % len(mus)]
        t = self.lv.nearest(mu + a.bsd*torch.randn(n, device=self.device, generator=self.gen))
        if a.btop > 0: t[:int(a.btop*n)] = self.lv.T
        sg = self.lv.sig[t]
        sr = sg*(1 - (1 + 8*torch.sigmoid(-sg))/a.q).clamp(min=0)
        r = torch.where(sr < self.lv.sig[1]*.5, 0, self.lv.nearest(sr.clamp(min=1e-6).log()))
        return t, torch.minimum(r, t - 1)

    @torch.no_grad()
    def pairs_B(self, n):
        a = self.a
        t, r = self.levels_B(n)
        if a.formB == 'data':
            i = torch.randint(len(self.data), (n,), device=self.device, generator=self.gen); y = self.data[i]
        else: y = self.paths.end[self.paths.pick(n)]                 # the teacher's own images
        z = torch.randn(n, 1, 32, 32, device=self.device, generator=self.gen)
        at, st = self.lv.of(t); ar, sr = self.lv.of(r)
        x = at*y + st*z
        if a.formB == 'distill':
            x0, eps = self.teacher.pair(x, t)
            xr = ar*x0 + sr*eps
        else: xr = ar*y + sr*z
        target = final(self.ask(xr, r.clamp(min=1), self.net)[1], a.saturate)     # not compiled: another graph would cost more than it saves
        target = torch.where((r == 0).view(-1, 1, 1, 1), xr.clamp(-1, 1), target)
        s, s_r = self.lv.sig[t], self.lv.sig[r]
        w = 1/(s - s_r) if a.bweight == 'sigma' else 1/torch.log(s/s_r.clamp(min=.5*float(self.lv.sigma[1])))
        return x, t, target, w/w.mean()

    def refill(self, n_pairs):
        self.credit += n_pairs/(self.a.levels*self.a.reuse)
        while self.credit >= self.a.chunk: self.paths.more(); self.credit -= self.a.chunk

    # ---- one stage
    def stage(self, name, share, end, last):
        a, start = self.a, clock()
        lr = a.lrA if name == 'A' else a.lrB
        opts = make_optimizers(self.net, lr, lr/2, (.9, .99), a.weight_decay)
        say(f'stage {name} until {end:.0f} s: learning rate {lr:g} (Muon), {lr/2:g} (AdamW)')
        params, since, mark = list(self.net.parameters()), self.pairs, clock()
        total, count = torch.zeros((), device=self.device), 0
        nB = 0 if name == 'A' else a.batch - int(a.anchor*a.batch)
        while True:
            now = clock()
            u = (now - start)/max(end - start, 1e-9)
            if u >= 1: break
            scale = min(1., u/.03 + .02, (1 - u)/a.cooldown)
            opts['muon'].param_groups[0]['lr'], opts['adamw'].param_groups[0]['lr'] = scale*lr, scale*lr/2
            parts = ([self.pairs_A(a.batch - nB)] if a.batch > nB else []) + ([self.pairs_B(nB)] if nB else [])
            x, t, y, w = (torch.cat(p) for p in zip(*parts))
            f, raw = self.ask(x, t)
            loss = (w*losses(f, y, a.loss, a.c_pixel)).mean()
            bound = loss if a.saturate == 'none' else loss + .1*F.relu(raw.abs() - 1.5).square().mean()  # beyond ±1 all is equal, but not without end
            for p in params: p.grad = None
            bound.backward()
            nn.utils.clip_grad_norm_(params, a.clip_grad)
            for o in opts.values(): o.step()
            for e in self.emas: e.update()
            total += loss.detach(); count += 1
            self.it += 1; self.pairs += a.batch
            self.refill(a.batch if name == 'A' else a.batch - nB + nB/4)
            if count >= a.log_every:
                v = (total/count).item()                             # waits for the device, so the clock is honest
                if not math.isfinite(v): raise Diverged(f'loss is {v} in stage {name} at iteration {self.it}: the learning rate {scale*lr:.3g} is too high, or the arithmetic overflowed; stopped')
                self.curve.append([round(clock(), 1), name, self.it, round(v, 6)])
                total.zero_(); count = 0
                # an evaluation only where it neither runs into the end of the stage nor comes too soon
                if clock() - mark > a.eval_every and end - clock() > max(2*self.eval.seconds, .3*a.eval_every):
                    self.report(name, u, (self.pairs - since)/(clock() - mark)); since, mark = self.pairs, clock()
        self.sync()
        self.report(name, 1., (self.pairs - since)/max(clock() - mark, 1e-9), final=last, stage_end=True)

    def eval_cost(self): return self.eval.seconds*len(self.emas) + .5

    def report(self, name, u, rate, final=False, stage_end=False):
        rows = {}
        for e in self.emas if stage_end else self.emas[-1:]:             # between the ends one average is enough
            if not all(bool(p.isfinite().all()) for p in e.params): raise Diverged(f'weights are not finite in stage {name} at iteration {self.it}; stopped')
            row, grids = self.eval(e.params)
            if not rows or row['score'] < min(r['score'] for r in rows.values()): best, best_grids = e, grids
            rows[e.kind] = row
            loss = self.curve[-1][3] if self.curve else float('nan')
            say(f"{name} u={u:.2f} it {self.it} pairs {self.pairs/1e6:.2f}M paths {self.paths.made} {rate/1e3:.1f}k/s loss {loss:.5f} ema {e.kind} | {shown(row)}")
        self.evals.append(dict(seconds=round(clock(), 1), stage=name, u=round(u, 3), iteration=self.it, pairs=self.pairs, paths=self.paths.made, distances=rows, best=best.kind))
        self.write(best, best_grids, stage_end and not final and name, final)

    # ---- files
    def state(self, params, half=False):
        d = self.net.state_dict()
        names = [n for n, _ in self.net.named_parameters()]
        assert set(names) == set(d)
        return {n: (p.detach().half() if half else p.detach().float()).cpu().contiguous().clone() for n, p in zip(names, params)}

    def write(self, best, grids, stage_end, final):
        a, out = self.a, Path(self.a.out)
        if stage_end: self.keep[stage_end] = self.state(best.params)
        config = {k: v for k, v in self.meta.get('config', {}).items() if k != 'training'}
        config['loss'] = dict(parameterization='consistency')
        places = {'out', 'teacher', 'assets', 'data'}                                # of one machine
        record = dict(args={k: v for k, v in vars(a).items() if k not in places}, curve=self.curve[::max(1, len(self.curve)//400)], evaluations=self.evals, baseline=self.baseline,
                      seconds=round(clock(), 1), pairs=self.pairs, paths=self.paths.made, iterations=self.it, seed=a.seed, device=torch.cuda.get_device_name() if self.cuda else 'cpu',
                      torch=torch.__version__, compiled=self.call is not self.net, ema=best.kind,
                      head=dict(kind=a.head, kappa=a.kappa, saturate=a.saturate, formula={'eps': 'a*x - s*(N - s*x)/max(a,kappa)', 'v': 'a*x - s*N', 'x0': 'N'}[a.head] + ', clamped to [-1,1]'),
                      plans={'1': [1000], '2': [[1000, m] for m in MIDDLE], '4': list(FOUR)})
        meta = dict(config=config, epoch=0, step=self.it, best_loss=None, student=json.loads(json.dumps(record)))
        meta['student']['teacher'] = Path(a.teacher).name
        common = dict(epoch=0, step=self.it, metadata=meta)
        files = {f'{a.name}_full.pt': dict(common, model_state_dict=self.state(best.params), ema_state_dicts={e.kind: self.state(e.params) for e in self.emas if e is not best},
                                           stage_state_dicts=dict(list(self.keep.items())[-1:]))}
        if not a.lean: files[f'{a.name}.pt'] = dict(common, model_state_dict=self.state(best.params, half=True))
        out.mkdir(parents=True, exist_ok=True)
        for n, d in files.items():
            torch.save(d, out/(n + '.tmp')); os.replace(out/(n + '.tmp'), out/n)
            if (size := (out/n).stat().st_size) > 16*2**20: say(f'WARNING: {n} has {size/2**20:.1f} MiB')
        if final:
            try:
                from PIL import Image
                tile = lambda x: np.block([[np.pad(x[8*i + j, 0].add(1).mul(127.5).round().byte().numpy(), 1, constant_values=60) for j in range(8)] for i in range(8)])
                im = np.concatenate([np.pad(tile(grids[k]), ((0, 0), (0, 8)), constant_values=255) for k in ('1', '2', '4')], 1)
                Image.fromarray(im).save(out/f'{a.name}.png.tmp', format='PNG'); os.replace(out/f'{a.name}.png.tmp', out/f'{a.name}.png')
            except ImportError: say('no pillow here: no picture')

    # ---- all of it
    def start(self):
        a = self.a
        for s in range(0, a.buffer if not self.cuda else min(a.buffer, 8192), a.chunk): self.paths.more()
        self.sync()
        n = min(a.eval_n, self.paths.full)
        ends = self.paths.end[:n]
        self.baseline = dict(n=a.eval_n, real=self.judge.floor(a.eval_n), path_ends=self.judge(ends), path_ends_n=n)
        if a.baseline: self.baseline['ddim50_eta1'] = self.judge(self.ddim(a.eval_n))
        say(f"N = {a.eval_n}: real test images {self.baseline['real']:.2f}, ends of the teacher's paths {self.baseline['path_ends']:.2f} (n = {n})"
            + (f", DDIM 50 with eta = 1 {self.baseline['ddim50_eta1']:.2f}" if a.baseline else ''))

    @torch.no_grad()
    def ddim(self, n, steps=50):
        "Stochastic DDIM (eta = 1) of the teacher"
        ab, ts, out, bs = self.lv.abar, np.linspace(self.lv.T, 1, steps).round().astype(int), [], min(1000, n)
        for k in range(0, n, bs):
            x = torch.randn(min(bs, n - k), 1, 32, 32, device=self.device, generator=self.gen)
            for t, s in zip(ts, [*ts[1:], 0]):
                x0, eps = self.teacher.pair(x, torch.full((len(x),), int(t), device=self.device))
                var = (1 - ab[s])/(1 - ab[t])*(1 - ab[t]/ab[s])
                x = ab[s]**.5*x0 + (1 - ab[s] - var)**.5*eps + (var**.5*torch.randn(x.shape, device=self.device, generator=self.gen) if s else 0.)
            out.append(x)
        return torch.cat(out)

    def __call__(self):
        a = self.a
        say(f"{'GPU ' + torch.cuda.get_device_name() if self.cuda else 'CPU'}, torch {torch.__version__}, args {json.dumps(vars(a))}")
        self.try_compile()
        self.start()
        row, _ = self.eval(self.emas[0].params)
        first = self.eval.seconds
        row, _ = self.eval(self.emas[0].params) if self.cuda else (row, None)         # without cudnn's first search
        say(f'before training (one evaluation takes {self.eval.seconds:.1f} s, the first {first:.1f} s) | {shown(row)}')
        begin = clock()
        stop, slow = self.deadline - 1.6*self.eval_cost() - a.reserve, self.eval.seconds    # the last evaluation and the files fit in
        shares = [(s.split(':')[0], float(s.split(':')[1])) for s in a.stages.split(',')]
        if stop <= begin: return say(f'no time left to train: {begin:.0f} s went into the start; raise --minutes')
        for i, (name, share) in enumerate(shares):
            slow = max(slow, self.eval.seconds); stop = self.deadline - 1.6*(slow*len(self.emas) + .5) - a.reserve
            left = stop - clock() - 1.3*self.eval_cost()*(len(shares) - 1 - i)         # less the evaluations at the ends of stages
            self.stage(name, share, clock() + max(left, 0.)*share/sum(v for _, v in shares[i:]), i == len(shares) - 1)
        say(f'done: {self.it} iterations, {self.pairs/1e6:.2f}M pairs, {clock():.0f} of {self.deadline:.0f} s; wrote {a.out}/{a.name}*')

def end_of(e): return f'{type(e).__name__}: ' + (str(e).strip().splitlines() or [''])[0][:300]

def arguments(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    o = p.add_argument
    o('--minutes', type=float, default=6., help='wall-clock budget of the whole script')
    o('--out', default=os.environ.get('OUT', 'student_out'))
    o('--name', default='student', help='prefix of the files and of the printed lines')
    o('--teacher', default=str(ROOT/'ddpm_sampling/assets/mnist_epoch_0010.pt'))
    o('--assets', default=str(ROOT/'ddpm_sampling/assets'))
    o('--data', default=None, help='NPZ with train_images: stage B in data form')
    o('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    o('--seed', type=int, default=0)
    o('--batch', type=int, default=2048, help='pairs an iteration (128 paths of 16 points)')
    o('--stages', default='A:0.7,B:0.3', help='stages and their shares of the time')
    o('--head', choices=['eps', 'v', 'x0'], default='eps')
    o('--kappa', type=float, default=.2)
    o('--saturate', choices=['none', 'ste', 'leaky', 'soft'], default='ste')
    o('--loss', choices=['huber', 'pixel', 'mix'], default='huber')
    o('--c-pixel', type=float, default=.03, help='c of the pixelwise pseudo-Huber loss')
    o('--levels', type=int, default=16, help='points of a path')
    o('--spacing', default='7', help="'log': levels even in log of sigma; a number rho: even in sigma^(1/rho)")
    o('--weights', default='0.25,0.7,6', help='stage A, shares of levels: below sigma 0.15, above 10, at T (1 in the middle)')
    o('--buffer', type=int, default=32768, help='paths kept')
    o('--chunk', type=int, default=1024, help='paths walked at once')
    o('--reuse', type=float, default=3., help='trained pairs per teacher evaluation')
    o('--snap', type=float, default=1/255, help='ends of paths this near to black or white become so')
    o('--lrA', type=float, default=2e-3, help="Muon's; AdamW has half of it")
    o('--lrB', type=float, default=5e-4)
    o('--cooldown', type=float, default=.7, help='share of a stage over which the rate falls to 0')
    o('--weight-decay', type=float, default=.01)
    o('--clip-grad', type=float, default=1.)
    o('--q', type=float, default=256.)
    o('--bmu', default='-1.1', help='means of log sigma in stage B, for example -1.1,1')
    o('--bsd', type=float, default=2.)
    o('--btop', type=float, default=0., help='share of stage B at t = T')
    o('--bweight', choices=['sigma', 'logsigma'], default='sigma', help='1/difference of sigma, or of its logarithm')
    o('--formB', choices=['distill', 'samples', 'data'], default=None, help="default: 'data' with --data, else 'distill'")
    o('--anchor', type=float, default=0., help='share of pairs of stage A in a batch of stage B')
    o('--emas', default='p0.03,p0.1', help='averages kept: decays, or p and a relative width')
    o('--dtype', choices=['bf16', 'tf32', 'fp32'], default='bf16')
    o('--teacher-dtype', choices=['bf16', 'fp16', 'fp32'], default=None, help='default: fp16 on a GPU, bf16 on a CPU')
    o('--edges', choices=['fp32', 'auto'], default='fp32', help="first and last convolution: outside the autocast, or 'auto'")
    o('--compile', action='store_true')
    o('--compile-limit', type=float, default=80., help='seconds after which the uncompiled network is used')
    o('--baseline', action='store_true', help='also the distance of stochastic DDIM in 50 steps')
    o('--eval-every', type=float, default=80.)
    o('--eval-n', type=int, default=5000)
    o('--eval-batch', type=int, default=1000)
    o('--log-every', type=int, default=20)
    o('--reserve', type=float, default=4., help='seconds for the last files')
    o('--lean', action='store_true', help='no separate half-precision file')
    o('--smoke', action='store_true', help='a tiny run from beginning to end')
    a = p.parse_args(argv)
    if a.smoke:
        a.minutes, a.batch, a.chunk, a.buffer, a.eval_n, a.eval_batch, a.eval_every, a.log_every, a.reserve = min(a.minutes, .9), 32, 16, 64, 128, 64, 12., 2, 1.
    a.formB = a.formB or ('data' if a.data else 'distill')
    a.teacher_dtype = a.teacher_dtype or ('fp16' if a.device.startswith('cuda') else 'bf16')
    if a.formB == 'data' and not a.data: p.error('--formB data needs --data')
    if a.buffer % a.chunk: p.error('--buffer must be a multiple of --chunk')
    if not re.fullmatch(r'[A-Za-z0-9._-]+', a.name): p.error('--name takes letters, digits, . _ -')
    if not all(re.fullmatch(r'[AB]:[0-9.]+', s) for s in a.stages.split(',')): p.error('--stages is like A:0.7,B:0.3')
    if not re.fullmatch('log|[0-9.]+', a.spacing): p.error('--spacing takes log or a number')
    return a

def main(argv=None):
    global NAME
    a = arguments(argv)
    NAME = a.name
    try: Run(a)()
    except Diverged as e: say(f'STOPPED: {e}'); return 1
    return 0

if __name__ == '__main__': sys.exit(main())
