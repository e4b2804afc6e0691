"""What is offline is sent once."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from swinexp.folder import Folder
from swinexp.mistake import Ended
from swinexp.track.sync import being_written, unsent
from swinexp.track.sync import sync as send
from tests.test_track import FIGURES, row, tracker


class Server(BaseHTTPRequestHandler):
    """As much of W&B's server as `wandb sync` needs; `rows` is what it has been sent of the history."""

    rows: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        answer: dict[str, Any] = {}
        if "graphql" in self.path:
            if "UpsertBucket" in body["query"]:
                name = body["variables"]["name"]
                project = {"name": "swinexp", "entity": {"name": "me"}}
                bucket = {"id": name, "name": name, "displayName": name, "project": project, "historyLineCount": 0}
                answer = {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
            elif "Viewer" in body["query"]:
                answer = {"data": {"viewer": {"id": "me", "entity": "me", "flags": "{}", "teams": {"edges": []}}}}
            elif "RunResumeStatus" in body["query"]:
                answer = {"data": {"model": None}}
            elif "CreateRunFiles" in body["query"]:
                answer = {"data": {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": []}}}
            else:
                answer = {"errors": [{"message": "unknown"}]}
        elif "file_stream" in self.path:
            lines = body.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.rows.extend(json.loads(line) for line in lines)
        self._answer(answer)

    def do_GET(self) -> None:
        self._answer({})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer({})

    def _answer(self, answer: dict[str, Any]) -> None:
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Server]]:
    Server.rows.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{http.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
        yield Server
        http.shutdown()


def sync() -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "swinexp.track.sync"], capture_output=True, text=True, check=False, timeout=120
    )


def run(name: str) -> None:
    with Folder(Path(name)) as folder, tracker(folder, "wandb=offline") as track:
        track.epoch(1, row())
        track.epoch(2, row())
        track.finish(FIGURES)


@pytest.mark.slow
def test_what_is_offline_is_sent_once(server: type[Server]) -> None:
    run("first")
    done = sync()
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("1 run sent\n")
    assert [each["epoch"] for each in server.rows] == [1, 2]
    assert unsent(Path("outputs/wandb")) == []
    again = sync()
    assert again.stdout == "nothing to send in outputs/wandb\n"
    assert len(server.rows) == 2


def test_without_a_key_one_line_says_so() -> None:
    run("first")
    done = sync()
    assert done.returncode == 2
    assert done.stderr == "swinexp: 1 run to send, and no API key is configured. Type wandb login\n"


@pytest.mark.slow
def test_what_cannot_be_sent_is_told_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    run("first")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setattr("swinexp.track.sync.subprocess.run", lambda *_, **__: None)
    with pytest.raises(Ended, match="1 run could not be sent; the same command tries again"):
        send(Path("outputs/wandb"), ["wandb", "sync"])
    assert len(unsent(Path("outputs/wandb"))) == 1


def test_a_file_that_is_open_is_left_alone() -> None:
    place = Path("outputs/wandb/offline-run-1-a")
    place.mkdir(parents=True)
    file = place / "run-a.wandb"
    file.touch()
    assert unsent(place.parent) == [file]
    with file.open("a"):
        assert being_written([file]) == ({file} if sys.platform == "linux" else set())
        assert sync().stdout.startswith("1 run still being written")
    assert being_written([file]) == set()
