"""One side of a comparison: a process of its own, in an environment of its own.

A benchmark starts one `Side` for ours and one for each peer. The file that the process runs calls
`serve` and needs nothing but NumPy and the peer. Requests and answers are lines of JSON; arrays
go by files.
"""

import argparse
import contextlib
import gc
import json
import os
import statistics
import subprocess
import sys
import time
import traceback
import venv
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
# Seconds after which a side is timed no more.
_PATIENCE = 60.0


class Unavailable(Exception):
    """A peer that cannot be had here, or cannot do what was asked; says why."""


def cache():
    """Returns the folder of peers' environments, outside of any repository."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "transduce" / "benchmarks"


def environment(name, installs):
    """Returns the Python of a virtual environment, made at the first call.

    Args:
        name: of the environment's folder.
        installs: arguments of one `pip install` after another.
    """
    folder = cache() / name
    python, made = folder / "bin" / "python", folder / "made.json"
    wanted = json.dumps(installs)
    if made.exists() and made.read_text(encoding="utf-8") == wanted:
        return python
    print(f"Making the environment {folder} …", file=sys.stderr, flush=True)
    venv.create(folder, clear=True, with_pip=True)
    for arguments in installs:
        command = [python, "-m", "pip", "install", "--quiet", *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            said = [line for line in done.stdout.splitlines() if line.strip()]
            raise Unavailable(f"installing {arguments} failed: {said[-1] if said else ''}")
    made.write_text(wanted, encoding="utf-8")
    return python


def parser(about, sides, cases=()):
    """Returns a parser of what the benchmarks of sides have in common.

    Args:
        about: the benchmark's docstring.
        sides: names of all sides.
        cases: names of the kinds of cases, if one may choose.
    """
    options = argparse.ArgumentParser(description=about.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="small: whether it works at all")
    options.add_argument("--sides", nargs="+", choices=sides, default=list(sides))
    if cases:
        options.add_argument("--cases", nargs="+", choices=cases, default=list(cases))
    options.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options.add_argument("--no-huge-pages", dest="huge_pages", action="store_false")
    return options


def pythons(sides, names):
    """Returns the Python of each side that can be had, and says which cannot.

    Args:
        sides: by name the arguments of `environment`, or None for this process's own.
        names: of the sides that are wanted.
    """
    found = {}
    for name in names:
        try:
            found[name] = environment(*sides[name]) if sides[name] else Path(sys.executable)
        except Unavailable as why:
            print(f"{name} could not be had: {why}")
    return found


class Side:
    """A running side, asked from outside."""

    def __init__(self, name, python, command, threads, huge_pages=True):
        # The same memory allocator, pages and threads for all.
        settings = {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "NUMBA_NUM_THREADS": threads,
            "TF_NUM_INTRAOP_THREADS": threads,
            "TF_NUM_INTEROP_THREADS": 1,
            "TF_CPP_MIN_LOG_LEVEL": 3,
            "CUDA_VISIBLE_DEVICES": "",
            "GLIBC_TUNABLES": f"glibc.malloc.hugetlb={int(huge_pages)}",
        }
        self.name = name
        cache().mkdir(parents=True, exist_ok=True)
        self._log = cache() / f"{name}.log"
        settings["PATH"] = f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._process = subprocess.Popen(
            [python, *command],
            cwd=ROOT,
            env={**os.environ, **{key: str(value) for key, value in settings.items()}},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        os.close(log)

    def ask(self, request, **arguments):
        """Returns the answer to a request; raises Unavailable if there is none."""
        try:
            self._process.stdin.write(json.dumps([request, arguments]) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            code = self._process.wait()
            why = "out of memory" if code == -9 else f"exit {code}, see {self._log}"
            raise Unavailable(f"{self.name} ended: {why}")
        answer = json.loads(answer)
        if "error" in answer:
            raise Unavailable(answer["error"])
        return answer["value"]

    def close(self):
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def ask_all(sides, ask):
    """Returns the answers of those sides that have one, and says why others have none."""
    answers = {}
    for side in sides:
        try:
            answers[side] = ask(side)
        except Unavailable as why:
            print(f"  {side.name}: {why}")
    return answers


def time_in_turns(sides, rounds):
    """Returns by measure and side the median of seconds, and the bytes."""
    seconds = {side: [] for side in sides}
    for _ in range(rounds):
        waited_for = [side for side in seconds if sum(seconds[side]) < _PATIENCE]
        for side, took in ask_all(waited_for, lambda side: side.ask("time")).items():
            seconds[side].append(took)
    timed = [side for side, times in seconds.items() if times]
    return {
        "seconds": {side.name: statistics.median(seconds[side]) for side in timed},
        "bytes": {
            side.name: peak for side, peak in ask_all(timed, lambda side: side.ask("peak")).items()
        },
    }


def serve(begin):
    """Answers requests until there are no more.

    Args:
        begin: a function without arguments that returns another, `prepare`. That takes the kind
            of a case and its arrays by name, puts them where the peer wants them, and returns a
            function without arguments that computes the losses and the list of gradients anew,
            as whatever `numpy.asarray` takes, and is done when it returns. `prepare` raises
            NotImplementedError for a kind that the peer has not.
    """
    # Where memory runs out it is this process that ends.
    Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    # What libraries print is no answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    server = _Server(begin())
    for line in sys.stdin:
        request, arguments = json.loads(line)
        try:
            answer = {"value": getattr(server, request)(**arguments)}
        except Exception as error:
            traceback.print_exc()
            said = str(error).strip().splitlines()
            answer = {"error": f"{type(error).__name__}: {said[0] if said else 'no message'}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class _Server:
    """What a side can be asked."""

    def __init__(self, prepare):
        self._prepare, self._compute, self._peak = prepare, None, None

    def load(self, kind, path, tiny):
        """Prepares a case and computes it once, so that all that happens once has happened.

        Memory is measured meanwhile, as some libraries never give back what they once had. What
        they need for their own sake they get before, by a tiny case of the same kind.
        """
        self._load(kind, tiny)()
        self._compute = self._load(kind, path)
        gc.collect()
        # What was held at most is from now on what is held now.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _status("VmRSS")
        results = self._compute()
        self._peak = _status("VmHWM") - before
        del results

    def _load(self, kind, path):
        with np.load(path) as arrays:
            return self._prepare(kind, dict(arrays))

    def time(self):
        """Returns the seconds that computing takes."""
        start = time.perf_counter()
        results = self._compute()
        seconds = time.perf_counter() - start
        del results
        return seconds

    def peak(self):
        """Returns the bytes that computing first held at most, results included, inputs not."""
        return self._peak

    def results(self, path):
        """Writes the losses and gradients."""
        losses, gradients = self._compute()
        named = {f"gradient_{n}": np.asarray(x) for n, x in enumerate(gradients)}
        np.savez(path, losses=np.asarray(losses), **named)


def _status(name):
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)
