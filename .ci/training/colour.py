"Train the Day-6 colour network (C=64, D=256) with a label embedding on the JPEG copy of CIFAR-10, within a budget of minutes."
import argparse, copy, io, json, math, os, sys, time
from concurrent.futures import ProcessPoolExecutor
import numpy as np, torch, torch.nn.functional as F
from torch import nn
from PIL import Image

ap = argparse.ArgumentParser()
ap.add_argument('--data', default='gpu/cifar10_jpeg.npz'); ap.add_argument('--out', default='out'); ap.add_argument('--name', default='colour')
ap.add_argument('--minutes', type=float, default=1.); ap.add_argument('--predicts', default='v'); ap.add_argument('--schedule', default='cosine')
ap.add_argument('--opt', default='muon'); ap.add_argument('--lr', type=float, default=3e-3); ap.add_argument('--lr_adamw', type=float, default=1.5e-3)
ap.add_argument('--batch', type=int, default=512); ap.add_argument('--warmup', type=int, default=300); ap.add_argument('--cooldown', type=float, default=.4)
ap.add_argument('--drop', type=float, default=.15); ap.add_argument('--seed', type=int, default=0); ap.add_argument('--compile', type=int, default=1)
ap.add_argument('--c', type=int, default=64); ap.add_argument('--d', type=int, default=256); ap.add_argument('--limit', type=int, default=0)
ap.add_argument('--keep', default='0.06,0.3', help='shares of the run after which an earlier epoch is kept')
ap.add_argument('--grid', type=int, default=1); ap.add_argument('--evals', type=int, default=10); ap.add_argument('--n_eval', type=int, default=10000)
a = ap.parse_args()
os.makedirs(a.out, exist_ok=True)
t_start = time.time()
def say(*s): print(f'[{a.name} {time.time()-t_start:6.1f}s]', *s, flush=True)
dev = 'cuda' if torch.cuda.is_available() else 'cpu'
torch.backends.cudnn.benchmark = True
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True

# --- data
def decode(bufs): return np.stack([np.asarray(Image.open(io.BytesIO(b)).convert('RGB')) for b in bufs])
def images(f, part, limit):
    raw, off = f[f'{part}_jpeg'].tobytes(), f[f'{part}_offsets']
    n = min(len(off) - 1, limit or 10**9)
    bufs = [raw[off[i]:off[i+1]] for i in range(n)]
    k = 500
    with ProcessPoolExecutor(min(16, os.cpu_count())) as ex: parts = list(ex.map(decode, [bufs[i:i+k] for i in range(0, n, k)]))
    return torch.from_numpy(np.concatenate(parts)).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(f[f'{part}_labels'][:n].astype(np.int64))

