"""The command `schedule` against a double of the API, and a scheduled package run twice on this machine."""

import itertools
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from components.common.errors import UserError
from components.simulate.params import Simulate
from components.simulate.run import run as simulate
from pipelines.__main__ import main
from pipelines.cron import Cron
from tests.pipelines import double
from tests.pipelines.conftest import RAW, Workplace, isolate, run_schedule

NIGHTLY = ["--cron", "0 2 * * *"]


def schedule(kubeflow: double.Double, *more: str) -> int:
    raw = [] if more[0] in ("list", "pause", "resume", "remove") or "--raw" in more else ["--raw", RAW]
    return main(["schedule", *more, "--host", kubeflow.url, *raw])


def refused(capsys: pytest.CaptureFixture[str], code: int) -> str:
    """Returns the single line of an error message."""
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    return err.strip()


def test_a_schedule_is_the_package_and_parameters_of_submit(kubeflow: double.Double, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "training", "--host", kubeflow.url, "--raw", RAW, "--set", "pretrain.epochs=3"]) == 0
    assert schedule(kubeflow, "training", *NIGHTLY, "--set", "pretrain.epochs=3", "--name", "nightly") == 0

    (run,), (recurring,), (version,) = kubeflow.runs.values(), kubeflow.recurring.values(), kubeflow.versions.values()
    assert {name: recurring[name] for name in double.RUN if name != "display_name"} == {
        name: run[name] for name in double.RUN if name != "display_name"
    }
    assert recurring["pipeline_version_reference"]["pipeline_version_id"] == version["pipeline_version_id"]
    assert (recurring["display_name"], recurring["status"]) == ("nightly", "ENABLED")
    assert recurring["trigger"] == {"cron_schedule": {"cron": "0 0 2 * * *"}}
    assert (recurring["max_concurrency"], recurring["no_catchup"]) == ("1", True)
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(f"schedule nightly ({recurring['recurring_run_id']}), next run ")
    assert said.endswith(" 02:00 UTC")


def test_list_pause_resume_and_remove(kubeflow: double.Double, capsys: pytest.CaptureFixture[str]) -> None:
    kubeflow.frames = [("SUCCEEDED", None)]
    assert schedule(kubeflow, "list") == 0
    assert "the experiment cxr has no schedules" in capsys.readouterr().out
    for name in ("b", "a", "c"):
        assert schedule(kubeflow, "training", *NIGHTLY, "--name", name) == 0
    kubeflow.most = 2  # the third is on another page
    first = next(iter(kubeflow.recurring))
    kubeflow.tick(first)
    last = kubeflow.tick(first)
    assert schedule(kubeflow, "pause", "c") == 0
    capsys.readouterr()

    assert schedule(kubeflow, "list") == 0

    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(", next run")[0] for line in lines] == ["a: 0 2 * * *", "b: 0 2 * * *", "c: 0 2 * * *, paused"]
    assert lines[1].endswith(f"succeeded, {last['run_id']}")
    assert schedule(kubeflow, "resume", "c") == 0
    assert {one["status"] for one in kubeflow.recurring.values()} == {"ENABLED"}
    assert schedule(kubeflow, "remove", "c") == 0
    assert sorted(one["display_name"] for one in kubeflow.recurring.values()) == ["a", "b"]
    capsys.readouterr()
    assert "c: is no schedule of the experiment cxr" in refused(capsys, schedule(kubeflow, "remove", "c"))
    assert "b: is no schedule of the experiment mine" in refused(capsys, schedule(kubeflow, "pause", "b", "--experiment", "mine"))


