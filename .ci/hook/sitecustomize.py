"""With this folder on PYTHONPATH and NB_LOG set, every notebook that execnb runs leaves one JSON line in the file NB_LOG:
its name, how many code cells ran, in how many seconds, whether all went well, and every printed line that starts with
`SKIPPED:`. So CI can tell what `nbdev_test`, which shows output of failures alone, has really run."""
import json, os, sys, time

def watch(log):
    from execnb.shell import CaptureShell
    init, run, run_all = CaptureShell.__init__, CaptureShell._run, CaptureShell.run_all

    def new_init(self, path=None, *args, **kwargs):
        self.seen = dict(notebook=getattr(path, 'name', str(path)), cells=0, ok=False, skipped=[])
        init(self, path, *args, **kwargs)

    def new_run(self, *args, **kwargs):
        res = run(self, *args, **kwargs)
        self.seen['cells'] += 1
        self.seen['skipped'] += [l for l in res.stdout.splitlines() if l.startswith('SKIPPED:')]
        return res

    def new_run_all(self, *args, **kwargs):
        start, self.seen['cells'] = time.time(), 0
        try:
            res = run_all(self, *args, **kwargs)
            self.seen['ok'] = True
            return res
        finally:
            self.seen['seconds'] = round(time.time() - start, 1)
            with open(log, 'a') as f: f.write(json.dumps(self.seen) + '\n')

    CaptureShell.__init__, CaptureShell._run, CaptureShell.run_all = new_init, new_run, new_run_all

# In nbdev_test and its workers alone: a Python that a notebook starts is not touched.
if os.environ.get('NB_LOG') and any('nbdev_test' in a or 'multiprocessing' in a for a in sys.orig_argv): watch(os.environ['NB_LOG'])
