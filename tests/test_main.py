import signal
import subprocess
import sys
from pathlib import Path

import pytest

from components.__main__ import COMMANDS, main
from components.heads import ANY_HEAD

ROOT = Path(__file__).parents[1]


@pytest.fixture
def params(tmp_path: Path) -> str:
    path = tmp_path / "params.yaml"
    path.write_text("register: {min_auroc: 0.8}\n")
    return str(path)


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Runs a command that must be refused; returns its error message, which must be one line."""
    try:
        code = main(list(arguments))
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err.strip()


def register(params: str, *more: str) -> list[str]:
    return ["register", "--model", "/nowhere", "--evaluation", "/nowhere", "--out", "/tmp/never", "--params", params, *more]


def test_missing_input(params: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of(capsys, *register(params))
    assert line == f"register: /nowhere/model.json: not found; /nowhere must be the output folder of {ANY_HEAD}"


def test_unknown_keys(params: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of(capsys, *register(params, "--set", "register.min_auc=1"))
    assert line == f"register: {params}: register.min_auc is not a parameter; did you mean min_auroc?"
    (tmp_path / "params.yaml").write_text("pretrian: {}")
    assert error_of(capsys, *register(params)) == f"register: {params}: pretrian is not a parameter; did you mean pretrain?"


def test_set_overrides_and_is_checked(params: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of(capsys, *register(params, "--set", "register.min_auroc=7"))
    assert "register.min_auroc: input should be less than or equal to 1, not 7" in line
    assert error_of(capsys, *register(params, "--set", "min_auroc")) == "register: --set min_auroc: must have the form section.key=value"
    assert "model.json: not found" in error_of(capsys, *register(params, "--set", "register.min_auroc=0.1"))


def test_missing_params_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.yaml: cannot be read" in error_of(capsys, *register("nowhere.yaml"))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "STAGE"),
        (["regster"], "invalid choice: 'regster'"),
        (["register", "--out", "x"], "required: --model, --evaluation"),
        (["pretrain", "--shards", "--out", "x"], "--shards: expected at least one argument"),
        (["register", "--model", "a", "--evaluation", "b", "--out", "c", "--bogus", "1"], "unrecognized arguments: --bogus 1"),
    ],
)
def test_bad_command_lines(arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of(capsys, *arguments)
    assert part in line
    assert "--help" in line


def test_help_names_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(stage in shown for stage in COMMANDS)


def test_internal_errors_keep_their_traceback_and_exit_with_1(params: str, tmp_path: Path) -> None:
    """Exceptions other than UserError keep their traceback and exit with 1."""
    code = "import sys; from components import __main__ as m; m._run = None; sys.exit(m.main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, *register(params)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_mistakes_exit_with_2(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "components", *register("nowhere.yaml")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "register: nowhere.yaml: cannot be read (No such file or directory); give a file with --params\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_importing_exits_with_75(number: signal.Signals, params: str) -> None:
    """Kubernetes may stop a pod as soon as it has started."""
    command = [sys.executable, "-m", "components", *register(params)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while not _handles_sigterm(process.pid):
            assert process.poll() is None
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "Traceback" not in err


def _handles_sigterm(process: int) -> bool:
    """Returns whether a process handles SIGTERM, whose handler is installed last; read from SigCgt, see proc(5)."""
    caught = next(line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
