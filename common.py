"""What every script stands on: flags, data sets, models and their features, metrics, results, a training loop.

A script calls these, in about this order. What starts with _ can wait.

    add_flags(parser, names)          flags that are alike in every script; at_least(1), ending(".json"), writable, given are
                                      types of others
    load(args) -> data, model         first all that can be mistyped, then what may be downloaded; says what it is.
                                      Without a command line: load_data(name), load_model(name)
    data.images(model.view) -> {split: Images}        decoded once, counted aloud, every class checked; data.files(split)
    hold_out(images, seed)            the same with a val split, where there is no such folder
    images[rows], .batches(n)         uint8 (B, 3, S, S). len(images), .labels, .paths, .clusters, .take(mask), .block(seed)
    model.features(images) -> x, y    float32 (N, D) and int64 (N,) on the device, cached; model.centre_and_spread(x)
    model.classifier(words, templates)        class embeddings (C, E) of CLIP; model.embed(captions)
    model.encode_image(x), .inputs(x), .normalise(x), .autocast(), .sent(x)     what training and restoring take apart
    evaluate(logits, labels, classes)         accuracies, their intervals, confusions, under the same names in every script
    report(args, data, model, images, metrics, method, logits)        prints them; --out writes the record and its table rows
    fit(net, optimizer, legs, step, validate, model)                  trains and never loses a run; with half_epochs,
                                      snapshot (copies what training changes) and read_checkpoint (looks before hours are spent)
    save_weights(file, tensors, about(data, model, images, seed))     the one format of saved heads and networks
    read_weights(file) -> about, tensors;  check_head(file, about, tensors)
    use_saved(args)                   --load FILE with --predict or --export, whose flags check_saved looks at
    name_pictures(model, files, head, labels)         classifies any pictures: prints the ranking, or writes a CSV

And these, where they are needed:

    fail(message)                     one line, exit code 2: how bad input ends. So what is below raises SystemExit for it
    progress, clock, counted, some, why       a bar, seconds, and words for lines that people read
    atomic, read_json, write_json, save_tensors       files that are whole or absent
    digest, file_sha256, code_version                 keys of caches, and what a record says of the code
    accuracy_interval, paired_difference, wilson, normal_quantile, few_tested         what few test images are worth
    calibrate, measure_calibration    confidences, and sets of classes, that mean what they say; of fit_temperature,
                                      conformal_scores, conformal_quantile and reliability
    read_result(file) -> record, arrays               what report wrote; seal(record, file) is what makes it so
    parallel, dealt, from_first_rank, first_rank_goes_on    what several processes do together, or the first for all: torchrun
    note_cut, hub_file, without_draws    for a FILE.py: how many captions its tokenizer cuts; a file of the Hugging Face hub; while a
                                      network is made whose weights are all about to be loaded
    kept_copies(test, train, device)  which pictures of one split are in another
    read_templates(prompts)           what --prompts and --templates name
    data.picture(path), read_rgb, image_sizes, native_size, upsample      pictures, wherever they lie
    read_ahead                        reads them while others are used
    product(a, b)                     a @ b of large matrices, by whichever library is faster and as exact
    draw_pictures, wrap, natural      a sheet of pictures under their names; 2.jpg before 10.jpg
    model_name, spelled, input_size, pick_device, CLIP        names of models, their table, and hardware
    part_of_clip, clip_tokens, CLIP_COLOURS           networks and tokens of the package clip, and the mean and std of its pictures
    Encoder, View                     what a FILE.py for --model makes (docs/encoders.md), and how pictures become its input
    Data, Images, Model, FORMAT       what these make, and the number of what they write
    np, torch, nn, F, torchvision, Image, ImageOps    modules that are imported when they are first used, so that --help is quick

A script uses this file in main() and in the functions that main() is cut into; its own methods take tensors and plain
values. To use one script in your own project, copy it together with this file. Everything is written below the current
folder: data/ weights/ cache/.

    x    pixels, uint8 (N, S, S, 3) in storage, (B, 3, S, S) on the device
    N    images     B batch     S side in pixels     C classes     D feature width     E embedding width of CLIP
"""

from __future__ import annotations

import _thread
import argparse
import copy
import csv
import ctypes
import difflib
import errno
import gc
import hashlib
import importlib.util
import inspect
import io
import json
import logging
import math
import os
import pickle
import platform
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
import traceback
import types
import warnings
import zipfile
import zlib
from collections import Counter, OrderedDict, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from functools import cache, cached_property, lru_cache, partial
from importlib.machinery import PathFinder
from itertools import chain, pairwise
from pathlib import Path
from statistics import NormalDist

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class _Later(types.ModuleType):
    """A module that is imported when it is first used: --help and most mistakes need none of them, and few runs need all."""

    spent = 0.0  # seconds, on all of them

    def __getattribute__(self, name):
        return getattr(_import(self), name)

    def __setattr__(self, name, value):
        setattr(_import(self), name, value)


@cache
def _import(later):
    """The module that a _Later stands for."""
    began, collects = time.time(), gc.isenabled()
    gc.disable()  # looking through a million new objects for garbage takes a tenth of the time that importing torch takes
    try:
        module = importlib.import_module(object.__getattribute__(later, "__name__"))
        if module.__name__ == "torch":
            _without_compiler(module)
        return module
    finally:
        if collects:
            gc.enable()
        _Later.spent += time.time() - began


def _without_compiler(torch):
    """Take from optimizers what only torch's compiler wants to hear, which they import for it: 1.7 s, and nothing is compiled here."""
    optimizer, adamw = torch.optim.Optimizer, torch.optim.AdamW
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        setattr(optimizer, name, inspect.unwrap(getattr(optimizer, name)))
    adamw.step = torch.no_grad()(inspect.unwrap(adamw.step))


np, torch, nn, F, dist = map(_Later, ("numpy", "torch", "torch.nn", "torch.nn.functional", "torch.distributed"))
torchvision = _Later("torchvision")  # takes as long as torch once more, because it brings torch's compiler
Image, ImageOps, tqdm = map(_Later, ("PIL.Image", "PIL.ImageOps", "tqdm"))

warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated")  # OpenAI's files need it: its end is not the user's concern

# names in any script and ± are printed in any locale, file names byte for byte
for _stream in (sys.stdout, sys.stderr):
    with suppress(AttributeError):  # a notebook's
        _stream.reconfigure(encoding="utf-8", errors="surrogateescape")


def _keep_memory(keep=True):
    """Have glibc keep the memory of large tensors for the next ones, or else treat it as it comes. Who sets a MALLOC_ variable is heard.

    It hands them back to the system after each use, those of 32 MB or more in any case, and pays for fresh pages at the next: up to a
    third of the time of a convolutional network. Two arenas, not one for each thread, save 25 to 40 MB; with a single one threads wait for
    each other, a step of a small ViT twice as long.
    """
    mapped, free = (0, 2**31 - 1) if keep else (65536, 2**26)
    if not any(name.startswith("MALLOC_") for name in os.environ):
        with suppress(AttributeError, OSError, TypeError):  # other systems have no such function
            # M_MMAP_THRESHOLD, M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX of malloc.h
            for parameter, value in ((-3, 2**25), (-4, mapped), (-1, free), (-8, 2)):
                ctypes.CDLL(None).mallopt(parameter, value)


_keep_memory()


class _Printed:
    """Standard output that no name of a file can command and no reader's end can stop: what --out writes must not be lost by that."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        return self._try(self.stream.write, _plain(text, keep="\t\n"))

    def flush(self):
        return self._try(self.stream.flush)

    def _try(self, call, *args):
        try:
            return call(*args)
        except OSError as error:
            if not isinstance(error, BrokenPipeError):  # as of `| head`, which has read enough
                print(f"standard output cannot be written, the rest is left out: {why(error)}", file=sys.stderr)
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


def _end(kind, error, trace):
    """What an exception does that nothing has caught: Ctrl-C is a line, and the exit code then 130; so are too little memory
    and the end of another rank."""
    if not _first_to_end():
        return
    wrapped = kind is not KeyboardInterrupt and KeyboardInterrupt in (type(error.__cause__), type(error.__context__))
    if wrapped:  # as where a class is made while a module is imported
        kind, error = KeyboardInterrupt, KeyboardInterrupt()
    if lost := _RANKS > 1 and issubclass(kind, RuntimeError) and re.search("gloo|nccl|connection|timed out", str(error), re.IGNORECASE):
        said = re.sub(r"^\[.*?\] ", "", why(error)).partition(". ")[0]  # without the line of gloo's source, and its guesses
        error = f"another process of this run has ended, or does not answer ({said})"
    full = kind is not KeyboardInterrupt and "torch" in sys.modules and _out_of_memory(error)
    if full:
        error = f"not enough memory ({why(error)}); give a smaller --batch, or --device cpu"
    if full or lost or issubclass(kind, KeyboardInterrupt):
        said = str(error) or "interrupted"
        print(f"\n{Path(sys.argv[0]).name}: {said}; run it again to go on from what is kept", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
    if wrapped:  # the end that Python gives to a plain one
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)


def _unheard(error):
    """Ctrl-C that comes while Python cleans up, as imports do, where it can raise nothing: it must not be lost, and comes once more."""
    if issubclass(error.exc_type, KeyboardInterrupt):
        again = threading.Timer(0.01, _thread.interrupt_main)  # not at once, or it would come in here
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(error)


def _interrupt(number, frame):
    """Ctrl-C. While something is imported it is the end at once: torch takes it there for the absence of numpy, and would go on with
    half of it."""
    while frame and (frame.f_code.co_filename, frame.f_code.co_name) != ("<frozen importlib._bootstrap>", "_find_and_load"):
        frame = frame.f_back
    if not frame:
        raise KeyboardInterrupt
    with suppress(Exception):
        sys.stdout.flush()
        _end(KeyboardInterrupt, KeyboardInterrupt(), None)
        sys.stderr.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.raise_signal(signal.SIGINT)


@contextmanager
def _uninterrupted():
    """Ctrl-C comes at the end of this: for what would make an error of its own of it, which would be told of a good file."""
    if threading.current_thread() is not threading.main_thread():  # another never hears it
        yield
        return
    heard = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if heard:
            raise KeyboardInterrupt


if sys.stdout is sys.__stdout__ is not None:  # not where tests or a notebook listen
    sys.stdout, sys.excepthook, sys.unraisablehook = _Printed(sys.stdout), _end, _unheard
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _interrupt)

FORMAT = 2  # of records and of .safetensors with an `about`: raise it when a reader of the one would misread the other

# ---- small things -----------------------------------------------------------------------------------------------


def fail(message):
    """Print one line and end with exit code 2: what every script does with input it cannot use."""
    if _first_to_end():
        print(f"{Path(sys.argv[0]).name}: {_plain(message)}", file=sys.stderr)
    raise SystemExit(2)


def _plain(text, keep=""):
    """Text whose control characters, as a name of a file may hold, are written out, but for those to keep."""
    return re.sub(r"[\0-\x1f\x7f-\x9f]", lambda m: m[0] if m[0] in keep else ascii(m[0])[1:-1], str(text))


def _here():
    """Letters of this machine, and of the container on it: where a process is known by its number. Others may share the folder."""
    known = [platform.node()]
    with suppress(OSError):  # not everywhere
        known.append(Path("/etc/machine-id").read_text())
    with suppress(OSError):
        known.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256(str(known).encode()).hexdigest()[:12]


_MINE = f".{_here()}-"  # how names of temporary files begin


def _alive(process):
    """Whether a process of this machine still runs, by its number, a text; True where that cannot be known."""
    if os.name != "posix" or not process.isdecimal():
        return True
    try:
        os.kill(int(process), 0)  # sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def lock(path):
    """One process at a time makes `path`; another one says that it waits. What dies keeps no lock; where there are none, all go on."""
    path = Path(path)
    if _RANK:  # the first rank holds it for all
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held, name = _hold(path)
    except OSError as error:
        fail(f"{path}: cannot be written: {why(error)}")
    try:
        yield
    finally:
        with suppress(OSError):
            name.unlink()  # while it is held
        held.close()


def _hold(path):
    """(open file that is locked for `path`, its name)."""
    name, said = path.with_name(f".{path.name[:200]}.lock"), False
    while True:
        held = open(name, "w")  # noqa: SIM115
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not said:
                print(f"note: waits for another run, which makes {path}", flush=True)
            said = True
            fcntl.flock(held, fcntl.LOCK_EX)
        except (AttributeError, OSError):  # Windows, and file systems without locks
            return held, name
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(held.fileno()), os.stat(name)):
                return held, name
        held.close()  # its owner has come to its end and taken the file away: again


@contextmanager
def _threads(count=None):
    """A pool of threads whose work that has not begun is dropped at the end, so that Ctrl-C need not wait for it."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _target(path):
    """The file that a name means: what a link leads to, so that it stays a link."""
    return Path(os.path.realpath(path) if os.path.islink(path) else path)


def _temporary(path):
    return path.with_name(f"{_MINE}{os.getpid()}-{path.name}")


@contextmanager
def atomic(path):
    """Yield a temporary name beside `path` and move it there at the end, so that `path` is always whole or absent.

    What cannot be written ends the program. What runs that were killed have left in the folder is taken away.
    """
    path = _target(path)
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f"{_MINE}*"):
            if not _alive(left.name.removeprefix(_MINE).partition("-")[0]):
                left.unlink(missing_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # or the name could come to the disk before the bytes, and power fail between
        os.replace(temporary, path)
    except OSError as error:
        fail(f"{path}: cannot be written: {why(error)}")
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def save_tensors(value, path):
    """torch.save, whole or not at all; through a file object, because a name would go into the file and change its hash."""
    with atomic(path) as temporary:
        try:
            with open(temporary, "wb") as file:
                torch.save(value, file)
        except RuntimeError as error:  # torch's word for a full disk, but it also hides Ctrl-C
            if isinstance(error.__context__, KeyboardInterrupt):
                raise error.__context__ from None
            raise OSError(f"the disk may be full: {why(error)}") from error


def read_json(path):
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        fail(f"{path}: cannot be read as JSON: {why(error)}")


def write_json(path, value):
    """JSON, whole or not at all; numbers that are not finite, which JSON has not, become null."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(_finite(value), indent=1) + "\n", encoding="utf-8")


def _finite(value):
    """A value as JSON gives it back."""
    return json.loads(json.dumps(value, default=str), parse_constant=lambda name: None)


def _keep_json(path, value):
    """JSON for the cache, with a checksum."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps([value, digest(value)]), encoding="utf-8")


def _kept_json(path):
    """What _keep_json wrote; raises whatever it is where that is damaged."""
    value, told = json.loads(path.read_bytes())
    if digest(value) != told:
        raise ValueError("another checksum")
    return value


def _keep_array(path, x):
    """A .npz for the cache, because it has checksums."""
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, x=x)


def _kept_array(path):
    """What _keep_array wrote; raises whatever it is where that is damaged, or not finite."""
    with np.load(path) as file:
        x = file["x"]
    if not np.isfinite(x).all():
        raise ValueError("not finite")
    return x


def _kept(path, read):
    """read(path) of a file of the cache; None, to make it anew, where it is absent, or damaged, which a note says and ends."""
    try:
        return read(path) if path.exists() else None
    except Exception as error:
        print(f"note: {path} is damaged ({why(error)}), so it is made anew")
        with suppress(OSError):
            path.unlink()


def _kept_or_made(path, read, make):
    """read(path) of a file of the cache, after make() where that is absent or damaged; one process makes it, its twins wait."""
    if (found := _kept(path, read)) is None:
        with lock(path):
            if (found := _kept(path, read)) is None:  # still, when a twin may have made it
                make()
        if found is None:  # after the lock, whose name a run that is killed here would leave behind
            found = read(path)
    return found


def file_sha256(path):
    with open(path, "rb") as file:
        total = hashlib.sha256()
        while block := file.read(1 << 20):
            total.update(block)
        return total.hexdigest()


def digest(value):
    """First 16 hex digits of the SHA-256 of a JSON-able value: the key of every cache."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def why(error):
    """One short line on an exception, whatever it is."""
    return " ".join((getattr(error, "strerror", None) or str(error)).split())[:200] or type(error).__name__


def counted(number, noun):
    """1 image, 2 images, 2 classes."""
    return f"{number:,} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def some(names, most=6):
    """Names in one line, the first few of many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def clock():
    """time.time(), but that it stands still while what is imported when it is first used is imported."""
    return time.time() - _Later.spent


def progress(items, what, unit, total=None):
    """tqdm with rate and time left; silent where the output is not a terminal."""
    return tqdm.tqdm(items, desc=what, unit=unit, total=total, disable=True if _RANK or not sys.stderr else None, leave=False)


def read_ahead(pool, read, batches):
    """For each batch of items the list of read(item), made by the threads of `pool` while the one before is used."""
    ahead = None
    for batch in chain(batches, [None]):
        ready, ahead = ahead, batch and [pool.submit(read, item) for item in batch]
        if ready:
            yield [future.result() for future in ready]


def in_order(pool, read, items):
    """pool.map(read, items), a thousand at a time: what it queues takes 1.5 KB each, and of a million images it would be 1.5 GB."""
    return chain.from_iterable(read_ahead(pool, read, (items[i : i + 1000] for i in range(0, len(items), 1000))))


def wrap(text, width):
    """All of `text`, in lines of at most `width` letters; broken after spaces, hyphens and underscores where there are any."""
    text = _plain(text).encode("utf-8", "backslashreplace").decode("utf-8")  # a name of a folder may not be text
    width -= width * sum(map(str.isupper, text)) // (4 * len(text) + 1)  # capitals are wider
    return textwrap.fill(text.replace("_", "_ "), width).replace("_ ", "_")


