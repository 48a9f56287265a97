"""The MLflow model registry: versions, aliases, and the predictions of the champion.

Every step can be repeated: a run that was killed between any two of them finds what it made and goes on.
"""

import shutil
import time
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models.model import MLMODEL_FILE_NAME, Model

from components.common.errors import UserError
from components.common.formats.model import DESCRIPTION, parse_description
from components.common.formats.predictions import PREDICTIONS
from components.common.runs import tracking
from components.common.runs.registered_models import download
from components.register.packing import CARD, ENTRY, MODEL_URI

TEST_PREDICTIONS = f"test_{PREDICTIONS}"
ARTIFACT = f"artifacts/{DESCRIPTION}"  # path of model.json among the files of a version
PREVIOUS = "champion.previous"  # tag of a champion with the previous champion
WITHDRAWN = "withdrawn"  # tag of a version that a person has withdrawn; it does not become champion again automatically


ALIASES = ("champion", "challenger")


class Version(NamedTuple):
    """A version of a registered model."""

    name: str
    number: str

    @property
    def uri(self) -> str:
        """Address for mlflow.pyfunc.load_model."""
        return f"models:/{self.name}/{self.number}"


class Registry:
    """One registered model.

    Args:
        name: that of the model.
        client: of a server that has answered before; None: a new one is made.

    Raises:
        UserError: MLflow cannot be reached.
    """

    def __init__(self, name: str, client: MlflowClient | None = None):
        self.name = name
        self._client = client or tracking.client()
        # The registry resolves models:/ addresses through MLflow's global setting.
        mlflow.set_tracking_uri(tracking.uri())

    def find(self, tags: dict[str, str]) -> Version | None:
        """Returns the newest version with these tags."""
        numbers = [int(version.version) for version in self._versions if tags.items() <= version.tags.items()]
        return Version(self.name, str(max(numbers))) if numbers else None

    def holder(self, alias: str) -> str | None:
        """Returns the number of the version with an alias."""
        return self._aliases().get(alias)

    def check_head(self, head: str) -> None:
        """Refuses to mix models of several heads, which could not be compared, under one name.

        Raises:
            UserError: the versions so far are of another head.
        """
        # Versions made by hand have no such tags, and the first ones of register none of the head.
        heads = {version.tags.get("task", "classify") for version in self._versions if version.tags.get("stage") == "register"}
        if others := sorted(heads - {head}):
            raise UserError(f"register.name: {self.name} holds models of {others[0]}, not of {head}; choose another name")

    def add(self, packed: Path, run_id: str, tags: dict[str, str], description: str, kind: str) -> Version:
        """Logs a packed model to a run and creates a new version from it.

        If an earlier attempt of the run has logged its model, the version is made from that one, which then replaces `packed`.
        """
        with tracking.reachable():
            experiment = self._client.get_run(run_id).info.experiment_id
            if model := self._logged(experiment, run_id):
                shutil.rmtree(packed)
                download(model.model_uri, packed)
            else:
                model = self._log(packed, experiment, run_id, tags, kind)
            self._create()
            made = self._client.create_model_version(
                self.name, model.model_uri, run_id, tags=tags, description=description, model_id=model.model_id
            )
        return Version(self.name, str(made.version))

    def assign(self, alias: str, version: str, reason: str, champion: str | None) -> None:
        """Moves an alias to a version and records the reason and, for a new champion, the present one."""
        with tracking.reachable():
            self._client.set_model_version_tag(self.name, version, f"{alias}.reason", reason)
            if alias == "champion" and champion not in (None, version):
                self._client.set_model_version_tag(self.name, version, PREVIOUS, champion)
        self._move(alias, version)

    def rollback(self) -> tuple[str, str]:
        """Makes the predecessor of the champion the champion again; returns the versions before and now.

        Raises:
            UserError: there is no champion, or none before it.
        """
        champion = self._champion()
        previous = self._version(champion).tags.get(PREVIOUS)
        if previous is None:
            raise UserError(f"{self.name} version {champion}: there was no champion before it; take its alias with --demote")
        self._note(champion, WITHDRAWN, f"rolled back to version {previous} on {_today()}")
        self._note(previous, "champion.reason", f"version {champion} was rolled back on {_today()}")
        self._move("champion", previous)
        self._move("challenger", champion)
        return champion, previous

    def demote(self) -> str:
        """Removes the champion alias and returns the version that had it.

        Raises:
            UserError: there is no champion.
        """
        champion = self._champion()
        self._note(champion, WITHDRAWN, f"demoted on {_today()}")
        self._move("challenger", champion)
        return champion

    def tag(self, version: str, name: str) -> str | None:
        """Returns the value of a tag of a version."""
        return self._version(version).tags.get(name)

    def history(self, metric: str) -> list[dict[str, Any]]:
        """Returns number, aliases, metric and reason of every version, newest first."""
        aliases: dict[str, list[str]] = {}
        for alias, version in self._aliases().items():
            aliases.setdefault(version, []).append(alias)
        return [_summary(one, aliases.get(str(one.version), []), metric) for one in sorted(self._versions, key=_number, reverse=True)]

    def download(self, version: Version, folder: Path) -> None:
        """Downloads the packed model."""
        download(version.uri, folder)

    def predictions(self, version: str, folder: Path) -> Path | None:
        """Downloads the test predictions of a version into a folder; returns None if its run has none."""
        run_id = self._version(version).run_id
        if not run_id:
            return None
        with tracking.reachable():
            if TEST_PREDICTIONS not in [item.path for item in self._client.list_artifacts(run_id)]:
                return None
            return Path(self._client.download_artifacts(run_id, TEST_PREDICTIONS, str(folder)))

    def description(self, version: str, folder: Path) -> dict[str, Any]:
        """Downloads model.json of a version into a folder and returns its content."""
        download(f"{Version(self.name, version).uri}/{ARTIFACT}", folder)
        return parse_description((folder / ARTIFACT).read_bytes(), ARTIFACT, "register")

    @cached_property
    def _versions(self) -> list[ModelVersion]:
        """The versions when they were asked for first."""
        with tracking.reachable():
            return list(self._client.search_model_versions(f"name = '{self.name}'"))

    def _version(self, version: str) -> ModelVersion:
        with tracking.reachable():
            return self._client.get_model_version(self.name, version)

    def _aliases(self) -> dict[str, str]:
        """Returns the versions by alias."""
        with tracking.reachable():
            found = self._client.search_registered_models(f"name = '{self.name}'")
        return {alias: str(version) for alias, version in found[0].aliases.items()} if found else {}

    def _champion(self) -> str:
        champion = self.holder("champion")
        if champion is None:
            raise UserError(f"{self.name}: has no champion in {tracking.server_name()}; set register.name to another model or register one")
        return champion

    def _note(self, version: str, name: str, text: str) -> None:
        with tracking.reachable():
            self._client.set_model_version_tag(self.name, version, name, text)

    def _move(self, alias: str, version: str) -> None:
        """Gives a version this alias and removes its other ones."""
        with tracking.reachable():
            self._client.set_registered_model_alias(self.name, alias, version)
            for other in ALIASES:
                if other != alias and self._aliases().get(other) == version:
                    self._client.delete_registered_model_alias(self.name, other)

    def _create(self) -> None:
        """Creates the registered model if it does not exist."""
        try:
            self._client.create_registered_model(self.name, description="For chest radiographs; see the versions' descriptions.")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _logged(self, experiment: str, run_id: str) -> LoggedModel | None:
        """Returns the model that an earlier attempt of this run logged; deletes incomplete ones."""
        for model in self._client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
            if model.status == LoggedModelStatus.READY:
                return model
            self._client.delete_logged_model(model.model_id)
        return None

    def _log(self, packed: Path, experiment: str, run_id: str, tags: dict[str, str], kind: str) -> LoggedModel:
        model = self._client.create_logged_model(experiment, self.name, run_id, tags, model_type=kind)
        _sign(packed, model)
        self._client.log_model_artifacts(model.model_id, str(packed))
        self._client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        return self._client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def _summary(version: ModelVersion, aliases: list[str], metric: str) -> dict[str, Any]:
    reasons = [version.tags.get(name) for name in (WITHDRAWN, *(f"{alias}.reason" for alias in aliases))]
    return {
        "number": str(version.version),
        "aliases": ", ".join(sorted(aliases)),
        "value": version.tags.get(metric),
        "reason": next(filter(None, reasons), None),
    }


def _number(version: ModelVersion) -> int:
    return int(version.version)


def _today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())


def _sign(packed: Path, model: LoggedModel) -> None:
    """Writes the id of the logged model into a packed model, and replaces the paths of its sources, which only this machine has."""
    card = packed / CARD
    card.write_text(card.read_text(encoding="utf-8").replace(MODEL_URI, f"models:/{model.model_id}"), encoding="utf-8")
    description = Model.load(packed)
    description.run_id, description.model_id, description.artifact_path = model.source_run_id, model.model_id, model.artifact_location
    flavor = description.flavors["python_function"]
    flavor["model_code_path"] = ENTRY.name
    for artifact in flavor["artifacts"].values():
        artifact["uri"] = artifact["path"]
    description.save(str(packed / MLMODEL_FILE_NAME))
