"""Command lines, run as a user types them."""

import logging
import os
import runpy
import shlex
import subprocess
import sys

from helpers.repository import REPOSITORY


def run(command, **environment):
    """Run a command line from the repository's root; `python` is this one."""
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(words, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=600)


def succeeds(command):
    done = run(command)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def run_here(command, monkeypatch, capsys, folder=REPOSITORY):
    """Run a command line in this process, which saves the seconds of importing; returns exit code, stdout, stderr."""
    words = shlex.split(command)[1:]
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # the programs set it; pytest puts it back
    start = runpy.run_module if words[0] == "-m" else runpy.run_path
    words = words[1:] if words[0] == "-m" else words
    monkeypatch.setattr(sys, "argv", words)
    try:
        start(words[0], run_name="__main__")
        code = 0
    except SystemExit as done:
        code = done.code
    finally:
        logging.disable(logging.NOTSET)
    return code, *capsys.readouterr()


class Silent:
    """In the place of `capsys`, for fixtures that outlive a test."""

    def readouterr(self):
        return "", ""


def run_in(folder, command, code=0):
    """Run a command elsewhere, so that its default outputs/ lie there."""
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stderr[-2000:]
    return done.stdout


def written(folder):
    """The names of the files in a run's folder."""
    return {path.name for path in folder.iterdir()}