@contextmanager
def all_letters():
    """Context in which figures are drawn: of letters that their font lacks it says one line, instead of a warning of each."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield
    lost = [w for w in told if str(w.message).startswith("Glyph ")]
    for w in told:
        if w not in lost:
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
    if lost:
        print("note: letters that matplotlib's font lacks are drawn as boxes")


def draw_pictures(file, pixels, captions, colours, title):
    """PNG of uint8 pictures, each (S, S, 3), four in a row, each under its caption, which is not wrapped any more, in its colour."""
    from matplotlib.figure import Figure  # here, because it takes a third of a second to import

    # places in pixels: matplotlib's axes, which find their own, take a second and a half for 24 pictures
    title, side, dpi = wrap(title, 90), 200, 100
    above, row = 20 * title.count("\n") + 35, side + 25 + 15 * max(caption.count("\n") + 1 for caption in captions)
    width, height = 900, above - (-len(pixels) // 4) * row
    fig = Figure(figsize=(width / dpi, height / dpi))
    fig.text(0.5, 1 - 8 / height, title, fontsize=11, ha="center", va="top", parse_math=False)
    for i, (picture, caption, colour) in enumerate(zip(pixels, captions, colours)):
        left, below = 225 * (i % 4) + 12, height - above - (i // 4 + 1) * row + 15
        large = Image.fromarray(picture).resize((side, side), Image.NEAREST if 3 * len(picture) < side else Image.BICUBIC)
        fig.figimage(np.asarray(large), left, below)
        place = (left + side / 2) / width, (below + side + 5) / height
        fig.text(*place, caption, color=colour, fontsize=9, ha="center", va="bottom", parse_math=False)
    with all_letters():
        fig.savefig(file, format="png", dpi=dpi)


# ---- several processes ------------------------------------------------------------------------------------------

# torchrun starts a script several times; each process is a rank. All do the same but for what is dealt here, and the first alone prints
# and writes. Where a process stands alone, none of this does anything
_RANK, _RANKS, _LOCAL, _JOINED = 0, 1, 0, 1  # number of this rank, how many there are, its number on this machine, how many there were
_STORE = _WAITING = None
_PATIENCE = timedelta(minutes=30)  # with a rank that does not answer; that one has ended is noticed at once


def _join_ranks():
    """Join the other ranks, where torchrun has started several: the only place that looks for them."""
    global _RANK, _RANKS, _LOCAL, _JOINED, _STORE, _WAITING
    if int(os.environ.get("WORLD_SIZE", 1)) < 2 or "LOCAL_RANK" not in os.environ:
        return
    _LOCAL, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if gpus > _LOCAL:
        torch.cuda.set_device(_LOCAL)
    _STORE, _RANK, _RANKS = next(dist.rendezvous("env://"))
    _JOINED = _RANKS
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    dist.init_process_group(backend, store=_STORE, rank=_RANK, world_size=_RANKS, timeout=_PATIENCE)
    _WAITING = dist.new_group(timeout=timedelta(days=30), backend="gloo")
    del os.environ["WORLD_SIZE"]  # a script that this one starts stands alone
    _on_signals(_stop)
    if _RANK:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        warnings.filterwarnings("ignore")


def _on_signals(action):
    """Say what SIGINT, and SIGTERM, which torchrun sends when another rank has ended, do to this one."""
    with suppress(ValueError):  # in a thread
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, action)


def _stop(number, frame):
    _on_signals(signal.SIG_IGN)  # another one would disturb the end
    raise KeyboardInterrupt("ended by torchrun, as when another process has ended" if number == signal.SIGTERM else "interrupted")


def _first_to_end():
    """Whether no other rank has yet said why all end."""
    if _STORE is None:
        return True
    _on_signals(signal.SIG_IGN)
    try:
        return _STORE.add("ended", 1) == 1
    except RuntimeError:  # torchrun, which keeps the count, is gone
        return not _RANK


@contextmanager
def _first_of_machine_first():
    """Of the ranks of a machine the first goes ahead to download and decode; what it has kept the others then find."""
    if _LOCAL:
        dist.barrier(_WAITING)
    yield
    if _RANKS > 1 and not _LOCAL:
        dist.barrier(_WAITING)


def _same_in_all_ranks(what, value):
    """Fail where `value`, which JSON can hold, differs between ranks, as on machines with other files."""
    if _RANKS > 1:
        found = [None] * _RANKS
        dist.all_gather_object(found, digest(value))
        if len({*found}) > 1:
            fail(f"{what}: not the same in all processes; give them the same files, of the same times, under the same names")


def from_first_rank(call, *args):
    """call(*args) of the first rank, however long it takes, for all of them."""
    value = [None if _RANK else call(*args)]
    if _RANKS > 1:
        dist.broadcast_object_list(value, 0, _WAITING)
    return value[0]


def dealt(work, read, items):
    """[work(read(item)) for item in items], read by a thread one ahead: each rank does a part, and all get all, then as tensors on the CPU.

    `items` can be sliced.
    """
    with _threads(1) as pool:
        done = [work(x) for (x,) in read_ahead(pool, read, ([item] for item in items[_RANK::_RANKS]))]
    if _RANKS == 1:
        return done
    lists = [None] * _RANKS
    dist.all_gather_object(lists, [x.cpu().clone() for x in done])  # without what else lies in the memory of a slice
    return [lists[i % _RANKS][i // _RANKS] for i in range(len(items))]


def _mean_of_ranks(x):
    """Mean of a tensor over all ranks."""
    if _RANKS > 1:
        x = x.cpu() / _RANKS
        dist.all_reduce(x)
    return x


def parallel(net):
    """`net` for the step of `fit`: with several ranks its gradients are means over them. Fails where batch norm would learn from parts."""
    if _RANKS == 1:
        return net
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in net.train().modules()):
        fail("batch norm would learn the statistics of each process's part of a batch; leave out --train-bn, or start one process")
    return nn.parallel.DistributedDataParallel(net, static_graph=True)  # static, because some encoders have parameters that they do not use


def first_rank_goes_on():
    """End all ranks but the first, which does alone what follows."""
    global _RANKS, _STORE
    if _RANKS > 1:
        dist.barrier(_WAITING)
        dist.destroy_process_group()
        if _RANK:
            _on_signals(signal.SIG_IGN)
            sys.exit()
        _RANKS, _STORE = 1, None


# ---- command line -----------------------------------------------------------------------------------------------


def at_least(least):
    """argparse type: an integer, not below `least`."""

    def number(text):
        if not least <= int(text) < 2**62:
            raise argparse.ArgumentTypeError(f"{text} is {f'below {least}' if int(text) < least else 'too large'}")
        return int(text)

    return number


def ending(suffix):
    """argparse type: the name of a file that ends in `suffix`, such as .json."""

    def name(text):
        if not text.endswith(suffix):
            raise argparse.ArgumentTypeError(f"{text} must end in {suffix}")
        return writable(text)

    return name


def writable(text):
    """argparse type: the name of a file that can be written, as far as that can be known before the work."""
    try:
        path = _target(given(text))
        if path.exists() and not path.is_file():
            raise OSError("is no file")
        place = next(folder for folder in path.absolute().parents if folder.exists()) / _temporary(path).name
        open(place, "x").close()  # before it goes, because Windows keeps what is open
        place.unlink()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{_plain(text)}: cannot be written: {why(error)}") from None
    return text


def given(text):
    """argparse type: not the empty text, as an unset variable of a shell leaves it."""
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return text


_FLAGS = {
    "data": dict(
        type=given,
        default="toy",
        help="data/NAME, or a folder, .zip or .tar of class folders, a .csv of path,label, torchvision:NAME (%(default)s)",
    ),
    "model": dict(
        type=given, help="CLIP, torchvision or toy model, FILE.py[:NAME], or open_clip:ARCH/TAG, timm:NAME (toy-ViT on toy, else ViT-B/32)"
    ),
    "weights": dict(type=given, metavar="FILE", help="weights of --model (found or downloaded)"),
    "act": dict(choices=("quickgelu", "gelu"), help="activation a CLIP --weights file was trained with (OpenAI's: known by hash)"),
    "prompts": dict(
        nargs="+",
        metavar="TEMPLATE",
        help="templates with {} for the class and perhaps {type}, or a .json or text file of them (a photo of a {}, a type of {type}.)",
    ),
    "type": dict(help='what the classes are types of, "" for nothing (known for toy, fruits, birds, ...)'),
    "classnames": dict(type=given, metavar="FILE", help="JSON {folder: words} (classnames.json in the data folder)"),
    "label-from": dict(
        metavar="REGEX",
        help="pictures beside the class folders, or in none, are of the class that this captures in their file names: '(.+)_' (none)",
    ),
    "groups": dict(
        metavar="REGEX",
        help="what no split may cut, as patients, specimens, videos: searched in each path below the data folder, the captured part "
        "or the whole match names the group; or a .csv file of path,group (none)",
    ),
    "fit": dict(
        choices=("crop", "pad", "squash"),
        help="pictures that are not square: cut off what is too long, add a border of their own colour, or squash (each model's own way)",
    ),
    "seed": dict(type=at_least(0), default=0, help="(%(default)s)"),
    "device": dict(default="auto", help="cuda, mps or cpu (%(default)s: the first there is)"),
    "precision": dict(
        choices=("auto", "float32", "bf16", "fp16"), default="auto", help="autocast (%(default)s: 16 bit where the hardware is fast at it)"
    ),
    "batch": dict(type=at_least(1), help="images at a time on the device (256; 32 where a CPU works on large ones)"),
    "alpha": dict(type=float, default=0.1, help="share of images whose set of classes may lack the true one (%(default)s)"),
    "reject": dict(type=float, metavar="P", help="say what is left of test where a confidence below P is refused (not said)"),
    "out": dict(
        type=ending(".json"),
        metavar="FILE.json",
        help="write the result here as JSON, and predictions, if it makes any, beside it as .npz (only print)",
    ),
    "load": dict(type=given, metavar="FILE", help="for --predict or --export: what --save wrote, here or in the other script that saves"),
    "predict": dict(type=given, nargs="+", metavar="IMAGE", help="name the classes of these pictures, and of those in these folders"),
    "export": dict(type=ending(".onnx"), metavar="FILE.onnx", help="make one ONNX graph, from pixels to probabilities"),
    "csv": dict(type=ending(".csv"), metavar="FILE.csv", help="write a row for each picture, instead of printing"),
    "bom": dict(action="store_true", help="mark the CSV as UTF-8, which some spreadsheets need"),
}


def add_flags(parser, names):
    """Give `parser` the flags that are alike in every script, and note when the run began."""
    _join_ranks()
    if _RANKS > 1:
        parser.error = fail
    for name in names.split():
        parser.add_argument(f"--{name}", **_FLAGS[name])
    parser.set_defaults(began=clock())


@_first_of_machine_first()
def load(args, features=None, union=False):
    """(Data, Model) of a command line with the flags of `add_flags`; says what the model is.

    First all that can be mistyped, then what may be downloaded. `features` and `union` as in load_model and load_data; who wants
    the latter compares with captions, so then the model must have them.
    data.templates are those of --prompts, and data.chosen_with counts the labelled images that chose them.
    """
    for flag in ("alpha", "reject"):
        if not 0 < (0.5 if (value := getattr(args, flag, None)) is None else value) < 1:
            fail(f"--{flag} {value:g}: must lie between 0 and 1")
    # the cheap part: folders, captions, the name of the model
    data = load_data(args.data, args.classnames, args.type, args.seed, union, args.groups, getattr(args, "label_from", None))
    if len(data.classes) < 2:
        fail(f"--data {data.root}: one class, {data.classes[0]}, of which nothing can be told apart; add the pictures of another")
    prompts = getattr(args, "prompts", None)
    data.templates, data.chosen_with = read_templates(prompts, data.type)
    name = model_name(args.model or _default_model(args.data))
    if (prompts or union) and name not in CLIP and not _encoder_file(name):
        fail(f"--prompts: {name} has no text side" if prompts else f"--model {name}: {_NO_TEXT}")

    # the part that may download
    batch, fit = getattr(args, "batch", None), getattr(args, "fit", None)
    model = load_model(name, args.device, args.weights, args.precision, args.act, features, batch, fit)
    if prompts and not model.has_text:
        fail(f"--prompts: {name} has no text side")
    print(f"{model.name}: {model.size} px, {model.kind} features, {model.width} wide, weights {model.sha256[:8]}", end=", ")
    print(model.device, str(model.dtype).removeprefix("torch."))
    if model.labels_used:
        used = counted(model.labels_used, "labelled image")
        print(f"note: weights of finetune.py, trained with {used}: on such images no number is zero-shot")
    return data, model


# ---- data -------------------------------------------------------------------------------------------------------

_SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "testing": "test",
}  # fmt: skip
_TYPES = {  # first word of a data set's name, for "a type of ..."
    "toy": "fruit", "fruit": "fruit", "bird": "bird", "sport": "sport", "simpson": "cartoon character",
    "pet": "pet", "flower": "flower", "food": "food", "aircraft": "aircraft",
}  # fmt: skip
_HOLDOUT = 0.2  # the share of each class that is held out to test on, or to validate with, where there is no such folder


@dataclass
class Data:
    """Labelled images: `splits[name]` is a list of (path below root, size in bytes, mtime in ns or a CRC, class index).

    They lie in a folder, an archive, a set of torchvision, or where a CSV says: only `open` knows, and all read by `picture`.
    """

    name: str
    root: Path  # a folder or an archive: what is printed before a path
    classes: list  # names of folders, or labels, sorted; the same list for every split
    words: list  # what a prompt calls each class
    type: str  # "fruit", ... or "": the prompts' "a type of ..."
    splits: dict
    folders: dict  # {split: paths below root of the folders of classes}, as they lie on the disk
    fingerprint: str
    open: object  # path as in `splits` -> Pillow image
    key: list  # what pixels depend on beside the rows of `splits`; first the place
    kind: str = "folder"  # or "archive", "csv", "torchvision"
    union: bool = False  # a class may lack training images
    made: dict = field(default_factory=dict)  # of a set that upsample.py has made: its source's fingerprint, and the seconds it took
    groups: dict | None = None  # {path: group}: what --groups says of patients, specimens, videos, days
    templates: list = field(default_factory=list)  # captions with {} for the class, of --prompts
    chosen_with: int = 0  # labelled images that chose these

    @property
    def loose(self):
        """Whether each picture is a file of its own, which any process can open."""
        return self.kind in ("folder", "csv")

    def files(self, split):
        """The list of a split. Fails where it is empty."""
        if not self.splits.get(split):
            more = "; a class needs two images or more where there is no test folder" if split == "test" else ""
            fail(f"--data {self.root}: has no {split} images, only: {', '.join(s for s in self.splits if self.splits[s])}{more}")
        return self.splits[split]

    def picture(self, path, then=None, **reduced):
        """The 8-bit RGB Pillow image of a row of `splits`, or then(image, size), from any thread; all else as in `read_rgb`."""
        return read_rgb(path, self.open, then, **reduced)

    @_first_of_machine_first()
    def images(self, size, splits=None):
        """{split: Images} of train, val where there is such a split, and test, or of others; says how many there are.

        `size` is the `view` of a model, or the side of its input in pixels. Fails where a split is empty, or a class has no image
        to learn from.
        """
        splits = splits or ["train", *(["val"] if self.splits.get("val") else []), "test"]
        images = {split: _load_images(self, split, size) for split in splits}
        skipped = sum(len(i.skipped) for i in images.values())
        counts = ", ".join(f"{len(i):,} {split}" for split, i in images.items())
        more = f", {counted(skipped, 'image')} skipped" if skipped else ""
        print(f"{self.name}: {counts} images, {counted(len(self.classes), 'class')}{more}")
        if "train" in images and not self.union:
            found = np.bincount(images["train"].labels, minlength=len(self.classes))
            if missing := [c for c, n in zip(self.classes, found) if n == 0]:
                fail(f"--data {self.root}: no training image of {some(missing)}; add some or remove the class")
        if "test" in images and (few := few_tested(images["test"].labels, self.classes)):
            print(f"note: {counted(len(few), 'class')} judged on one or two test images: {some(few)}")
        return images


def load_data(name, classnames=None, type=None, seed=0, union=False, groups=None, label_from=None):
    """List the images of data/NAME or NAME: a folder or an archive of class folders, or a CSV; or of torchvision:NAME.

    `classnames` is a JSON file {folder: words}; `type` overrides the data set's own ("" for none). A class that training
    lacks is an error, unless `union` (zero-shot): then the classes are those of all splits together. `groups` of images, a
    regular expression or a .csv file, never lie on both sides of a split. `label_from` names the class of pictures in no
    class folder. Where there is no test folder, a run of neighbouring files of each class is the test split, by `seed`.
    """
    # the same of all: {split: {class: files}}
    source = _find_source(name, label_from)
    name, root, found = source.name, source.root, source.found

    # one list of classes for all splits, so that a label means the same in each: that of the folder that is learnt from
    base = next((split for split in ("train", "all", "test") if split in found), None)
    if base is None:
        fail(f"--data {root}: only a validation {source.part}; a train or a test {source.part} is needed")
    classes = {*found[base]}
    if base == "all" and {c.lower() for c in classes} <= {*_SPLITS}:
        fail(f"--data {root}: {some(sorted(classes))} hold pictures and no class folders; give --label-from, or a folder for each class")
    for split in found:
        extra = sorted({*found[split]} - classes)
        if extra and not union:
            fail(f"{source.places[split]}: has classes that {source.places[base]} lacks: {some(extra)}; add training images or remove them")
        if extra:
            print(f"note: {source.places[split]} has classes that {source.places[base]} lacks, all are used: {some(extra)}")
    classes = sorted(classes.union(*found.values()), key=source.order)

    # the images of each split, class by class and in natural order, so that neighbouring frames of a video stay neighbours
    splits = {}
    for split, mine in found.items():
        files = {c: mine.get(c, []) for c in classes}
        splits[split] = [(*row, label) for label, rows in enumerate(files.values()) for row in rows]
        if missing := [c for c, rows in files.items() if not rows]:
            print(f"note: {source.places[split]} has no images of {counted(len(missing), 'class')}: {some(missing)}")
    plain = source.kind == "folder" and not label_from  # where the paths tell the classes
    fingerprint, named = digest(splits if plain else [classes, splits, source.key[1:]]), source.groups

    # no group on both sides of a split
    if groups and named:
        fail(f"--groups {groups}: {source.places[base]} has a column group already; leave out one of them")
    if groups:
        named = _group_names(groups, [row[0] for rows in splits.values() for row in rows])
    if named:
        names = sorted(set(named.values()), key=natural)
        print(f"{name}: {counted(len(names), 'group')} of {counted(len(named), 'image')}: {some(names, 3)}")
        splits = _part_groups(splits, named)

    # whoever has no test folder gets a test split that is always the same
    if "test" not in splits:
        rows = splits.pop("all", None) or splits.pop("train")
        mask = _blocked_split([row[3] for row in rows], _HOLDOUT, seed, named and [named[row[0]] for row in rows])
        if named and not mask.any():
            what = f"--groups {groups}" if groups else source.places[base]
            fail(f"{what}: one group a class, none can be held out to test on; give finer groups, or a test {source.part}")
        splits["train"] = [row for row, held in zip(rows, mask) if not held]
        splits["test"] = [row for row, held in zip(rows, mask) if held]
        what = "neighbouring groups" if named else "neighbouring files"
        print(f"note: no test {source.part}: a run of {what} of each class is the test split, {mask.sum()} images, seed {seed}")

    # what prompts call the classes, and whether upsample.py has made all this
    if type is None:
        type = _TYPES.get(re.match("[a-z]*", name.lower())[0].removesuffix("s"), "")
    type = _said(type)
    made, mark = {}, root / "upsample.json"
    if source.kind == "folder" and mark.is_file() and isinstance(record := read_json(mark), dict) and isinstance(record.get("about"), dict):
        made = {"source": record["about"].get("files"), "seconds": record.get("seconds")}
    words = _class_words(root, classes, classnames, source.words)
    how = (source.open, source.key, source.kind)
    return Data(name, root, classes, words, type, splits, source.folders, fingerprint, *how, union, made, named)


@dataclass
class Images:
    """One decoded split: `pixels` uint8 (N, S, S, 3), memory-mapped; `rows` those that could be decoded, or that `take` took.

    images[i] are uint8 tensors (B, 3, S, S) in channels_last memory, i being what indexes an array: integers, a mask, a slice.
    """

    pixels: np.ndarray
    thumbnails: np.ndarray  # uint8 (N, 32, 32, 3), of whole pictures, memory-mapped
    rows: np.ndarray
    labels: torch.Tensor  # int64 (len(rows),)
    paths: list  # of the rows, below the data folder
    skipped: list  # (path, reason)
    name: str
    key: str  # what the pixels depend on, and nothing else
    groups: list | None = None  # of the rows, names, where there are groups

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, chosen):
        rows = self.rows[chosen]
        x = torch.empty(len(rows), *self.pixels.shape[1:], dtype=torch.uint8, pin_memory=torch.cuda.is_initialized())
        np.take(self.pixels, rows, 0, x.numpy(), "clip")  # at once into memory that a GPU can fetch them from
        return x.permute(0, 3, 1, 2)

    def batches(self, size):
        """uint8 tensors (B, 3, S, S), in order."""
        for rows in torch.arange(len(self)).split(size):
            yield self[rows.numpy()]

    def take(self, chosen):
        """Some of the images: those where a boolean mask (N,) is true, or of these positions."""
        chosen = np.arange(len(self))[chosen]
        groups = self.groups and [self.groups[i] for i in chosen]
        paths = [self.paths[i] for i in chosen]
        return replace(self, rows=self.rows[chosen], labels=self.labels[chosen], paths=paths, groups=groups)

    def block(self, seed):
        """Boolean mask (N,) of one run of neighbouring files, or of whole groups, of each class: see `_blocked_split`.

        Fails where there is nothing to take, because each class has one image, or one group.
        """
        held = _blocked_split(self.labels, _HOLDOUT, seed, self.groups)
        if not held.any():
            name = self.name.rpartition("-")[0]  # without the split
            fail(f"--data {name}: one image or group a class, none can be held out to choose by; few_shot.py needs none")
        return held

    @cached_property
    def shown(self):
        """Digest of all that a search for copies goes by."""
        return digest([hashlib.sha256(self.thumbnails).hexdigest(), self.rows.tolist(), self.labels.tolist()])

    @cached_property
    def clusters(self):
        """int64 (N,): images that depend on each other, being copies or of one group, share a number: see `_clusters`."""
        return _clusters(self)


def hold_out(images, seed):
    """The same splits; where there is no val, it is a run of neighbouring files or groups of each class, taken out of train."""
    images = dict(images)
    if "val" not in images:
        train = images.pop("train")
        held = train.block(seed)
        images = {"train": train.take(~held), "val": train.take(held), **images}
    return images


# ---- models -----------------------------------------------------------------------------------------------------

_NO_TEXT = "has no text side; zero-shot and prompts need one, such as that of ViT-B/32"

_CHUNK = 2048  # images or captions a cache file: an interrupted run loses that which is made, a killed one perhaps that which is written
_NO_LIMIT = 2**31


@dataclass(frozen=True)
class View:
    """How a picture becomes a network's input of `size` x `size` pixels: what scripts give to data.images.

    It is brought to `short` px, antialiased, and the centre of `size` px is cut out. `fit` says how a picture that is not square is
    brought there: by its short side ("crop"), after its own border's median colour has made it a square ("pad"), or both sides ("squash").
    """

    size: int
    fit: str = "crop"
    interpolation: str = "bicubic"  # or "bilinear"
    short: int = 0  # `size` where it is not given

    def __post_init__(self):
        height, width = self.size if isinstance(self.size, (tuple, list)) else (self.size, self.size)
        if height != width or self.fit not in ("crop", "pad", "squash") or self.interpolation not in ("bicubic", "bilinear"):
            raise ValueError(f"pictures of {height} x {width} px by {self.fit} and {self.interpolation} are not supported")
        object.__setattr__(self, "size", height)
        object.__setattr__(self, "short", self.short or height)

    def __str__(self):
        how, size = f" ({self.interpolation}, antialiased)", "size" if self.short == self.size else f"{self.short}"
        start = {"crop": f"short side to {size}", "squash": f"to {size} x {size}, whatever its shape"}
        start["pad"] = f"padded to a square with the median colour of its border, then to {size} x {size}"
        cut = ", then the centre size x size" if self.fit == "crop" or self.short != self.size else ""
        return f"{start[self.fit]}{how}{cut}; RGB"


@dataclass
class Encoder:
    """A network with everything that belongs to it: what `load(name, weights)` of a FILE.py for --model returns (docs/encoders.md).

    visual: normalised float (B, 3, size, size) in channels_last memory -> (B, width). With a text side: text(tokens (B, T)) -> (B, E),
    E being the width; tokenizer(captions) -> int64 (B, T), which also does what the text went through in training (lower case, padding)
    and may tell of what it cuts by `note_cut`. Logits are exp(logit_scale) * cosine + logit_bias, each a Parameter or a number.
    """

    visual: nn.Module
    view: View  # or the side of the input in pixels
    mean: tuple
    std: tuple
    width: int = 0  # measured where it is not given
    text: object = None
    tokenizer: object = None
    logit_scale: object = None
    logit_bias: object = 0.0
    net: nn.Module = None  # the whole, of which visual and text are parts and whose tensors finetune.py saves; without it visual alone
    projection: str = ""  # dotted name of the last projection in `visual`, which "penultimate" features leave out; "" for none
    act: str = ""  # activation, where `weights` does not tell it
    causal: bool = False  # text() looks at nothing behind a caption's largest token, its end, and takes tokens without these places


@dataclass
class Model:
    """An image encoder with everything that belongs to it, so that no script can mix normalisations.

    `visual` maps normalised float (B, 3, size, size) to (B, width); frozen, in eval mode. `net` is the whole CLIP, or None.
    """

    name: str
    visual: nn.Module
    net: nn.Module
    view: View  # or its size
    mean: tuple
    std: tuple
    width: int
    sha256: str
    device: torch.device
    dtype: torch.dtype  # autocast to this; float32 means none
    act: str = ""
    kind: str = "penultimate"  # or "projected" into CLIP's space of captions: which features `visual` gives
    projection: dict = field(default_factory=dict)  # what "penultimate" took out of `visual`
    labels_used: int = 0  # labelled images that finetune.py trained it with
    batch_asked: int | None = None  # images at a time, by --batch
    batch_limit: int = _NO_LIMIT  # images at a time for which the memory has sufficed so far
    text: object = None  # tokens (B, T) -> (B, E)
    tokenizer: object = None  # captions -> tokens
    log_scale: nn.Parameter = None  # logarithm of what cosines are multiplied with
    logit_bias: float = 0.0  # added to these; no softmax depends on it
    code: list = field(default_factory=list)  # of an encoder in a FILE.py: its hash, and versions of the packages it uses
    causal: bool = False  # what lies behind the end of a caption need not be computed

    def __post_init__(self):  # on the device once, because a copy to a GPU makes it wait
        self.view = _as_view(self.view)
        self.size = self.view.size
        self.shift, self.scale = (torch.tensor(v).view(3, 1, 1).to(self.device) for v in (self.mean, self.std))
        self._frozen, self._frozen_text, self._still = None, None, False
        self._fullest = 0  # images in the largest batch that it has computed
        self._sending = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    @property
    def has_text(self):
        """Whether it can read captions."""
        return self.text is not None

    @property
    def logit_scale(self):
        """What cosines are multiplied with, or None."""
        return self.log_scale.exp().item() if self.has_text else None

    @property
    def batch(self):
        """Images at a time unless told otherwise: fewer where a CPU would fetch the activations of large ones from memory,
        and where an input is larger than 224 px, so that all the pixels of a batch take no more memory than there."""
        usual = 32 if self.device.type == "cpu" and self.size > 64 else 256
        return max(1, min(self.batch_asked or min(usual, usual * 224**2 // self.size**2), self.batch_limit))

    def sent(self, x):
        """x on a GPU, which goes on computing meanwhile: for a thread that reads ahead. Elsewhere x as it is."""
        if self.device.type != "cuda":
            return x
        with torch.cuda.stream(self._sending):
            x = x.pin_memory().to(self.device, non_blocking=True)
        self._sending.synchronize()
        x.record_stream(torch.cuda.default_stream(self.device))  # or its memory would be taken for free too early
        return x

    @property
    def rounded(self):
        """What weights may be rounded to for good: those of a FILE.py stay, whose code may do with them what it likes."""
        known = type(self.visual).__module__.partition(".")[0] in ("clip", "timm", "torchvision")
        return self.dtype if known else torch.float32

    def autocast(self):
        """Context in which the network computes in `dtype`."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def normalise(self, x):
        """Values 0..255 (B, 3, size, size) on the device -> what `visual` takes."""
        x = (x / 255).sub_(self.shift).div_(self.scale)  # in place, because fresh memory is slower than arithmetic
        return x.contiguous(memory_format=torch.channels_last)

    def inputs(self, x):
        """uint8 (B, 3, S, S), S <= size, anywhere -> what `visual` takes: brought to `size`, scaled, normalised."""
        if self.device.type == "cuda":  # fewer bytes to move; elsewhere the CPU has the better kernel
            x = x.to(self.device, non_blocking=True)
        if x.shape[-1] != self.size:
            x = upsample(x, self.view.short, self.view.interpolation)
            x = x if self.view.short == self.size else torchvision.transforms.functional.center_crop(x, self.size)
        return self.normalise(x.to(self.device))

    @property
    def frozen(self):
        """`visual` as it is fastest (`_quick`); while it is trained, as it is, but for where it stands `still`."""
        if not self._still and any(p.requires_grad for p in self.visual.parameters()):
            self._frozen = None  # it will have other weights
            return self.visual
        if self._frozen is None:
            self._frozen = _quick(self.visual, self.rounded)
        return self._frozen

    @contextmanager
    def still(self):
        """Context in which no weight changes, although the network is trained: images are encoded as those of a frozen one are."""
        self._still, self._frozen = True, None
        try:
            yield
        finally:
            self._still, self._frozen = False, None

    @property
    def _text_is_of_net(self):
        """Whether what reads captions is a part of `net`, whose weights are known."""
        return self.net is not None and getattr(self.text, "__self__", None) is self.net

    @property
    def _text_is_frozen(self):
        own = self._text_is_of_net and type(self.net).__module__ == "clip.model"
        return own and not any(p.requires_grad for name, p in self.net.named_parameters() if not name.startswith("visual."))

    @property
    def frozen_text(self):
        """`text` in the same way, where it is that of CLIP's own network."""
        if not self._text_is_frozen:
            self._frozen_text = None
            return self.text
        if self._frozen_text is None:
            net = copy.copy(self.net)  # a network of the same tensors
            net._modules = dict(net._modules, transformer=_quick(net.transformer, self.rounded))
            self._frozen_text = net.encode_text
        return self._frozen_text

    def encode_image(self, x):
        """uint8 (B, 3, S, S) -> float32 (B, width), on the device; in halves where the memory does not suffice for all at once."""
        if len(x) > self.batch_limit:
            return torch.cat([self.encode_image(part) for part in x.split(self.batch_limit)])
        count, full = len(x), min(self._fullest, self.batch)
        if self.device.type == "cuda" and count < full:  # for another size cuDNN looks for kernels anew, of mobilenet_v2 1.8 s
            x = torch.cat([x] * -(-full // count))[:full]
        try:
            net = self.frozen
            with torch.inference_mode(), self.autocast():
                features = net(self.inputs(x)).float()[:count]
            self._fullest = max(self._fullest, len(x))
            return features
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
        # out here, because what was computed lives as long as the error
        if len(x) == 1 or self.batch_limit < _NO_LIMIT:
            fail(f"--model {self.name}: not enough memory for {counted(len(x), 'image')} at a time; give a smaller --batch")
        self.batch_limit = len(x) // 2  # for whatever else asks for a batch, too
        print(f"note: not enough memory for {len(x)} images at a time, going on with {self.batch_limit} (--batch)")
        return self.encode_image(x[:count])

    def encode_text(self, tokens):
        """Tokens (B, T) -> float32 (B, E), on the device."""
        text = self.frozen_text
        with torch.inference_mode(), self.autocast():
            return text(tokens.to(self.device)).float()

    def features(self, images):
        """float32 features (N, width) and labels int64 (N,) on the device.

        Cached by everything they depend on; an interrupted run goes on where it was.
        """
        # whatever a feature depends on is in its key: a wrong hit would be a wrong number that nobody sees
        pipeline = [self.name, self.sha256, self.act, self.kind, asdict(self.view), self.mean, self.std, str(self.dtype), self.device.type]
        if not any(p.requires_grad for p in self.visual.parameters()):  # as `frozen`, which is not made yet: all may be cached
            pipeline += ["folded"] * bool(_foldable(self.visual)) + ["quick"] * bool(_quick_gelus(self.visual))
            pipeline += ["rounded"] * (self.rounded != torch.float32)
        key = digest([images.key, images.rows.tolist(), pipeline, torch.__version__, self.code])
        folder = Path(f"cache/features/{images.name}-{spelled(self.name)}-{key}")
        _same_in_all_ranks(f"features of {images.name} by {self.name}", key)
        batch = from_first_rank(lambda: self.batch)

        def read(path):
            return part.copy_(torch.from_numpy(_kept_array(path).reshape(part.shape)))

        def pixels(first):
            return self.sent(images[first : min(first + batch, stop)])

        def encode(x):
            bar.update(min(_RANKS * len(x), len(images) - bar.n))
            return self.encode_image(x)

        def absent():
            return _kept(path, read) is None

        def keep(path, part, x, held):
            with held:
                self.finite(part.copy_(x), "features")  # waits for the device
                if not _RANK:
                    _keep_array(path, part.numpy())

        # a file for each chunk, so that a run that is cut off loses little; written while the next one is made
        found, kept = torch.empty(len(images), self.width), None
        with progress(None, f"{self.name} features", "img", len(images)) as bar, _threads(1) as writer:
            for start in range(0, len(images), _CHUNK):
                path, part, stop = folder / f"{start:07d}.npz", found[start : start + _CHUNK], min(start + _CHUNK, len(images))
                if not from_first_rank(absent):
                    continue
                with ExitStack() as held:
                    held.enter_context(lock(path))
                    if not from_first_rank(absent):  # a twin has made it
                        continue
                    x = torch.cat(dealt(encode, pixels, range(start, stop, batch)))
                    if kept:
                        kept.result()
                    kept = writer.submit(keep, path, part, x, held.pop_all())
            if kept:
                kept.result()
        if _RANKS > 1:
            dist.broadcast(found, 0)
        return found.to(self.device), images.labels.to(self.device)

    def embed(self, captions, keep=False):
        """Unit-length float32 (len(captions), E) on the device. Fails where the model has no text side.

        With `keep` they are cached, as features are, unless the text side may have other weights than those that are known.
        """
        if not self.has_text:
            fail(f"--model {self.name}: {_NO_TEXT}")
        try:
            tokens = self.tokenizer([_said(caption) for caption in captions])
        except Exception as error:  # of a FILE.py, which may have to download it
            fail(f"--model {self.name}: its tokenizer fails: {type(error).__name__}: {why(error)}")
        batch = 64 if self.device.type == "cpu" else 512  # more activations a CPU would fetch from memory

        def encode(part):
            # short captions with short ones: how many tokens all of a batch have is the longest one's affair
            lengths = part.argmax(1) + 1 if self.causal else torch.full((len(part),), part.shape[1])
            order, found = lengths.argsort(stable=True), []
            for rows in order.split(batch):
                found.append(self.encode_text(part[rows, : lengths[rows[-1]]]))
                bar.update(len(rows))
            return self.finite(torch.cat(found)[order.argsort()], "embeddings of captions")

        def kept(part):
            path = Path(f"cache/captions/{spelled(self.name)}-{digest([part.tolist(), batch, *pipeline])}.npz")
            z = _kept_or_made(path, _kept_array, lambda: _keep_array(path, encode(part).cpu().numpy()))
            return torch.from_numpy(z).to(self.device)

        pipeline = [self.name, self.sha256, self.act, str(self.dtype), self.device.type, torch.__version__, self.code]
        pipeline += ["quick"] * (self._text_is_frozen and bool(_quick_gelus(self.net)))
        with progress(None, f"{self.name} captions", "caption", len(captions)) as bar:
            z = torch.cat([(kept if keep and self._text_is_of_net else encode)(part) for part in tokens.split(_CHUNK)])
        return F.normalize(z, dim=1)

    def classifier(self, words, templates, type="", each=False, keep=True):
        """Unit-length (C, E): the normalised mean of the embeddings of each class's captions, one a template.

        `templates` hold {} for one of the `words`, C of them, and may hold {type}. With `each`, (T, C, E) before the mean. `keep` is of
        `embed`.
        """
        captions = [t.replace("{type}", type).replace("{}", w) for t in templates for w in words]
        z = self.embed(captions, keep=keep).view(len(templates), len(words), -1)
        return z if each else F.normalize(z.mean(0), dim=1)

    def centre_and_spread(self, x):
        """Mean (D,) of features x (N, D) and their standard deviation over all, (): what makes encoders comparable.

        Fails where all images have the same features.
        """
        mean = x.mean(0)
        scale = (x - mean).square().mean().sqrt()
        if not scale > 1e-6 * mean.norm():
            fail(f"--model {self.name}: gives every training image the same features; are these its weights?")
        return mean, scale

    def state_dict(self):
        """Tensors that `weights` of load_model takes: of the whole network, or of an image encoder without its last layer."""
        net = self.net or self.visual
        place = next((f"{name}." for name, module in net.named_modules() if name and module is self.visual), "")
        return net.state_dict() | {place + name: tensor for name, tensor in self.projection.items()}

    def finite(self, x, what):
        """x as it is; fails where something in it is not finite, as after an overflow of 16 bits, before anything is kept or shown."""
        if not x.isfinite().all():
            hint = "are these its weights?" if self.dtype == torch.float32 else "try --precision float32"
            fail(f"--model {self.name}: gives {what} that are not finite in {str(self.dtype).removeprefix('torch.')}; {hint}")
        return x


def load_model(name, device="auto", weights=None, precision="auto", act=None, features=None, batch=None, fit=None):
    """Load a frozen `Model` by name: CLIP, torchvision classification, toy, or what a FILE.py makes, which is code and is run.

    `features` of a model with a text side are "projected" (the default), which can be compared with captions, or "penultimate", from
    before that projection; one without has the latter only. `fit`, "crop", "pad" or "squash", takes the place of the model's own way
    with pictures that are not square.

    The `clip` network uses QuickGELU. A CLIP checkpoint trained with GELU (LAION's) loads into it without a word and gives
    wrong features, so a file that is neither OpenAI's by hash or repository nor our own must say which by `act`. `batch` is
    how many images it takes at a time, where its own choice is not wanted.
    """
    name = model_name(name)
    if act and not weights:
        fail("--act says how a --weights file was trained; without --weights it is known")
    if features == "projected" and name not in CLIP and not _encoder_file(name):
        fail(f"--features projected: only CLIP projects; {name} has --features penultimate")
    device, dtype = pick_device(device, precision)
    if weights and not os.path.isfile(weights):
        fail(f"--weights {weights}: no such file")
    if _encoder_file(name):
        encoder, sha256, code, about = _load_file(name, weights, act)
    else:
        path = _weights_file(name, weights)
        sha256, code = file_sha256(path), []
        _check_name(path, sha256, () if name in CLIP or name == "toy-imagenet" else torchvision.models.get_model_weights(name))
        about, state = read_weights(path)
        state = {key: tensor for key, tensor in state.items() if key not in _HEAD}
        act = act or about.get("act")  # of a file that finetune.py saved
        known = not weights or CLIP.get(name, (None,))[0] is None or sha256 in _OPENAI
        encoder = _load_clip(name, path, state, act, known) if name in CLIP else _load_torchvision(name, path, state, act)

    # which features, and which view of a picture
    features = features or ("projected" if encoder.text else "penultimate")
    if features == "projected" and not encoder.text:
        fail(f"--features projected: {name} has no text side to project for; it has --features penultimate")
    width, projection = encoder.width, {}
    if features == "penultimate" and encoder.projection:
        width, projection = _unproject(encoder.visual, encoder.projection)
        width = width or _measure(name, encoder)
    view = _as_view(encoder.view)
    if fit:
        view = View(view.size, fit, view.interpolation)

    # eval mode, because the batch-norm statistics of a "frozen" backbone drift otherwise
    scale, bias = encoder.logit_scale, encoder.logit_bias
    if encoder.text and not isinstance(scale, nn.Parameter):
        scale = nn.Parameter(torch.tensor(float(scale)))
    for part in (encoder.net, encoder.visual, encoder.text):
        if isinstance(part, nn.Module):
            part.to(device).eval().requires_grad_(False)
    if scale is not None:
        scale.data = scale.to(device)
        scale.requires_grad_(False)
    encoder.visual.to(memory_format=torch.channels_last)
    where = encoder.visual, encoder.net, view, encoder.mean, encoder.std, width, sha256, device, dtype
    read = encoder.text, encoder.tokenizer, scale, float(bias or 0.0), code, encoder.causal
    return Model(name, *where, encoder.act, features, projection, about.get("labels_used", 0), batch, _NO_LIMIT, *read)


# ---- products ---------------------------------------------------------------------------------------------------

_LARGE = 2**24  # multiplications from which what oneDNN needs to begin is nothing


def product(a, b, plus=None, scale=1):
    """a @ b, or plus + scale * a @ b, of matrices (n, k), (k, m) or of S of each; on some processors a third faster, and as exact.

    torch multiplies float32 by MKL, which knows Intel's processors best. Allowed to round to bfloat16 it asks oneDNN, which rounds
    where there are instructions for whole tiles (AMX), and else multiplies as exactly, with wider registers.
    """
    if a.device.type == "cpu" and a.dtype == torch.float32 and a.numel() * b.shape[-1] >= _LARGE and _exact_elsewhere():
        if a.ndim == 3 and len(a) == 1:  # or it would copy what is transposed
            return product(a[0], b[0], None if plus is None else plus[0], scale)[None]
        with _elsewhere():
            return _product(a, b, plus, scale)
    return _product(a, b, plus, scale)


def _product(a, b, plus, scale):
    if plus is None:
        return a @ b
    return (torch.addmm if a.ndim == 2 else torch.baddbmm)(plus, a, b, alpha=scale)


@contextmanager
def _elsewhere():
    """Products of float32 matrices are oneDNN's, which may round to bfloat16."""
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


@cache
def _exact_elsewhere():
    """Whether they are then as exact as float32, on this processor, in this version of torch."""
    if not hasattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision"):
        return False
    a, b = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 256, 256), np.float32))
    with _elsewhere():
        found = a @ b
    return (found.double() - a.double() @ b.double()).abs().max().item() < 1e-3  # bfloat16 is .1 off, float32 1e-5


