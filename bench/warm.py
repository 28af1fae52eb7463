"""A process that has imported what all scripts import, and of which each run is a fork: `make` starts 27, and each would import for 1.7 s.

    python bench/warm.py --while make study SHELL=python .SHELLFLAGS=bench/warm.py

Runs the command, which is make. Meanwhile make gives the lines of its recipes to `bench/warm.py LINE` instead of a shell: of
`python SCRIPT ARGS` there is a fork, and anything else is the shell's after all, as is everything where no such process is. It takes Linux.
"""

import argparse
import gc
import json
import os
import runpy
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

PLACE, PYTHON = "WARM_SOCKET", "WARM_PYTHON"  # in the environment: where forks are to be had, and instead of what
NEEDED = ("torch", "numpy", "PIL.Image", "tqdm", "matplotlib.figure", "matplotlib.backends.backend_agg", "safetensors.torch", "ftfy")


def run(line):
    """What a shell would do with a line of a recipe; ends as its command does."""
    words = []
    with suppress(ValueError):
        words = shlex.split(line)
    # only what reads the same with and without a shell
    if len(words) > 1 and shlex.join(words) == line and words[0] == os.environ.get(PYTHON) and words[1].endswith(".py"):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.connect(os.environ[PLACE])
            socket.send_fds(connection, [json.dumps(words[1:]).encode()], [0, 1, 2])
        except OSError:
            pass
        else:
            end_as_fork(connection)
    os.execv("/bin/sh", ["sh", "-c", line])


def end_as_fork(connection):
    """Wait for the fork at the other end, hand on to it what signals are for this process alone, and end as it does."""
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C reaches it without this
    said = connection.recv(64)
    if not said:  # the process that forks was killed
        os._exit(1)
    fork = int(said)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: os.kill(fork, number))
    code = connection.recv(64)
    if not code:  # or is now
        os.kill(fork, signal.SIGKILL)
        os._exit(1)
    if int(code) < 0:
        if -int(code) != signal.SIGKILL:
            signal.signal(-int(code), signal.SIG_DFL)
        os.kill(os.getpid(), -int(code))
    os._exit(int(code))


def become(channels, ctrl_c, ends):
    """In a fork: speak and listen where its caller does, hear signals as any script, and hold no end of what is not its own."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, ctrl_c)
    for here, channel in enumerate(channels):
        os.dup2(channel, here)
        os.close(channel)
    for end in ends:
        end.close()


def serve(command):
    """Run a command and, for each `run` meanwhile, a fork. Exits as the command does; in a fork it returns the words of its script."""
    ctrl_c = signal.getsignal(signal.SIGINT)
    heard, awake = socket.socketpair()
    awake.setblocking(False)
    signal.set_wakeup_fd(awake.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGCHLD):  # the command and the forks hear Ctrl-C, and when all have ended this does
        signal.signal(number, lambda *_: None)
    folder = tempfile.mkdtemp()
    door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    door.bind(f"{folder}/socket")
    door.listen(64)
    running = subprocess.Popen(command, env=os.environ | {PLACE: f"{folder}/socket", PYTHON: sys.orig_argv[0]}, close_fds=False)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: running.send_signal(number))
    for name in NEEDED:
        with suppress(ImportError):  # the run that needs it will say so
            __import__(name)
    gc.freeze()  # what is imported stays, and need not be looked through in each fork

    forks = {}  # the other ends, by process
    ready = selectors.DefaultSelector()
    for end in (heard, door):
        ready.register(end, selectors.EVENT_READ)
    while running.poll() is None or forks:
        for key, _ in ready.select():
            if key.fileobj is heard:
                heard.recv(4096)
            elif key.fileobj is door:
                other, _ = door.accept()
                words, channels, _, _ = socket.recv_fds(other, 2**20, 3)
                fork = os.fork()
                if not fork:
                    become(channels, ctrl_c, (ready, door, heard, awake, other, *forks.values()))
                    return json.loads(words)
                for channel in channels:
                    os.close(channel)
                forks[fork] = other
                ready.register(other, selectors.EVENT_READ, fork)
                other.send(b"%d" % fork)
            else:  # whoever waits for a fork says nothing: it was killed
                os.kill(key.data, signal.SIGKILL)
                ready.unregister(key.fileobj)
        for fork, other in [*forks.items()]:
            ended, status = os.waitpid(fork, os.WNOHANG)
            if ended:
                with suppress(OSError):
                    other.send(b"%d" % os.waitstatus_to_exitcode(status))
                with suppress(KeyError):
                    ready.unregister(other)
                forks.pop(fork).close()
    shutil.rmtree(folder)
    sys.exit(running.returncode if running.returncode >= 0 else 128 - running.returncode)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("line", nargs="?", help="of a recipe")
    parser.add_argument("--while", dest="command", nargs=argparse.REMAINDER, metavar="COMMAND", help="which forks are for")
    args = parser.parse_args()
    if bool(args.line) == bool(args.command):
        parser.error("give a LINE, or --while COMMAND")
    if args.line:
        run(args.line)
    if sys.platform != "linux":
        os.execvp(args.command[0], args.command)
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    import common  # noqa: F401 (first, because it hears Ctrl-C)

    sys.argv = serve(args.command)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
