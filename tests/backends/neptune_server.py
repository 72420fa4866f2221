"""A Neptune server of our own on the loopback interface: the unmodified Neptune client (1.x) creates runs in it.

Written from the list of endpoints that the client calls: it serves the two swagger documents by which the client finds
everything else, logs it in, and keeps runs, fields, series and files in memory. It judges operations as the hosted
service did, which closed in 2026: a field has one type, a path cannot be both field and namespace, the steps of a
series only grow, a run has so many fields. What goes wrong is switched on and off while it runs.

    with neptune_server() as server:
        options = {"project": server.project, "api_token": server.api_token}
        ...                                   # a run is delivered
        run = server.run()                    # the only one; or server.run(custom_id=...), server.run(name=...)
        run.value("parameters/lr")            # any single value
        run.series("metrics/loss")            # [Point(step, value, time_ms), ...]
        run.content("artifacts/model.bin")    # bytes
        run.paths()                           # all fields but those below sys/

        server.fail("status", status=429, headers={"Retry-After": "2"})       # every request, until heal()
        server.fail("drop", only="executeOperations", times=1)                # closes the connection unanswered
        server.fail("lose_answer", only="executeOperations", times=1)         # does it, then closes the connection
        server.fail("hang")                                                   # never answers
        server.heal()
        server.stop(); server.start()         # the machine goes away and comes back, with its data, at the same port
        server.websocket = "silent"           # never answers a close; or "answering", or "missing": there are none
        server.signal("stop")                 # what a person presses in the app; or "abort"
        server.strict_steps = False           # takes what it is given
        server.max_fields = 20

Threads of the test's process answer, so a test looks at `server` directly; `server.count["executeOperations"]` says how
often something was asked. Standard library only.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import hashlib
import json
import re
import socket
import struct
import threading
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from ports import free_port

WORKSPACE = "people"
SECRET = "a-very-secret-api-key"
_MAX_STRING = 16384
_ATOMS = {
    "assignFloat": ("float", "value"),
    "assignInt": ("int", "value"),
    "assignBool": ("bool", "value"),
    "assignString": ("string", "value"),
    "assignDatetime": ("datetime", "valueMilliseconds"),
}
_SERIES = {"logFloats": "floatSeries", "logStrings": "stringSeries", "logImages": "imageSeries"}
_CLEARS = {
    "clearFloatSeries": "floatSeries",
    "clearStringSeries": "stringSeries",
    "clearImageSeries": "imageSeries",
    "clearStringSet": "stringSet",
}


class Point(NamedTuple):
    """One value of a series."""

    step: float
    value: Any
    time_ms: int


@dataclass
class Field:
    """One field of a run: a value, a set, the points of a series, or the bytes of a file."""

    type: str
    value: Any
    extension: str = ""


@dataclass
class Run:
    """A run as the server has it."""

    id: str
    short_id: str
    custom_id: str | None
    fields: dict[str, Field] = field(default_factory=dict)
    namespaces: Counter[str] = field(default_factory=Counter)
    pings: int = 0

    def paths(self) -> list[str]:
        """All fields except those below `sys/`."""
        return sorted(path for path in self.fields if not path.startswith("sys/"))

    def value(self, path: str) -> Any:
        """The value of a field that has one."""
        return self.fields[path].value

    def series(self, path: str) -> list[Point]:
        """The points of a series."""
        assert self.fields[path].type.endswith("Series"), self.fields[path].type
        return list(self.fields[path].value)

    def content(self, path: str) -> bytes:
        """What is in a file."""
        assert self.fields[path].type == "file", self.fields[path].type
        return bytes(self.fields[path].value)

    def values(self, prefix: str) -> dict[str, Any]:
        """All values below a namespace, by what follows it."""
        return {path.removeprefix(prefix): one.value for path, one in self.fields.items() if path.startswith(prefix)}

    def add(self, path: str, type_: str, value: Any, extension: str = "") -> None:
        self.fields[path] = Field(type_, value, extension)
        parts = path.split("/")
        for depth in range(1, len(parts)):
            self.namespaces["/".join(parts[:depth])] += 1

    def remove(self, path: str) -> None:
        del self.fields[path]
        parts = path.split("/")
        for depth in range(1, len(parts)):
            self.namespaces["/".join(parts[:depth])] -= 1

    def obstacle(self, path: str) -> str | None:
        """Why there can be no field of that path."""
        if self.namespaces[path]:
            return f"Cannot set attribute '{path}'. It's a namespace"
        parts = path.split("/")
        for depth in range(1, len(parts)):
            if (above := "/".join(parts[:depth])) in self.fields:
                return f"Cannot access path '{path}': '{above}' is already defined as an attribute"
        return None


@dataclass
class Fault:
    """Something that goes wrong with requests.

    Args:
        kind: "status", "drop", "lose_answer" or "hang".
        only: The operation it happens to; None for all.
        times: How often; None for until it is healed.
        after: How many such requests are let through before.
    """

    kind: str
    only: str | None = None
    times: int | None = None
    after: int = 0
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)


class _Refused(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, body: Any = None) -> None:
        super().__init__(status)
        self.status = status
        self.body = body


class NeptuneServer:
    """See the module.

    Args:
        projects: Names of the projects there are, in the workspace `people`.
    """

    def __init__(self, projects: tuple[str, ...] = ("digits",)) -> None:
        self.project = f"{WORKSPACE}/{projects[0]}"
        self.websocket = "missing"
        self.strict_steps = True
        self.max_fields = 9000
        self.count: Counter[str] = Counter()
        self.tokens_seen: set[str] = set()
        self.runs: dict[str, Run] = {}
        self._projects = {f"{WORKSPACE}/{name}": str(uuid.uuid4()) for name in projects}
        self._uploads: dict[str, dict[str, Any]] = {}
        self._faults: list[Fault] = []
        self._healed = threading.Event()
        self._lock = threading.RLock()
        self.websockets: set[socket.socket] = set()
        self._port = free_port()
        self._listener: _Listener | None = None
        self._thread: threading.Thread | None = None

    # For tests

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def api_token(self) -> str:
        content = {"api_address": self.url, "api_url": self.url, "api_key": SECRET}
        return base64.b64encode(json.dumps(content).encode()).decode()

    def run(self, *, custom_id: str | None = None, name: str | None = None) -> Run:
        """The one run there is, with that custom id or name if they are given."""
        with self._lock:
            found = [
                run
                for run in self.runs.values()
                if custom_id in (None, run.custom_id)
                and (name is None or ("sys/name" in run.fields and run.value("sys/name") == name))
            ]
        assert len(found) == 1, f"{len(found)} runs"
        return found[0]

    def fail(self, kind: str, **details: Any) -> Fault:
        """Have something go wrong from now on; see `Fault`."""
        fault = Fault(kind, **details)
        with self._lock:
            self._healed.clear()
            self._faults.append(fault)
        return fault

    def heal(self) -> None:
        """Have nothing go wrong any more; what hangs is dropped."""
        with self._lock:
            self._faults.clear()
        self._healed.set()

    def signal(self, kind: str) -> None:
        """Send a signal through all websockets there are."""
        content = json.dumps({"type": f"neptune/{kind}", "body": {"seconds": 5}}).encode()
        for connection in list(self.websockets):
            with contextlib.suppress(OSError):
                connection.sendall(bytes([0x81, len(content)]) + content)

    def start(self) -> None:
        """Listen, at the same port as before."""
        self._listener = _Listener(("127.0.0.1", self._port), self)
        self._thread = threading.Thread(
            target=self._listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Refuse connections and drop those there are; the data stays."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        self._healed.set()
        listener.shutdown()
        listener.server_close()
        listener.drop_all()
        assert self._thread is not None
        self._thread.join(10)

    # What the client asks

    def fault_for(self, operation: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.only not in (None, operation):
                    continue
                if fault.after > 0:
                    fault.after -= 1
                    continue
                if fault.times is not None:
                    if fault.times <= 0:
                        continue
                    fault.times -= 1
                return fault
        return None

    def wait_healed(self) -> None:
        self._healed.wait()

    def answer(self, operation: str, query: dict[str, str], headers: Any, body: bytes) -> Any:
        """The result of an operation, ready for JSON."""
        with self._lock:
            self.count[operation] += 1
            return getattr(self, "_" + re.sub("(?=[A-Z])", "_", operation).lower())(query, headers, body)

    def _backend_swagger(self, *_: Any) -> Any:
        return _swagger(_BACKEND)

    def _leaderboard_swagger(self, *_: Any) -> Any:
        return _swagger(_LEADERBOARD)

    def _get_client_config(self, query: Any, headers: Any, body: bytes) -> Any:
        self._check_token(headers)
        return {"apiUrl": self.url, "applicationUrl": self.url, "pyLibVersions": {"minCompatibleVersion": "0.1.0"}}

    def _exchange_api_token(self, query: Any, headers: Any, body: bytes) -> Any:
        self._check_token(headers)
        return {"accessToken": self._jwt(), "refreshToken": "refresh", "username": "somebody"}

    def _token(self, *_: Any) -> Any:
        return {
            "access_token": self._jwt(),
            "refresh_token": "refresh",
            "expires_in": 3600,
            "token_type": "Bearer",
        }

    def _check_token(self, headers: Any) -> None:
        given = headers.get("X-Neptune-Api-Token", "")
        self.tokens_seen.add(given)
        if given != self.api_token:
            raise _Refused(401, {"code": 401, "title": "invalid token"})

    def _jwt(self) -> str:
        parts = [
            {"alg": "none", "typ": "JWT"},
            {"iss": f"{self.url}/auth", "azp": "neptune-cli", "exp": int(time.time()) + 3600, "jti": uuid.uuid4().hex},
        ]
        return (
            ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + "."
        )

    def _get_project(self, query: dict[str, str], *_: Any) -> Any:
        name = query["projectIdentifier"]
        if name not in self._projects:
            raise _Refused(404, {"title": "no such project"})
        return self._project_entry(name)

    def _project_entry(self, name: str) -> Any:
        organization, _, short = name.partition("/")
        return {
            "id": self._projects[name],
            "name": short,
            "organizationName": organization,
            "projectKey": short[:3].upper(),
            "version": 2,
        }

    def _list_projects(self, query: dict[str, str], *_: Any) -> Any:
        wanted = query.get("searchTerm") or ""
        return {"entries": [self._project_entry(name) for name in self._projects if wanted in name]}

    def _list_organizations(self, *_: Any) -> Any:
        return [{"id": "1", "name": WORKSPACE}]

    def _create_experiment(self, query: Any, headers: Any, body: bytes) -> Any:
        params = json.loads(body)
        custom_id = params.get("customId")
        for run in self.runs.values():
            if custom_id is not None and run.custom_id == custom_id:
                return self._experiment(run)
        run = Run(str(uuid.uuid4()), f"DIG-{len(self.runs) + 1}", custom_id)
        run.add("sys/id", "string", run.short_id)
        run.add("sys/owner", "string", "somebody")
        run.add("sys/creation_time", "datetime", int(time.time() * 1000))
        self.runs[run.id] = run
        return self._experiment(run)

    def _experiment(self, run: Run) -> Any:
        organization, _, project = self.project.partition("/")
        return {
            "id": run.id,
            "shortId": run.short_id,
            "organizationName": organization,
            "projectName": project,
            "type": "run",
            "trashed": False,
        }

    def _get_experiment(self, query: dict[str, str], *_: Any) -> Any:
        return self._experiment(self._find(query["experimentId"]))

    def _find(self, identity: str) -> Run:
        if identity in self.runs:
            return self.runs[identity]
        for run in self.runs.values():
            if identity == f"{self.project}/{run.short_id}":
                return run
        raise _Refused(404, {"errorType": "EXPERIMENT_NOT_FOUND", "title": "no such run"})

    def _ping(self, query: dict[str, str], *_: Any) -> Any:
        self._find(query["experimentId"]).pings += 1
        return {}

    def _get_experiment_attributes(self, query: dict[str, str], *_: Any) -> Any:
        entries = []
        for path, one in self._find(query["experimentId"]).fields.items():
            entry: dict[str, Any] = {"name": path, "type": one.type}
            shown = one.value
            if one.type in ("float", "int", "bool", "string"):
                entry[f"{one.type}Properties"] = {"value": shown}
            elif one.type == "datetime":
                entry["datetimeProperties"] = {"value": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(shown / 1000))}
            elif one.type in ("floatSeries", "stringSeries"):
                entry[f"{one.type}Properties"] = {"last": shown[-1].value if shown else None}
            elif one.type == "stringSet":
                entry["stringSetProperties"] = {"values": sorted(shown)}
            entries.append(entry)
        return {"attributes": entries}

    def _atom(self, type_: str, query: dict[str, str]) -> Any:
        found = self._find(query["experimentId"]).fields.get(query["attribute"])
        if found is None or found.type != type_:
            raise _Refused(404, {"title": "no such attribute"})
        return {"value": found.value}

    def _get_string_attribute(self, query: dict[str, str], *_: Any) -> Any:
        return self._atom("string", query)

    def _get_float_attribute(self, query: dict[str, str], *_: Any) -> Any:
        return self._atom("float", query)

    def _get_int_attribute(self, query: dict[str, str], *_: Any) -> Any:
        return self._atom("int", query)

    def _get_bool_attribute(self, query: dict[str, str], *_: Any) -> Any:
        return self._atom("bool", query)

    def _get_file_attribute(self, query: dict[str, str], *_: Any) -> Any:
        found = self._find(query["experimentId"]).fields.get(query["attribute"])
        if found is None or found.type != "file":
            raise _Refused(404, {"title": "no such attribute"})
        return {"name": query["attribute"], "ext": found.extension, "size": len(found.value)}

    def _values(self, query: dict[str, str]) -> Any:
        found = self._find(query["experimentId"]).fields.get(query["attribute"])
        if found is None or not found.type.endswith("Series"):
            raise _Refused(404, {"title": "no such attribute"})
        start = int(query["offset"])
        part = found.value[start : start + int(query["limit"])]
        values = [{"timestampMillis": point.time_ms, "step": point.step, "value": point.value} for point in part]
        return {"totalItemCount": len(found.value), "values": values}

    def _get_float_series_values(self, query: dict[str, str], *_: Any) -> Any:
        return self._values(query)

    def _get_string_series_values(self, query: dict[str, str], *_: Any) -> Any:
        return self._values(query)

    def _get_image_series_values(self, query: dict[str, str], *_: Any) -> Any:
        return {"totalItemCount": self._values(query)["totalItemCount"]}

    def _execute_operations(self, query: dict[str, str], headers: Any, body: bytes) -> Any:
        run = self._find(query["experimentId"])
        operations = json.loads(body)
        fresh = {operation["path"] for operation in operations} - run.fields.keys()
        if len(run.fields) + len(fresh) > self.max_fields:
            raise _Refused(
                422,
                {
                    "errorType": "ATTRIBUTES_PER_EXPERIMENT_LIMIT_EXCEEDED",
                    "title": "too many fields",
                    "limit": self.max_fields,
                },
            )
        errors = []
        for operation in operations:
            path = operation.pop("path")
            ((kind, details),) = operation.items()
            error = self._execute(run, path, kind, details)
            if error is not None:
                errors.append({"errorDescription": error})
        return errors

    def _execute(self, run: Run, path: str, kind: str, details: dict[str, Any]) -> str | None:
        known = run.fields.get(path)
        if kind == "deleteAttribute":
            if known is None:
                return f"Cannot delete {path}. Attribute not found."
            run.remove(path)
            return None
        if known is None and (obstacle := run.obstacle(path)) is not None:
            return obstacle
        if kind in _ATOMS:
            type_, name = _ATOMS[kind]
            return self._assign(run, path, type_, details[name])
        if kind in _SERIES:
            return self._log(run, path, _SERIES[kind], details["entries"])
        if kind in _CLEARS:
            if known is not None and known.type == _CLEARS[kind]:
                known.value = set() if kind == "clearStringSet" else []
            return None
        if kind in ("insertStrings", "removeStrings"):
            if known is None:
                run.add(path, "stringSet", set())
            elif known.type != "stringSet":
                return f"Attribute {path} is not a stringSet"
            given = set(details["values"])
            run.fields[path].value = run.value(path) | given if kind == "insertStrings" else run.value(path) - given
            return None
        if kind == "configFloatSeries":
            return None
        return f"unknown operation {kind}"

    def _assign(self, run: Run, path: str, type_: str, value: Any) -> str | None:
        known = run.fields.get(path)
        if known is not None and known.type != type_:
            return f"Attribute {path} is not a {type_}"
        if type_ == "string" and len(value) > _MAX_STRING:
            return f"Value of {path} is too long"
        if known is None:
            run.add(path, type_, value)
        else:
            known.value = value
        return None

    def _log(self, run: Run, path: str, type_: str, entries: list[dict[str, Any]]) -> str | None:
        known = run.fields.get(path)
        if known is None:
            run.add(path, type_, [])
            known = run.fields[path]
        elif known.type != type_:
            return f"Attribute {path} is not a {type_}"
        points: list[Point] = known.value
        refused = 0
        for entry in entries:
            step, time_ms = entry["step"], entry["timestampMilliseconds"]
            if step is None:
                step = points[-1].step + 1 if points else 0
            if self.strict_steps and points and (step <= points[-1].step or time_ms < points[-1].time_ms):
                refused += 1
                continue
            points.append(Point(step, entry["value"], time_ms))
        if refused:
            return f"X-coordinates (step) must be strictly increasing for series attribute: {path}. {refused} left out"
        return None

    # Files

    def _file_atom_upload(self, query: dict[str, str], headers: Any, body: bytes) -> Any:
        return self._store(query, query.get("ext", ""), body)

    def _store(self, query: dict[str, str], extension: str, content: bytes) -> Any:
        run, path = self._find(query["experimentIdentifier"]), query["attribute"]
        known = run.fields.get(path)
        problem = run.obstacle(path) if known is None else None
        if known is not None and known.type != "file":
            problem = f"Attribute {path} is not a file"
        if problem is not None:
            return {"errors": [{"errorDescription": problem}]}
        if known is not None:
            run.remove(path)
        run.add(path, "file", content, extension)
        return None

    def _file_atom_multipart_upload_start(self, query: dict[str, str], headers: Any, body: bytes) -> Any:
        identity = uuid.uuid4().hex
        self._uploads[identity] = {"size": int(query["totalLength"]), "ext": query.get("ext", ""), "parts": {}}
        return {"uploadId": identity, "errors": []}

    def _file_atom_multipart_upload_part(self, query: dict[str, str], headers: Any, body: bytes) -> Any:
        self._uploads[query["uploadId"]]["parts"][int(query["uploadPartIdx"])] = body
        return {"errors": []}

    def _file_atom_multipart_upload_finish(self, query: dict[str, str], headers: Any, body: bytes) -> Any:
        upload = self._uploads.pop(query["uploadId"])
        content = b"".join(part for _, part in sorted(upload["parts"].items()))
        if len(content) != upload["size"]:
            return {"errors": [{"errorDescription": "parts are missing"}]}
        return self._store(query, upload["ext"], content) or {"errors": []}


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], neptune: NeptuneServer) -> None:
        self.neptune = neptune
        self._open: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def drop_all(self) -> None:
        for request in list(self._open):
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that was cut is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    server: _Listener

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._respond()

    def do_POST(self) -> None:
        self._respond()

    def _respond(self) -> None:
        neptune = self.server.neptune
        parts = urlsplit(self.path)
        operation = _OPERATION_OF.get((self.command, parts.path))
        if parts.path.startswith("/api/notifications/"):
            operation = "websocket"
        fault = neptune.fault_for(operation or "unknown")
        if fault is not None and fault.kind == "drop":
            # What is being sent is not read to its end: the connection is reset.
            self.rfile.read(min(100, int(self.headers.get("Content-Length") or 0)))
            self._cut()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault is not None and fault.kind == "hang":
            neptune.wait_healed()
            self._cut()
            return
        if fault is not None and fault.kind == "status":
            self._send(fault.status, fault.body, fault.headers)
            return
        if operation == "websocket":
            self._websocket()
            return
        if operation is None:
            self._send(404, {"title": f"no such path: {parts.path}"})
            return
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        try:
            status, result = 200, neptune.answer(operation, query, self.headers, body)
        except _Refused as refused:
            status, result = refused.status, refused.body
        if fault is not None and fault.kind == "lose_answer":
            self._cut()
            return
        self._send(status, result)

    def _send(self, status: int, result: Any, headers: dict[str, str] | None = None) -> None:
        content = result if isinstance(result, bytes) else json.dumps(result).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _websocket(self) -> None:
        if self.server.neptune.websocket == "missing":
            self._send(404, {"title": "no websockets"})
            return
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accepted = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.send_response(101)
        for name, value in {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": accepted}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()
        self.server.neptune.count["websocket"] += 1
        self.close_connection = True
        self.server.neptune.websockets.add(self.connection)
        try:
            self._keep_websocket()
        finally:
            self.server.neptune.websockets.discard(self.connection)

    def _keep_websocket(self) -> None:
        while True:
            head = self.rfile.read(2)
            if len(head) < 2:
                return
            # A client's frame is masked; what it sends is always short.
            self.rfile.read(4 + (head[1] & 0x7F))
            if head[0] & 0x0F == 8 and self.server.neptune.websocket == "answering":
                self.wfile.write(b"\x88\x00")
                self.wfile.flush()
                return


# The swagger documents. The client goes by operationId, and takes only parameters that are declared.


def _entry(
    operation: str, path: str, result: Any, *names: str, method: str = "get", body: str | None = None
) -> dict[str, Any]:
    return {"operation": operation, "path": path, "result": result, "names": names, "method": method, "body": body}


_TOKEN_HEADER = "X-Neptune-Api-Token!"
_BACKEND = [
    _entry("getClientConfig", "/api/backend/v1/clients/config", "Config", _TOKEN_HEADER, "alpha"),
    _entry("exchangeApiToken", "/api/backend/v1/authorization/oauth-token", "Tokens", _TOKEN_HEADER),
    _entry("getProject", "/api/backend/v1/projects/get", "Project", "projectIdentifier"),
    _entry(
        "listProjects",
        "/api/backend/v1/projects/list",
        "Projects",
        "limit",
        "organizationIdentifier",
        "searchTerm",
        "sortBy[]",
        "sortDirection[]",
        "userRelation",
    ),
    _entry("listOrganizations", "/api/backend/v1/organizations", ["Organization"]),
]
_OF_FIELD = ("experimentId", "attribute")
_OF_FILE = ("experimentIdentifier", "attribute")
_ROOT = "/api/leaderboard/v1"
_LEADERBOARD = [
    _entry(
        "createExperiment",
        f"{_ROOT}/experiments",
        "Experiment",
        "X-Neptune-CliVersion!",
        method="post",
        body="experimentCreationParams",
    ),
    _entry("getExperiment", f"{_ROOT}/experiment", "Experiment", "experimentId"),
    _entry("getExperimentAttributes", f"{_ROOT}/attributes", "Attributes", "experimentId"),
    _entry(
        "executeOperations",
        f"{_ROOT}/operations",
        ["Error"],
        "experimentId",
        "organizationName",
        method="post",
        body="operations",
    ),
    _entry("ping", f"{_ROOT}/ping", "Nothing", "experimentId", method="post"),
    _entry("getStringAttribute", f"{_ROOT}/string", "Value", *_OF_FIELD),
    _entry("getFloatAttribute", f"{_ROOT}/float", "Value", *_OF_FIELD),
    _entry("getIntAttribute", f"{_ROOT}/int", "Value", *_OF_FIELD),
    _entry("getBoolAttribute", f"{_ROOT}/bool", "Value", *_OF_FIELD),
    _entry("getFileAttribute", f"{_ROOT}/file/info", "File", *_OF_FIELD),
    _entry("getFloatSeriesValues", f"{_ROOT}/floats", "Points", *_OF_FIELD, "limit", "offset"),
    _entry("getStringSeriesValues", f"{_ROOT}/strings", "Points", *_OF_FIELD, "limit", "offset"),
    _entry("getImageSeriesValues", f"{_ROOT}/images", "Points", *_OF_FIELD, "limit", "offset"),
    _entry("fileAtomUpload", f"{_ROOT}/file", "Nothing", *_OF_FILE, "ext", method="post"),
    _entry(
        "fileAtomMultipartUploadStart", f"{_ROOT}/file/start", "Upload", *_OF_FILE, "ext", "totalLength", method="post"
    ),
    _entry("fileAtomMultipartUploadPart", f"{_ROOT}/file/part", "Upload", *_OF_FILE, "uploadId", method="post"),
    _entry("fileAtomMultipartUploadFinish", f"{_ROOT}/file/finish", "Upload", *_OF_FILE, "uploadId", method="post"),
]
_OPERATION_OF = {
    **{(entry["method"].upper(), entry["path"]): entry["operation"] for entry in (*_BACKEND, *_LEADERBOARD)},
    ("GET", "/api/backend/swagger.json"): "backendSwagger",
    ("GET", "/api/leaderboard/swagger.json"): "leaderboardSwagger",
    ("POST", "/auth/protocol/openid-connect/token"): "token",
}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _list_of(name: str) -> dict[str, Any]:
    return {"type": "array", "items": {"$ref": f"#/definitions/{name}"}}


def _texts(*names: str) -> dict[str, Any]:
    return {name: {"type": "string"} for name in names}


_ANYTHING: dict[str, Any] = {}
_SHAPES = {
    **dict.fromkeys(("float", "int", "bool", "string", "datetime"), "Value"),
    "floatSeries": "Last",
    "stringSeries": "Last",
    "stringSet": "Values",
}
_DEFINITIONS = {
    "Config": _object(**_texts("apiUrl", "applicationUrl"), pyLibVersions={"$ref": "#/definitions/Versions"}),
    "Versions": _object(**_texts("minRecommendedVersion", "minCompatibleVersion", "maxCompatibleVersion")),
    "Tokens": _object(**_texts("accessToken", "refreshToken", "username")),
    "Project": _object(**_texts("id", "name", "organizationName", "projectKey"), version={"type": "integer"}),
    "Projects": _object(entries=_list_of("Project")),
    "Organization": _object(**_texts("id", "name")),
    "Experiment": _object(
        **_texts("id", "shortId", "organizationName", "projectName", "type"), trashed={"type": "boolean"}
    ),
    "Value": _object(value=_ANYTHING),
    "File": _object(**_texts("name", "ext"), size={"type": "integer"}),
    "Last": _object(last=_ANYTHING),
    "Values": _object(values={"type": "array", "items": {"type": "string"}}),
    "Attribute": _object(
        **_texts("name", "type"),
        **{f"{name}Properties": {"$ref": f"#/definitions/{shape}"} for name, shape in _SHAPES.items()},
    ),
    "Attributes": _object(attributes=_list_of("Attribute")),
    "Error": _object(errorDescription={"type": "string"}),
    "Nothing": _object(),
    "Point": _object(timestampMillis={"type": "integer"}, step={"type": "number"}, value=_ANYTHING),
    "Points": _object(totalItemCount={"type": "integer"}, values=_list_of("Point")),
    "Upload": _object(uploadId={"type": "string"}, errors=_list_of("Error")),
}


def _swagger(entries: list[dict[str, Any]]) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for entry in entries:
        parameters: list[dict[str, Any]] = []
        for name in entry["names"]:
            kind: dict[str, Any] = {"name": name.rstrip("!").removesuffix("[]"), "in": "query", "type": "string"}
            if name.endswith("!"):
                kind["in"] = "header"
            if name.endswith("[]"):
                kind |= {"type": "array", "items": {"type": "string"}, "collectionFormat": "multi"}
            if name in ("limit", "offset", "totalLength"):
                kind["type"] = "integer"
            parameters.append(kind)
        if entry["body"] is not None:
            parameters.append({"name": entry["body"], "in": "body", "schema": {}})
        result = entry["result"]
        schema = _list_of(result[0]) if isinstance(result, list) else {"$ref": f"#/definitions/{result}"}
        paths[entry["path"]] = {
            entry["method"]: {
                "operationId": entry["operation"],
                "tags": ["api"],
                "consumes": ["application/json"],
                "produces": ["application/json"],
                "parameters": parameters,
                "responses": {"200": {"description": "done", "schema": schema}},
            }
        }
    return {
        "swagger": "2.0",
        "info": {"title": "Neptune", "version": "1"},
        "paths": paths,
        "definitions": _DEFINITIONS,
    }


@contextlib.contextmanager
def neptune_server(configure: Callable[[NeptuneServer], None] | None = None) -> Iterator[NeptuneServer]:
    """A running server; `configure` is called with it before it starts."""
    server = NeptuneServer()
    if configure is not None:
        configure(server)
    server.start()
    try:
        yield server
    finally:
        server.heal()
        server.stop()
        with warnings.catch_warnings():
            # The clients that a backend has left behind never close their files; collected later, that would be told
            # in the middle of another test.
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
