"""Sentences about an MLflow server that cannot be used: the reason, and what to do."""

import os
import re
from urllib.parse import urlsplit

from mlflow.exceptions import MlflowException, RestException
from mlflow.utils.credentials import read_mlflow_creds

from components.common.runs.delivery import REFUSALS, reason

USER, PASSWORD, TOKEN = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"
STATUSES = {"UNAUTHENTICATED": 401, "CUSTOMER_UNAUTHORIZED": 401, "PERMISSION_DENIED": 403}  # HTTP status by error code of MLflow
IN_A_POD = "(in a pod: in the secret that `secrets.mlflow` of the settings names)"


def explain(server: str, error: Exception, first: bool = True) -> str:
    """Describes a failure of a server in one sentence; `first`: no request has succeeded yet."""
    if found := refusal(server, error):
        return found
    if not first and getattr(error, "error_code", None) in REFUSALS:
        return f"{server} refuses a request ({reason(error)}); correct the name, the value or MLFLOW_RUN_ID"
    return f"{server} cannot be used ({reason(error)}); start it or set MLFLOW_TRACKING_URI"


def refusal(server: str, error: Exception) -> str | None:
    """Describes a failed login (401) or a missing permission (403) in one sentence; None if the error is another one."""
    match _status(error):
        case 401:
            return f"{server} {_login()} {IN_A_POD}"
        case 403:
            return f"{server} answers 403: {_user()} needs {_permission(*_request(error))}; let an administrator of MLflow grant it"
    return None


def is_temporary(error: Exception) -> bool:
    """Whether the server is lost or overloaded, so that the same request may succeed later."""
    if isinstance(error, MlflowException):  # other errors of the client have the status 500, too
        answered = isinstance(error, RestException) or str(error).startswith("API request to")
        status = int(error.get_http_status_code()) if answered else 0  # type: ignore[no-untyped-call]
    else:
        status = getattr(getattr(error, "response", None), "status_code", 0)
    unanswered = isinstance(error, OSError) and hasattr(error, "response") and not status  # of requests
    return unanswered or status >= 500 or isinstance(error, (ConnectionError, TimeoutError))


def _status(error: Exception) -> int | None:
    """Returns the HTTP status of an error of MLflow's client, or of requests for artifacts, as far as they are refusals."""
    status = STATUSES.get(getattr(error, "error_code", ""))
    return status or getattr(getattr(error, "response", None), "status_code", None)


def _login() -> str:
    name, password = read_mlflow_creds()
    if name and password:
        return f"answers 401: it does not know the user {name}, or the password is wrong; correct {USER} and {PASSWORD}"
    if os.environ.get(TOKEN):
        return f"answers 401: it refuses the token; correct {TOKEN}"
    missing = " and ".join(variable for variable, value in ((USER, name), (PASSWORD, password)) if not value)
    return f"answers 401: it asks for a user name and a password; set {missing}"


def _user() -> str:
    name, _ = read_mlflow_creds()
    return f"the user {name}" if name else "this user"


def _request(error: Exception) -> tuple[str, str]:
    """Returns method (empty if not known) and path of the request that was refused."""
    if request := getattr(error, "request", None):
        return request.method, urlsplit(request.url).path
    named = re.search(r"endpoint (\S+)", str(error))
    return "", named[1] if named else ""


def _permission(method: str, path: str) -> str:
    """Returns the permission that MLflow's own login asks for (mlflow.server.auth)."""
    thing = "registered model" if re.search("registered-models|model-versions", path) else "experiment"
    level = "EDIT"
    if method == "GET" or re.search(r"/(get|search|list)[^/]*$", path):
        level = "READ"
    elif re.search(r"/(alias|delete[^/]*|logged-models/[^/]+)$", path):  # a user without EDIT was refused before these
        level = "MANAGE"
    return f"the permission {level} on the {thing}{f' for {path}' if path else ''}"
