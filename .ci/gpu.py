#!/usr/bin/env python3
"""What a GPU does with this library: speed in each precision, the loop, the noise, equal bits. Under ten minutes; with
--device cpu a small run that shows that the script is whole.

    gpu.py [--device cuda] [--seconds 5]
"""
import argparse, json, sys, time
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from ddpm_sampling import load_checkpoint, sample
from ddpm_sampling.sampler.denoisers import denoiser
from ddpm_sampling.sampler.loop import ddpm_step, sample_steps
from ddpm_sampling.sampler.noise import keyed_noise
from ddpm_sampling.sampling.engine import compiled, machine, placed
from ddpm_sampling.sampling.front_door import Run, images_of
from ddpm_sampling.basics.recipes import Recipe

p = argparse.ArgumentParser()
p.add_argument('--device', default='cuda')
p.add_argument('--seconds', type=float, default=5.)
a = p.parse_args()
device = torch.device(a.device)
cuda = device.type == 'cuda'
wait = torch.cuda.synchronize if cuda else lambda: None
sizes = (64, 256, 1024) if cuda else (8, 16)
found = dict(machine=machine(device), torch=torch.__version__)

def timed(f, seconds=a.seconds):
    "Seconds of a call, the fastest"
    f(); f(); wait()
    best, start = 9e9, time.perf_counter()
    while time.perf_counter() - start < seconds:
        t = time.perf_counter(); f(); wait()
        best = min(best, time.perf_counter() - t)
    return best

def rate(dtype):
    "TFLOP/s of a matrix product"
    n = 8192 if cuda else 512
    m = torch.randn(n, n, device=device, dtype=dtype)
    return 2*n**3/timed(lambda: m@m, a.seconds/3)/1e12

ck = load_checkpoint(device=a.device)
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
found['product'] = {'float32': rate(torch.float32), 'bfloat16': rate(torch.bfloat16)}

# the network
for b in sizes:
    row = {}
    for name, dtype, tf32, comp in (('float32', None, False, False), ('TF32', None, True, False), ('bfloat16', torch.bfloat16, False, False),
                                    ('float32, compiled', None, False, True), ('bfloat16, compiled', torch.bfloat16, False, True)):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        net = compiled(ck.net, b, dtype=dtype) if comp else placed(ck.net, dtype=dtype)
        x = torch.randn(b, *ck.shape, device=device, dtype=dtype or torch.float32)
        i = torch.full((1,), 500, device=device).expand(b)
        with torch.no_grad(): row[name] = b/timed(lambda: net(x, i), a.seconds/3)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    found[f'evaluations/s, {b}'] = row
    share = row['bfloat16, compiled']*.22e9/1e12/found['product']['bfloat16']
    found[f'share of the product, bfloat16 compiled, {b}'] = share

# noise: the same bits as on the CPU, and its cost
for shape in ((1, 32, 32), (3, 32, 32)):
    here, there = keyed_noise(7, [*range(5), 2**63], shape, 500), keyed_noise(7, [*range(5), 2**63], shape, 500, device=a.device)
    assert torch.equal(here, there.cpu()), 'noise differs'
    found[f'noise, µs an image of {shape}'] = {b: timed(lambda: keyed_noise(7, range(b), shape, 500, device=a.device), a.seconds/3)/b*1e6 for b in sizes}

# the loop: what a step costs beside the network, and no waiting for the device
out = torch.randn(1, *ck.shape, device=device)
den, plan = denoiser(lambda x, i: out, ck.schedule, clip=1.), ck.schedule.plan(100)
z = torch.randn_like(out)
def loop():
    for _ in sample_steps(den, plan, out, ddpm_step, lambda t, visit: z): pass
found['loop, µs a step'] = timed(loop)/100*1e6
run = Run(ck, Recipe(steps=40), images_of(ck.shape, 16))
with torch.no_grad():
    for _ in run.batch(run.parts[0]): pass
    if cuda: torch.cuda.set_sync_debug_mode('error')
    look = run.lookout()
    for _ in run.batch(run.parts[0], look): pass
    if cuda: torch.cuda.set_sync_debug_mode('default')
    look.finish()
found['synchronisations in a run'] = 0 if cuda else None

# whole requests, and equal bits
asked = dict(n=sizes[-1], steps=20, seed=3, batch_size=sizes[-1])
for name, more in (('float32', {}), ('bfloat16', dict(precision='bfloat16')), ('bfloat16, compiled', dict(precision='bfloat16', compile=True))):
    found[f'images/s, 20 ancestral steps, {name}'] = asked['n']/timed(lambda: sample(ck, **asked, **more))
found['two runs bit-equal'] = bool(torch.equal(sample(ck, **asked), sample(ck, **asked)))
on_cpu = sample(load_checkpoint(device='cpu'), 4, steps=20, seed=3)
found['largest difference from the CPU'] = float((sample(ck, 4, steps=20, seed=3).cpu() - on_cpu).abs().max())
print(json.dumps(found, indent=1))
