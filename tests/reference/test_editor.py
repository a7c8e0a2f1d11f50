"""What an editor shows of a spec: the YAML language server with the schema, where node and it are installed.

`npm install yaml-language-server`, and its `node_modules/.bin` in PATH.
"""

from __future__ import annotations

import json
import queue
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from kdcli.commands.init import sample_specs
from kdcli.reference.editor_words import LOGGER_NAMES, near_misses, slips_of
from kdcli.reference.schema_json import json_schema
from kdcli.report.loggers import LOGGERS
from tests.spec.test_united_perception import TEXT

SERVER = shutil.which("yaml-language-server")
TOLD = 3
"""Errors and warnings are below; what is only told, such as an anchor that is not used, is here."""
FOLDER = next(iter(sample_specs().values())).parent


class Server:
    """A running language server."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.messages: queue.Queue[dict[str, Any]] = queue.Queue()
        self.number = 0
        threading.Thread(target=self._read, daemon=True).start()
        self.ask("initialize", {"processId": None, "rootUri": FOLDER.as_uri(), "capabilities": {}})
        self.send({"method": "initialized", "params": {}})

    def _read(self) -> None:
        assert self.process.stdout is not None
        length = 0
        while line := self.process.stdout.readline():
            if line.lower().startswith(b"content-length"):
                length = int(line.split(b":")[1])
            elif not line.strip():
                self.messages.put(json.loads(self.process.stdout.read(length)))

    def send(self, message: dict[str, Any]) -> None:
        """Send a message."""
        assert self.process.stdin is not None
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        self.process.stdin.flush()

    def _until(self, fits: Any) -> dict[str, Any]:
        while True:
            message = self.messages.get(timeout=60)
            if "id" in message and "method" in message:
                items = message.get("params", {}).get("items", [])
                self.send({"id": message["id"], "result": [{} for _ in items] or None})
            elif fits(message):
                return message

    def ask(self, method: str, params: dict[str, Any]) -> Any:
        """The result of a request."""
        self.number += 1
        self.send({"id": self.number, "method": method, "params": params})
        return self._until(lambda message: message.get("id") == self.number).get("result")

    def findings(self, name: str, text: str) -> list[str]:
        """What the editor underlines in a file of that text beside the samples."""
        uri = (FOLDER / name).as_uri()
        document = {"uri": uri, "languageId": "yaml", "version": 1, "text": text}
        self.send({"method": "textDocument/didOpen", "params": {"textDocument": document}})
        published = "textDocument/publishDiagnostics"
        known = self._until(lambda found: found.get("method") == published and found["params"]["uri"] == uri)
        return [one["message"] for one in known["params"]["diagnostics"] if one.get("severity", 1) < TOLD]

    def at(self, what: str, name: str, text: str, mark: str) -> Any:
        """`hover` or `completion` behind the mark in an open file."""
        before = text[: text.index(mark) + len(mark)]
        position = {"line": before.count("\n"), "character": len(before) - before.rfind("\n") - 1}
        uri = (FOLDER / name).as_uri()
        return self.ask(f"textDocument/{what}", {"textDocument": {"uri": uri}, "position": position})


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if SERVER is None or shutil.which("node") is None:
        pytest.skip("no node, or no yaml-language-server in PATH (`npm install yaml-language-server`)")
    running = Server([SERVER, "--stdio"])
    yield running
    running.process.kill()
    running.process.communicate()


@pytest.mark.slow
def test_nothing_is_flagged_in_what_is_right(server: Server) -> None:
    for name, path in sample_specs().items():
        assert server.findings(f"{name}_.yaml", path.read_text()) == [], name
    head = "# yaml-language-server: $schema=kdcli.schema.json\n"
    assert server.findings("up.yaml", head + TEXT) == []


SLIPS = (
    ("runtime:", "runtme:"),
    ("mimic:", "mimci:"),
    ("teacher0:\n  name", "teachr0:\n  name"),
    ("trainer:", "trainr:"),
    ("dataset:\n  train", "datset:\n  train"),
    ("nesterov", "nestrov"),
    ("momentum", "momentm"),
    ("weight_decay", "weigth_decay"),
    ("T_max", "Tmax"),
    ("max_epoch", "max_epchs"),
    ("mimic_name", "mimic_nam"),
    ("loss_weight", "los_weight"),
    ("kwargs: {T: 4}", "kwargs: {TT: 4}"),
    ("trainer:\n", "trainer:\n  ema: {enabel: true}\n"),
    ("trainer:\n", "trainer:\n  loggers: [wandbb]\n"),
    ("trainer:\n", "hooks: [{type: grad_cliper}]\ntrainer:\n"),
    ("torch_random_crop", "torch_random_crp"),
    ("padding", "paddin"),
    ("widths", "widhts"),
    ("batch_size", "batch_siz"),
    ("cifar_resnet8", "cifar_resnt8"),
    ("kd_loss", "kdloss"),
    ("type: digits", "type: digitz"),
    ("split", "splt"),
    ("type: SGD", "type: SGDD"),
    ("CosineAnnealingLR", "CosinAnnealingLR"),
    ("no_scale_lr", "no_scal_lr"),
)


@pytest.mark.slow
def test_every_slip_is_flagged(server: Server) -> None:
    text = (FOLDER / "digits_kd.yaml").read_text()
    missed = []
    for index, (right, wrong) in enumerate(SLIPS):
        assert right in text, right
        if not server.findings(f"slip_{index}.yaml", text.replace(right, wrong, 1)):
            missed.append(wrong)
    assert missed == []


@pytest.mark.slow
def test_keys_are_explained_and_completed(server: Server) -> None:
    text = (FOLDER / "digits_kd.yaml").read_text()
    server.findings("hover.yaml", text)
    for mark, meaning in {
        "  max_ep": "Length of the run in epochs",
        "loss_we": "What all losses of the job are multiplied by",
        "{T": "Temperature",
        "nester": "Nesterov",
        "wid": "Channels",
        "T_m": "Length of the fall",
    }.items():
        assert meaning in json.dumps(server.at("hover", "hover.yaml", text, mark)), mark
    for number, (right, begun, mark, wanted) in enumerate(
        [
            ("kwargs: {T: 4}", "kwargs: {T: 4, l}", "{T: 4, l", "loss_weight"),
            ("max_epoch: 40", "max_epoch: 40\n  ema: {ena}", "ema: {ena", "enable"),
            ("widths: [2, 2, 4, 8]", "wid: ", "1, wid", "widths"),
            ("type: kd_loss", "type: k", "loss: {type: k", "kd_loss"),
            ("test_freq: 10", "test_freq: 10\n  sa", "10\n  sa", "save_freq"),
        ]
    ):
        changed = text.replace(right, begun, 1)
        server.findings(f"complete_{number}.yaml", changed)
        offered = server.at("completion", f"complete_{number}.yaml", changed, mark)
        items = offered["items"] if isinstance(offered, dict) else offered
        assert wanted in [item["label"] for item in items], (begun, [item["label"] for item in items])


def test_near_misses() -> None:
    pattern = re.compile(near_misses("trainer", ["trainer", "trained"]))
    for slip in ("trainr", "tariner", "trainner", "trajner", "rainer"):
        assert pattern.search(slip), slip
    for word in ("trainer", "trained", "train", "trainers_of_mine", "retrainer"):
        assert not pattern.search(word), word
    assert all(re.compile(pattern) for pattern in slips_of(["net", "mimic"]))
    assert len(slips_of(["net", "mimic"])) == 1, "a name of three letters may be another word"


def test_the_loggers_of_the_schema_are_those_that_there_are() -> None:
    assert set(LOGGER_NAMES) == set(LOGGERS)
    assert json_schema()["definitions"]["Trainer"]["properties"]["loggers"]["description"]
