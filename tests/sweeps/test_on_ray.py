"""Sweeps on Ray: a cluster of two workers, one of which is killed; races; machines that do not see the folder."""

import signal
import socket
import threading
import time

import pytest
import yaml
from killing import differences

from mixmo.errors import InputError
from mixmo.runs import RunFolder
from mixmo.sweeps import on_ray
from mixmo.sweeps.grid import load_sweep
from mixmo.sweeps.on_ray import Resources
from mixmo.sweeps.run import run_sweep

ray = pytest.importorskip("ray")
pytest.importorskip("ray.tune")
ONE = Resources(cpus=1, gpus=0)


@pytest.fixture(scope="module")
def cluster():
    """A cluster of a machine that only directs and two that train a trial each; this process is connected to it."""
    from ray.cluster_utils import Cluster

    cores = {"num_gpus": 0, "object_store_memory": 80 * 2**20}
    with on_ray._handlers_kept(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # tests beside it would starve what trains
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **cores})
        cluster.workers = [cluster.add_node(num_cpus=1, **cores) for _ in range(2)]
        ray.init(cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]


def write(folder, section, **recipe):
    file = folder / "some.yaml"
    base = {"extends": "digits-cut", "data": {"images_per_class": 10, "validation": 0.2}, "model": {"compile": False}}
    file.write_text(yaml.safe_dump(base | recipe | {"sweep": section}))
    return load_sweep(file)


def test_a_race_on_ray_stops_trials_and_keeps_what_they_reported(cluster, tmp_path, monkeypatch):
    grid = {"optimizer.lr": [0.05, 1e-30, 1e-29]}
    sweep = write(tmp_path, {"grid": grid, "asha": {"grace_epochs": 4, "reduction": 2}}, trainer={"max_epochs": 12})
    before = handlers()
    found = run_sweep(sweep, tmp_path / "ray", resources=ONE)
    assert handlers() == before
    for state in found.states.values():
        run = RunFolder(tmp_path / "ray" / state.trial.key)
        assert run.finished_epochs() == len(run.read_metrics()) == max(state.rows)
    statuses = {state.trial.key: state.status for state in found.states.values()}
    assert statuses["lr-0.05/seed-0"] == "finished" and "stopped early" in statuses.values()
    monkeypatch.setattr("mixmo.sweeps.run.run_on_ray", lambda *_: pytest.fail("all have ended"))
    again = run_sweep(sweep, tmp_path / "ray", resources=ONE)
    assert {state.trial.key: state.status for state in again.states.values()} == statuses


def reports(trial, folder, monkeypatch):
    """Train a trial as a process of Ray's does, and return what it reports."""
    found = []
    monkeypatch.setattr("ray.tune.report", found.append)
    on_ray._train({"work": on_ray._work(trial, folder, 1)})
    return found


def test_failures_come_back_as_sentences(tmp_path, monkeypatch):
    (tmp_path / "trials.csv").touch()
    (found,) = reports(write(tmp_path, {"grid": {"optimizer.lr": [1e30]}}).trials[0], tmp_path, monkeypatch)
    assert "not finite" in found["failed"] and "Traceback" not in found["failed"]


def test_a_machine_that_does_not_see_the_folder_says_so(tmp_path, monkeypatch):
    (found,) = reports(write(tmp_path, {"seeds": [0]}).trials[0], tmp_path / "elsewhere", monkeypatch)
    assert "give --out a folder that all machines see" in found["failed"]
    assert not (tmp_path / "elsewhere").exists()


def test_more_than_a_machine_has_is_refused(cluster, tmp_path):
    sweep = write(tmp_path, {"seeds": [0]})
    with pytest.raises(InputError, match="a trial takes 3 cores and 0 GPUs, which no machine has together"):
        run_sweep(sweep, tmp_path / "ray", resources=Resources(cpus=3))


def test_sigterm_stops_as_sigint_does():
    interrupted, before = [], handlers()
    with on_ray._handlers_kept():
        signal.signal(signal.SIGINT, lambda number, frame: interrupted.append(number))
        received = on_ray._stop_at_sigterm()
        signal.raise_signal(signal.SIGTERM)
    assert interrupted == [signal.SIGINT] and received == [signal.SIGTERM]
    assert handlers() == before


def test_no_cluster_at_an_address(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(InputError, match=f"no Ray cluster can be used at 127.0.0.1:{port}: .*refused"):
        run_sweep(write(tmp_path, {"seeds": [0]}), tmp_path / "ray", address=f"127.0.0.1:{port}")


def test_trials_of_a_killed_machine_go_on_elsewhere(cluster, tmp_path):
    """Last, since the cluster has one worker less behind it: the results are those of trials in turn, bit for bit."""
    sweep = write(tmp_path, {"grid": {"mixer.alpha": [1, 4]}}, trainer={"max_epochs": 20})
    in_turn = run_sweep(sweep, tmp_path / "turns", ray=False, resources=ONE)
    both = [RunFolder(tmp_path / "ray" / trial.key) for trial in sweep.trials]
    killed = []

    def kill():
        while not all(run.metrics_file.is_file() and len(run.read_metrics()) > 2 for run in both):
            time.sleep(0.05)
        killed.append([run.finished_epochs() for run in both])
        cluster.remove_node(cluster.workers.pop(), allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    spread = run_sweep(sweep, tmp_path / "ray", resources=ONE)
    killer.join(timeout=1)
    assert killed and max(killed[0]) < 20, "both trials were at work when the machine was killed"
    assert not (tmp_path / "ray" / ".ray").exists()
    for trial in sweep.trials:
        assert spread.states[trial.key].status == "finished"
        assert differences(RunFolder(tmp_path / "turns" / trial.key), RunFolder(tmp_path / "ray" / trial.key)) == []
        times = {"seconds", "images_per_second"}
        rows = [
            [
                {key: value for key, value in row.items() if key not in times}
                for row in each.states[trial.key].rows.values()
            ]
            for each in (in_turn, spread)
        ]
        assert rows[0] == rows[1]
