"""As much of W&B's server as wandb needs to be online, on loopback; it remembers what it is sent, and fails when told to.

    with serving() as server:
        …                                   # with the variables of `server.environment`
        server.runs["abc"].history          # [{"epoch": 1, …}, …]

`server.fault` is what it does to every request from now on: None answers, a number is answered as HTTP status, "swallow"
accepts and never answers, "refuse" closes the port. `server.fail("refuse", after=3)` does so once it has 3 rows of history.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

ENTITY = "me"
KEY = "k" * 40
_LAST = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}  # page of a list


@dataclass
class Run:
    """A run as it was sent. `state` is running, finished or failed; `config` is without W&B's own part."""

    id: str
    project: str
    entity: str = ENTITY
    name: str = ""
    group: str | None = None
    job_type: str | None = None
    notes: str | None = None
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    artifacts: list[Artifact] = field(default_factory=list)
    state: str = "running"
    exit_code: int | None = None
    given: dict[str, Any] = field(default_factory=dict)  # the config as it came, for a run that goes on


@dataclass
class Artifact:
    """A version of an artifact: its files by name, and `committed` once W&B had all of them."""

    id: str
    name: str
    type: str
    aliases: list[str]
    metadata: dict[str, Any]
    manifest: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    committed: bool = False


class Server:
    """What a W&B server knows, and how it fares. Requests come in threads of their own; one at a time is answered."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.views: dict[str, dict[str, Any]] = {}  # saved workspaces, by name
        self.reports: dict[str, dict[str, Any]] = {}  # by id
        self.sweeps: dict[str, Any] = {}  # configs of W&B's own, by id
        self.points: list[dict[str, Any]] = []  # that its agents are still to try
        self.unknown: list[str] = []  # operations that it has no answer to
        self.fault: int | str | None = None
        self.lock = threading.Lock()
        self.over = threading.Event()
        self._later: tuple[int | str, int] | None = None
        self._http = _HTTP(("127.0.0.1", 0), _Handler)
        self._http.server = self
        self._thread = threading.Thread(target=self._http.serve_forever, args=[0.05], daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}

    def run(self) -> Run:
        """The only one."""
        (run,) = self.runs.values()
        return run

    def fail(self, fault: int | str, after: int = 0) -> None:
        """Fail, once there are `after` rows of history of all runs together."""
        self._later = (fault, after)
        self._look()

    def _look(self) -> None:
        if self._later and sum(len(run.history) for run in self.runs.values()) >= self._later[1]:
            self.fault, self._later = self._later[0], None
            if self.fault == "refuse":
                threading.Thread(target=self.close).start()  # not the thread that is answering

    def close(self) -> None:
        self.over.set()
        self._http.shutdown()
        self._http.server_close()

    def answer(self, path: str, body: bytes) -> object:
        """What a POST gets; None where nothing is known of it."""
        if path.endswith("/graphql"):
            told = json.loads(body)
            named = re.search(r"(?:mutation|query)\s+(\w+)", told["query"])
            operation = getattr(self, f"_{named[1]}", None) if named else None
            if operation is None:
                self.unknown.append(named[1] if named else told["query"])
                return {"errors": [{"message": "unknown to this server"}]}
            return {"data": operation(told.get("variables") or {})}
        if found := re.search(r"/files/[^/]+/[^/]+/([^/]+)/file_stream$", path):
            self._stream(self.runs[found[1]], json.loads(body))
            return {"exitcode": None, "limits": {}}
        return None

    def put(self, path: str, body: bytes) -> None:
        """A file that was promised an address by `_upload`."""
        kind, owner, name = path.removeprefix("/upload/").split("/", 2)
        if kind == "run":
            self.runs[owner].files[name] = body
        elif kind == "manifest":
            self.artifacts[owner].manifest = json.loads(body)
        else:
            self.artifacts[owner].files[name] = body

    def _upload(self, kind: str, owner: str, name: str) -> str:
        return f"{self.url}/upload/{kind}/{owner}/{name}"

    def _stream(self, run: Run, told: dict[str, Any]) -> None:
        """Lines have an offset, so that what is sent again takes its own place."""
        for name, part in told.get("files", {}).items():
            lines = [json.loads(line) for line in part["content"] if name.endswith((".jsonl", ".json"))]
            if name == "wandb-summary.json":
                run.summary = lines[-1]
            elif name in ("wandb-history.jsonl", "wandb-events.jsonl"):
                kept = run.history if "history" in name else run.events
                kept[part["offset"] : part["offset"] + len(lines)] = lines
        run.exit_code = told.get("exitcode") if told.get("complete") else None
        run.state = {None: "running", 0: "finished"}.get(run.exit_code, "failed")
        self._look()

    # GraphQL's operations

    def _Viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        viewer = {"id": ENTITY, "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}"}
        return {"viewer": {**viewer, "teams": {"edges": []}, "apiKeys": {"edges": []}}}

    def _GetDefaultEntity(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": ENTITY, "entity": ENTITY}}

    def _ServerFeaturesQuery(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _project(self, run: Run) -> dict[str, Any]:
        return {"id": run.project, "name": run.project, "entity": {"id": run.entity, "name": run.entity}}

    def _RunResumeStatus(self, about: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(about["name"])
        if run is None:
            return {"model": None}
        bucket = {
            "id": run.id,
            "name": run.id,
            "displayName": run.name,
            "summaryMetrics": json.dumps(run.summary),
            "config": json.dumps(run.given),
            "logLineCount": 0,
            "historyLineCount": len(run.history),
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "eventsLineCount": len(run.events),
            "eventsTail": json.dumps([json.dumps(row) for row in run.events[-1:]]),
            "tags": run.tags,
            "notes": run.notes,
            "wandbConfig": json.dumps({"t": {}}),
        }
        return {"model": {**self._project(run), "bucket": bucket}}

    def _UpsertBucket(self, about: dict[str, Any]) -> dict[str, Any]:
        given = {key: value for key, value in about.items() if value is not None}
        name = given.get("name") or given["id"]
        inserted = name not in self.runs
        run = self.runs.setdefault(name, Run(name, given.get("project", "uncategorized")))
        run.entity = given.get("entity", run.entity)
        names = {"displayName": "name", "groupName": "group", "jobType": "job_type", "notes": "notes", "tags": "tags"}
        for key, own in names.items():
            setattr(run, own, given.get(key, getattr(run, own)))
        if "config" in given:
            run.given = json.loads(given["config"])
            run.config = {key: each["value"] for key, each in run.given.items() if key != "_wandb"}
        bucket = {"id": name, "name": name, "displayName": run.name, "description": "", "config": json.dumps(run.given)}
        bucket |= {"sweepName": None, "project": self._project(run), "historyLineCount": len(run.history)}
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _CreateRunFiles(self, about: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": self._upload("run", about["run"], name)} for name in about["files"]]
        return {"createRunFiles": {"runID": about["run"], "uploadHeaders": [], "files": files}}

    def _CreateArtifact(self, about: dict[str, Any]) -> dict[str, Any]:
        told = about["input"]
        artifact = Artifact(
            f"artifact{len(self.artifacts)}",
            told["artifactCollectionName"],
            told["artifactTypeName"],
            [alias["alias"] for alias in told.get("aliases") or []],
            json.loads(told.get("metadata") or "{}"),
        )
        self.artifacts[artifact.id] = artifact
        self.runs[told["runName"]].artifacts.append(artifact)
        made = {"id": artifact.id, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": made}}

    def _CreateArtifactManifest(self, about: dict[str, Any]) -> dict[str, Any]:
        return {"createArtifactManifest": {"artifactManifest": self._manifest(about["artifactID"])}}

    def _UpdateArtifactManifest(self, about: dict[str, Any]) -> dict[str, Any]:
        return {"updateArtifactManifest": {"artifactManifest": self._manifest(about["artifactManifestID"])}}

    def _manifest(self, artifact: str) -> dict[str, Any]:
        file = {"id": artifact, "uploadUrl": self._upload("manifest", artifact, "manifest.json"), "uploadHeaders": []}
        return {"id": artifact, "file": file}

    def _CreateArtifactFiles(self, about: dict[str, Any]) -> dict[str, Any]:
        edges = []
        for each in about["input"]["artifactFiles"]:
            address = self._upload("artifact", each["artifactID"], each["name"])
            node = {"storagePath": each["name"], "uploadUrl": address, "uploadHeaders": []}
            edges.append({"node": {**node, "uploadMultipartUrls": None, "artifact": {"id": each["artifactID"]}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _CommitArtifact(self, about: dict[str, Any]) -> dict[str, Any]:
        self.artifacts[about["artifactID"]].committed = True
        return {"commitArtifact": {"artifact": {"id": about["artifactID"], "digest": ""}}}

    def _UpsertView2(self, about: dict[str, Any]) -> dict[str, Any]:
        name = about["name"]
        inserted = name not in self.views
        self.views[name] = {**about, "id": f"view-{name}", "spec": json.loads(about["spec"])}
        return {"upsertView": {"view": {"id": f"view-{name}", "name": name}, "inserted": inserted}}

    def _View(self, about: dict[str, Any]) -> dict[str, Any]:
        found = [view for name, view in self.views.items() if name == about["viewName"]]
        nodes = [
            {"id": view["id"], "displayName": view["displayName"], "spec": json.dumps(view["spec"])} for view in found
        ]
        return {"project": {"allViews": {"edges": [{"node": node} for node in nodes]}}}

    def _GetProjects(self, _: dict[str, Any]) -> dict[str, Any]:
        names = sorted({run.project for run in self.runs.values()} | {"swinexp"})
        about = {
            "__typename": "Project",
            "entityName": ENTITY,
            "createdAt": "2026-01-01T00:00:00",
            "isBenchmark": False,
        }
        edges = [{"node": {**about, "id": name, "name": name, "user": None}} for name in names]
        return {"models": {"pageInfo": _LAST, "edges": edges}}

    def _upsertView(self, about: dict[str, Any]) -> dict[str, Any]:
        known = about["id"]
        kept = {**about, "id": known or f"VmlldzoxM{len(self.reports)}==", "spec": json.loads(about["spec"])}
        self.reports[kept["id"]] = kept
        project = {"id": about["projectName"], "name": about["projectName"], "entityName": about["entityName"]}
        view = {key: about[key] for key in ("name", "type", "displayName", "description", "spec")}
        return {"upsertView": {"view": {**view, "id": kept["id"], "project": project}, "inserted": known is None}}

    def _ProjectViews(self, _: dict[str, Any]) -> dict[str, Any]:
        nodes = [{**report, "spec": json.dumps(report["spec"])} for report in self.reports.values()]
        return {"project": {"allViews": {"edges": [{"node": node, "cursor": ""} for node in nodes], "pageInfo": _LAST}}}

    def _UpsertSweep(self, about: dict[str, Any]) -> dict[str, Any]:
        name = f"sweep{len(self.sweeps)}"
        self.sweeps[name] = yaml.safe_load(about["config"])
        project = {"id": about["projectName"], "name": about["projectName"], "entity": {"id": ENTITY, "name": ENTITY}}
        return {"upsertSweep": {"sweep": {"name": name, "project": project}, "configValidationWarnings": []}}

    def _SweepWithRuns(self, about: dict[str, Any]) -> dict[str, Any]:
        sweep = {"id": about["sweep"], "config": json.dumps(self.sweeps[about["sweep"]]), "runs": {"edges": []}}
        return {"project": {"sweep": sweep}}

    def _CreateAgent(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"createAgent": {"agent": {"id": "agent"}}}

    def _Heartbeat(self, about: dict[str, Any]) -> dict[str, Any]:
        commands: list[dict[str, Any]] = []
        if not json.loads(about["runState"]):  # its agents train one run at a time
            point = self.points.pop(0) if self.points else None
            told = {key: {"value": value} for key, value in (point or {}).items()}
            run = {"type": "run", "run_id": f"point{len(self.points)}", "program": "swinexp.run", "args": told}
            commands = [{"type": "exit"} if point is None else run]
        return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}


class _HTTP(ThreadingHTTPServer):
    daemon_threads = True
    server: Server


class _Handler(BaseHTTPRequestHandler):
    server: _HTTP

    def do_POST(self) -> None:
        self._serve()

    do_GET = do_PUT = do_HEAD = do_POST

    def _serve(self) -> None:
        state = self.server.server
        if state.fault == "swallow":
            state.over.wait()
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if isinstance(state.fault, int):
            self._answer(state.fault, {"errors": [{"message": "told to fail"}]})
            return
        with state.lock:
            if self.command == "PUT":
                state.put(self.path, body)
                self._answer(200, {})
            elif self.command == "POST" and (told := state.answer(self.path, body)) is not None:
                self._answer(200, told)
            else:
                self._answer(404, {})

    def _answer(self, status: int, told: object) -> None:
        text = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    """A server that runs while the block lasts."""
    server = Server()
    try:
        yield server
    finally:
        if not server.over.is_set():
            server.close()
