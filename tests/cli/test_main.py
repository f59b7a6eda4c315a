"""The command `norton`: its list, its help, its errors, and completion."""

import ast
import subprocess
import sys

import pytest
from helpers.repository import REPOSITORY

import norton
from norton.cli import main as command
from norton.cli.hints import as_typed
from norton.cli.main import COMMANDS, module_of

pytestmark = pytest.mark.quick


def run(monkeypatch, capsys, *arguments):
    """Run `norton ARGUMENTS` in this process; returns exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["norton", *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # the programs set it; pytest puts it back
    try:
        command.main()
        code = 0
    except SystemExit as done:
        code = done.code
    return code, *capsys.readouterr()


def test_every_program_is_a_command():
    folders = [REPOSITORY / name for name in ("norton", "experiments", "detection")]
    programs = {}
    for path in [*REPOSITORY.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            for decorator in getattr(node, "decorator_list", []):
                if ast.unparse(decorator).startswith("program.script("):
                    programs[".".join(path.relative_to(REPOSITORY).with_suffix("").parts)] = decorator.args[0].value
    assert programs == {module_of(name): name.replace(".", "_") for name in COMMANDS}


def test_help_lists_every_command_and_imports_little():
    code = "import sys, norton.cli.main as m; m.main(); assert not {'torch', 'hydra', 'numpy'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code, "--help"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, summary in COMMANDS.items():
        assert f"  {name:<20} {summary}\n" in done.stdout
    assert all(len(line) <= 100 for line in done.stdout.splitlines())


@pytest.mark.parametrize("arguments", [(), ("-h",)])
def test_help_is_what_is_shown_first(arguments, monkeypatch, capsys):
    assert run(monkeypatch, capsys, *arguments) == (0, command.usage() + "\n", "")


def test_version(monkeypatch, capsys):
    assert run(monkeypatch, capsys, "--version") == (0, norton.__version__ + "\n", "")


@pytest.mark.parametrize("name", ["decompose", "ablation", "detection.train"])
def test_help_of_a_command(name, monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys, name, "--help")
    assert (code, err) == (0, "")
    assert "Examples:" in out and "\nout: outputs/" in out
    assert f"\nnorton {name} " in out and "python" not in out.partition("All settings")[0]


@pytest.mark.parametrize(
    "as_typed, said",
    [
        ("decompos", "there is no command 'decompos'; did you mean decompose? norton --help lists all"),
        ("detection", "there is no command 'detection'; did you mean detection.train? norton --help lists all"),
        ("xyz", "there is no command 'xyz'; norton --help lists all"),
        ("rank=3", "there is no command 'rank=3'; norton --help lists all"),
    ],
)
def test_unknown_command(as_typed, said, monkeypatch, capsys):
    assert run(monkeypatch, capsys, as_typed) == (2, "", f"error: {said}\n")


def test_bad_setting(monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys, "complexity", "modl=resnet_56")
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_a_command_takes_settings_and_published_flags(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, ours, err = run(monkeypatch, capsys, "complexity", "model=resnet_56", "rank=1", "out=a")
    assert (code, err) == (0, "")
    code, published, err = run(monkeypatch, capsys, "complexity", "--arch", "resnet_56", "-r", "1")
    assert (code, err) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "outputs"}  # results are where the user is
    assert ours.splitlines()[:-1] == published.splitlines()[:-1]


@pytest.mark.parametrize(
    "line, found",
    [
        ("norton ", "decompose"),
        ("norton detection.tr", "detection.train"),
        ("norton prune ", "pruning="),
        ("norton prune prun", "pruning="),
        ("norton complexity model=res", "model=resnet_56"),
        ("norton ablation decomposition.ob", "decomposition.objective="),
    ],
)
def test_completion(line, found, monkeypatch, capsys):
    monkeypatch.setenv("COMP_LINE", line)
    code, out, err = run(monkeypatch, capsys, "-sc", "query=bash")
    assert (code, err) == (0, "")
    assert found in out.split()


def test_completion_is_installed_for_the_command(monkeypatch, capsys):
    monkeypatch.delenv("COMP_LINE", raising=False)
    code, out, _ = run(monkeypatch, capsys, "--shell-completion", "install=bash")
    assert code == 0 and out.rstrip().endswith("complete -o nospace -o default -F hydra_bash_completion norton")


def test_a_reader_that_goes_is_no_error():
    words = f"{sys.executable} -m norton --help | head -1"
    done = subprocess.run(words, shell=True, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.stdout.count("\n") == 1 and not done.stderr


@pytest.mark.parametrize(
    ("program", "command", "expected"),
    [
        ("bin/norton", "evaluate", "norton evaluate"),
        ("norton/__main__.py", "report", "python -m norton report"),
        ("decompose.py", "evaluate", "python evaluate.py"),
        ("experiments/ablation.py", "report", "python -m experiments.report"),
        ("detection/train.py", "detection.evaluate", "python -m detection.evaluate"),
    ],
)
def test_hints_name_commands_as_this_one_was_typed(program, command, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program])
    assert as_typed(command) == expected
