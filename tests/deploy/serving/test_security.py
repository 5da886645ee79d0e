"""Who may reach the server: this machine alone, or whoever has the token, over TLS."""

import pytest
from bridge_server import CERTIFICATE
from websockets.exceptions import InvalidMessage

from moe_robot.cli import main
from moe_robot.deploy import client
from moe_robot.deploy.client import ConnectionLost, RemoteError, RemotePolicy
from moe_robot.types import UserError

TOKEN = "0123456789abcdef-of-this-test"


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "add --token-file and --certificate with --key"),
        (["--host", "192.168.1.5", "--certificate", CERTIFICATE, "--key", CERTIFICATE], "add --token-file,"),
        (["--host", "0.0.0.0", "--token-file", "TOKEN"], "add --certificate with --key"),
        (["--key", CERTIFICATE], "--certificate and --key go together"),
        (["--certificate", "nowhere.pem", "--key", "nowhere.pem"], "expected PEM files of one pair"),
        (["--token-file", "nowhere"], "expected a file with one line"),
        (["--batch-window-ms", "-1"], "expected 0 or more"),
        (["--max-batch", "0"], "expected 1 or more"),
        (["--rename", "observation/image"], "expected THEIRS=OURS"),
        (["--rename", "observation/image=observation.images.top"], "expected one of observation.images.front"),
    ],
)
def test_a_server_that_anyone_could_reach_or_that_cannot_be_does_not_start(
    capsys, checkpoint, token_file, options, said
):
    options = [str(token_file) if option == "TOKEN" else str(option) for option in options]
    assert main(["serve", str(checkpoint), "--device", "cpu", "--port", "0", *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_token_that_others_can_read_or_guess_is_refused(capsys, checkpoint, token_file):
    for content, mode, said in ((TOKEN, 0o644, "chmod 600"), ("short", 0o600, "16 or more letters")):
        token_file.write_text(content)
        token_file.chmod(mode)
        assert main(["serve", str(checkpoint), "--token-file", str(token_file)]) == 1
        assert said in capsys.readouterr().err


def test_over_tls_with_a_token_robots_come_in_from_any_address(serve, checkpoint, token_file):
    keys = ["--certificate", CERTIFICATE, "--key", CERTIFICATE]
    served = serve(checkpoint, "--host", "0.0.0.0", "--token-file", token_file, *keys)
    address = f"wss://127.0.0.1:{served.port}"
    with RemotePolicy(address, TOKEN, CERTIFICATE, answer_s=60) as robot:
        assert robot.features.fps == 20
    with pytest.raises(RemoteError, match="certificate verify failed"):
        RemotePolicy(address, TOKEN, answer_s=60)
    for wrong in (None, TOKEN + "x"):
        with pytest.raises(RemoteError, match="401 send the header 'Authorization: Api-Key TOKEN'"):
            RemotePolicy(address, wrong, CERTIFICATE, answer_s=60)


@pytest.mark.parametrize("lost", [1, 2])
def test_a_first_answer_that_is_lost_is_asked_for_once_more(serve, checkpoint, monkeypatch, lost):
    served, connect, calls = serve(checkpoint), client.connect, []

    def losing(*arguments, **options):
        calls.append(arguments)
        if len(calls) <= lost:
            raise InvalidMessage("did not receive a valid HTTP response")
        return connect(*arguments, **options)

    monkeypatch.setattr(client, "connect", losing)
    if lost == 1:
        RemotePolicy(f"ws://127.0.0.1:{served.port}", answer_s=60).close()
    else:
        with pytest.raises(ConnectionLost, match="no policy server answers"):
            RemotePolicy(f"ws://127.0.0.1:{served.port}", answer_s=60)
    assert len(calls) == 2


def test_metrics_need_the_token_and_health_does_not(serve, checkpoint, token_file):
    served = serve(checkpoint, "--token-file", token_file)
    assert served.get("/metrics")[0] == 401
    assert served.is_well()


def test_a_client_sends_pictures_to_other_machines_over_tls_only():
    with pytest.raises(UserError, match="use wss://"):
        RemotePolicy("ws://192.168.1.5:8000")
