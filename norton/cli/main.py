"""The command `norton`: which commands there are, and what each is for; `norton COMMAND` is that command's program."""

import contextlib
import difflib
import importlib
import io
import os
import re
import sys

from norton.common.errors import InputError
from norton.common.extras import optional
from norton.common.version import __version__

STEPS = {
    "decompose": "write each filter as a sum of a few separable terms",
    "prune": "remove the filters that matter least, decomposed or not",
    "evaluate": "measure accuracy, MACs and parameters; verify what a checkpoint claims",
    "complexity": "count MACs and parameters, per layer and in total",
}
EXPERIMENTS = {
    "The whole chain, once or many times": {
        "pipeline": "decompose, prune, fine-tune, and measure every stage",
        "ablation": "run a grid of ranks, rates, criteria, seeds, ... through the chain",
        "report": "tables, pictures and a page of what a sweep found so far",
        "paper_tables": "the paper's tables, with figures of your own beside the published ones",
    },
    "What to compress, and what that does": {
        "sensitivity": "what compressing each layer alone costs, over ranks and rates",
        "nmse": "the error of decomposing, per layer and rank, before any training",
        "selection": "the paper's selection of filters beside that of its public code",
        "features": "where networks look (Grad-CAM), dense beside compressed",
    },
    "What comes out of it": {
        "deploy": "make a network fast for this machine, and export it, up to INT8",
        "throughput": "how many images a second, dense beside compressed",
        "storage": "size on disk with shared and compressed weights",
        "verify": "verify all checkpoints of a registry",
    },
}
DETECTION = {
    "detection.train": "train a detector over a ResNet-50, dense or compressed",
    "detection.evaluate": "score a detector by COCO's numbers",
    "detection.visualize": "draw what detectors find, dense beside compressed",
}
GROUPS = {"Single steps": STEPS, **EXPERIMENTS, "Detectors": DETECTION}
COMMANDS = {command: summary for group in GROUPS.values() for command, summary in group.items()}
HELP = ("--help", "-h")
COMPLETION = ("--shell-completion", "-sc")
USAGE = """\
Compress convolutional networks by tensor decomposition and structured pruning.

usage: norton COMMAND [setting=value ...]

{commands}

norton COMMAND --help shows the command's settings, with examples; norton --version the version.
Results go to out=, by default a folder in outputs/ where you are.

To complete commands, settings and their choices by the tab key:
  bash   eval "$(norton -sc install=bash)"
  zsh    the same, after: autoload -Uz bashcompinit && bashcompinit
  fish   norton -sc install=fish | source
"""


def main() -> None:
    """Run `norton ARGUMENTS`, or `python -m norton ARGUMENTS`.  Bad input ends with one line and exit code 2."""
    arguments = sys.argv[1:]
    try:
        if not arguments or arguments[0] in (*HELP, "help"):
            print(usage())
        elif arguments[0] == "--version":
            print(__version__)
        elif arguments[0] in COMPLETION:
            _complete(arguments)
        else:
            _run(*arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # `norton --help | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain as it ends
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def usage() -> str:
    """The help of `norton` itself."""
    lines = []
    for heading, group in GROUPS.items():
        lines += [f"{heading}:", *(f"  {command:<20} {summary}" for command, summary in group.items()), ""]
    return USAGE.format(commands="\n".join(lines).rstrip())


def module_of(command: str) -> str:
    """The module whose `main` a command is."""
    if command in STEPS:
        return f"norton.cli.commands.{command}"
    return command if command in DETECTION else f"experiments.{command}"


def _run(command: str, *arguments: str) -> None:
    if command not in COMMANDS:
        near = [name for name in COMMANDS if name.startswith(command)] or difflib.get_close_matches(command, COMMANDS)
        meant = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"there is no command {command!r}; {meant}norton --help lists all")
    sys.argv[1:] = arguments
    if set(arguments) & {*HELP, *COMPLETION}:
        _settings_only(command)
        return
    # A network of one's own, model.arch=my_module.my_network, is found in the current folder, as `python -m` finds it.
    sys.path.append(os.getcwd())
    with optional():
        importlib.import_module(module_of(command)).main()


def _settings_only(command: str) -> None:
    """Let Hydra answer what needs a command's settings alone, without the seconds that importing its module takes."""
    from norton.cli import program

    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            sys.argv[1:] = [word for word in sys.argv[1:] if word in (*HELP, *COMPLETION) or "=" in word]
            program.script(command.replace(".", "_"))(lambda cfg: None)()
    finally:  # Hydra may end the program itself
        # Examples are written for a checkout: `python decompose.py`, `python -m experiments.nmse`.
        text = re.sub(r"\bpython (?:-m (?:experiments\.)?)?(\S+?)(?:\.py)?(?=\s)", r"norton \1", said.getvalue())
        print(text, end="")


def _complete(arguments: list[str]) -> None:
    """Answer a shell: the commands, then Hydra's completion of a command's settings."""
    program, _, typed = os.environ.get("COMP_LINE", "").lstrip().partition(" ")
    command, space, settings = typed.lstrip().partition(" ")
    if arguments[-1].startswith("query=") and not space:
        print("\n".join([*COMMANDS, *HELP[:1]]))
    elif command in COMMANDS:
        os.environ["COMP_LINE"] = f"{program} {settings}"
        _settings_only(command)
    else:
        _settings_only("decompose")  # any command: what installs completion is the same for all
