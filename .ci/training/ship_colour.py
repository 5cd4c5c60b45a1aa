"""From what colour.py made on a GPU to what ships: `python .ci/training/ship_colour.py --weights W --data D`, where W holds
cifar10_epoch_{0006,0041,0139}.pt in half precision and D is the JPEG copy of CIFAR-10. The last epoch ships as it is. Of the
two earlier ones each number keeps four and five of its ten binary places, so that the package stays below 40 MB (a wheel is
compressed); what that costs is in the list. Writes into the package's assets: the files, their entries in checkpoints.json
with the loss on all test images, cifar10_reference.npz and cifar10_errors.npz with their records."""
import argparse, hashlib, io, json
from pathlib import Path
import numpy as np, torch
from ddpm_sampling.basics.files import whole_file
from ddpm_sampling.networks.error_curves import _of_file, measure_errors, weights_key
from ddpm_sampling.networks.loading import load_checkpoint
from ddpm_sampling.quality.datasets import load_cifar10, load_labels
from ddpm_sampling.quality.features import cifar10_features, extract
from ddpm_sampling.quality.frechet import Moments
from ddpm_sampling.students.training import test_loss

ap = argparse.ArgumentParser()
ap.add_argument('--weights', type=Path, required=True); ap.add_argument('--data', type=Path, required=True)
ap.add_argument('--out', type=Path, default=Path('ddpm_sampling/assets')); ap.add_argument('--passes', default='8,8,20')
ap.add_argument('--parts', default='reference,files,errors'); ap.add_argument('--only', type=int, help='renew this epoch alone')
a = ap.parse_args()
torch.set_num_threads(1)
EPOCHS, PLACES = (6, 41, 139), {6: 4, 41: 5}

def write(name, data):
    with whole_file(a.out/name) as part: part.write_bytes(data)
    return dict(file=name, sha256=hashlib.sha256(data).hexdigest())

def listed(name, record): (a.out/name).write_text(json.dumps(record, indent=1))

def rounded(v, places):  # of the ten binary places of half precision
    bits, off = v.view(torch.int16).int() & 0xffff, 10 - places
    return ((((bits + (1 << (off - 1))) >> off) << off) & 0xffff).to(torch.uint16).view(torch.float16)

def loss(path):
    "The denoising loss of a file, told the labels, and its standard error"
    mean, se = test_loss(load_checkpoint(path, device='cpu'), test8, kinds)
    return dict(test_loss=round(mean, 6), test_loss_se=round(se, 6))

parts = a.parts.split(',')
train8, test8, kinds = load_cifar10(a.data), load_cifar10(a.data, 'test'), load_labels(a.data, 'test')
if 'reference' in parts:
    ex, out = cifar10_features(), io.BytesIO()
    f, held = extract(train8, ex), extract(test8, ex)
    some = lambda v: v[np.random.default_rng(0).permutation(len(v))[:5000]]  # the files are sorted by class
    m = Moments.of(f)
    np.savez_compressed(out, extractor=np.array(ex.key), n=np.array(m.n), mean=m.mean, cov=m.cov,
                        train=some(f).astype(np.float16), test=some(held).astype(np.float16))
    listed('cifar10_reference.json', write('cifar10_reference.npz', out.getvalue()) | dict(extractor=ex.key))
    print('reference', len(out.getvalue()), flush=True)
if 'files' in parts:
    new = lambda e: e['dataset'] == 'cifar10' and a.only in (None, e['epoch'])
    entries = [e for e in json.loads((a.out/'checkpoints.json').read_text()) if not new(e)]
    for epoch in [a.only] if a.only else EPOCHS:
        name = f'cifar10_epoch_{epoch:04d}.pt'
        d, told = torch.load(a.weights/name, weights_only=True), {}
        if epoch in PLACES:
            told = dict(places=PLACES[epoch], as_trained=loss(a.weights/name))
            d['model_state_dict'] = {k: rounded(v, PLACES[epoch]) for k, v in d['model_state_dict'].items()}
        torch.save(d, out := io.BytesIO())
        record = write(name, out.getvalue() if epoch in PLACES else (a.weights/name).read_bytes())
        entries += [dict(dataset='cifar10', **record, epoch=epoch, step=d['step']) | loss(a.out/name) | told]
        print(entries[-1], flush=True)
    listed('checkpoints.json', entries)
if 'errors' in parts:
    cks = [load_checkpoint(a.out/f'cifar10_epoch_{e:04d}.pt', device='cpu') for e in EPOCHS]
    known = _of_file((a.out/'cifar10_errors.npz').read_bytes()) if a.only else []
    known = {e.key: e for e in known}
    es = [known.get(weights_key(ck)) or measure_errors(ck, train8, int(n), progress=True) for ck, n in zip(cks, a.passes.split(','))]
    np.savez_compressed(out := io.BytesIO(), abar=cks[0].schedule.abar, data=np.array(es[0].data), keys=np.array([weights_key(ck) for ck in cks]),
                        passes=np.array([e.passes for e in es]), mean=np.stack([e.mean for e in es]).astype(np.float32),
                        sq=np.stack([e.sq for e in es]).astype(np.float32))
    listed('cifar10_errors.json', write('cifar10_errors.npz', out.getvalue()))
    print('errors', len(out.getvalue()), flush=True)