def test_a_name_is_taken_once(kubeflow: double.Double, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert schedule(kubeflow, "training", *NIGHTLY) == 0
    capsys.readouterr()
    assert "--name training: is a schedule of this experiment; give --replace" in refused(
        capsys, schedule(kubeflow, "training", "--cron", "0 3 * * *")
    )
    (earlier,) = kubeflow.recurring
    with monkeypatch.context() as patch:  # the replacement is there before the earlier one is deleted
        patch.setattr("pipelines.recurring_runs.RecurringRuns.delete", lambda *given: None)
        assert schedule(kubeflow, "training", "--cron", "0 3 * * *", "--replace") == 0
    assert len(kubeflow.recurring) == 2
    assert schedule(kubeflow, "training", "--cron", "0 4 * * *", "--replace") == 0
    (now,) = kubeflow.recurring.values()
    assert (now["recurring_run_id"] != earlier, now["trigger"]["cron_schedule"]["cron"]) == (True, "0 0 4 * * *")


def test_schedules_by_other_means_are_shown(kubeflow: double.Double, capsys: pytest.CaptureFixture[str]) -> None:
    assert schedule(kubeflow, "training", *NIGHTLY) == 0
    (one,) = kubeflow.recurring.values()
    for trigger, said in (
        ({"periodic_schedule": {"interval_second": "3600"}}, "training: every 3600 s"),
        ({"cron_schedule": {"cron": "30 0 2 * * *"}}, "training: 30 0 2 * * *"),
    ):
        one["trigger"] = trigger
        capsys.readouterr()
        assert schedule(kubeflow, "list") == 0
        assert capsys.readouterr().out.strip() == said


def test_a_dry_run_sends_nothing(kubeflow: double.Double, capsys: pytest.CaptureFixture[str]) -> None:
    assert schedule(kubeflow, "training", "--cron", "*/30 6-18 * * mon-fri", "--dry-run") == 0
    assert yaml.safe_load(capsys.readouterr().out)["cron"] == "0 */30 6-18 * * mon-fri"
    assert not kubeflow.pipelines


def test_refusals_of_the_server(kubeflow: double.Double, capsys: pytest.CaptureFixture[str]) -> None:
    kubeflow.token = "secret"
    assert "answers 401, Unauthenticated" in refused(capsys, schedule(kubeflow, "list"))
    kubeflow.token = ""
    for command in (["training", *NIGHTLY, "--raw", RAW], ["list"], ["pause", "x"]):
        assert "http://127.0.0.1:9: " in refused(capsys, main(["schedule", *command, "--host", "http://127.0.0.1:9"]))
    assert "--raw dvc:HEAD: never changes" in refused(capsys, schedule(kubeflow, "training", *NIGHTLY, "--raw", "dvc:HEAD"))
    assert "--raw data: must be an s3:// URI" in refused(capsys, schedule(kubeflow, "training", *NIGHTLY, "--raw", "data"))
    assert not kubeflow.recurring


@pytest.mark.parametrize(
    ("given", "kubeflow", "after", "expected"),
    [
        ("0 2 * * *", "0 0 2 * * *", "2026-11-29 02:00", "2026-11-30 02:00"),
        ("*/20 * * * *", "0 */20 * * * *", "2026-12-31 23:41", "2027-01-01 00:00"),
        ("5 4 29 2 *", "0 5 4 29 2 *", "2026-01-01 00:00", "2028-02-29 04:05"),
        ("0 6 * * 7", "0 0 6 * * 0", "2026-11-28 00:00", "2026-11-29 06:00"),
        ("0 6 * * 5-7", "0 0 6 * * 0,5,6", "2026-11-29 07:00", "2026-12-04 06:00"),
        ("0 0 1 JAN,Jul *", "0 0 0 1 JAN,Jul *", "2026-11-29 00:00", "2027-01-01 00:00"),
        ("0 0 13 * fri", "0 0 0 13 * fri", "2026-11-07 00:00", "2026-11-13 00:00"),  # the 13th, and each Friday
        ("0 0 13 * fri", "0 0 0 13 * fri", "2026-11-13 00:00", "2026-11-20 00:00"),
        ("10-50/20 8,20 * * 1-5", "0 10-50/20 8,20 * * 1-5", "2026-11-27 20:31", "2026-11-27 20:50"),
    ],
)
def test_cron(given: str, kubeflow: str, after: str, expected: str) -> None:
    cron = Cron(given)
    assert cron.kubeflow == kubeflow
    double._check_cron(cron.kubeflow)
    assert cron.next(datetime.fromisoformat(after).replace(tzinfo=UTC)) == datetime.fromisoformat(expected).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("0 0 2 * * *", "has 6 fields, not minute, hour, day, month and weekday"),
        ("@daily", "has 1 fields"),
        ("60 2 * * *", "minute '60' is not from 0 to 59"),
        ("0 24 * * *", "hour '24' is not from 0 to 23"),
        ("0 2 0 * *", "day '0' is not from 1 to 31"),
        ("0 2 * 13 *", "month '13' is not from 1 to 12"),
        ("0 2 * * 8", "weekday '8' is not from 0 to 7"),
        ("0 2 * * mo", "weekday 'mo' is not"),
        ("0 5-2 * * *", "hour '5-2' is not"),
        ("*/0 2 * * *", "minute '*/0' is not"),
        ("0/5 2 * * *", "minute '0/5' is not"),
        ("0 2 ? * *", "day '?' is not"),
        ("0 2 1,,2 * *", "day '' is not"),
        ("0 2 30 2 *", "never comes"),
        ("0 2 31 4,6,9,11 *", "never comes"),
    ],
)
def test_malformed_cron(given: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        Cron(given)
    assert said in str(caught.value)
    assert repr(given) in str(caught.value)


def test_cron_agrees_with_a_search_through_all_minutes() -> None:
    """Compares with the definition: the first minute, one after the other, whose five values are in the fields."""
    start = datetime(2026, 11, 29, 19, 7, tzinfo=UTC)
    for minute, hour, day, weekday in itertools.product(("*", "*/25", "59"), ("*", "0-6/3"), ("*", "1,15"), ("*", "1-5")):
        fits = [set(range(60)) if minute == "*" else {0, 25, 50} if minute == "*/25" else {59}]
        fits += [set(range(24)) if hour == "*" else {0, 3, 6}]
        days, weekdays = set(range(1, 32)) if day == "*" else {1, 15}, set(range(7)) if weekday == "*" else {1, 2, 3, 4, 5}
        join = any if "*" not in (day, weekday) else all
        moment = start.timestamp() + 60
        while True:
            now = datetime.fromtimestamp(moment, UTC)
            if now.minute in fits[0] and now.hour in fits[1] and join((now.day in days, now.isoweekday() % 7 in weekdays)):
                break
            moment += 60
        assert Cron(f"{minute} {hour} {day} * {weekday}").next(start) == now


@pytest.mark.slow
def test_a_scheduled_package_reads_what_is_there_when_it_runs(
    kubeflow: double.Double, tmp_path: Path, cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs the package of a schedule twice, with a file more the second time."""
    place = Workplace(tmp_path, tmp_path / "raw")
    shutil.copytree(cohort, place.raw)
    other = tmp_path / "other"
    simulate(out=str(other), params=Simulate(patients=1, size=64, seed=7))
    isolate(tmp_path, monkeypatch)
    given = ["--settings", place.settings(), "--params", str(tmp_path / "params.yaml"), "--set", "register.min_auroc=1"]
    assert main(["schedule", "training", *NIGHTLY, "--host", kubeflow.url, "--namespace", "cxr", "--raw", RAW, *given]) == 0

    made = []
    for night in range(2):
        run_schedule(kubeflow, f"night-{night}", place.raw, place.out, monkeypatch)
        made.append({path.parent for path in place.out.glob("*/*/run.json")})
        shutil.copy(min(other.rglob("*.dcm")), place.raw / "new.dcm")

    assert len(made[1]) == 2 * len(made[0]), "no output of the first night was used or replaced by the second"
    rows = sorted(json.loads((path / "metrics.json").read_text())["rows"] for path in made[1] if path.parent.name == "shards")
    assert rows[1] == rows[0] + 1