# ---- metrics ----------------------------------------------------------------------------------------------------

_LEVEL = 0.95  # of every interval
_RESAMPLES = 20_000  # of the class bootstrap, which decides nothing
_FEWEST = 10  # classes below which redrawing them says nothing
_BORROWED = 4  # images of other classes by which the spread of each is judged too; of 0 to 4 the one whose intervals hold best
_UNEVEN = 0.05  # how far mean per class may lie below top-1 without a word


def evaluate(logits, labels, classes, clusters=None, pairs=10):
    """Metrics of logits (N, C) against labels (N,): accuracies in 0..1; mean_per_class over the classes that have images.

    top1_ci95, mean_per_class_ci95 are of `accuracy_interval`, top1_ci95_other_classes of `other_classes`; top5 is None up to five
    classes. largest_class is what always naming the commonest class would get. confusions: the most frequent (true, predicted, count,
    share of that true class's images).
    """
    # the rank of each true class, in parts, because a comparison of all logits may not fit into memory
    logits, labels = logits.cpu(), labels.cpu()
    predicted, rank = [], []
    index = torch.arange(logits.shape[1])
    for part, y in zip(logits.split(1024), labels.split(1024)):
        own = part.gather(1, y[:, None])
        rank.append((part > own).sum(1) + ((part == own) & (index < y[:, None])).sum(1))  # of equals the first class, as in argmax
        predicted.append(part.numpy().argmax(1))

    # which classes are taken for which
    predicted, true = np.concatenate(predicted), labels.numpy()
    correct = predicted == true
    counts, hits = (np.bincount(true, w, len(classes)) for w in (None, correct))
    confused, times = np.unique(np.stack([true, predicted])[:, ~correct], axis=1, return_counts=True)
    worst = [(*confused[:, i], times[i].item()) for i in np.argsort(-times, kind="stable")[:pairs]]
    return {
        "top1": correct.mean().item(),
        "top1_ci95": accuracy_interval(correct, true, clusters),
        "top1_ci95_other_classes": _other_classes(correct, true),
        "top5": (torch.cat(rank) < 5).double().mean().item() if len(classes) > 5 else None,
        "mean_per_class": (hits / np.maximum(counts, 1))[counts > 0].mean().item(),
        "mean_per_class_ci95": accuracy_interval(correct, true, clusters, per_class=True),
        "chance": 1 / len(classes),
        "largest_class": counts.max().item() / len(true),
        "confusions": [{"true": classes[t], "predicted": classes[p], "count": n, "share": n / counts[t].item()} for t, p, n in worst],
    }


def few_tested(labels, classes):
    """Names of the classes that have one or two images among labels (N,): what they add to a mean per class is nearly chance."""
    counts = np.bincount(labels, minlength=len(classes))
    return [c for c, n in zip(classes, counts) if n in (1, 2)]


def _print_metrics(m):
    """What `evaluate` found, for people."""
    print("top-1           {:.3f}   95 % interval {:.3f} to {:.3f}, for other images of these classes".format(m["top1"], *m["top1_ci95"]))
    if m["top1_ci95_other_classes"]:
        print("other classes           95 % interval {:.3f} to {:.3f}, were these classes drawn anew".format(*m["top1_ci95_other_classes"]))
    if m["top5"] is not None:
        print(f"top-5           {m['top5']:.3f}")
    print("mean per class  {:.3f}   95 % interval {:.3f} to {:.3f}".format(m["mean_per_class"], *m["mean_per_class_ci95"]))
    print(f"chance          {m['chance']:.3f}   by guessing; always naming the largest class: {m['largest_class']:.3f}")
    if m["mean_per_class"] < m["top1"] - _UNEVEN:
        print("note: mean per class lies far below top-1: large classes are named right, small ones are not")
    if "calibration" in m:
        _print_calibration(m["calibration"])
    if m["confusions"]:
        print("most confused (true -> predicted: images, share of the true class)")
    for c in m["confusions"]:
        print(f"  {c['true']} -> {c['predicted']}: {c['count']}, {c['share']:.2f}")


# ---- intervals: docs/methods.md says why these, bench/coverage.py how often they hold ------------------------------------


def normal_quantile(comparisons=1):
    """Two-sided quantile at _LEVEL, by which `comparisons` intervals hold at once (Bonferroni)."""
    return NormalDist().inv_cdf(1 - (1 - _LEVEL) / 2 / comparisons)


def _student_quantile(z, df):
    """The quantile of Student's t with df degrees of freedom that belongs to the normal quantile z (Abramowitz and Stegun, 26.7.5)."""
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * df**3)
    return z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2) + third


def wilson(p, n, z=None):
    """Score interval of a proportion p of n independent images (Wilson 1927); n may be an effective number."""
    z = z or normal_quantile()
    p = min(max(p, 0.0), 1.0)
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))]


def _variance_of_mean(values, labels, clusters, weights=1.0):
    """(variance, degrees of freedom, clusters) of the mean of values (N,) when each class's clusters are drawn anew.

    With `weights` (N,) of images, 1 on average, clusters are as many equal ones as would count as much (Kish).

    The classes are the user's own and stay; clusters (N,) are images that depend on each other, such as frames of one video.
    A class of a single cluster tells nothing of its spread, so such classes form one class together. Degrees by Satterthwaite.
    """
    _, first, member = np.unique(np.stack([labels, clusters]), axis=1, return_index=True, return_inverse=True)
    member, stratum = member.ravel(), np.unique(labels, return_inverse=True)[1][first]  # cluster of an image, class of a cluster
    alone = np.bincount(stratum)[stratum] == 1
    stratum = np.where(alone, -1, stratum) if alone.sum() != 1 else np.zeros_like(stratum)
    stratum = np.unique(stratum, return_inverse=True)[1]
    of_image = stratum[member]
    weights = np.broadcast_to(weights, values.shape)
    mean = np.bincount(of_image, weights * values) / np.bincount(of_image, weights)
    sums = np.bincount(member, weights * (values - mean[of_image]))
    free = np.maximum(np.bincount(stratum) - 1, 1)
    parts = np.bincount(stratum, sums * sums) * (1 + 1 / free) / len(values) ** 2
    alike = len(first)
    if (weights != 1).any():  # a class of few images, all right, is not known to be perfect: it borrows from the others
        alike = len(values) ** 2 / (np.bincount(member, weights) ** 2).sum()
        unit = np.bincount(of_image, weights**2) / len(values) ** 2  # the variance where an image's is 1
        usual = np.average(parts / unit, weights=np.bincount(of_image))
        parts, free = unit * (free * parts / unit + _BORROWED * usual) / (free + _BORROWED), free + _BORROWED
    df = parts.sum() ** 2 / (parts**2 / free).sum() if parts.any() else math.inf
    return parts.sum(), max(df, 3.0), alike


def accuracy_interval(right, labels, clusters=None, z=None, per_class=False):
    """95 % interval of the mean of `right`, (N,) or of S draws of the labels learnt from (S, N), values in 0..1.

    With `per_class` that of the mean over classes of their means, in which classes of few images weigh more than these can tell. It is
    over images, drawn anew within each class (their clusters where they have some), and over draws. Wilson's interval for
    the number of independent images that would vary as much (Kish's effective sample size), with Student's quantile; the
    spread of S draws is added in quadrature. bench/coverage.py shows how often it holds.
    """
    z, labels = z or normal_quantile(), np.asarray(labels)
    draws = np.atleast_2d(np.asarray(right, float))
    values, clusters = draws.mean(0), np.arange(len(labels)) if clusters is None else clusters
    weights = np.ones(len(labels))
    if per_class:
        _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
        weights = len(labels) / (len(counts) * counts[index])
    p = (weights * values).mean()
    variance, df, independent = _variance_of_mean(values, labels, clusters, weights)
    low, high = wilson(p, p * (1 - p) / variance if variance > 0 else independent, _student_quantile(z, df))
    wide = _spread_of_draws((weights * draws).mean(1), z)
    return [max(0.0, p - math.hypot(p - low, wide)), min(1.0, p + math.hypot(high - p, wide))]


def _spread_of_draws(means, z):
    """Half the interval of the mean of S draws' means (S,), by Student's t; 0 for one draw, whose spread nobody knows."""
    s = len(means)
    return _student_quantile(z, s - 1) * np.std(means, ddof=1) / math.sqrt(s) if s > 1 else 0.0


def paired_difference(after, before, labels, clusters=None, z=None):
    """Mean of after - before on the same images, and its interval; either is (N,), or (S, N) of the same S draws.

    The difference is (share of images on which they differ) times (how one-sided these are). One-sidedness gets Wilson's
    interval with half the continuity correction, close to the mid-p of the exact conditional test that Fagerland, Lydersen and
    Laake (2013) recommend: 4 better and 0 worse are not beyond chance, 5 and 0 are. The share gets Wilson's, and the product
    the square-and-add of their logarithms (MOVER, Zou and Donner 2008), so that only one-sidedness decides the sign.
    Clusters and unequal values reduce the number of images that count.
    """
    z, labels = z or normal_quantile(), np.asarray(labels)
    draws = np.atleast_2d(np.asarray(after, float)) - np.atleast_2d(np.asarray(before, float))
    d, clusters = draws.mean(0), np.arange(len(labels)) if clusters is None else clusters
    variance, df, independent = _variance_of_mean(d, labels, clusters)
    n, mean, size = len(d), d.mean(), np.abs(d)
    total = size.sum()
    if total == 0:
        low, high = -wilson(0, independent, z)[1], wilson(0, independent, z)[1]
    else:
        alike, z_image = 1.0, z  # how many images count as one
        if independent < n:
            alike = max(1.0, variance / (d.var(ddof=1) / n)) if d.var() > 0 else n / independent
            z_image = _student_quantile(z, df)
        share, sided, differ = total / n, d.sum() / total, total**2 / (d * d).sum() / alike
        shares = wilson(share, (share * (1 - share) / size.var() if size.var() > 0 else 1) * n / alike, z_image)
        sides = [2 * wilson((1 + sided) / 2 + step / differ, differ, z_image)[side] - 1 for side, step in ((0, -0.25), (1, 0.25))]
        low = _product_bound(share, sided, shares, sides[0], outwards=mean < 0)
        high = _product_bound(share, sided, shares, sides[1], outwards=mean > 0)
    wide = _spread_of_draws(draws.mean(1), z)
    low, high = max(-1.0, mean - math.hypot(mean - low, wide)), min(1.0, mean + math.hypot(high - mean, wide))
    return {"mean": mean.item(), "ci95": [float(low), float(high)]}


def _product_bound(share, sided, shares, bound, outwards):
    """A bound of share * sided, away from zero or towards it, from that of sided and both of share; it has the sign of `bound`."""
    if bound * sided <= 0:
        return share * bound
    step = math.hypot(math.log(bound / sided), math.log(shares[int(outwards)] / share))
    return share * sided * math.exp(step if outwards else -step)