# --- network
def feats(t, dim):
    f = torch.exp(-math.log(10000)*torch.arange(dim//2, dtype=torch.float32, device=t.device)/(dim//2 - 1))
    x = t[:, None].float()*f
    return torch.cat([x.sin(), x.cos()], 1)
class TimeEmbedding(nn.Module):
    def __init__(s, dim):
        super().__init__(); s.dim = dim
        s.mlp = nn.Sequential(nn.Linear(dim, 4*dim), nn.SiLU(), nn.Dropout(0.), nn.Linear(4*dim, dim))
    def forward(s, t): return s.mlp(feats(t, s.dim))
class Block(nn.Module):
    def __init__(s, i, o, dim):
        super().__init__()
        s.norm1, s.conv1, s.time_proj = nn.GroupNorm(8, i), nn.Conv2d(i, o, 3, padding=1), nn.Linear(dim, o)
        s.norm2, s.conv2 = nn.GroupNorm(8, o), nn.Conv2d(o, o, 3, padding=1)
        s.skip = nn.Conv2d(i, o, 1) if i != o else nn.Identity()
    def forward(s, x, emb):
        h = s.conv1(F.silu(s.norm1(x))) + s.time_proj(F.silu(emb))[:, :, None, None]
        return s.conv2(F.silu(s.norm2(h))) + s.skip(x)
class UNet(nn.Module):
    def __init__(s, ci, co, c, d, labels):
        super().__init__()
        s.time_embed = TimeEmbedding(d); s.label_embed = nn.Embedding(labels + 1, d); nn.init.zeros_(s.label_embed.weight)
        s.input_conv = nn.Conv2d(ci, c, 3, padding=1)
        s.down1, s.down2, s.down3, s.middle = Block(c, c, d), Block(c, 2*c, d), Block(2*c, 4*c, d), Block(4*c, 4*c, d)
        s.up3, s.up2, s.up1 = Block(8*c, 2*c, d), Block(4*c, c, d), Block(2*c, c, d)
        s.output_conv = nn.Conv2d(c, co, 3, padding=1)
        for n, m in s.named_modules():
            if n.endswith('conv2') or n == 'output_conv': nn.init.zeros_(m.weight); nn.init.zeros_(m.bias)
    def forward(s, x, t, y):
        emb = s.time_embed(t) + s.label_embed(y)
        h1 = s.down1(s.input_conv(x), emb); h2 = s.down2(F.avg_pool2d(h1, 2), emb); h3 = s.down3(F.avg_pool2d(h2, 2), emb)
        h = s.middle(F.avg_pool2d(h3, 2), emb)
        for k, up in (h3, s.up3), (h2, s.up2), (h1, s.up1): h = up(torch.cat([F.interpolate(h, scale_factor=2.), k], 1), emb)
        return s.output_conv(h)

# --- optimizers
def as_matrix(k): return k.permute(0, 2, 3, 1).flatten(1)
class ConvMuon(torch.optim.Muon):
    def __init__(s, kernels, lr, wd):
        s.kernels, s.matrices = kernels, [nn.Parameter(as_matrix(k.data)) for k in kernels]
        super().__init__(s.matrices, lr=lr, weight_decay=wd, adjust_lr_fn='match_rms_adamw')
        assert all(m.data_ptr() == k.data_ptr() for m, k in zip(s.matrices, kernels))
    def step(s):
        for m, k in zip(s.matrices, s.kernels): m.grad = as_matrix(k.grad).contiguous()
        super().step()

# --- schedule
T = 1000
if a.schedule == 'linear': ab = np.cumprod(1 - np.linspace(1e-4, .02, T))
else:
    f = np.cos((np.arange(T + 1)/T + .008)/1.008*np.pi/2)**2
    ab = np.cumprod(1 - np.clip(1 - f[1:]/f[:-1], 0, .999))
abar = torch.tensor(ab, device=dev, dtype=torch.float64)

f = np.load(a.data)
x_train, y_train = images(f, 'train', a.limit); x_test, y_test = images(f, 'test', a.limit)
say('data', tuple(x_train.shape), tuple(x_test.shape), 'mean', x_train.float().mean().item())
x_train, y_train, x_test, y_test = (v.to(dev) for v in (x_train, y_train, x_test, y_test))
torch.manual_seed(a.seed); g = torch.Generator(dev).manual_seed(a.seed)
net = UNet(3, 3, a.c, a.d, 10).to(dev, memory_format=torch.channels_last)
say('parameters', sum(p.numel() for p in net.parameters()), torch.__version__, torch.cuda.get_device_name() if dev == 'cuda' else 'cpu')
kernels = [p for p in net.parameters() if p.ndim == 4 and min(p.shape[:2]) >= 8]
inner = {id(p) for p in kernels}; rest = [p for p in net.parameters() if id(p) not in inner]
fused = dict(fused=True) if dev == 'cuda' else {}
if a.opt == 'muon': opts = [(ConvMuon(kernels, a.lr, .01), a.lr), (torch.optim.AdamW(rest, a.lr_adamw, betas=(.9, .99), weight_decay=.01, **fused), a.lr_adamw)]
else: opts = [(torch.optim.AdamW(net.parameters(), a.lr_adamw, betas=(.9, .99), weight_decay=.01, **fused), a.lr_adamw)]
decays = (.999, .9995, .9998)
params = list(net.parameters())
emas = [[p.detach().clone() for p in params] for _ in decays]

def stratified(n): return ((torch.arange(n, device=dev) + torch.rand(n, generator=g, device=dev))*T/n).long().clamp(max=T-1)   # index 0..T-1
def target(x0, eps, ab): return eps if a.predicts == 'eps' else ab.sqrt()*eps - (1 - ab).sqrt()*x0
def loss_of(model, x8, t, y, eps, full=False):
    x0 = x8.float().div(127.5).sub(1)
    w = abar[t].float().view(-1, 1, 1, 1)
    x = (w.sqrt()*x0 + (1 - w).sqrt()*eps).contiguous(memory_format=torch.channels_last)
    with torch.autocast(dev, dtype=torch.bfloat16): out = model(x, t, y)
    err = (out.float() - target(x0, eps, w)).square().flatten(1).mean(1)
    return err if full else err.mean()
model = net
if a.compile:
    try:
        model = torch.compile(net)
        loss_of(model, x_train[:a.batch], stratified(a.batch), y_train[:a.batch], torch.randn(a.batch, 3, 32, 32, device=dev)).backward(); net.zero_grad(set_to_none=True)
    except Exception as e: say('compile failed', repr(e)[:200]); model = net
say('compiled')

def with_ema(k):
    m = copy.deepcopy(net)
    for p, q in zip(m.parameters(), emas[k]): p.data.copy_(q)
    return m.eval().requires_grad_(False)

@torch.no_grad()
def test_loss(m, labelled, n=None):
    "mean and standard error of the loss in the network's own units, of the same images in eps units, in v units"
    n = n or a.n_eval
    gg = torch.Generator().manual_seed(1); n = min(n, len(x_test)); idx = torch.arange(n)
    eps = torch.randn(n, 3, 32, 32, generator=gg); t = (idx*997) % T
    out = []
    for i in idx.split(1000):
        j = i.to(dev); y = y_test[j] if labelled else torch.full_like(y_test[j], 10)
        out.append(loss_of(m, x_test[j], t[i].to(dev), y, eps[i].to(dev), full=True))
    e = torch.cat(out).double(); w = abar[t[:n].to(dev)]
    # eps error = own error (eps) or w * v error; v error = eps error / w
    eps_e, v_e = (e, e/w) if a.predicts == 'eps' else (e*w, e)
    return e.mean().item(), e.std().item()/n**.5, eps_e.mean().item(), v_e.clamp(max=1e3).mean().item(), v_e.median().item()

def store(epoch, step, m, name, history):
    cfg = dict(dataset=dict(name='cifar10', image_size=32, conditional=True, label_dropout=a.drop, copy='JPEG, quality 75'),
        model=dict(type='unet_small', in_channels=3, out_channels=3, model_channels=a.c, time_embed_dim=a.d, num_labels=10),
        schedules=dict(num_timesteps=T, schedule_type=a.schedule, beta_start=1e-4, beta_end=.02, cosine_s=.008),
        loss=dict(parameterization=a.predicts),
        training=dict(minutes=a.minutes, batch_size=a.batch, lr=a.lr, lr_adamw=a.lr_adamw, optimizer=a.opt, betas=[.9, .99], weight_decay=.01, warmup=a.warmup,
            cooldown=a.cooldown, seed=a.seed, bfloat16=True, init='zero_last', flips=True, device=torch.cuda.get_device_name() if dev == 'cuda' else 'cpu'))
    path = f'{a.out}/{name}.pt'
    torch.save(dict(model_state_dict={k: v.half() for k, v in m.state_dict().items()}, epoch=epoch, step=step, metadata=dict(config=cfg, epoch=epoch, step=step, history=history)), path + '.tmp')
    os.replace(path + '.tmp', path)

n, B = len(x_train), a.batch
budget = a.minutes*60; t0 = time.time(); step = epoch = 0; history = []; keep = [float(k) for k in a.keep.split(',') if k]; last_eval = 0.
done = False
while not done:
    order = torch.randperm(n, generator=g, device=dev); run = torch.zeros((), device=dev); cnt = 0
    for i in range(n//B):
        p = (time.time() - t0)/budget
        if p >= 1: done = True; break
        fac = min((step + 1)/a.warmup, 1., max(1 - p, 1e-3)/a.cooldown)
        for o, lr in opts: o.param_groups[0]['lr'] = lr*fac
        j = order[i*B:(i+1)*B]; x8 = x_train[j]
        flip = torch.rand(B, 1, 1, 1, generator=g, device=dev) < .5
        x8 = torch.where(flip, x8.flip(3), x8)
        y = torch.where(torch.rand(B, generator=g, device=dev) < a.drop, 10, y_train[j])
        l = loss_of(model, x8, stratified(B), y, torch.randn(B, 3, 32, 32, generator=g, device=dev))
        for q in params: q.grad = None
        l.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.)
        for o, _ in opts: o.step()
        with torch.no_grad():
            for d, e in zip(decays, emas): torch._foreach_lerp_(e, params, 1 - min(d, (1 + step)/(10 + step)))
        run += l.detach(); cnt += 1; step += 1
        if step % 16 == 0 and dev == 'cuda': torch.cuda.synchronize()
    if done and not cnt: break
    p = (time.time() - t0)/budget
    h = dict(epoch=epoch, step=step, train=run.item()/max(cnt, 1), seconds=round(time.time() - t0, 1), images=step*B)
    if done or p - last_eval >= 1/a.evals or (keep and p >= keep[0]):
        last_eval = p
        if keep and p >= keep[0]:
            keep.pop(0); m = with_ema(0); h['labelled'] = test_loss(m, True, 2000 if not done else None); store(epoch, step, m, f'{a.name}_{epoch:04d}', history + [h])
        else: h['labelled'] = test_loss(with_ema(0), True, 2000)
        say(json.dumps(h))
    history.append(h); epoch += 1
    if not math.isfinite(h['train']): say('loss is no number'); sys.exit(1)
epoch -= 1
say('training done', step, 'steps', epoch + 1, 'epochs', f'{step*B/(time.time()-t0):.0f} images/s')
final = {}
for k, d in enumerate(decays):
    m = with_ema(k); final[d] = dict(labelled=test_loss(m, True), free=test_loss(m, False)); say('EMA', d, json.dumps(final[d]))
raw = test_loss(net, True); say('raw', raw)
best = min(range(len(decays)), key=lambda k: final[decays[k]]['labelled'][0])
m = with_ema(best)
history.append(dict(final=final, best=decays[best], raw=raw))
store(epoch, step, m, f'{a.name}_final', history)
json.dump(history, open(f'{a.out}/{a.name}_history.json', 'w'))

@torch.no_grad()
def draw(m, labels, steps=100, scale=1., seed=5):
    "DDIM eta=1 (ancestral) over even levels, clipped"
    gg = torch.Generator(dev).manual_seed(seed); x = torch.randn(len(labels), 3, 32, 32, generator=gg, device=dev)
    ts = np.round(np.linspace(T - 1, 0, steps)).astype(int)
    null = torch.full_like(labels, 10)
    for k, t in enumerate(ts):
        w = abar[t].item(); s = abar[ts[k+1]].item() if k + 1 < len(ts) else 1.
        tt = torch.full((len(x),), int(t), device=dev)
        with torch.autocast(dev, dtype=torch.bfloat16):
            o = m(x, tt, labels).float()
            if scale != 1: u = m(x, tt, null).float(); o = u + scale*(o - u)
        x0 = (x - (1-w)**.5*o)/w**.5 if a.predicts == 'eps' else w**.5*x - (1-w)**.5*o
        x0 = x0.clamp(-1, 1); e = (x - w**.5*x0)/(1-w)**.5
        var = (1-s)/(1-w)*(1-w/s)
        x = s**.5*x0 + max(1-s-var, 0)**.5*e + var**.5*torch.randn(x.shape, generator=gg, device=dev)
    return x.clamp(-1, 1)
def tiles(x, cols):
    x = ((x + 1)*127.5).round().byte().cpu().numpy().transpose(0, 2, 3, 1)
    rows = [np.concatenate(list(x[i:i+cols]), 1) for i in range(0, len(x), cols)]
    return np.concatenate(rows, 0)
if a.grid:
    y = torch.arange(10, device=dev).repeat_interleave(10)
    img = np.concatenate([tiles(draw(m, y), 10), tiles(draw(m, y, scale=2.), 10), tiles(draw(m, torch.full((100,), 10, device=dev)), 10)], 1)
    Image.fromarray(img).resize((img.shape[1]*2, img.shape[0]*2), Image.NEAREST).save(f'{a.out}/{a.name}_grid.png')
say('done')
