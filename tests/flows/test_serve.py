"""`make serve` and `make flow`: ports, absent servers; serve, deploy, kill -9, run again (slow, on a stub pipeline)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import serve, start, ui
from flows.dvc import environment
from flows.ports import chosen_port
from sum.errors import ConfigError
from tests.flows.project import PROJECT, make_project, processes_with
from tests.flows.served import LONG, Served, environ_of, flow_processes, serving, wait_for


def test_a_taken_port_is_one_error_with_the_variable(monkeypatch, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setenv("SUM_PREFECT_PORT", str(port))
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            assert serve.main() == 2
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    told = capsys.readouterr().err
    assert told.startswith(f"error: port {port} is in use")
    assert f"SUM_PREFECT_PORT={port + 1} make serve" in told


@pytest.mark.parametrize("text", ["0", "65536", "http", "-1", ""])
def test_a_wrong_port_is_one_error(monkeypatch, text):
    monkeypatch.setenv("SUM_PREFECT_PORT", text)
    with pytest.raises(ConfigError, match="SUM_PREFECT_PORT"):
        chosen_port("SUM_PREFECT_PORT", default=4200)


def test_the_mlflow_page_minds_its_port_too(monkeypatch, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setenv("SUM_MLFLOW_PORT", str(other.getsockname()[1]))
        monkeypatch.chdir(PROJECT)
        assert ui.main() == 2
    told = capsys.readouterr().err
    assert "is in use" in told
    assert "make ui" in told


def test_without_a_server_a_flow_is_one_error(monkeypatch, capsys, free_port):
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port}/api")
    assert start.main(["large"]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"error: no Prefect server answers at http://127.0.0.1:{free_port}/api")
    assert "make serve" in told


def test_a_flow_wants_one_budget(capsys):
    assert start.main([]) == 2
    assert "make flow BUDGET=" in capsys.readouterr().err


def test_nothing_of_the_user_is_touched():
    env = serve.environment(4321, project=Path("/p"))
    assert env["PREFECT_HOME"] == "/p/.prefect"
    assert env["PREFECT_API_URL"] == "http://127.0.0.1:4321/api"


@pytest.mark.slow
def test_a_command_that_fails_shows_its_words(monkeypatch):
    with pytest.raises(serve.ServeError, match="nonsense"):
        serve.prefect(["nonsense"], env=environment())


# ---------------------------------------------------------------------------------------------------------------------


# The stage `refine` counts to 6 in work/, and goes on from where a kill left it: what ours do, in shell.
COUNT = (
    "mkdir -p work out; for i in 1 2 3 4 5 6; do [ -f work/$i ] && continue; echo step $i; sleep 1.5; "
    "echo x > work/$i; done; echo done > out/refine"
)
# `finetune` refuses its input for medium, and for large meets a server that is away the first time.
FINETUNE = (
    "mkdir -p out; if [ ${item} = medium ]; then echo 'error: budgets.medium is empty'; exit 1; fi; "
    "if [ ${item} = large ] && [ ! -f tried ]; then touch tried; echo 'error: no MLflow server'; exit 75; fi; "
    "echo done > out/finetune.${item}"
)


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    project = make_project(tmp_path_factory.mktemp("served"), {"refine": COUNT, "finetune": FINETUNE})
    (project / "flows").symlink_to(PROJECT / "flows")  # prefect.yaml names flows/pipeline.py
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with serving(project, port=port) as server:
        yield server


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kill_9_of_the_flow_then_run_again_resumes(served):
    with served.run("sum/ft-small") as watch:
        wait_for(served.project / "work" / "2", served)
        (flow,) = flow_processes(served)
        os.kill(flow, signal.SIGKILL)
        told, _ = watch.communicate(timeout=120)
    assert watch.returncode != 0, told
    assert "Crashed" in told or "CRASHED" in told, told
    assert not processes_with(COUNT[:40]), "the stage outlived its flow"
    done = {path.name for path in (served.project / "work").iterdir()}
    assert "6" not in done
    times = {name: (served.project / "work" / name).stat().st_mtime_ns for name in done}

    with served.run("sum/ft-small") as watch:
        told, _ = watch.communicate(timeout=LONG)
    assert watch.returncode == 0, told + served.log.read_text()
    assert (served.project / "out" / "register.small").is_file()
    assert not (served.project / "out" / "register.large").exists()  # only the budget that was asked for
    after = {name: (served.project / "work" / name).stat().st_mtime_ns for name in done}
    assert after == times, "finished steps were made again"
    assert "step 6" in served.log.read_text(), "live lines of the stage"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_bad_input_is_not_retried(served):
    with served.run("sum/ft-medium") as watch:
        told, _ = watch.communicate(timeout=LONG)
    assert watch.returncode != 0, told
    log = served.log.read_text()
    assert log.count(" - error: budgets.medium is empty\n") == 1
    assert "Retry 1/2" not in log


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_server_that_was_away_is_tried_again(served):
    with served.run("sum/ft-large") as watch:
        told, _ = watch.communicate(timeout=LONG)
    assert watch.returncode == 0, told + served.log.read_text()
    log = served.log.read_text()
    assert log.count(" - error: no MLflow server\n") == 1
    assert "Retry 1/2" in log


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_second_server_on_the_port_is_refused(served):
    command = [sys.executable, "-m", "flows.serve"]
    done = subprocess.run(command, cwd=served.project, env=served.env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is in use" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ctrl_c_stops_server_and_worker(served):
    """Last: it ends the server the other tests use."""
    home = str(served.project)
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(timeout=90) == 0
    assert served.log.read_text().rstrip().endswith("stopped")
    left = [pid for pid in processes_with("prefect") if home in environ_of(pid)]
    assert not left