def _other_classes(correct, labels, seed=0):
    """95 % percentile interval of the accuracy when whole classes are drawn anew: of a study of other classes like these.

    None below _FEWEST classes. It answers another question than that of the user, whose classes are fixed.
    """
    classes, index = np.unique(labels, return_inverse=True)
    if len(classes) < _FEWEST:
        return None
    hits, counts, rng = np.bincount(index, correct), np.bincount(index), np.random.default_rng(seed)
    share, means = np.full(len(classes), 1 / len(classes)), []
    for _ in range(10 if len(classes) < 2000 else 1):  # in parts, to hold few counts at a time
        drawn = rng.multinomial(len(classes), share, _RESAMPLES // 10)  # (draws, C)
        means.append((drawn @ hits) / (drawn @ counts))
    return np.quantile(np.concatenate(means), [0.025, 0.975]).tolist()


# ---- calibration: fitted on held-out images, measured on test -----------------------------------------------------------

_BINS = 15  # of confidence, with equally many images (Nguyen and O'Connor 2015; Kumar et al. 2019)


def fit_temperature(logits, labels):
    """T for which softmax(logits / T) suits the labels best, of logits (N, C), labels (N,) of held-out images (Guo et al. 2017).

    Labels are smoothed by 1 in N + 1, as if one more image had been named at random: N right answers are no proof that T is 0.
    Cross-entropy is convex in 1/T, so its slope is bisected, within four decades around the spread of the logits.
    """
    logits = logits - logits.mean(1, keepdim=True)
    wanted = logits.gather(1, labels[:, None]).double().sum().item() / (len(labels) + 1)
    spread = max(logits.square().mean().sqrt().item(), 1e-12)
    low, high = -2.0, 2.0
    for _ in range(24):
        middle = (low + high) / 2
        parts = (part.double() for part in logits.split(1024))
        given = sum(((x * (10**middle / spread)).softmax(1) * x).sum().item() for x in parts) / len(labels)
        low, high = (middle, high) if given < wanted else (low, middle)
    return spread / 10 ** ((low + high) / 2)


def conformal_scores(p):
    """{"lac", "aps"}: how ill each class suits an image of probabilities p, all (N, C); its set are the classes up to a quantile.

    lac: 1 - p (Sadinle, Lei and Wasserman 2019). aps: the probability of all classes before it, the likeliest first (Romano, Sesia and
    Candes 2020, without randomisation): of that one 0, so that no set is empty, and sets hold rather more than they promise.
    """
    ordered, order = p.sort(dim=1, descending=True, stable=True)
    return {"lac": 1 - p, "aps": torch.empty_like(p).scatter_(1, order, (ordered.cumsum(1) - ordered).clamp(0, 1))}


def conformal_quantile(scores, alpha):
    """The ceil((n + 1)(1 - alpha))-th smallest of scores (n,), which another one exceeds with probability alpha; 1, all, of too few."""
    place = math.ceil((len(scores) + 1) * (1 - alpha) - 1e-9)
    return scores.sort().values[place - 1].item() if place <= len(scores) else 1.0


def _probabilities(logits, labels, temperature):
    """(probabilities (B, C), labels (B, 1)), a block of logits (N, C) at a time."""
    for part, y in zip(logits.split(1024), labels.split(1024)):
        yield (part.double() / temperature).softmax(1), y[:, None]


def calibrate(logits, labels, alpha, source):
    """{"temperature", "alpha", "lac", "aps", "images", "source"}: T, and quantiles of `conformal_scores`, of held-out images `source`."""
    logits, labels = logits.cpu(), labels.cpu()
    temperature = fit_temperature(logits, labels)
    scores = [{kind: s.gather(1, y) for kind, s in conformal_scores(p).items()} for p, y in _probabilities(logits, labels, temperature)]
    quantiles = {kind: conformal_quantile(torch.cat([s[kind] for s in scores]).ravel(), alpha) for kind in scores[0]}
    return {"temperature": temperature, "alpha": alpha, **quantiles, "images": len(labels), "source": source}


def reliability(confidence, right):
    """[[mean confidence, accuracy, images]] of _BINS bins of confidence (N,), equally large; what is equal shares one."""
    order = np.argsort(confidence, kind="stable")
    confidence, right = confidence[order], right[order]
    place = np.searchsorted(confidence, confidence) * _BINS // len(order)
    return [[confidence[place == b].mean().item(), right[place == b].mean().item(), int((place == b).sum())] for b in np.unique(place)]


def measure_calibration(fitted, logits, labels, classes, clusters, reject=None):
    """Metrics on test, logits (N, C) and labels (N,), of what `calibrate` has fitted; clusters (n,) are those of the held-out images.

    ece: the bins' mean gap between confidence and accuracy, ece_chance that of a perfect model. brier: sum over classes. reject:
    [share kept, its accuracy] where the least confident are refused; kept: the same where those below `reject` are.
    """
    logits, labels, m = logits.cpu(), labels.cpu(), {**fitted, "clusters": len(np.unique(clusters))}
    right = logits.numpy().argmax(1) == labels.numpy()
    for name, temperature in (("_before", 1.0), ("", fitted["temperature"])):  # what comes below takes the latter
        parts = [(p.amax(1), p.square().sum(1) + 1 - 2 * p.gather(1, y)[:, 0]) for p, y in _probabilities(logits, labels, temperature)]
        confidence, brier = (torch.cat(values).numpy() for values in zip(*parts))
        m[f"reliability{name}"] = bins = reliability(confidence, right)
        m[f"ece{name}"], m[f"brier{name}"] = sum(n * abs(c - a) for c, a, n in bins) / len(right), brier.mean().item()
    for kind in ("lac", "aps"):
        sets = ((conformal_scores(p)[kind] <= fitted[kind], y) for p, y in _probabilities(logits, labels, temperature))
        true, size = (torch.cat(values).double() for values in zip(*((s.gather(1, y)[:, 0], s.sum(1)) for s, y in sets)))
        each = {c: true[labels == i].mean().item() for i, c in enumerate(classes) if (labels == i).any()}
        m[kind] = {"coverage": true.mean().item(), "size": size.mean().item(), "per_class": each}
    m["ece_chance"] = sum(math.sqrt(2 / math.pi * n * c * (1 - c)) for c, _, n in bins) / len(right)
    order = np.argsort(-confidence, kind="stable")
    m["reject"] = [[k / len(order), right[order[:k]].mean().item()] for k in (-(-len(order) * i // 20) for i in range(1, 21))]
    if reject:
        sure = confidence >= reject
        m["kept"] = {"from": reject, "share": sure.mean().item(), "accuracy": right[sure].mean().item() if sure.any() else None}
    return m


def _print_calibration(m):
    """What `measure_calibration` found, for people."""
    like = f", which come in {counted(m['clusters'], 'cluster')}" if m["clusters"] < m["images"] else ""
    print(f"temperature     {m['temperature']:.3f}   fitted on {counted(m['images'], 'image')}, {m['source']}; what follows is of test")
    print("ECE             {ece:.3f}   before {ece_before:.3f}, of these by chance {ece_chance:.3f};".format(**m), end=" ")
    print("Brier score {brier:.3f}, before {brier_before:.3f}".format(**m))
    for kind in ("lac", "aps"):
        least, value = min(m[kind]["per_class"].items(), key=lambda item: item[1])
        print(f"{kind.upper()} sets        {m[kind]['coverage']:.3f}   hold the true class, for {1 - m['alpha']:g}", end=" wanted; ")
        print(f"{m[kind]['size']:.2f} classes on average; least of {least}: {value:.3f}")
    print(f"note: this holds over all classes together, for images like these{like}")
    if kept := m.get("kept"):
        print(f"kept            {kept['share']:.3f}   of test, from confidence {kept['from']:g} on; accuracy of these", end=" ")
        print("none" if kept["accuracy"] is None else f"{kept['accuracy']:.3f}")


# ---- results ----------------------------------------------------------------------------------------------------


def report(args, data, model, images, metrics, method="", logits=None, labels_used=0, rows=None, history=None):
    """Print `metrics` where they are those of `evaluate` (few_shot.py prints its own) and, with --out FILE.json, write them, with
    everything a number depends on, and FILE.npz beside it.

    `images` are the splits used, {name: Images}; `logits` (N, C) are those of its last one, on which `method` is judged.
    `labels_used` counts the labelled images that anything was learnt or chosen from. `rows` are the lines of the study's
    table, where there are more than the one of `method`: dicts with method, labels (a class), labels_used, right (S, N) of S draws.

    The .npz holds what is known of each image of the last split: path, class, cluster, right (rows, S, N), and of logits
    the class predicted, its confidence, and a few pictures for the figures.
    """
    if "top1" in metrics:
        _print_metrics(metrics)
    if not args.out:
        return

    # what is known of each image, so that plot.py can compare encoders picture by picture
    out, last, arrays = Path(args.out), list(images.values())[-1], {}
    labels_used = max(labels_used, model.labels_used)
    if logits is not None:
        logits = logits.cpu()
        predicted = logits.numpy().argmax(1)
        confidence = torch.cat([(part.amax(1) - part.logsumexp(1)).exp() for part in logits.split(1024)])  # of the softmax
        arrays |= {"predicted": predicted, "confidence": confidence.numpy()}
        arrays |= _example_pictures(last, predicted, metrics.get("confusions", ()), data.classes)
        right = (predicted == last.labels.numpy())[None]
        rows = rows or [{"method": method, "labels": labels_used / len(data.classes), "labels_used": labels_used, "right": right}]

    # the rows of the study's table
    table = []
    for row in rows or ():
        ci95 = accuracy_interval(row["right"], last.labels, last.clusters)
        table.append({k: v for k, v in row.items() if k != "right"} | {"accuracy": float(np.mean(row["right"])), "ci95": ci95})
    if table:
        arrays["right"] = np.stack([row["right"] for row in rows]).astype(np.uint8)

    if arrays:  # first: where the record exists, its predictions do
        with atomic(out.with_suffix(".npz")) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, index=np.array(last.paths), true=last.labels.numpy(), cluster=last.clusters, **arrays)
    record = _record(args, data, model, images, metrics, table, labels_used, history)
    write_json(out, seal(record, out))
    print(f"wrote {out}")


def _record(args, data, model, images, metrics, table, labels_used, history):
    """The dict that becomes FILE.json; args are as given or, where they were left open, as they were settled."""
    from importlib.metadata import version  # instead of importing torchvision, which takes seconds

    given = {key: value for key, value in vars(args).items() if key != "began"}
    settled = {"model": given.get("model") or model.name, "type": data.type, "prompts": data.templates}
    counts = {"counts": {s: len(i) for s, i in images.items()}, "skipped": {s: len(i.skipped) for s, i in images.items()}}
    counts |= {"made": data.made} if data.made else {}
    return {
        "format": FORMAT,
        "script": Path(sys.argv[0]).stem,
        "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "args": given | {key: value for key, value in settled.items() if key in given},
        "data": {"name": data.name, "fingerprint": data.fingerprint, "classes": data.classes, "words": data.words, **counts},
        "model": {"name": model.name, "sha256": model.sha256[:16], "size": model.size, "width": model.width, "features": model.kind}
        | {"view": asdict(model.view)},
        "labels_used": labels_used,
        "table": table,
        "metrics": metrics,
        **({"history": history} if history else {}),
        "environment": {
            "torch": torch.__version__,
            "torchvision": version("torchvision"),
            "device": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type,
            "precision": str(model.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            **({"ranks": _JOINED} if _JOINED > 1 else {}),
            "code": code_version(),
        },
        "seconds": round(clock() - args.began, 2),
    }


def read_result(file):
    """(record, arrays) that `report` wrote to `file` and the .npz beside it, {} where there is none.

    Fails where either is damaged, or of another format.
    """
    record, saved = read_json(file), Path(file).with_suffix(".npz")
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        fail(f"{file}: not a result of these scripts, or of older ones; take it away, or make it anew{_again(record)}")
    _unseal(file, record)
    try:
        if record["arrays"] != (file_sha256(saved)[:16] if saved.exists() else None):
            raise ValueError("not what was written with it")
        arrays = dict(np.load(saved)) if saved.exists() else {}
    except (OSError, ValueError) as error:
        fail(f"{saved}: cannot be read: {why(error)}; delete it and its .json, and make makes both anew")
    return record, arrays


def seal(record, file):
    """A record with checksums of what it says and of the .npz beside `file`, so that no damage becomes a number; JSON-able."""
    arrays = Path(file).with_suffix(".npz")
    record = _finite({**record, "arrays": file_sha256(arrays)[:16] if arrays.exists() else None})
    return record | {"checksum": _checksum(record)}


def _checksum(record):
    return digest({key: value for key, value in record.items() if key != "checksum"})


def _unseal(file, record):
    """Fail where a record of `report` is not as it was written."""
    if record.get("checksum") != _checksum(record):
        fail(f"{file}: damaged, changed by hand, or of older code: its checksum is another; make it anew{_again(record)}")


def _again(record):
    """The command that has made a record, as the end of a line."""
    again = record.get("command") if isinstance(record, dict) else None
    return f": {again}" if isinstance(again, str) else ""


def code_version():
    """The git commit of the folder this file lies in, with + for uncommitted changes; without git a hash of this file."""
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    try:
        commit = subprocess.check_output([*git, "rev-parse", "--short", "HEAD"], stderr=subprocess.DEVNULL, text=True).strip()
        if not subprocess.check_output([*git, "ls-files", "common.py"]):
            raise OSError  # a copy that another project's git does not know
        return commit + ("+" if subprocess.check_output([*git, "status", "--porcelain", "-uno"]) else "")
    except (OSError, subprocess.CalledProcessError):
        return "sha256:" + file_sha256(__file__)[:12]


def _example_pictures(images, predicted, confusions, classes, side=112):
    """Small pictures for the figures: `pairs` (P, 2) of positions of images of confused classes, one that was confused and one of
    the class it was taken for, and their uint8 `pictures` (2 P, S, S, 3)."""
    true, pairs = images.labels.numpy(), []
    for c in confusions:
        t, p = classes.index(c["true"]), classes.index(c["predicted"])
        mine, theirs = np.flatnonzero((true == t) & (predicted == p)), np.flatnonzero(true == p)
        if len(theirs) and len(pairs) < 4:  # one that was named right, if there is one
            pairs.append((mine[0], theirs[np.argmax(predicted[theirs] == p)]))
    pairs = np.array(pairs, int).reshape(-1, 2)
    x = images[pairs.ravel()]
    x = upsample(x, side) if x.shape[-1] > side and len(x) else x
    return {"pairs": pairs, "pictures": x.permute(0, 2, 3, 1).numpy()}


# ---- training ---------------------------------------------------------------------------------------------------

_WARMUP = 0.1  # the share of all steps in which the learning rate rises
_NORM = 1.0  # longer gradients are cut to this length


def snapshot(net):
    """Copies on the CPU of what training changes in `net`: trainable parameters, and buffers.

    net.load_state_dict(snapshot, strict=False) puts them back.
    """
    tensors = [*((name, p) for name, p in net.named_parameters() if p.requires_grad), *net.named_buffers()]
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors}


def read_checkpoint(path, about):
    """What `fit` wrote, or None where there is nothing; fails where it belongs to another run."""
    if not path or not Path(path).exists():
        return None
    try:
        saved = _load_pickled(path)
        there = saved["about"]
    except Exception as error:
        fail(f"{path}: not a readable checkpoint ({type(error).__name__}); delete it, or begin anew with --restart")
    if other := [f"{key} {there.get(key)} there, {about.get(key)} here" for key in {**there, **about} if there.get(key) != about.get(key)]:
        fail(f"{path}: checkpoint of another run: {some(other, 3)}; finish that one, or begin anew with --restart")
    return saved


def half_epochs(load, count, batch, epochs, seed, weights=None):
    """Legs for `fit`: [(epochs done at the end of the leg, [function without arguments -> tensors of a batch])], two an epoch.

    load(rows, epoch) -> tensors of a batch of the `count` images. Each epoch has an order of its own, by seed; its batches are
    of nearly equal size, so that none is left out and none is tiny. Fails where a batch is larger than all.

    Of several ranks each loads its part of a batch, and behind its tensors comes one (2,): what the means of loss and score over this
    part count beside those of the others. `weights` (count,) are those of the images in the loss, where they are not equal.
    """
    if batch > count:
        fail(f"--batch {batch}: more than the {count} images to train on; give a smaller one")
    per_epoch = -(-count // batch)
    if count // per_epoch < _RANKS:
        fail(f"--batch {batch}: leaves some of {_RANKS} processes without an image; give a larger one, or start fewer")
    counts = torch.ones(2, count)  # of each image, in the means of loss and score
    counts[0] = 1 if weights is None else weights

    @lru_cache(1)
    def order(epoch):
        return np.array_split(np.random.default_rng([seed, epoch]).permutation(count), per_epoch)

    def fetch(epoch, i):
        rows = order(epoch)[i]
        if _RANKS == 1:
            return load(rows, epoch)
        mine = rows[_RANK::_RANKS]
        return *load(mine, epoch), _RANKS * counts[:, mine].sum(1) / counts[:, rows].sum(1)

    ends = sorted({per_epoch // 2, per_epoch} - {0})
    legs = []
    for epoch in range(epochs):
        for start, end in zip([0, *ends], ends):
            position = epoch * per_epoch + end
            legs.append((position / per_epoch, [partial(fetch, epoch, i) for i in range(start, end)]))
    return legs


def fit(net, optimizer, legs, step, validate, model, checkpoint=None, about=None, prepare=None):
    """Train `net`: autocast, warm-up and cosine, clipped gradients; and never lose a run.

    optimizer: with the peak learning rates. legs: as half_epochs makes them; batches are fetched one ahead in a thread of its own.
    step(tensors on the device) -> (loss, score), scalars on the device. validate() -> a score, the higher the better, once
    before and after each leg. `model` says where and how to compute; between validations nothing waits for the device.

    With `prepare` it is step(prepare(tensors)), and what `step` does must be the same for all tensors of a shape: a GPU replays it.

    Each leg ends with a checkpoint, which holds all that is needed to go on as if nothing had happened, and `about`, a
    dict of all that the numbers depend on: a checkpoint of another one is refused. A loss or a weight that is not finite
    ends the program, the last good checkpoint kept.

    Of several ranks (where `step` has its network by way of `parallel`) each takes its part of each batch, and the first one writes and
    reads the checkpoint, with which any number of ranks goes on. Dropout is drawn by each for itself.

    Returns (history, best): a row before and after each leg, and the snapshot with the highest score, of equals the
    earliest. `train` is the mean score of a leg's batches; `busy` the seconds of its steps and all before, without validation.
    """
    if model.device.type == "cuda":  # gradients of cuDNN's attention can be NaN: pytorch issue 196678; cudnn-frontend 1072, of one query
        torch.backends.cuda.enable_cudnn_sdp(False)
    # 16-bit floats need their loss scaled; bf16 and float32 do not, and then the scaler does nothing
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    peaks = [group["lr"] for group in optimizer.param_groups]
    scaler = torch.amp.GradScaler(model.device.type, enabled=model.dtype == torch.float16)
    steps = sum(len(batches) for _, batches in legs)
    seed = torch.initial_seed()
    _same_in_all_ranks("what is trained", about)

    # from the start, or from where the run was interrupted; the history is the position
    if saved := from_first_rank(read_checkpoint, checkpoint, about):
        net.load_state_dict(saved["state"], strict=False)
        optimizer.load_state_dict(saved["optimizer"])
        scaler.load_state_dict(saved["scaler"])
        torch.set_rng_state(saved["random"][0])
        for state in saved["random"][1:]:  # of a GPU
            torch.cuda.set_rng_state(state, model.device)
        history, best = saved["history"], saved["best"]
        print(f"goes on from {checkpoint}, step {history[-1]['step']:,} of {steps:,}")
    else:
        net.eval()
        first = {"epoch": 0.0, "step": 0, "train": None, "val": validate(), "loss": None, "lr": 0.0, "seconds": 0.0, "busy": 0.0}
        history, best = [first], snapshot(net)
    spent, started, position = history[-1]["seconds"], time.time(), history[-1]["step"]

    def fetch(call):  # not `sent`, for which a small network's steps have to wait: threads take turns
        return [t.pin_memory() if model.device.type == "cuda" else t for t in call()]

    def update(tensors, counts=(1, 1)):
        with model.autocast():
            loss, score = step(tensors)
        loss, score = loss * counts[0], score * counts[1]
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(parameters, _NORM)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return torch.stack([loss.detach(), score])

    # the code of a FILE.py may do anything, and a scaler decides anew at each step
    replays = prepare and model.device.type == "cuda" and _RANKS == 1 and not scaler.is_enabled() and not model.code
    if replays:
        for group in optimizer.param_groups:  # where a graph finds the learning rate of each step
            group |= {"capturable": True, "lr": torch.zeros((), device=model.device)}
        update = _replayed(update)

    left = legs[len(history) - 1 :]
    bar = progress(None, f"{model.name} training", "step", steps)
    bar.update(position)
    with bar, _threads(1) as pool:
        ready = read_ahead(pool, fetch, ([call] for _, batches in left for call in batches))
        for epoch, batches in left:
            # a leg of steps
            total, since, begun = torch.zeros(2, device=model.device), 0, time.time()
            net.train()
            if _RANK:  # other dropout than that of the first, and the same when it goes on from here
                torch.manual_seed(hash((seed, position, _RANK)))
            while since < len(batches):
                (tensors,) = next(ready)
                tensors = [t.to(model.device, non_blocking=True) for t in tensors]
                share = _learning_rate((position + 0.5) / steps)
                for group, peak in zip(optimizer.param_groups, peaks):
                    group["lr"] = group["lr"].fill_(peak * share) if replays else peak * share
                counts = [tensors.pop()] if _RANKS > 1 else []
                if prepare:
                    with model.autocast():
                        tensors = prepare(tensors)
                total += update(tensors, *counts)
                position, since = position + 1, since + 1
                bar.update()
                if model.device.type == "cpu" and _RANKS == 1 and not total[0].isfinite():  # there it costs nothing to look
                    break

            # what it has come to, the only place where anything waits for the device
            mean_loss, mean_score = (_mean_of_ranks(total) / since).tolist()
            busy = history[-1]["busy"] + time.time() - begun
            state = snapshot(net)
            if not (math.isfinite(mean_loss) and all(t.isfinite().all() for t in state.values())):
                kept = f"; {checkpoint} keeps step {history[-1]['step']:,}" if checkpoint and len(history) > 1 else ""
                fail(f"training: the loss or a weight is no longer finite at step {position:,}{kept}; try a smaller --lr, with --restart")
            net.eval()
            val = validate()
            if val > max(row["val"] for row in history):
                best = state
            row = {"epoch": epoch, "step": position, "train": mean_score, "val": val, "loss": mean_loss, "lr": peaks[0] * share}
            history.append(row | {"seconds": spent + time.time() - started, "busy": busy})
            bar.set_postfix_str(f"loss {mean_loss:.3f}, val {val:.3f}")
            if checkpoint and not _RANK:
                random = [torch.get_rng_state(), *([torch.cuda.get_rng_state(model.device)] if model.device.type == "cuda" else [])]
                saved = {"about": about, "state": state, "best": best, "history": history, "random": random}
                save_tensors(saved | {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}, checkpoint)
    net.eval()
    return history, best


def _replayed(update):
    """update(tensors) -> a tensor, on a GPU: from the third time that a shape comes on, replayed as one CUDA graph.

    Starting its kernels one by one takes Python longer than most networks take for a batch of a few dozen images.
    """
    seen, graphs, pool = Counter(), {}, torch.cuda.graph_pool_handle()

    def replayed(tensors):
        shape = tuple(t.shape for t in tensors)
        seen[shape] += 1
        if seen[shape] < 3:  # in the first ones libraries look for kernels, and the optimizer makes its state
            return update(tensors)
        if shape not in graphs:
            inputs, graph = [t.clone() for t in tensors], torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                result = update(inputs)
            graphs[shape] = graph, inputs, result
        graph, inputs, result = graphs[shape]
        for there, here in zip(inputs, tensors):
            there.copy_(here)
        graph.replay()
        return result

    return replayed


def _learning_rate(done):
    """The share of its peak after a share of all steps: a straight rise, then half a cosine."""
    return done / _WARMUP if done < _WARMUP else (1 + math.cos(math.pi * (done - _WARMUP) / (1 - _WARMUP))) / 2


# ---- saved weights, and pictures to name ----------------------------------------------------------------------------


def save_weights(path, tensors, about):
    """Write {name: tensor} as .safetensors, with `about`, a dict that JSON can hold: what they are and were made with."""
    from safetensors.torch import save  # here, because it imports torch

    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    about = {"format": FORMAT, **about, "tensors": _tensors_sha256(tensors)}
    about = json.dumps(about)  # one string, because several would be written in any order
    with atomic(path) as temporary:
        with _uninterrupted():
            data = save(tensors, {"about": about})
        temporary.write_bytes(data)


def _tensors_sha256(tensors):
    total = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        total.update(f"{key} {tensor.dtype} {[*tensor.shape]}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()


def _load_pickled(path):
    """torch.load of what holds tensors alone; raises ValueError where its checksums, which torch passes over, say that it is damaged."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if bad := archive.testzip():
                raise ValueError(f"damaged in {bad}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickles that are not of torch
        return torch.load(path, map_location="cpu", weights_only=True)


def about(data, model, images, seed):
    """What a file that is saved says of the data and the model, for whoever starts from it or predicts with it."""
    words = {"classes": data.classes, "words": data.words, "prompts": data.templates, "type": data.type}
    split = digest([i.paths for i in hold_out(images, seed).values()])
    made = {"model": model.name, "features": model.kind, "act": model.act, "sha256": model.sha256, "view": asdict(model.view)}
    return made | {"split": split, **words}


def read_weights(path):
    """(about, tensors) of a file of weights: of `save_weights`, with about {} of others, or a state dict that torch.save wrote.

    Of what could carry code only OpenAI's own TorchScript archives are opened, which are known by their SHA-256. Fails
    where there is no such file, it cannot be read, or is of an older format of ours.
    """
    from safetensors import safe_open  # here, because these import torch
    from safetensors.torch import load_file

    path, strings = Path(path), {}
    if not os.path.isfile(path):  # False of what is too long for a name, too
        fail(f"{path}: no such file of weights")
    try:
        if path.suffix == ".safetensors":
            with _uninterrupted(), safe_open(path, "pt") as file:
                strings, tensors = file.metadata() or {}, load_file(path)
            # copied, because where they lie in the file decides in which order some kernels add, and so the last bits of what follows
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        elif zipfile.is_zipfile(path) and any(name.endswith("constants.pkl") for name in zipfile.ZipFile(path).namelist()):
            if file_sha256(path) not in _OPENAI:
                fail(f"{path}: a TorchScript archive, which can carry code, and not OpenAI's by SHA-256; save its state dict")
            tensors = torch.jit.load(path, map_location="cpu").state_dict()
        else:
            state = _load_pickled(path)
            state = state.get("state_dict", state)  # open_clip's training checkpoints
            tensors = {name.removeprefix("module."): tensor for name, tensor in state.items()}
        about = dict(json.loads(strings.get("about", "{}")))
        if (told := about.pop("tensors", None)) and told != _tensors_sha256(tensors):
            raise ValueError("another checksum")
        if any(tensor.is_complex() for tensor in tensors.values()):
            raise TypeError("complex numbers")
    except Exception as error:  # torch's own text would advise to load it without the safeguard
        fail(f"{path}: not a readable file of tensors ({type(error).__name__}): cut off or damaged, or it holds more than tensors")
    old = {"classes", "labels_used", "steps"} & {*strings}  # which formats before this one kept as strings of their own
    if old or (about and about.get("format") != FORMAT):
        fail(f"{path}: of an older format; make it anew with the script that saved it")
    odd = [key for key, kind in (("labels_used", int), ("act", str)) if not isinstance(about.get(key, kind()), kind)]
    if odd or about.get("labels_used", 0) < 0:
        fail(f"{path}: says of itself what no script here writes, see its {(odd or ['labels_used'])[0]}; make it anew")
    return about, tensors


def check_saved(parser, args):
    """End the program where the flags "load predict csv bom export" do not belong together, or another would change nothing."""
    if args.predict and args.export:
        parser.error("--load takes either --predict or --export, not both at once")
    if bool(args.load) != bool(args.predict or args.export):
        parser.error("--load FILE, which --save has written, needs either --predict or --export, and these need it")
    if (args.csv and not args.predict) or (args.bom and not args.csv):
        parser.error("--csv is for --predict, --bom for --csv")
    if args.load and (args.model or args.fit):
        parser.error("--load knows its encoder and how pictures are brought into shape: --model and --fit are for training")
    used = ["data", "load", "predict", "csv", "bom", "export", "weights", "act", "device", "precision", "batch"]
    idle = [name for name, value in vars(args).items() if name not in used and value != parser.get_default(name)]
    if args.load and idle:
        flags = ", ".join(f"--{name}".replace("_", "-") for name in idle)
        parser.error(f"--load only predicts or exports, and {flags} would change nothing")


def check_head(file, told, tensors, width=None):
    """Fail, by the reason, where read_weights(file) is not what linear_probe.py or finetune.py saved, for features of this width."""
    whole, classes = "method" in told, told.get("classes")
    lists, view, fitted = (classes, told.get("words"), told.get("prompts")), told.get("view"), told.get("calibration") or {}
    parts = ("head", "held_out") if any(name.startswith("held_out.") for name in tensors) else ("head",)
    names = [] if told.get("method") == "cs" else [f"{p}.{t}" for p in parts for t in ("weight", "bias")]
    head = {name: tensors[name] for name in (*names, "head.logit_scale") if name in tensors}
    wrong = [name for name in names if name not in head]
    try:
        wrong += [key for key in ("model", "features", "sha256", "type") if not isinstance(told[key], str)]
        wrong += [] if told["features"] in ("projected", "penultimate") else ["features"]
        wrong += [] if classes and all(isinstance(text, str) for texts in lists for text in texts) else ["names of the classes"]
        wrong += [] if len(classes) == len(told["words"]) else ["as many words as classes"]
        sides = [] if view is None else [View(**view).size, View(**view).short]
        wrong += [] if not sides or ({*map(type, sides)} == {int} and sides[0] > 0 and 0 < sides[1] <= 8 * sides[0]) else ["view"]
        known = 0 < fitted.get("temperature", 1) < math.inf and 0 <= fitted.get("lac", 0) < math.inf
        wrong += [] if known else ["calibration"]
        wrong += [n for n, t in head.items() if not (t.is_floating_point() and t.isfinite().all())]
        width = width or (head["head.weight"].shape[1] if "head.weight" in head else 0)
        shapes = {"weight": [len(classes), width], "bias": [len(classes)]}
        wrong += [f"{n} {[*t.shape]}" for n, t in head.items() if [*t.shape] != shapes.get(n.rpartition(".")[2], [1] * t.ndim)]
    except Exception as error:  # whatever it is that stands in place of these
        wrong += [f"{type(error).__name__}: {why(error)}"]
    if wrong:
        by = "finetune.py" if whole else "linear_probe.py"
        fail(f"{file}: not what --save of {by} writes: lacks or has another {some(wrong, 3)}; make it anew")


def use_saved(args, batch=None):
    """What --load FILE is for: --predict names pictures with it, on the screen or into --csv; --export makes an ONNX graph of it.

    FILE is what --save of linear_probe.py (a head) or finetune.py (a whole network) wrote. Fails where it is anything else, or a
    head of other weights. A temperature and prediction sets are used where the file holds a calibration.
    """
    first_rank_goes_on()
    told, tensors = read_weights(args.load)
    if "classes" not in told:
        fail(f"{args.load}: not written by --save of linear_probe.py or finetune.py")
    check_head(args.load, told, tensors)
    whole = "method" in told  # else the head alone
    if whole and (args.weights or args.act):
        fail(f"--load {args.load}: holds its encoder; --weights and --act are for the head of a linear probe")
    check_pictures(args.predict or [], args.csv)
    weights, act = (args.load, None) if whole else (args.weights, args.act or (args.weights and told["act"]) or None)
    where = ("cpu", weights, "float32") if args.export else (args.device, weights, args.precision)
    model = load_model(told["model"], *where, act, told["features"], batch)
    if told.get("view"):
        if (size := told["view"]["size"]) != model.size:
            fail(f"--load {args.load}: of pictures of {size} px, but {model.name} takes {model.size} px")
        model = replace(model, view=View(**told["view"]))
    if not whole and model.sha256 != told["sha256"]:
        fail(f"--load {args.load}: belongs to other weights of {model.name}; give them by --weights")

    check_head(args.load, told, tensors, model.width)

    # a linear layer on features as they come or of unit length, or captions
    if unit := told.get("method") == "cs":
        # first, because it fails where there is no text side
        z = model.classifier(told["words"], told["prompts"], told["type"], keep=False)
        scale = tensors.get("head.logit_scale", model.log_scale).to(model.device).clamp(max=math.log(100)).exp()
        weight = scale * z
        bias = torch.zeros(len(weight), device=model.device)
    else:
        unit = told.get("unit")
        weight, bias = (tensors[f"head.{part}"].to(model.device) for part in ("weight", "bias"))

    def head(f):
        return F.linear(F.normalize(f, dim=1) if unit else f, weight, bias)

    calibration = told.get("calibration") or {}
    if args.export:
        return _export(model, head, told["classes"], calibration.get("temperature", 1.0), args.export)
    name_pictures(model, args.predict, head, told["classes"], 5, calibration, args.csv, args.bom)


def check_pictures(files, table=None):
    """Fail where a picture or folder to be named is missing (with a `table`, whose rows say so, where all are) or is an archive."""
    for file in files:
        if Path(file).suffix.lower() in (".zip", ".tar"):
            fail(f"{file}: an archive; unpack it to have its pictures named")
    missing = [file for file in files if not os.path.exists(file)]
    if missing and (not table or len(missing) == len(files)):
        fail(f"{some(missing)}: no such file or folder")


def name_pictures(model, files, head, labels, most=None, calibration=None, table=None, bom=False):
    """Print, for each of the pictures, the `labels` (C,) by their probability, all or `most` of them; or write the CSV `table`.

    `files` are pictures and folders of them, at any depth and of any number: two batches are in memory. head(features (B, D) on the
    device) -> logits (B, C), which are divided by the temperature of the `calibration`; its "lac" makes prediction sets: all labels
    with 1 - probability <= lac (Sadinle, Lei and Wasserman 2019). The table has a row for each picture: path, label, probability, four
    more labels and theirs, the set, and why it cannot be read; on the screen such a picture ends the program.
    `bom` marks it as UTF-8 for spreadsheets.
    """
    calibration, paths = calibration or {}, []
    for file in map(Path, files):
        inside = [str(file / path) for path, *_ in _Folder(file).files(file)] if os.path.isdir(file) else [str(file)]
        paths += inside or fail(f"{file}: holds no pictures")

    def read(path):
        try:
            return path, _read_image(path, model.view)[0], ""
        except Exception as error:
            return path, None, why(error)

    def named():
        """(path, probabilities float64 (C,) or None, why not), each batch read while the one before is named."""
        batches = (paths[start : start + model.batch] for start in range(0, len(paths), model.batch))
        with _threads() as pool:
            for ready in read_ahead(pool, read, batches):
                if pixels := [x for _, x, _ in ready if x is not None]:
                    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
                    with torch.no_grad():
                        logits = head(model.finite(model.encode_image(x), "features")).cpu().double()
                    p = iter((logits / calibration.get("temperature", 1.0)).softmax(1))
                yield from ((path, None if x is None else next(p), reason) for path, x, reason in ready)

    rows, unreadable = progress(named(), f"{model.name} pictures", "img", len(paths)), 0
    if not table:
        for path, p, reason in rows:
            if p is None:
                fail(f"{path}: not a picture that can be read: {reason}; --csv FILE goes on with the others and says so of this one")
            print(path)
            for i in p.argsort(descending=True, stable=True)[:most].tolist():
                print(f"  {p[i]:6.3f}  {labels[i]}")
        return
    encoding = "utf-8-sig" if bom else "utf-8"
    with atomic(table) as temporary, open(temporary, "w", encoding=encoding, errors="backslashreplace", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        more = [f"{what}{i}" for i in range(2, 6) for what in ("label", "probability")]
        lines.writerow(["path", "label", "probability", *more, "set", "error"])
        for path, p, reason in rows:
            high, order = ([], []) if p is None else (t.tolist() for t in p.sort(descending=True, stable=True))
            cells = [cell for i, q in zip(order[:5], high) for cell in (labels[i], f"{q:.6f}")]
            within = [labels[i] for i, q in zip(order, high) if "lac" in calibration and 1 - q <= calibration["lac"]]
            lines.writerow([path, *cells, *[""] * (10 - len(cells)), " | ".join(within), reason])
            unreadable += p is None
    print(f"{counted(len(paths), 'picture')}, {unreadable:,} unreadable: {table}")


# =================================================================================================================
# From here on how it is done: skip it on the first reading
# =================================================================================================================

# ---- folders ----------------------------------------------------------------------------------------------------


def natural(name):
    """Sort key that puts 2.jpg before 10.jpg."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name)]


def _as_text(name):
    """A name of a file as text, which is the same in any locale, but then may not be a name to open it by."""
    with suppress(UnicodeEncodeError):  # it is text already
        return os.fsencode(name).decode("utf-8", "surrogateescape")
    return name


def _said(text):
    """Words of a command line as text: where the locale knows too few letters, they came in byte by byte."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return _as_text(text)
    return text


@cache
def _endings():
    """{".jpg", ...} of the pictures that are opened."""
    formats = _formats()  # first, because that is what fills the table of endings
    return {ending for ending, kind in Image.EXTENSION.items() if kind in formats}


@cache
def _formats():
    """("JPEG", ...): what is opened, whatever a file is called. PostScript is a program, which Pillow would have Ghostscript run."""
    Image.preinit()  # has the usual ones come first: some others try to read whatever they are given, a seventh of a small JPEG's time
    Image.init()
    return tuple(kind for kind in Image.ID if kind not in ("EPS", "IPTC"))  # the latter may hold the former


def _open(file):
    return Image.open(file, formats=_formats())


def _is_image(name):
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in _endings()


def _kind(path, entry):
    """ "folder" or "file", as which a link counts too; "" of others, such as a link that goes round."""
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else ""
    except OSError as error:
        return "" if error.errno == errno.ELOOP else fail(f"{path / entry.name}: cannot be read: {why(error)}")


class _Folder:
    """What lies in a folder, without hidden files; `count` is of images at any depth. Links that go round are not followed.

    Of an archive it is what lies in the _Member.
    """

    def __init__(self, path, above=(), member=None):
        try:
            entries = os.scandir(path) if member is None else member.inside.values()
            entries = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
            place = os.stat(path) if member is None else member
        except OSError as error:
            fail(f"{path}: cannot be read: {why(error)}")
        above = (*above, (place.st_dev, place.st_ino))
        self.path = path
        self.name = _as_text(path.name)
        kinds = [(e, _kind(path, e)) for e in entries]
        self.images = [e for e, kind in kinds if kind == "file" and _is_image(e.name)]
        self.others = [e.name for e, kind in kinds if kind != "folder" and not (kind == "file" and _is_image(e.name))]
        inner = [e for e, kind in kinds if kind == "folder" and e.name != "__MACOSX"]
        inner = [e for e in inner if (e.stat().st_dev, e.stat().st_ino) not in above]
        self.folders = [_Folder(path / e.name, above, member and e) for e in inner]
        self.count = len(self.images) + sum(f.count for f in self.folders)

    def walk(self):
        """This folder and all below it."""
        yield self
        for folder in self.folders:
            yield from folder.walk()

    def files(self, root):
        """[(path below root, size in bytes, mtime in ns)] of the images at any depth, in natural order of the whole path; forgets them."""
        rows = []
        for f in self.walk():
            place = f.path.relative_to(root).as_posix() + "/"
            place = "" if place == "./" else place
            while f.images:  # what the system tells of a file is kept by its entry, 1 KB each
                e = f.images.pop()
                rows.append((place + e.name, e.stat().st_size, e.stat().st_mtime_ns))
        return sorted(rows, key=lambda row: (natural(row[0]), row[0]))


def _class_folders(folder):
    """The folders of a split that are classes: they hold images at some depth, or no file at all (a class without images)."""
    return [f for f in folder.folders if f.count or not any(g.others for g in f.walk())]


def _named_splits(folder):
    """{split: Folder} of the folders in `folder` that are called like one and hold folders with images."""
    splits = {}
    for f in folder.folders:
        split = _SPLITS.get(f.path.name.lower())
        kinds = {_SPLITS.get(g.path.name.lower()) for g in f.folders if g.count}
        if split is None or not kinds or (None not in kinds and kinds != {split}):  # the last: training/{train,test}
            continue
        if split in splits:
            fail(f"{folder.path}: two folders claim one split: {splits[split].path.name}, {f.path.name}; rename one")
        splits[split] = f
    return splits


def _find_splits(top):
    """{split: Folder of classes} of the Folder `top`, found by name in any case, or {"all": Folder}; also below wrapper folders.

    A class is a folder directly below its split, with the images at any depth in it. Where no folders are called like
    splits, the uppermost folder of which some folder holds images itself is the data set, and all folders in it are
    classes. What lies above is a wrapper, and so is a lone folder that holds but folders, where each split has one.
    """
    level = [top]
    while level:
        found = [(f, splits) for f in level if (splits := _named_splits(f))]
        found += [(f, {"all": f}) for f in level if not _named_splits(f) and any(g.images for g in f.folders)]
        if found and "all" in found[0][1]:  # pictures beside a data set, or a data set with another in it
            found += [(g, splits) for f in level for g in f.walk() if g is not f and (splits := _named_splits(g))]
        if len(found) > 1:
            places = some([str(f.path) for f, _ in found])
            hint = "if they are classes, put them into train/, and what each has to be tested with into test/"
            fail(f"--data {top.path}: holds several data sets: {places}; name one of them; {hint}")
        if found:
            splits = found[0][1]
            while all(len(f.folders) == 1 and f.folders[0].count and not f.folders[0].images for f in splits.values()):
                splits = {split: f.folders[0] for split, f in splits.items()}
            return splits
        level = [g for f in level for g in f.folders]
    fail(f"--data {top.path}: no images in class folders; put each class into a folder of its own, or let --label-from read it from names")


def _print_left_out(top, splits):
    """One line on the files below the Folder `top` that are in no class or no images, or nothing."""
    classes = [f for split in splits.values() for f in _class_folders(split)]
    inside = {g.path for f in classes for g in f.walk()}
    stray, beside, flat = [], [], False
    for f in [f for f in top.walk() if f.path not in inside and f.images]:
        names = [part.lower() for part in f.path.relative_to(top.path).parts[-2:]]
        apart = "all" not in splits and len(names) == 2 and not {*names} & {*_SPLITS}  # dev/apple beside train/apple
        (beside if apart else stray).extend(str(f.path.relative_to(top.path) / e.name) for e in f.images)
        flat |= bool(names) and names[-1] in _SPLITS
    others = [name for split in splits.values() for f in split.folders for g in f.walk() for name in g.others]
    endings = Counter(os.path.splitext(name)[1].lower() or "without ending" for name in others)
    without = [f.name for split in splits.values() for f in split.folders if f not in classes]
    parts = [f"{counted(len(beside), 'image')} beside the splits train, val and test, such as {beside[0]}"] if beside else []
    hint = " (--label-from reads the classes from names)" * flat
    parts += [f"{counted(len(stray), 'image')} in no class folder, such as {stray[0]}{hint}"] if stray else []
    hint = " (convert .heic to .jpg)" * bool({".heic", ".heif"} & {*endings})
    parts += ["files that are no images here: " + some([f"{n:,} {e}" for e, n in endings.most_common()]) + hint] if endings else []
    parts += [f"no class, because without images: {some(without)}"] if without else []
    if parts:
        print(f"note: {top.path}: left out: {'; '.join(parts)}")


def _class_words(root, classes, classnames=None, given=None):
    """What a prompt calls each class: `_` and `-` become spaces; classnames.json in the data folder or a file overrides.

    `given` is what classnames.json of an archive holds.
    """
    path = Path(classnames) if classnames else root / "classnames.json"
    if classnames or path.is_file():
        given = read_json(path)
    given = {} if given is None else given
    if not isinstance(given, dict) or not all(isinstance(v, str) for v in given.values()):
        fail(f"{path}: must be a JSON object that maps folder names to words")
    if unknown := sorted(set(given) - set(classes)):
        print(f"note: {path} names {counted(len(unknown), 'class')} that the data lacks: {some(unknown)}")
    words = [given.get(c, " ".join(re.sub("[_-]", " ", c).split())) for c in classes]
    for text in sorted(w for w, n in Counter(words).items() if n > 1):
        same = [c for c, w in zip(classes, words) if w == text]
        print(f"note: classes {', '.join(same)} are all called '{text}', which no prompt can tell apart; see classnames.json")
    return words


# ---- data sets as people have them: a folder, an archive, a CSV, torchvision's -----------------------------------------------

_LARGEST = 256 << 20  # bytes that a member of an archive may have
_DENSEST = 200, 16 << 20  # how many times smaller a member may be packed, from how many bytes on


@dataclass
class _Source:
    """Where pictures lie and what each is, the same of every kind of data set: load_data makes splits of it."""

    kind: str
    name: str
    root: Path
    open: object
    key: list
    found: dict  # {split, or "all": {class: [(path, size in bytes, mtime in ns or a CRC)]}}, in natural order
    folders: dict
    places: dict  # {split: what lines call it}
    part: str = "folder"  # what a split is called
    groups: dict | None = None
    words: object = None  # what classnames.json of an archive holds
    order: object = None  # of classes, the key they are sorted by


def _find_source(name, label_from=None):
    """The _Source that --data NAME means: data/NAME or NAME, or a set of torchvision. Fails where there is none."""
    if label_from and name.startswith("torchvision:"):
        fail(f"--label-from {label_from}: is for folders and archives; {name} says itself what each picture is")
    if name.startswith("torchvision:"):
        return _from_torchvision(name.partition(":")[2])

    # a bare name is one of data/; only what starts like a path is nothing else
    if name == "toy" and not Path("data/toy").is_dir():
        _make_toy()
    places = (Path(name),) if name.startswith((".", "/")) else (Path("data") / name, Path(name))
    root = next((p for p in places if os.path.isdir(p)), None)
    if root is not None:
        name = root.absolute().name  # not that of what a link points to
        if not name:
            fail(f"--data {root}: is a whole disk; name a folder in it")
        return _from_tree("folder", name, root, lambda path: _open(root / path), _Folder(root), label_from)
    file, kind = next((p for p in places if os.path.isfile(p)), None), Path(name).suffix.lower()
    if file is None:
        what = "folder" if kind in ("", ".") else "file or folder"
        fail(f"--data {name}: no such {what}: {' or '.join(map(str, places))}")
    if re.search(r"\.(tar\.\w+|tgz|tbz2?|txz|rar|7z)$", name.lower()):
        fail(f"--data {name}: of such an archive all must be unpacked to find one picture; unpack it, or make a .zip of it")
    if kind not in (".csv", ".zip", ".tar"):
        fail(f"--data {name}: neither a folder nor a .csv, .zip or .tar")
    if label_from and kind == ".csv":
        fail(f"--label-from {label_from}: is for folders and archives; {file} says itself what each picture is")
    return _from_csv(file) if kind == ".csv" else _from_archive(file, label_from)


def _from_tree(kind, name, root, open, top, label_from, key=()):
    """The _Source of a _Folder, which lies on the disk or in an archive."""
    if label_from:
        _label_flat(top, label_from)
    folders = _find_splits(top)
    classes = {split: {f.name: f for f in _class_folders(folder)} for split, folder in folders.items()}
    _print_left_out(top, folders)
    found = {split: {c: f.files(root) for c, f in mine.items()} for split, mine in classes.items()}
    inside = {split: [f.path.relative_to(root) for f in mine.values()] for split, mine in classes.items()}
    return _Source(kind, name, root, open, [str(root.absolute()), *key], found, inside, {s: f.path for s, f in folders.items()})


def _label_flat(top, regex):
    """Put the pictures that lie directly in the data set, or in a folder called like a split, into folders of the class that `regex`
    captures in their names (captures joined by _, or the whole match), beside the class folders there."""
    try:
        pattern = re.compile(_said(regex))
    except re.error as error:
        fail(f"--label-from {regex}: not a regular expression: {error}")
    while not top.images and len(top.folders) == 1:  # a wrapper
        top = top.folders[0]
    flat = [f for f in top.walk() if f.images and (f is top or f.path.name.lower() in _SPLITS)]
    without = []
    for folder in flat:
        classes = {}
        for e in folder.images:
            m = pattern.search(_as_text(e.name))
            c = m and ("_".join(g for g in m.groups() if g) if pattern.groups else m[0])
            classes.setdefault(c, []).append(e) if c else without.append(folder.path / e.name)
        folder.images = []
        for c, images in classes.items():
            inner = copy.copy(folder)
            inner.name, inner.images, inner.others, inner.folders, inner.count = c, images, [], [], len(images)
            same = next((f for f in folder.folders if f.name == c), None)
            (same or folder).folders.append(inner)
            if same:
                same.count += inner.count
    if without:
        fail(f"--label-from {regex}: finds no class in the names of {counted(len(without), 'picture')}, such as {without[0]}")
    if not flat:
        fail(f"--label-from {regex}: no picture lies beside class folders, directly in {top.path} or in a folder called like a split")


class _Member:
    """A file or folder of an archive, as os.DirEntry and os.stat tell it of the disk."""

    def __init__(self, name=""):
        self.name, self.inside, self.file = name, {}, None
        self.st_dev, self.st_ino = 0, id(self)

    def is_dir(self):
        return self.file is None

    def is_file(self):
        return self.file is not None

    def stat(self):
        return self


def _from_archive(path, label_from):
    """The _Source of a .zip or .tar of class folders, which is read in place, by any number of threads.

    What could do harm is left out and counted aloud. Fails where the archive cannot be read or has a password.
    """
    try:
        members = list({".zip": _zip_members, ".tar": _tar_members}[path.suffix.lower()](path))
        whole = os.stat(path)
    except (OSError, ValueError, EOFError, NotImplementedError, tarfile.TarError, zipfile.BadZipFile) as error:
        more = " (if it is compressed, unpack it)" if isinstance(error, tarfile.TarError) else ""
        fail(f"--data {path}: cannot be read, cut off or no archive{more}: {why(error)}")

    # a tree of what may be read
    top, left, files = _Member(), Counter(), {}
    for name, reason, stamp, *where in members:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts or re.match("[A-Za-z]:", name):
            reason = "name of a place outside"
        elif where and not parts:
            reason = "no name"
        elif where and not 0 <= where[0] <= whole.st_size - where[1]:
            fail(f"--data {path}: is cut off: {name} is not all in it")
        elif where and where[2] > _LARGEST:
            reason = f"more than {_LARGEST >> 20} MB"
        elif where and where[2] > max(_DENSEST[1], _DENSEST[0] * where[1]):
            reason = f"grows more than {_DENSEST[0]} times"
        if reason:
            left[reason] += 1
            continue
        here = top
        for part in parts:
            here = here.inside.setdefault(part, _Member(part))
        if where:
            here.file, here.st_size, here.st_mtime_ns = where, where[2], stamp
            files["/".join(parts)] = where
    if left:
        print(f"note: {path}: left out: " + ", ".join(f"{counted(n, 'member')} ({reason})" for reason, n in left.items()))

    def read(name):
        """The bytes of a member, at most as many as it declares. Opened each time, so that threads share no position."""
        start, packed, size, crc = files[name]
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_mtime_ns != whole.st_mtime_ns:
                raise OSError(errno.ESTALE, "has changed since it was listed")
            file.seek(start)
            if crc is not None:  # before it stands a header of its own, whose length only it knows
                header = file.read(30)
                file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), 1)
            data = file.read(packed)
        if crc is not None and crc[0]:
            data = zlib.decompressobj(-15).decompress(data, size + 1)
        if len(data) != size or (crc is not None and zlib.crc32(data) != crc[1]):
            raise ValueError(f"damaged in {path.name}")
        return data

    tree = _Folder(path, (), top), label_from, [whole.st_size, whole.st_mtime_ns]
    source = _from_tree("archive", path.stem, path, lambda name: _open(io.BytesIO(read(name))), *tree)
    if "classnames.json" in files:
        try:
            source.words = json.loads(read("classnames.json").decode("utf-8-sig"))
        except (ValueError, RecursionError, OSError, zlib.error) as error:
            fail(f"{path / 'classnames.json'}: cannot be read as JSON: {why(error)}")
    return source


def _zip_members(path):
    """(name, why it is left out or "", CRC, *where: offset of its header, packed bytes, bytes, (whether deflated, CRC)) of each file."""
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    if locked := [i.filename for i in infos if i.flag_bits & 1]:
        fail(f"--data {path}: has a password ({locked[0]}); unpack it, or make it anew without one")
    for i in infos:
        folder = i.filename.endswith("/")  # is_dir of zipfile fails without a name
        kind = stat.S_IFMT(i.external_attr >> 16)
        reason = "link or device" if kind not in (0, stat.S_IFREG, stat.S_IFDIR) else ""
        if not folder and i.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            reason = reason or "not packed by deflate"
        where = [i.header_offset, i.compress_size, i.file_size, (i.compress_type == zipfile.ZIP_DEFLATED, i.CRC)]
        name = i.filename
        if not i.flag_bits & 0x800:  # zip says that names are UTF-8 only where it must, so zipfile takes them for those of DOS
            with suppress(UnicodeError):
                name = name.encode("cp437").decode("utf-8")
        yield name, reason, i.CRC, *([] if folder else where)


def _tar_members(path):
    """The same of a .tar, with the mtime in ns for the CRC, None for the last."""
    with tarfile.open(path, "r:", encoding="utf-8") as archive:
        for i in archive:
            reason = "" if i.isdir() or (i.isreg() and not i.issparse()) else "link or device"
            yield i.name, reason, int(i.mtime * 1e9), *([] if i.isdir() else [i.offset_data, i.size, i.size, None])
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(512) != bytes(512):
            raise tarfile.ReadError("no end mark")


def _from_csv(file):
    """The _Source of a file of path,label[,split][,group], paths below the folder it lies in. Each fault names its line."""

    def wrong(line, what):
        fail(f"{file}, line {line}: {what}")

    # the text, its delimiter by the first line
    try:
        data = file.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        fail(f"{file}: cannot be read: {why(error)}")
    except UnicodeDecodeError as error:
        wrong(data[: error.start].count(b"\n") + 1, "not UTF-8; save the file as UTF-8")
    first = re.split("[\r\n]", text.lstrip())[0]
    delimiter = max(",;\t", key=first.count)
    lines, table, number = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), [], 1
    try:
        for cells in lines:
            table += [(number, [cell.strip() for cell in cells])] if any(cells) else []
            number = lines.line_num + 1
    except csv.Error as error:
        wrong(number, f"cannot be read: {error}")
    (_, head), *rows = table or [(1, [])]
    head, known = [name.lower() for name in head], ("path", "label", "split", "group")
    if not {"path", "label"} <= {*head} or any(head.count(name) > 1 for name in known):
        wrong(1, f"must name the columns, path,label and perhaps split,group; it says: {first.strip()[:80]}")
    if more := [name for name in head if name not in known]:
        print(f"note: {file}: columns that are not used: {some(more)}")

    # row by row; one class a picture
    labels = {dict(zip(head, cells)).get("label") for _, cells in rows}
    seen, found, groups, missing, again, root = {}, {}, {}, [], [], file.parent
    for line, cells in rows:
        if len(cells) != len(head):
            wrong(line, f"{counted(len(cells), 'column')} where line 1 has {len(head)}; quote what contains the separator")
        row = dict(zip(head, cells))
        path, label, split = row["path"], row["label"], "all"
        if empty := [column for column in known if not row.get(column, "x")]:
            wrong(line, f"{empty[0]} is empty")
        parts = [part.strip() for part in re.split("[;|]", label) if part.strip()]
        commas = [part.strip() for part in label.split(",")]
        if len(parts) > 1 or (len(commas) > 1 and {*commas} <= labels):
            wrong(line, f"several labels, {label}; each picture must have one, several are out of scope")
        if "split" in row and (split := _SPLITS.get(row["split"].lower())) is None:
            wrong(line, f"split {row['split']} is none of {', '.join(_SPLITS)}")
        told = (label, split, row.get("group"))
        at, before = seen.setdefault(os.path.normpath(path), (line, told))
        if before[0] != label:
            wrong(line, f"{path} is {label}, in line {at} {before[0]}; each picture must have one label, several are out of scope")
        if before != told:
            wrong(line, f"{path} has another {'split' if before[1] != split else 'group'} than in line {at}; take one of them away")
        if at != line:
            again.append(line)
            continue
        try:
            path = os.fsdecode(path.encode())  # a name to open it by, in any locale
            place = os.stat(root / path)
            if not stat.S_ISREG(place.st_mode):
                raise OSError
        except (OSError, ValueError):
            missing.append((line, row["path"]))
            continue
        found.setdefault(split, {}).setdefault(label, []).append((path, place.st_size, place.st_mtime_ns))
        groups[path] = row.get("group")
    if missing:
        count = counted(len(missing), "file")
        wrong(missing[0][0], f"no file {root / missing[0][1]}; {count} missing in all; paths are relative to the folder of the CSV")
    if not rows:
        wrong(1, "no row follows; each line after it names a picture and its label")
    if again:
        print(f"note: {file}: {counted(len(again), 'line')} repeat{'s' * (len(again) == 1)} one before, such as line {again[0]}")
    for mine in found.values():
        for files in mine.values():
            files.sort(key=lambda row: (natural(row[0]), row[0]))
    inside = {split: [Path("" if split == "all" else split, label) for label in mine] for split, mine in found.items()}
    places = {split: file if split == "all" else f"split {split} of {file}" for split in found}
    how = (lambda path: _open(root / path), [str(root.absolute())])
    return _Source("csv", file.stem, root, *how, found, inside, places, "split", groups if "group" in head else None)


def _from_torchvision(name):
    """The _Source of a data set of torchvision below data/torchvision/NAME, with its own splits; what is not there is downloaded."""
    sets = torchvision.datasets
    if name not in sets.__all__:
        fail(f"--data torchvision:{name}: no such data set; nearest: {', '.join(difflib.get_close_matches(name, sets.__all__, 4, 0.2))}")
    make, root = getattr(sets, name), Path("data/torchvision", name)
    flags = inspect.signature(make).parameters
    rest = {f.name for f in flags.values() if f.default is f.empty and f.kind not in (f.VAR_KEYWORD, f.VAR_POSITIONAL)} - {"root", "split"}
    if rest or make in (sets.ImageFolder, sets.VisionDataset):
        fail(f"--data torchvision:{name}: takes more than a name{': ' * bool(rest)}{some(sorted(rest))}; give its folder or a .csv")

    def part(**which):
        """One of its splits, None where there is none of this name."""
        which |= {"root": root} if "root" in flags else {}
        for more in [{}, {"download": True}] if {"download", "kwargs"} & {*flags} else [{}]:
            try:
                return make(**which, **more)
            except Exception as error:  # whatever it is that its files make it raise
                if not (more and isinstance(error, TypeError)):  # which says that it knows no download
                    reason = error
                if "Unknown value" in str(error):
                    return None
        if isinstance(reason, ImportError):
            fail(f"--data torchvision:{name}: needs another package: pip install {reason.name}")
        again = f"torchvision.datasets.{name}({str(root)!r}, download=True)"
        fail(f"--data torchvision:{name}: not whole in {root}, nor can it be downloaded ({why(reason)}); {again} makes it elsewhere")

    # its splits under our names
    if "train" in flags:
        parts = {"train": part(train=True), "test": part(train=False)}
    elif "split" in flags:
        names = {"train": ("train", "trainval"), "val": ("val", "valid"), "test": ("test",)}
        parts = {ours: next((p for p in (part(split=s) for s in theirs) if p is not None), None) for ours, theirs in names.items()}
    else:
        parts = {"all": part()}
    parts = {split: p for split, p in parts.items() if p is not None}
    labels = {split: _torchvision_labels(p) for split, p in parts.items()}
    if not parts or any(mine is None for mine in labels.values()):
        what = "has not one class a picture in each split" if parts else "has no splits called train or test"
        fail(f"--data torchvision:{name}: {what}, which is what these scripts take")

    # names of classes, where there are any, in its own order
    highest, first = max(max(mine) for mine in labels.values()), next(iter(parts.values()))
    names = getattr(first, "classes", getattr(first, "categories", None))
    names = [c if isinstance(c, str) else ", ".join(c) for c in (() if names is None else names)]
    if len({*names}) <= highest or len({*names}) < len(names):
        print(f"note: torchvision knows no names for the classes of {name}: they are numbers, and captions need words: --classnames")
        names = [str(i) for i in range(highest + 1)]
    found = {split: {c: [] for c in names} for split in parts}
    for split, mine in labels.items():
        for i, label in enumerate(mine):
            place = f"{names[label].replace('/', '-')}/{i:07d}"
            found[split][names[label]].append((place if split == "all" else f"{split}/{place}", 0, 0))

    # one lock, where pictures are made of the random numbers that all threads share
    lock = nullcontext() if "root" in flags else threading.Lock()

    def open(path):
        with lock:
            return parts["all" if "all" in parts else path.partition("/")[0]][int(path.rpartition("/")[2])][0]

    files = sorted((str(file.relative_to(root)), file.stat()) for file in root.rglob("*") if file.is_file())
    key = [str(root.absolute()), name, torchvision.__version__, digest([(file, s.st_size, s.st_mtime_ns) for file, s in files])]
    inside = {split: sorted({Path(rows[0][0]).parent for rows in mine.values() if rows}) for split, mine in found.items()}
    places = {split: f"split {split} of {name}" for split in parts}
    return _Source("torchvision", name, root, open, key, found, inside, places, "split", order=names.index)


def _torchvision_labels(part):
    """[class] of each picture of a set of torchvision, without reading the pictures where it keeps them in a list; None where pictures
    have not one class each."""

    def one(i):
        picture, label = part[i]
        if not isinstance(picture, Image.Image) or isinstance(label, bool) or int(label) != label or label < 0:
            raise TypeError
        return int(label)

    with suppress(TypeError, ValueError, IndexError):
        few = {i: one(i) for i in (0, len(part) // 2, len(part) - 1)}
        for name in ("targets", "labels", "_labels", "_samples", "y"):
            with suppress(TypeError, ValueError, IndexError):
                kept = [int(x[1] if name == "_samples" else x) for x in getattr(part, name, ())]
                if len(kept) == len(part) and all(kept[i] == label for i, label in few.items()):
                    return kept
        return [one(i) for i in progress(range(len(part)), "labels", "img")]
    return None


# ---- captions -----------------------------------------------------------------------------------------------------


def read_templates(prompts, type=""):
    """--prompts as (templates, how many labelled images chose them): templates themselves, one JSON or text file of them,
    or what prompts.py wrote; nothing gives the default template."""
    if not prompts:
        return ["a photo of a {}, a type of {type}." if type else "a photo of a {}."], 0
    where, labels_used = "prompt", 0
    if len(prompts) == 1 and "{}" not in prompts[0]:
        where = f"prompts {prompts[0]}:"
        prompts, labels_used = _read_template_file(Path(prompts[0]))
    for template in prompts:
        if "{}" not in template:
            fail(f"{where} '{template[:80]}': a template needs {{}} where the class name goes")
        if "{type}" in template and not type:
            fail(f"{where} '{template[:80]}': {{type}} is not known for this data; give --type")
    return [_said(template) for template in prompts], labels_used


def _read_template_file(path):
    if not os.path.isfile(path):
        fail(f"prompts '{path}': neither a template with {{}} nor a file")
    try:
        found = read_json(path) if path.suffix == ".json" else path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"prompts {path}: not a text file: {why(error)}")
    labels_used = 0
    if path.suffix != ".json":
        found = [line for line in found if line.strip()]
    if isinstance(found, dict) and found.get("script") == "prompts":
        _unseal(path, found)
        try:
            labels_used, name, found = int(found["labels_used"]), found["data"]["name"], found["metrics"]["ensemble"]
        except (KeyError, TypeError, ValueError, OverflowError):
            found = None
        else:
            print(f"note: {path}: chosen with {counted(labels_used, 'labelled image')} of {name}: not zero-shot")
    if not found or not isinstance(found, list) or not all(isinstance(t, str) for t in found):
        fail(f"prompts {path}: empty, or neither a list of templates nor the result of prompts.py")
    return found, labels_used


# ---- splits -----------------------------------------------------------------------------------------------------


def _pick_run(sizes, target, least, most, rng):
    """(start, end) of neighbours whose `sizes` (n,) add up to about `target`, at least `least` (0 or 1) and at most `most` of them.

    One at random of the runs that come as near as any, give or take half a mean size: where all sizes are 1, exactly.
    """
    n, edges = len(sizes), np.concatenate([[0], np.cumsum(sizes)])
    starts = np.arange(n + 1 - least)
    ends = np.searchsorted(edges, edges[starts] + target).clip(np.minimum(starts + 1, n), n)
    goal = edges[starts] + target
    ends -= (ends > starts) & (goal - edges[ends - 1] <= edges[ends] - goal)  # of two as near the shorter
    ends = ends.clip(starts + least, np.minimum(starts + most, n))
    miss = np.abs(edges[ends] - edges[starts] - target)
    near = np.flatnonzero(miss <= miss.min() + sizes.mean() / 2)
    start = near[rng.integers(len(near))]
    return starts[start], ends[start]


def _blocked_split(labels, share, seed, groups=None):
    """Boolean mask (N,) that holds out one contiguous run of about `share` of each class.

    Runs, because neighbouring frames of a video are near-copies: a random split would put neighbours of every held-out
    frame into training. Files must come in natural order within each class. At least one image of a class stays on
    either side where the class has two.

    `groups`, N names (of patients, specimens, videos), are never cut: a run is one of whole groups in natural order, and
    where a class has two of them one stays on either side. A group of several classes is decided by the class that has
    the fewest groups. Where classes share groups so that not all can have one on either side, training has.
    """
    labels = np.asarray(labels)
    names = sorted(set(groups or ()), key=lambda name: (natural(name), name))
    index = {name: i for i, name in enumerate(names)}
    which = np.array([index[name] for name in groups], int) if groups else np.arange(len(labels))  # (N,)
    members = [np.unique(which[labels == c], return_counts=True) for c in np.unique(labels)]  # of each class (groups, their images)
    held, decided = np.zeros((2, which.max(initial=-1) + 1), bool)
    rng = np.random.default_rng(seed)
    for mine, sizes in sorted(members, key=lambda m: len(m[0])) if groups else members:
        free = np.flatnonzero(~decided[mine])
        if not len(free):
            continue
        target = max(1, round(share * sizes.sum())) - sizes[held[mine]].sum()
        most = len(free) - (not (decided & ~held)[mine].any())
        least = min(most, 1 - held[mine].any())
        start, end = _pick_run(sizes[free], max(0, target), least, most, rng)
        held[mine[free[start:end]]] = True
        decided[mine] = True
    if groups:  # the smallest group changes sides where a class has none on one: first what training needs, which then stays
        for mine, sizes in members:
            if held[mine].all():
                held[mine[sizes.argmin()]] = False
        for mine, sizes in members:
            if len(mine) > 1 and not held[mine].any():
                alone = [other[~held[other]] for other, _ in members]
                needed = {g for kept in alone if len(kept) == 1 for g in kept.tolist()}
                spare = [i for i in sizes.argsort(kind="stable") if mine[i] not in needed]
                held[mine[spare[:1]]] = True
    return held[which]


def _group_names(given, paths):
    """{path: group} by a regular expression, its captures joined or its whole match, or by a .csv file of path,group."""
    names = {path: _as_text(path) for path in paths}
    if given.endswith(".csv"):
        try:
            with open(given, encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file))
        except (OSError, ValueError, csv.Error) as error:
            fail(f"--groups {given}: cannot be read: {why(error)}")
        if not rows or not {"path", "group"} <= {*rows[0]}:
            fail(f"--groups {given}: a file of groups starts with the line path,group and has a line an image")
        known = {row["path"]: row["group"] for row in rows}
        if twice := [row["path"] for row in rows if known[row["path"]] != row["group"]]:
            fail(f"--groups {given}: two groups of one image: {some(twice, 1)}")
        other = {os.path.splitext(path)[0]: group for path, group in known.items() if path}  # upsample.py changes endings
        groups = {path: known.get(name) or other.get(os.path.splitext(name)[0]) for path, name in names.items()}
    else:
        try:
            pattern = re.compile(_said(given))
        except re.error as error:
            fail(f"--groups {given}: neither a regular expression ({error}) nor a .csv file")
        found = {path: pattern.search(name) for path, name in names.items()}
        groups = {path: m and ("/".join(g for g in m.groups() if g) if pattern.groups else m[0]) for path, m in found.items()}
    if without := [path for path, group in groups.items() if not group]:
        fail(f"--groups {given}: gives no group to {counted(len(without), 'image')} of {len(groups):,}, such as {without[0]}")
    return groups


def _part_groups(splits, groups):
    """The same splits without the training images, then the val images, whose group lies in a later split too."""
    splits, later = dict(splits), {}
    for split in ("test", "val", "train"):
        rows = splits.get(split, [])
        splits |= {split: [row for row in rows if groups[row[0]] not in later]} if rows else {}
        shared = sorted({groups[row[0]] for row in rows} & {*later}, key=natural)
        if shared:
            where = " or ".join(dict.fromkeys(later[group] for group in shared))
            count = counted(len(rows) - len(splits[split]), f"{split} image")
            print(f"note: {count} left out, because {where} has images of the same {counted(len(shared), 'group')}: {some(shared, 3)}")
        later = {groups[row[0]]: split for row in rows} | later
    return splits


# ---- pictures: decoded once ---------------------------------------------------------------------------------------

_DECODING = 9  # part of every cache key: raise it when the functions below change a pixel, or what the cache looks like
_CHECKED = 1 << 30  # bytes up to which a checksum is compared at each start, a quarter of a second; of more pixels only their number is
# Of photographs of 1 to 12 megapixels, or composed of sharp ones, features of mobilenet_v2 then have a cosine of .9997 with those of
# pictures decoded in full, of each .9994 at least; with 2 it is .998. A remainder, of 625 pixels in 156, is minded:
# it would shift what is reduced
_SPARE = 3
_THUMBNAIL = 32  # side in pixels of the small copy of each whole picture: 3 KB


warnings.filterwarnings("ignore", module=r"PIL\.")  # of pictures that it reads all the same, and without their names

_AT_ONCE = 1 << 28  # pixels that all threads together may hold: 1 GB as Pillow keeps them, and up to three times as much in copies
_FLIGHT, _FLYING = threading.Condition(), [0]  # how many they do hold
# what the disk, the network, a permission or the machine says, and no broken picture
_DISK = "ENOENT EACCES EPERM EIO ENOSPC EDQUOT ESTALE EMFILE ENFILE ENOTDIR EISDIR ELOOP ENODEV ENXIO ENOTCONN ETIMEDOUT EBUSY ENOMEM"
_DISK = {getattr(errno, name) for name in _DISK.split() if hasattr(errno, name)}


@contextmanager
def _room(pixels):
    """Waits until so many more pixels may be held, so that large pictures do not fill the memory; what exceeds all goes alone."""
    pixels = min(pixels, _AT_ONCE)
    if _TURN and pixels > _AT_ONCE // _TURN.processes:
        with _TURN:
            yield
        return
    with _FLIGHT:
        _FLIGHT.wait_for(lambda: _FLYING[0] + pixels <= _AT_ONCE)
        _FLYING[0] += pixels
    try:
        yield
    finally:
        with _FLIGHT:
            _FLYING[0] -= pixels
            _FLIGHT.notify_all()


def read_rgb(path, open=_open, then=None, short=None, whole=False):
    """A picture file, or what open(path) gives, as an 8-bit RGB Pillow image: EXIF orientation applied, transparent pixels
    composited on white, 16 bit scaled. Or then(image, size), made while the image still counts among those that fit into memory together.
    Of one that will be reduced to a short side of `short` pixels, a large JPEG is decoded as `_reduce_jpeg` says; `size` is its result.

    Raises ValueError for a broken picture, OSError or MemoryError where the disk, a permission or the memory failed and not
    the picture: then it must not be skipped for good.
    """

    def read(room):
        with open(path) as image:
            filled = _reduce_jpeg(image, short, whole) if short else None
            with room(image.width * image.height):  # of what will be decoded
                image = _to_rgb(image)
                return then(image, filled or image.size) if then else image

    try:
        with suppress(MemoryError):
            return read(_room)
        with _room(_AT_ONCE):  # once more, alone
            np.empty(4 * _AT_ONCE, np.uint8)  # fails where the machine has no memory; otherwise the picture asks for too much
            with suppress(MemoryError):
                return read(nullcontext)
        raise ValueError("asks for more memory than there is")
    except Exception as error:  # Pillow raises whatever a broken file makes its decoders raise
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in _DISK:
            raise
        raise ValueError(why(error)) from error


def _reduce_jpeg(image, short, whole):
    """Have a JPEG decoded to an eighth, a quarter or half of its sides, where that leaves _SPARE times `short` pixels.

    Returns (width, height) of what it will fill of its pixels, None for all: where its sides leave a remainder, of the last ones only a
    part. `whole` forbids that; and one that is to be turned has its last pixels elsewhere.
    """
    if image.format not in ("JPEG", "MPO"):
        return None
    (width, height), part = image.size, 8
    whole = whole or image.getexif().get(0x0112, 1) != 1
    while part > 1 and (min(width, height) < part * _SPARE * short or (whole and (width % part or height % part))):
        part //= 2
    image.draft(None, (width // part, height // part))
    return None if whole else (width / part, height / part)


def _to_rgb(image):
    """Any Pillow image, which this may change, as 8-bit RGB: EXIF orientation applied, transparent pixels composited on white, 16 bit
    scaled. Nothing is copied that need not be, because a photograph has 36 MB and more."""
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed white")
    if image.mode.startswith("I"):  # Pillow's own conversion clips at 255
        image = Image.fromarray(np.uint8(np.clip(np.asarray(image, np.float64) / 257 + 0.5, 0, 255)))
    if image.mode.endswith(("A", "a")) or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _read_image(path, size, read=read_rgb):
    """One picture as uint8 (size, size, 3), where `size` may be a View: short side resized and centre cropped, unless that says otherwise.

    Beside it the whole picture as a thumbnail of 32 x 32 pixels, by which copies are found.
    """
    view = _as_view(size)

    def then(image, filled):
        # of a large one means of 2 x 2 pixels and more are taken first: within 2/255, in a third of the time
        thumbnail = image.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BILINEAR, (0, 0, *filled), reducing_gap=3)
        return np.asarray(_fit(image, view, filled)), np.asarray(thumbnail)

    return read(path, then=then, short=max(view.short, _THUMBNAIL), whole=view.fit == "pad")  # a frame is of whole pixels


def _as_view(size):
    return size if isinstance(size, View) else View(size)


def _fit(image, view, filled=None):
    """A Pillow image, or what is `filled` (width, height) of its pixels, as the view asks for it, size x size."""
    if image.size == (view.size, view.size) == (view.short, view.short):
        return image
    short, filled = view.short, filled or image.size
    if view.fit == "pad" and image.width != image.height:
        x, side = np.asarray(image), max(image.size)
        frame = np.concatenate([x[0], x[-1], x[1:-1, 0], x[1:-1, -1]])  # (P, 3)
        square = Image.new("RGB", (side, side), tuple(np.median(frame, 0).round().astype(int).tolist()))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image, filled = square, square.size
    (width, height), least = filled, min(filled)
    size = (short, short) if view.fit == "squash" else (int(short * width / least), int(short * height / least))
    left, top = (round((side - view.size) / 2) for side in size)
    return _resize(image, size, filled, view.interpolation).crop((left, top, left + view.size, top + view.size))


def _resize(image, size, filled, interpolation):
    """What is `filled` (width, height) of an RGB Pillow image, brought to `size`, antialiased. Where there are _SPARE times the pixels a
    side, PyTorch does it, whose result is within 2/255 of Pillow's, in a third of the time."""
    if min(there / here for here, there in zip(size, filled)) < _SPARE:
        return image.resize(size, Image.Resampling[interpolation.upper()], (0, 0, *filled))
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    scale = [(here + 1e-6) / there for here, there in zip(size, filled)]  # a millionth more, because the sides it gives are rounded down
    x = F.interpolate(x, scale_factor=scale[::-1], mode=interpolation, antialias=True)
    return Image.fromarray(x[0].permute(1, 2, 0).numpy())


class _Turn:
    """What one at a time of several processes has: a byte in a pipe."""

    def __init__(self, processes):
        self.processes, (self.take, self.give) = processes, os.pipe()
        os.write(self.give, b".")

    def __enter__(self):
        os.read(self.take, 1)

    def __exit__(self, *error):
        os.write(self.give, b".")

    def close(self):
        os.close(self.take)
        os.close(self.give)


_TURN = None  # in a process that _by_processes has started
_ALONE = 0.05  # seconds of work that is not yet spread


def _spread(work, items, fork):
    """work(item) of each item, in order, by threads; or, where they are to `fork` and the system can, by as many processes as pay.

    Threads of Python wait for each other: two read small pictures more slowly than one. A forked process has all that this one has, but
    what it changes, other than files and mapped memory, it alone will see.
    """
    if not fork or sys.platform != "linux":
        with _threads() as pool:
            yield from in_order(pool, work, items)
        return
    took, busy, done = 0.0, 0.0, 0
    while done < len(items) and (not done or took < _ALONE):
        began = time.perf_counter(), time.thread_time()
        result = work(items[done])
        took, busy, done = took + time.perf_counter() - began[0], busy + time.thread_time() - began[1], done + 1
        yield result
    if done == len(items):
        return
    # where a disk is waited for, more processes than cores keep these busy; and what is left takes `rest` seconds, a process `start`, and
    # so p of them are done after p * start + rest / p
    rest, began = took * (len(items) / done - 1), time.perf_counter()
    child = _fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    start, cores = time.perf_counter() - began, len(os.sched_getaffinity(0))
    processes = min(32, round(cores * took / max(busy, 1e-9)), round((rest / start) ** 0.5))
    yield from _by_processes(work, items[done:], processes) if processes > 1 else map(work, items[done:])


def _fork():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a process with threads: the forked one needs none of them
        return os.fork()


def _by_processes(work, items, processes):
    """work(item) of each item, in order, by so many forked processes."""
    turn, children = _Turn(processes), []
    try:
        for i in range(processes):
            heard, told = os.pipe()
            child = _fork()
            if not child:
                _work(work, items[i::processes], turn, told, [heard, *(pipe.fileno() for _, pipe in children)])
            os.close(told)
            children.append((child, open(heard, "rb")))  # noqa: SIM115
        lists = [deque() for _ in children]
        for i in range(len(items)):
            mine = lists[i % processes]
            if not mine:
                mine.extend(_heard(children[i % processes][1]))
            yield mine.popleft()
    finally:
        for child, _ in children:  # all at once, for it takes them milliseconds
            os.kill(child, signal.SIGKILL)
        for child, pipe in children:
            os.waitpid(child, 0)
            pipe.close()
        turn.close()


def _work(work, items, turn, told, others):
    """In a forked process: write lists of work(item) to the pipe `told`, ten times a second, and end. `others` are what others hear by."""
    global _TURN, _FLIGHT
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # that is for the first process to hear
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        torch.set_num_threads(1)  # those of the first process have not come along, and would be waited for without end
        gc.freeze()  # what nobody uses any more here may be in use there, such as memory of a GPU
        for pipe in others:  # or this one would write on when the first process is gone
            os.close(pipe)
        _TURN, _FLIGHT, _FLYING[0] = turn, threading.Condition(), 0
        done, last = [], time.monotonic()
        with open(told, "wb") as pipe:
            for item in items:
                done.append(work(item))
                if time.monotonic() > last + 0.1:
                    pickle.dump(done, pipe)
                    pipe.flush()
                    done, last = [], time.monotonic()
            pickle.dump(done, pipe)
    except BrokenPipeError:  # nobody listens
        pass
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(0)


def _heard(pipe):
    """The next list of a pipe; fails where the process behind it has died."""
    try:
        return pickle.load(pipe)
    except (EOFError, pickle.UnpicklingError):
        fail("a process that read pictures has ended, killed perhaps because there is too little memory; nothing is lost, run it again")


def image_sizes(data, files):
    """(width, height) of each image by its header, None where that cannot be read."""

    def size(row):
        try:
            with data.open(row[0]) as image:
                return image.size
        except Exception:
            return None

    return list(progress(_spread(size, files, data.loose), "headers", "img", len(files)))


def native_size(sizes):
    """The side S if all of these (width, height) are S x S, else 0; None, of unreadable files, does not count."""
    sizes = {s for s in sizes if s}
    w, h = sizes.pop() if len(sizes) == 1 else (0, 1)
    return w if w == h else 0


def upsample(x, size, mode="bicubic"):
    """Antialiased, uint8 (B, 3, H, W) -> uint8 (B, 3, size, size), or `size` is (height, width): within 2/255 of Pillow.

    uint8 all the way is both the exact and the fast path on a CPU; a GPU is at its best with products of matrices.
    """
    size = size if isinstance(size, tuple) else (size, size)
    if x.device.type == "cpu":
        return F.interpolate(x, size=size, mode=mode, antialias=True)
    return _upsample_by_products(x, size, mode, torch.float16 if x.device.type == "cuda" else torch.float32)


def _upsample_by_products(x, size, mode, dtype):
    """The same in two products for all pictures, rounded after each as Pillow does. What becomes of the identity are their matrices."""
    vertical, horizontal = (_resampling(there, here, mode).to(x.device, dtype) for there, here in zip(x.shape[2:], size))
    x = x.to(dtype, memory_format=torch.contiguous_format) @ horizontal.T
    x = vertical @ x.clamp_(0, 255).round_()
    return x.clamp_(0, 255).round_().to(torch.uint8)


@lru_cache(64)
def _resampling(there, here, mode):
    """Weights (here, there) by which a line of `there` pixels becomes one of `here`."""
    return F.interpolate(torch.eye(there)[None, None], size=(here, there), mode=mode, antialias=True)[0, 0]


def _load_images(data, split, size):
    """Decode a split once into cache/images, for a model whose input is `size` pixels wide, or a View.

    Images that all share one square size below the model's input keep it and are upsampled on the device, in batches;
    all others are brought to the input size here. That they share the first one's is taken for granted until another is met.
    """
    view = _as_view(size)
    files = data.files(split)
    # no labels; and whether a file has changed behind an unchanged size and time, as `cp -p` and archives may leave them
    try:
        changed = [os.stat(data.root / row[0]).st_ctime_ns for row in files] if data.loose else []
    except OSError as error:
        fail(f"{error.filename}: {why(error)}")
    listing = [*data.key, *(row[:3] for row in files), changed]
    stem = f"cache/images/{data.name}-{split}"
    scan = Path(f"{stem}-{digest([_DECODING, listing])}.json")
    native = _kept_or_made(scan, _kept_json, lambda: _keep_json(scan, _first_side(data, files)))

    def stored(view, same=False):
        name = f"{stem}-{view.size}-{digest([_DECODING, listing, asdict(view)])}"
        path, small, meta = (Path(name + end) for end in (".npy", "-thumbnails.npy", ".json"))

        def read(meta):
            arrays, (reasons, sums) = [np.load(file, "r") for file in (path, small)], _kept_json(meta)
            for array, side, told in zip(arrays, (view.size, _THUMBNAIL), sums):
                right = array.nbytes > _CHECKED or zlib.crc32(array) == told
                if array.shape != (len(files), side, side, 3) or array.dtype != np.uint8 or not right:
                    raise ValueError("other pixels than were decoded")
            return *arrays, dict(reasons), sums[0]

        # the last that is written is meta: where it exists, the others do
        return _kept_or_made(meta, read, partial(_decode, data, files, view, path, small, meta, split, same))

    try:
        pixels, thumbnails, reasons, told = stored(View(native), same=True) if 0 < native < view.size else stored(view)
    except _OtherSize:
        _keep_json(scan, 0)
        pixels, thumbnails, reasons, told = stored(view)
    # features are those of the same pixels, wherever these came from: a copied, moved or touched folder has them already
    key = digest([_DECODING, [row[0] for row in files], [*pixels.shape], told])
    skipped = [(files[i][0], reason) for i, reason in reasons.items()]
    for name, reason in skipped:
        print(f"note: skipped {data.root / name}: {reason}")
    rows = np.array([i for i in range(len(files)) if i not in reasons], int)
    if not len(rows):
        fail(f"--data {data.root}: no image of the {split} split can be decoded")
    labels = torch.tensor([files[i][3] for i in rows])
    paths = [files[i][0] for i in rows]
    groups = data.groups and [data.groups[name] for name in paths]
    return Images(pixels, thumbnails, rows, labels, paths, skipped, f"{data.name}-{split}", key, groups)


class _OtherSize(Exception):
    """Of pictures that were to be of one size, one is not."""


def _first_side(data, files):
    """The side S of the first picture that can be decoded if that is S x S, else 0: good ones must not depend on broken ones."""
    for row in files:
        try:
            width, height = data.picture(row[0]).size
            return width if width == height else 0
        except (OSError, MemoryError) as error:
            fail(f"{data.root / row[0]}: {why(error)}; nothing is cached, run again when it can be read")
        except ValueError:
            pass
    return 0


def _reserve(path):
    """Have the disk set aside all that a file is long: to be written through memory, where a full disk would be the end by a signal."""
    try:
        with open(path, "rb+") as file:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
    except AttributeError:  # not everywhere
        pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # others say that this file system cannot
            raise


def _decode(data, files, view, path, small, meta, what, same):
    """Write the pixels (N, size, size, 3) of rows of `data` to `path`, thumbnails to `small`, and to `meta` [(position, why not)] of the
    rest and the checksums of both. Raises _OtherSize where pictures are to be the same size as the view, and one is not."""
    side = view.size
    need, free = len(files) * side * side * 3, shutil.disk_usage(path.parent).free
    if need > free:
        fail(f"cache/: {need / 1e9:.1f} GB needed for {len(files)} images of {side} px, {free / 1e9:.1f} GB free")
    reasons, unread = [], []
    with atomic(small) as thumbnail, atomic(path) as temporary:
        pixels = np.lib.format.open_memmap(temporary, "w+", np.uint8, (len(files), side, side, 3))
        thumbnails = np.lib.format.open_memmap(thumbnail, "w+", np.uint8, (len(files), _THUMBNAIL, _THUMBNAIL, 3))
        _reserve(temporary)
        _reserve(thumbnail)

        def sized(path, then, **reduced):
            return data.picture(path, lambda image, filled: (*then(image, filled), image.size), **reduced)

        def decode(i):
            try:
                pixels[i], thumbnails[i], size = _read_image(files[i][0], view, sized)
                return (i, "") if same and size != (side, side) else None
            except (OSError, MemoryError) as error:  # the disk or a permission, not the image: must not be remembered
                return None, f"{data.root / files[i][0]}: {why(error)}"
            except Exception as error:
                return i, why(error)

        decoded = _spread(decode, range(len(files)), data.loose)
        for wrong in progress(decoded, f"decoding {what}", "img", len(files)):
            if wrong and not wrong[1]:
                raise _OtherSize
            if wrong:
                (unread if wrong[0] is None else reasons).append(wrong)
        if unread:
            fail(f"{unread[0][1]}; nothing is cached, run again when it can be read")
        pixels.flush()
        thumbnails.flush()
        sums = [zlib.crc32(array) for array in (pixels, thumbnails)]
        pixels = thumbnails = None  # Windows moves no file that is mapped
    _keep_json(meta, [sorted(reasons), sums])


# ---- copies -----------------------------------------------------------------------------------------------------

# Just above the most similar pair of different pictures: .923 of 1,920 toy pictures, each drawn anew, .968 of 7,600 frames of
# different fruits. Made copies of 900 photographs and cartoons (half size, JPEG of quality 30, brightness .8 to 1.15, mirrored) all are
_COPY = 0.97
_WAVES = 16  # frequencies below this are compared: half of what a thumbnail holds, so that resizing and JPEG change little
_BLOCK = 2048  # pictures compared at a time on either side: 100 MB


def _marks(thumbnails):
    """What a picture and its copies have in common: uint8 (N, 32, 32, 3) -> float32 (N, E) and (N, O), of unit length together.

    Cosine transform of brightness and two colour differences, without the mean, each coefficient times its frequency: in
    pictures large shapes are strong and shared by many, and this makes all sizes count alike (whitening, Field 1987). A
    mirrored picture has the same even horizontal frequencies (E) and the negative of the odd ones (O). Plain areas give 0.
    """
    x = thumbnails.float()
    k, i = torch.arange(_WAVES, device=x.device)[:, None], torch.arange(x.shape[1], device=x.device) + 0.5
    waves = torch.cos(math.pi * k * i / x.shape[1]) * torch.where(k == 0, 1, 2**0.5)
    colours = x.new_tensor([[1 / 3, 1 / 3, 1 / 3], [1 / 2, -1 / 2, 0], [1 / 4, 1 / 4, -1 / 2]])
    x = torch.einsum("ui,vj,dc,nijc->nuvd", waves / x.shape[1], waves / x.shape[1], colours, x)
    frequency = (k.square() + k.T.square()).sqrt()
    x = x * (frequency * (frequency < _WAVES))[..., None]
    x = x / x.square().sum((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-2)  # what is left of a plain picture is rounding
    return x[:, :, ::2].flatten(1), x[:, :, 1::2].flatten(1)


def _similarity(a, b):
    """Cosines (N, M) of the `marks` of N and M pictures, each pair's as it is or mirrored, whichever is higher; and which is."""
    even, odd = a[0] @ b[0].T, a[1] @ b[1].T
    return even + odd.abs(), odd < 0


def _thumbnail_blocks(images, device, block):
    """(first, thumbnails of the next `block` images on the device), so that a large set is never in memory as a whole."""
    for first in range(0, len(images.rows), block):
        rows = images.rows[first : first + block]
        yield first, torch.from_numpy(images.thumbnails[rows]).to(device)


def find_copies(test, train, device="cpu", block=_BLOCK):
    """Look for every image of one split (N) in another: a list of copies.

    They are dicts: positions `test` and `train`, `similarity` above COPY, whether `mirrored`, whether `same_label`; for a
    test image its best match of its own label and its best match of another, where there are such. A copy may be mirrored, resized,
    saved as JPEG or brightened. Cut by up to 2 % a side half are found, by 5 % nearly none. Where both are the same object no image is
    a copy of itself.
    """
    blocks = [(slice(first, first + len(x)), _marks(x)) for first, x in _thumbnail_blocks(test, device, block)]
    labels = test.labels.to(device)
    best = {same: (torch.zeros(len(labels), device=device), labels * 0, labels < 0) for same in (True, False)}
    for start, y in _thumbnail_blocks(train, device, block):
        theirs, their_labels = _marks(y), train.labels[start : start + len(y)].to(device)
        for rows, ours in blocks:
            cosine, mirrored = _similarity(ours, theirs)
            if test is train and start == rows.start:
                cosine.fill_diagonal_(0)
            if cosine.max().item() <= _COPY:  # as between most classes
                continue
            same_label = labels[rows, None] == their_labels
            for same, values in best.items():
                high, where, turned = (value[rows] for value in values)  # parts of these, which are written to
                value, i = cosine.masked_fill(same_label != same, 0).max(1)
                better = value > high  # of equals the first
                turned[better] = mirrored.gather(1, i[:, None])[better, 0]
                where[better] = i[better] + start
                high[better] = value[better]
    found = []
    for same, values in best.items():
        for i, (value, where, turned) in enumerate(zip(*(part.tolist() for part in values))):
            if value > _COPY:
                found.append({"test": i, "train": where, "similarity": value, "mirrored": turned, "same_label": same})
    return sorted(found, key=lambda pair: pair["test"])


def kept_copies(test, train, device):
    """find_copies, found once for all encoders."""
    key = digest([test.shown, train.shown, test is train, _COPY, _WAVES, torch.device(device).type, torch.__version__])
    path = Path(f"cache/copies/{test.name}-{train.name.rpartition('-')[2]}-{key}.json")
    return _kept_or_made(path, _kept_json, lambda: _keep_json(path, find_copies(test, train, device)))


def _clusters(images, block=_BLOCK):
    """int64 (N,): images of one class that are copies of each other, directly or by way of others, share a number.

    For intervals that draw clusters anew instead of images that are not independent. Where `images.groups` names a group
    for an image, that and its class are the cluster. Numbers are positions of a member.
    """
    ids, labels = np.arange(len(images.rows)), images.labels.numpy()
    even, odd = (torch.cat(part) for part in zip(*(_marks(x) for _, x in _thumbnail_blocks(images, "cpu", block))))
    for members in np.split(np.argsort(labels, kind="stable"), np.flatnonzero(np.diff(np.sort(labels))) + 1):
        group = np.arange(len(members))
        for first in range(0, len(members) if len(members) > 1 else 0, block):
            for start in range(first, len(members), block):  # pairs before these have been seen
                pair = [(even[rows], odd[rows]) for rows in (members[first : first + block], members[start : start + block])]
                linked = (_similarity(*pair)[0] > _COPY).numpy()
                for i in np.flatnonzero(linked.any(1)):
                    joined = np.unique(group[[first + i, *(start + np.flatnonzero(linked[i]))]])
                    if len(joined) > 1:
                        group[np.isin(group, joined)] = joined[0]
        ids[members] = members[group]
    seen = {}
    for i, name in enumerate(images.groups or ()):
        if name is not None:
            ids[i] = len(ids) + seen.setdefault((labels[i], name), i)
    return torch.from_numpy(ids)


# ---- networks and files of weights ----------------------------------------------------------------------------------

# Built in are OpenAI's CLIP, torchvision's classifiers and toys; whatever else comes from a FILE.py, as an Encoder, too: docs/encoders.md

# CLIP as OpenAI published it: repository with open_clip's copy of the weights, (embedding, input px, layers, width, patch)
CLIP = {
    "RN50": ("timm/resnet50_clip.openai", (1024, 224, (3, 4, 6, 3), 64, None)),
    "RN101": ("timm/resnet101_clip.openai", (512, 224, (3, 4, 23, 3), 64, None)),
    "RN50x4": ("timm/resnet50x4_clip.openai", (640, 288, (4, 6, 10, 6), 80, None)),
    "RN50x16": ("timm/resnet50x16_clip.openai", (768, 384, (6, 8, 18, 8), 96, None)),
    "RN50x64": ("timm/resnet50x64_clip.openai", (1024, 448, (3, 15, 36, 10), 128, None)),
    "ViT-B/32": ("timm/vit_base_patch32_clip_224.openai", (512, 224, 12, 768, 32)),
    "ViT-B/16": ("timm/vit_base_patch16_clip_224.openai", (512, 224, 12, 768, 16)),
    "ViT-L/14": ("timm/vit_large_patch14_clip_224.openai", (768, 224, 24, 1024, 14)),
    "ViT-L/14@336px": ("timm/vit_large_patch14_clip_336.openai", (768, 336, 24, 1024, 14)),
    "toy-ViT": (None, (64, 64, 4, 64, 8)),  # made by toy.py, never published
    "toy-RN": (None, (64, 64, (1, 1, 1, 1), 16, None)),
}
_HEAD = "head.weight", "head.bias", "head.logit_scale"  # tensors that finetune.py saves beside those of the network
# mean and std of its pictures, and SHA-256 of OpenAI's own files
CLIP_COLOURS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_OPENAI = {
    "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762": "RN50",
    "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599": "RN101",
    "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd": "RN50x4",
    "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa": "RN50x16",
    "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c": "RN50x64",
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af": "ViT-B/32",
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f": "ViT-B/16",
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836": "ViT-L/14",
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02": "ViT-L/14@336px",
}


@cache
def part_of_clip(name):
    """model.py or simple_tokenizer.py of the package clip, whose own code would import torchvision."""
    name = f"clip.{name}"
    if name not in sys.modules:
        package = importlib.util.find_spec("clip") or fail("needs the package clip: pip install -r requirements.txt")
        spec = PathFinder.find_spec(name, package.submodule_search_locations)
        spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
        sys.modules[name] = module  # where `import clip` finds it
    return sys.modules[name]


def spelled(name):
    """The name of a model as files can have it: ViT-L-14-336px."""
    return re.sub(r"[/@:\\]", "-", name)


def model_name(name):
    """The exact name of a model, from CLIP's spelling or the one with / and @ as -, or that of a FILE.py as it is.

    Fails with the nearest right names.
    """
    if found := _encoder_file(name):
        if not os.path.isfile(found[0]):
            near = difflib.get_close_matches(found[0].name, names := sorted(p.name for p in found[0].parent.glob("*.py")), 4, 0.4) or names
            fail(f"--model {name}: no such file: {found[0]}; nearest: {some(near) or 'none, there is no .py file'}")
        return name
    names, key = {spelled(n).lower(): n for n in (*CLIP, "toy-imagenet")}, spelled(name).lower()
    if key not in names:
        names |= {n: n for n in torchvision.models.list_models(module=torchvision.models)}
    if key not in names:
        near = difflib.get_close_matches(key, names, 4, 0.4)
        fail(f"--model {name}: no such model; nearest: {', '.join(names[n] for n in near) or ', '.join(CLIP)}")
    return names[key]


def _default_model(data):
    return "toy-ViT" if Path(data).name in ("toy", "toy-srgan") else "ViT-B/32"


def input_size(name, data=""):
    """Side in pixels of the pictures that a model takes; without a name the one that is the default for --data."""
    name = model_name(name or _default_model(data))
    if _encoder_file(name):  # only its network knows
        return load_model(name, "cpu").size
    if name == "toy-imagenet":
        return 64
    return CLIP[name][1][1] if name in CLIP else torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size[0]


def pick_device(device="auto", precision="auto"):
    """(torch.device, autocast dtype). auto: cuda, mps, cpu in this order; bf16 or fp16 where the hardware is fast at it."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    gpus = torch.cuda.device_count()
    if _RANKS > 1 and device.startswith("cuda") and not (device == "cuda" and gpus > _LOCAL):
        fail(f"--device {device}: torchrun gives each process a GPU of its own, of {gpus} here; start no more processes, and say cuda")
    try:
        torch.device(device)
    except RuntimeError:  # its list names devices of which few have heard
        fail(f"--device {device}: is none; say auto, cuda, mps or cpu")
    try:
        torch.zeros(1, device=device).tolist()  # meta has no values
    except (RuntimeError, AssertionError) as error:
        fail(f"--device {device}: not available here: {why(error)}")
    if precision == "auto":
        precision = "float32"
        if device.startswith("cuda"):
            precision = "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
        elif device == "cpu":  # with these instructions 1.9 to 2.6 times as fast (make bench), without them slower
            has = getattr(torch.cpu, "get_capabilities", dict)()
            precision = "bf16" if has.get("avx512_bf16") or has.get("amx_bf16") else "float32"
    return torch.device(device), {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _out_of_memory(error):
    """Whether the memory of a device or of the machine did not suffice, in the words of whichever part of torch says so."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(w in str(error).lower() for w in words)


def _make_toy():
    """Run toy.py, which draws data/toy and trains weights/toy-*.pt, whichever is missing."""
    script = Path(__file__).with_name("toy.py")
    if not script.exists():
        fail("data/toy and the toy models are made by toy.py, which is not beside common.py; copy it too, or give --data and --weights")
    if code := subprocess.call([sys.executable, str(script), "--parent", str(os.getpid())]):
        raise SystemExit(code)


def _weights_file(name, weights=None):
    """The file that holds the weights of `name`: as given, or found, or downloaded."""
    if weights:
        return Path(weights)
    if name.startswith("toy-"):
        path = Path("weights") / f"{name}.pt"
        if not path.exists():
            _make_toy()
        return path
    if name in CLIP:
        path = Path(os.path.expanduser("~/.cache/clip"), f"{spelled(name)}.pt")  # Path.home() raises where nobody has one
        if path.exists():
            if _OPENAI.get(file_sha256(path)) == name:
                return path
            print(f"note: {path} is not OpenAI's file by its SHA-256, perhaps half-downloaded, and is passed over")
        repo, file = CLIP[name][0], "open_clip_model.safetensors"
        url, put = f"https://huggingface.co/{repo}/resolve/main/{file}", f"pass it as --weights {file} --act quickgelu"
    else:
        url = torchvision.models.get_model_weights(name).DEFAULT.url
        path = Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(url)
        put = f"put it at {path} or pass it by --weights"
        if path.exists():
            return path
    try:
        if name in CLIP:
            from huggingface_hub import hf_hub_download, logging  # here, because few runs get this far

            logging.set_verbosity_error()  # it announces each of its retries
            return Path(hf_hub_download(repo, file))
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), path.stem.rpartition("-")[2])  # names end in their hash
        return path
    except Exception as error:
        fail(f"{name}: its weights cannot be downloaded ({type(error).__name__}); fetch {url} elsewhere and {put}")


def _check_name(path, sha256, published=()):
    """Fail where a file has not the SHA-256 that its name tells: torchvision's by the first digits, the Hugging Face hub's by all of them,
    of the blob that a link leads to. Nothing else would notice a flipped bit in most of these files."""
    blob, name = (os.path.basename(p) for p in (os.path.realpath(path), path))
    told = blob if re.fullmatch("[0-9a-f]{64}", blob) else ""
    if any(name == os.path.basename(weights.url) for weights in published):
        told = name.rpartition("-")[2].partition(".")[0]
    if not sha256.startswith(told):
        remedy = "delete it, and it is downloaded anew, or pass it by --weights under another name"
        fail(f"{path}: damaged, or another file: its SHA-256 is not the {told[:8]}... of its name; {remedy}")


def clip_tokens(captions):
    """Tokens (B, T), T <= 77, of captions for CLIP; longer ones are cut, keeping end-of-text, with a note."""
    tokenizer = _clip_tokenizer()
    start, end = (tokenizer.encoder[f"<|{what}oftext|>"] for what in ("start", "end"))
    rows = [[start, *tokenizer.encode(caption), end] for caption in captions]
    rows = [row[: row.index(end) + 1] for row in rows]  # the position that CLIP reads is of the first, which a caption may hold
    note_cut(captions, [*map(len, rows)], 77)
    rows = [row if len(row) <= 77 else [*row[:76], end] for row in rows]
    # attention is causal: padding behind end-of-text changes nothing, so only the longest caption's length is computed
    most = max(map(len, rows))
    return torch.tensor([row + [0] * (most - len(row)) for row in rows])


@cache
def _clip_tokenizer():
    return part_of_clip("simple_tokenizer").SimpleTokenizer()  # reads a file of 262,000 lines


def note_cut(captions, lengths, most):
    """Say how many captions have more than `most` tokens, by their lengths, and are cut."""
    if cut := sum(n > most for n in lengths):
        longest = captions[max(range(len(lengths)), key=lengths.__getitem__)][:60]
        print(f"note: {cut} of {counted(len(captions), 'caption')} cut to {most} tokens, such as: {longest}...")


def without_draws():
    """Context in which a network is made with whatever its memory holds for weights, because all of them are about to be loaded.

    To draw first ones at random takes as long as all else of loading a large network. Those that torch.nn.init draws in several steps,
    which may look at what they have drawn, are drawn.
    """

    class WithoutDraws(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, call, types, args=(), kwargs=None):
            if call in (nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_):
                return args[0] if args else kwargs["tensor"]
            return call(*args, **(kwargs or {}))

    return WithoutDraws()


def _load_clip(name, path, state, act, known):
    """Encoder of one of OpenAI's CLIP models, or of a toy, in float32; fails where a file of others does not say its activation."""
    if not known and act is None:
        fail(f"--weights {path}: not OpenAI's file by hash; say --act quickgelu if it holds OpenAI's weights, --act gelu for LAION's")
    state = {k: v for k, v in state.items() if k not in ("input_resolution", "context_length", "vocab_size")}
    try:
        with without_draws():
            net = part_of_clip("model").build_model(dict(state)).float()
        net.load_state_dict(state)  # once more, because build_model rounds through float16
    except Exception as error:  # whatever it is that these tensors make it raise
        fail(f"--weights {path}: not a CLIP checkpoint: {why(error)}")

    # whether that is the network of this name
    v, width = net.visual, net.text_projection.shape[1]
    if resnet := isinstance(v, part_of_clip("model").ModifiedResNet):
        layers = tuple(len(getattr(v, f"layer{i}")) for i in (1, 2, 3, 4))
        found = (width, v.input_resolution, layers, state["visual.layer1.0.conv1.weight"].shape[0], None)
    else:
        found = (width, v.input_resolution, v.transformer.layers, v.transformer.width, v.conv1.kernel_size[0])
    if CLIP[name][1] != found:
        other = next((n for n, (_, shape) in CLIP.items() if shape == found), f"shape {found}")
        fail(f"--weights {path}: holds another network: {other}; give the matching --model")
    if act == "gelu":
        for block in [m for m in net.modules() if isinstance(getattr(m, "gelu", None), part_of_clip("model").QuickGELU)]:
            block.gelu = nn.GELU()
    projection = "attnpool.c_proj" if resnet else "proj"
    seen = v, v.input_resolution, *CLIP_COLOURS, width
    return Encoder(*seen, net.encode_text, clip_tokens, net.logit_scale, 0.0, net, projection, act or "", causal=True)


def _load_torchvision(name, path, state, act):
    """Encoder of a torchvision classifier or of toy-imagenet, without the last layer."""
    try:
        return Encoder(*_imagenet_network(name, state), act=act or "")
    except Exception as error:
        fail(f"--weights {path}: not the weights of {name}; give the matching --model: {why(error)}")


def _encoder_file(name):
    """(file, NAME) of FILE.py[:NAME], or of KIND:NAME, whose file is encoders/KIND.py beside this one; None for a built-in model."""
    if found := re.fullmatch(r"(.+?\.py)(?::(.*))?", name):
        return Path(found[1]), found[2] or ""
    kind, colon, rest = name.partition(":")
    return (Path(__file__).with_name("encoders") / f"{kind}.py", rest) if colon else None


def hub_file(name, repo, *files):
    """The first of these files that there is in the cache of huggingface_hub, or else on the hub, for the model `name`; fails without."""
    from huggingface_hub import errors, hf_hub_download, logging  # here, because few runs get this far

    logging.set_verbosity_error()  # it announces each of its retries
    for here in (True, False):
        for file in files:
            try:
                path = Path(hf_hub_download(repo, file, local_files_only=here))
                _check_name(path, file_sha256(path))
                return path
            except Exception as error:
                reason, absent = error, isinstance(error, errors.RemoteEntryNotFoundError)
            if not here and not absent:  # no network, say: the next one is not what was asked for
                break
    fail(f"--model {name}: cannot be downloaded ({type(reason).__name__}); fetch {files[0]} of huggingface.co/{repo}, pass it by --weights")


def _load_file(name, weights, act):
    """(Encoder, hash of its tensors, [hash of its code, versions of packages], what the file of weights says of itself).

    Runs the file, which is code. Fails where that fails, or what it makes is no Encoder of square RGB pictures.
    """
    file, rest = _encoder_file(name)
    about, saved = read_weights(weights) if weights and Path(weights).suffix == ".safetensors" else ({}, {})
    if file.parent != Path(__file__).with_name("encoders"):  # for what lies beside it; last, so that nothing there hides a package
        sys.path.append(str(file.parent.absolute()))
    spec = importlib.util.spec_from_file_location(f"_encoder_{file.stem}", file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        load = getattr(module, "load", None)
        encoder = load and load(rest, weights)
    except ModuleNotFoundError as error:
        needs = getattr(module, "PACKAGES", error.name)
        fail(f"--model {name} needs a package that is not here: pip install {needs} ({why(error)})")
    except Exception as error:
        lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == spec.origin]
        given = f" --weights {weights}" if weights else ""
        fail(f"--model {name}{given}: {file}{f', line {lines[-1]}' if lines else ''}: {type(error).__name__}: {why(error)}")
    if not isinstance(encoder, Encoder):
        wrong = f"load of {file} gives {type(encoder).__name__}, not an Encoder of common.py"
        fail(f"--model {name}: {wrong if load else f'{file} has no function load(name, weights)'}")
    mean, std = np.asarray(encoder.mean), np.asarray(encoder.std)
    if not (mean.shape == std.shape == (3,) and (mean >= 0).all() and (mean <= 1).all() and (std > 0).all() and (std <= 1).all()):
        fail(f"--model {name}: mean {encoder.mean} and std {encoder.std} must be of three colours, from 0 to 1")
    if encoder.text and (encoder.tokenizer is None or encoder.logit_scale is None):
        fail(f"--model {name}: its Encoder has text, which needs tokenizer and logit_scale, too")
    if act and act != encoder.act:
        fail(f"--act is for CLIP's own names; --model {name} knows its activation{f', {encoder.act}' * bool(encoder.act)}")
    width = _measure(name, encoder)
    if encoder.width not in (0, width):
        fail(f"--model {name}: gives features {width} wide, but says width {encoder.width}")
    encoder.width = width

    # the tensors, and apart from them the code, because a new version of it need not make a saved head useless
    net = encoder.net or encoder.visual
    state = net.state_dict()
    if about:  # of finetune.py, whose names are those of the network
        ours = {key: tensor for key, tensor in saved.items() if key in state or key not in _HEAD}
        same = {key for key in {*state} & {*ours} if torch.equal(state[key].cpu(), ours[key])}
        if lost := sorted({*state, *ours} - same):
            fail(f"--model {name}: load of {file} does not take the weights of {weights}, such as {lost[0]}")
    packages = sorted({type(m).__module__.partition(".")[0] for m in net.modules()} - {"torch", spec.name})
    versions = [f"{p} {v}" for p in packages if (v := getattr(sys.modules.get(p), "__version__", None))]
    return encoder, _tensors_sha256(state), [file_sha256(file), *versions], about


# of these a convolution is called conv2, and the batch norm behind it bn2; of others only those are known that lie in a Sequential
_NUMBERED = (
    "clip.model",
    "open_clip.modified_resnet",
    "timm.models.resnet",
    "torchvision.models.resnet",
    "torchvision.models.inception",
    "torchvision.models.googlenet",
)


def _foldable(net):
    """[(module, names of a convolution and of the batch norm behind it)] of a network; [] if one lies elsewhere, or learns."""
    pairs = []
    for part in net.modules():
        names = []
        if type(part).forward is nn.Sequential.forward:
            names = pairwise(part._modules)
        elif type(part).__module__ in _NUMBERED:
            names = [(name, name.replace("conv", "bn")) for name in part._modules if name.startswith("conv")]
        for name, after in names:
            norm = part._modules.get(after)
            if type(part._modules[name]) is nn.Conv2d and type(norm) is nn.BatchNorm2d and norm.track_running_stats and not norm.training:
                pairs.append((part, name, after))
    norms = {m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    return pairs if norms == {part._modules[after] for part, _, after in pairs} else []


def _quick_gelus(net):
    """The Sequentials (linear layer, CLIP's activation x sigmoid(1.702 x), linear layer) of a network."""
    kinds = {("clip.model", "QuickGELU"), ("open_clip.transformer", "QuickGELU")}
    found = []
    for part in [m for m in net.modules() if type(m).forward is nn.Sequential.forward and len(m) == 3]:
        if type(part[0]) is type(part[2]) is nn.Linear and (type(part[1]).__module__, type(part[1]).__name__) in kinds:
            found.append(part)
    return found


def _quick(net, dtype):
    """A copy of a network that computes the same in less time, or itself. What goes is little to compute, but much to move through memory.

    Batch norms lie in the convolutions before them (mobilenet_v2 is 1.6 times as fast on a CPU); the factor in CLIP's activation lies in
    the layers around it, which leaves x sigmoid(x), one kernel for three; and weights that autocast would round to `dtype`, for each batch
    anew, are rounded once. The latter also brings the attention of torchvision's ViTs to 16 bits on a CPU, where PyTorch's short cut for
    inference knows nothing of autocast, but takes only weights of the precision of what comes in.
    """
    rounds = dtype != torch.float32
    if not (rounds or _foldable(net) or _quick_gelus(net)):
        return net
    net = copy.deepcopy(net)
    for part, name, after in _foldable(net):
        setattr(part, name, torch.nn.utils.fusion.fuse_conv_bn_eval(part._modules[name], part._modules[after]))
        setattr(part, after, nn.Identity())
    with torch.no_grad():
        for first, _, last in (parts := _quick_gelus(net)):
            first.weight.mul_(1.702), last.weight.div_(1.702)
            if first.bias is not None:
                first.bias.mul_(1.702)
    for part in parts:
        part[1] = nn.SiLU(inplace=True)
    for layer in net.modules() if rounds else ():
        if type(layer) in (nn.Linear, nn.Conv2d, nn.MultiheadAttention):
            layer.to(dtype)
    return net


def _measure(name, encoder):
    """Width of the features of an image encoder, by one picture; fails where they are not (B, width)."""
    size = _as_view(encoder.view).size
    try:
        x = torch.zeros(1, 3, size, size).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            f = encoder.visual.eval()(x)
    except Exception as error:
        fail(f"--model {name}: its image encoder does not take pictures (1, 3, {size}, {size}): {why(error)}")
    if not isinstance(f, torch.Tensor) or f.shape[:-1] != (1,):
        found = [*f.shape] if isinstance(f, torch.Tensor) else type(f).__name__
        fail(f"--model {name}: its image encoder gives {found} for pictures (1, 3, {size}, {size}), not (1, width)")
    return f.shape[1]


def _unproject(visual, name):
    """Take the projection of this dotted name out of an image encoder; the width of what is left, 0 for unknown, and what was taken."""
    parent, _, leaf = name.rpartition(".")
    owner = visual.get_submodule(parent)
    last = getattr(owner, leaf)
    if isinstance(last, nn.Parameter):
        setattr(owner, leaf, None)
        return last.shape[0], {name: last.detach()}
    setattr(owner, leaf, nn.Identity())
    width = getattr(last, "in_features", 0)
    if leaf == "c_proj":  # CLIP's attention reads a weight and a bias of it, which no training may change
        owner.c_proj.register_buffer("weight", torch.eye(width))
        owner.c_proj.register_buffer("bias", torch.zeros(width))
    return width, {f"{name}.{part}": tensor for part, tensor in last.state_dict().items()}


def _imagenet_network(name, state):
    """(network without its last layer, input px, mean, std, feature width) of a torchvision classifier or toy-imagenet."""
    if name == "toy-imagenet":  # CLIP's visual ResNet; its sizes are those of the weights
        layers = [len({key.split(".")[1] for key in state if key.startswith(f"layer{i}.")}) for i in (1, 2, 3, 4)]
        width = state["layer1.0.conv1.weight"].shape[0]
        side = math.isqrt(state["attnpool.positional_embedding"].shape[0] - 1)
        with without_draws():
            net = part_of_clip("model").ModifiedResNet(layers, state["attnpool.c_proj.weight"].shape[0], width // 2, 32 * side, width)
        net.load_state_dict(state)
        return net, net.input_resolution, *CLIP_COLOURS, net.output_dim
    transform = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    size = input_size(name)
    options = {"image_size": size} if name.startswith("vit_") else {}
    if name in ("inception_v3", "googlenet"):  # their weights expect another normalisation, which this flag computes
        options = {"transform_input": True, "init_weights": False}
    with without_draws():
        net = torchvision.models.get_model(name, weights=None, **options)
    # the last 1000-way layer goes; what is left ends in pooling and flattening, so features are (B, width)
    layer, last = [(n, m) for n, m in net.named_modules() if getattr(m, "out_features", getattr(m, "out_channels", 0)) == 1000][-1]
    parent, _, leaf = layer.rpartition(".")
    state = OrderedDict((re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key), t) for key, t in state.items())
    state._metadata = net.state_dict()._metadata  # mnasnet asks for its version
    whole = f"{layer}.weight" in state  # a file that finetune.py saved has no last layer
    if whole:
        net.load_state_dict(state)
    setattr(net.get_submodule(parent), leaf, nn.Identity())
    if not whole:
        net.load_state_dict(state)
    return net, size, tuple(transform.mean), tuple(transform.std), getattr(last, "in_features", None) or last.in_channels


def _export(model, head, classes, temperature, path):
    """Write one ONNX graph: uint8 pictures (B, 3, size, size) -> probabilities (B, C) float32, for any B.

    In it are the normalisation, the encoder, the head and the softmax at the temperature; not the resizing, which its metadata
    describe beside the classes. Fails where the packages that make it are absent.
    """
    try:
        import onnx  # noqa: F401  (both are torch's need)
        import onnxscript  # noqa: F401
    except ImportError as error:
        fail(f"--export needs more packages: pip install onnx onnxscript ({why(error)})")

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.visual = model.visual

        def forward(self, pictures):
            x = (pictures.float() / 255 - model.shift) / model.scale
            return (head(self.visual(x).float()) / temperature).softmax(1)

    example = torch.zeros(2, 3, model.size, model.size, dtype=torch.uint8)
    shapes = {"pictures": {0: torch.export.Dim("batch")}}
    names = {"input_names": ["pictures"], "output_names": ["probabilities"]}
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it tells what it leaves as it is
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of its own parts, which are being renamed
        graph = torch.onnx.export(Whole().eval(), (example,), dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
    told = {"model": model.name, "classes": classes, "size": model.size, "resize": str(model.view), "mean": model.mean, "std": model.std}
    graph.model.metadata_props.update({key: json.dumps(value) for key, value in (told | {"temperature": temperature}).items()})
    with atomic(path) as temporary:
        graph.save(temporary, external_data=False)
    print(f"exported {path}: uint8 pictures (B, 3, {model.size}, {model.size}) to probabilities (B, {len(classes)})")
