"""Batches on a Dask cluster: the same runs as on one machine, whatever becomes of its workers."""

import contextlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("distributed")

from batch_cases import HANG, Heard, wait_for
from distributed import LocalCluster, Security

from gqc_lab.errors import BadInput
from gqc_lab.runs import load
from gqc_lab.runs.batch import execute_batch
from gqc_lab.runs.cluster import SchedulerLost, _knock, _start_local, connect, find_problem
from gqc_lab.runs.store import Store

NOTEBOOKS = Path(__file__).parents[2] / "fixtures" / "notebooks"

# What Dask's own threads and sockets leave behind is not ours to warn of.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(HANG),
]


@pytest.fixture(scope="module")
def cluster():
    """Somebody's cluster: two workers of one thread, each with a nanny that replaces it."""
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        memory_limit=0,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    ) as cluster:
        yield cluster


def run_on(cluster, batch, store, heard, **options):
    with contextlib.closing(connect(cluster.scheduler_address, batch, store, heard.note)) as there:
        return execute_batch(batch, store, heard, executor=there, **options)


def numbers(store):
    rows = load(store.root).results.to_dict("records")
    return sorted(rows, key=lambda row: row["run"])


def counted(store, key):
    """The state that the counting notebook has saved so far, or None."""
    try:
        return json.loads((store.partial(key) / "counting.ckpt").read_text())
    except FileNotFoundError:
        return None


def processes_of(store):
    """Ids of processes that have a file of the store open, or its name in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                text = (folder / "environ").read_bytes().decode(errors="replace")
                text += " ".join(os.readlink(link) for link in (folder / "fd").iterdir())
                if str(store.root) in text:
                    found.append(int(folder.name))
    return found


def test_a_cluster_gives_the_runs_of_one_machine(cluster, executor, make_batch, tmp_path):
    batch = make_batch("grid: {method: [plain, broken, double]}\nseeds: 2\nthreads: 1")
    here, there, heard = Store(tmp_path / "here"), Store(tmp_path / "there"), Heard()
    local = execute_batch(batch, here, Heard(), executor=executor)
    remote = run_on(cluster, batch, there, heard)
    assert remote.statuses == local.statuses
    assert remote.errors == local.errors
    assert numbers(there) == numbers(here)
    assert all(there.verify(key)["environment"]["threads"] == 1 for key in there.finished())
    again = run_on(cluster, batch, there, heard)
    assert again.count("kept") == 4
    assert [path.name for path in there.root.iterdir() if path.is_file()] == []  # no probe is left


def worker_of(store, key):
    """The Dask worker's process, whose thread executes the run."""
    return json.loads((store.partial(key) / "run.json").read_text())["pid"]


@pytest.mark.skipif(sys.platform != "linux", reason="finds its victims in /proc")
def test_a_run_whose_worker_is_lost_goes_on_elsewhere(cluster, make_batch, tmp_path):
    store, killed = Store(tmp_path / "runs"), []
    batch = make_batch("seeds: 2\nparameters: {goal: 100}", "counting")

    def kill_once(run):
        if not killed:
            wait_for(lambda: (state := counted(store, run.id)) and state["count"] >= 5)
            victim = worker_of(store, run.id)
            killed.append(run.id)
            os.kill(victim, signal.SIGKILL)

    heard = Heard()
    heard.act = lambda run: counted(store, run.id) and kill_once(run)
    heard.started = kill_once
    outcomes = run_on(cluster, batch, store, heard)
    assert outcomes.count("finished") == 2
    assert any("Dask worker that had the run was lost; trying again" in n for n in heard.notes)
    rows = {row["run"]: row for row in numbers(store)}
    assert {row["count"] for row in rows.values()} == {100}
    assert rows[killed[0]]["starts"] == 2
    assert sum(row["starts"] for row in rows.values()) == 3
    wait_for(lambda: processes_of(store) == [])


def test_a_run_that_always_loses_its_worker_fails(cluster, make_batch, tmp_path):
    store = Store(tmp_path / "runs")
    batch = make_batch("parameters: {goal: 100000}", "counting")

    def kill(run):
        wait_for(lambda: counted(store, run.id))
        os.kill(worker_of(store, run.id), signal.SIGKILL)

    heard = Heard()
    heard.started = kill
    outcomes = run_on(cluster, batch, store, heard, retry=0)
    assert outcomes.count("failed") == 1
    assert "Dask worker that had the run was lost" in outcomes.errors[batch.runs[0].id]
    assert counted(store, batch.runs[0].id)["starts"] == 1


def test_interrupt_saves_and_the_next_batch_goes_on(cluster, make_batch, tmp_path):
    store, pressed = Store(tmp_path / "runs"), []
    batch = make_batch("seeds: 3\nparameters: {goal: 150}", "counting")

    def press(run):
        if not pressed:
            wait_for(lambda: counted(store, run.id))
            pressed.append(run.id)
            os.kill(os.getpid(), signal.SIGINT)

    heard = Heard()
    heard.started = press
    outcomes = run_on(cluster, batch, store, heard)
    assert outcomes.is_interrupted
    assert set(outcomes.statuses.values()) <= {"interrupted", "waiting"}
    reached = counted(store, pressed[0])["count"]
    assert 1 <= reached < 150
    wait_for(lambda: processes_of(store) == [])
    outcomes = run_on(cluster, batch, store, Heard())
    assert outcomes.count("finished") == 3
    rows = {row["run"]: row for row in numbers(store)}
    assert (rows[pressed[0]]["starts"], rows[pressed[0]]["count"]) == (2, 150)


def start_cli(folder, *arguments):
    command = [sys.executable, "-c", "from gqc_lab.cli import main; main()", "batch", "run"]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_killed_batch_leaves_nothing_running_on_the_cluster(cluster, make_batch, tmp_path):
    store = Store(tmp_path / "runs")
    (run,) = make_batch("parameters: {goal: 150}", "counting").runs
    arguments = ("counting.yaml", "--scheduler", cluster.scheduler_address)
    process = start_cli(tmp_path, *arguments)
    wait_for(lambda: counted(store, run.id))
    process.kill()
    process.communicate()
    wait_for(lambda: processes_of(store) == [])
    assert 1 <= counted(store, run.id)["count"] < 150
    process = start_cli(tmp_path, *arguments)
    output, _ = process.communicate(timeout=HANG)
    assert process.returncode == 0, output
    assert f"Dask dashboard: {cluster.dashboard_link}" in output
    (row,) = numbers(store)
    assert (row["count"], row["starts"]) == (150, 2)


def test_local_workers_end_with_the_batch(make_batch, tmp_path):
    """A terminal's Ctrl-C goes to the whole process group, the Dask workers included."""
    store = Store(tmp_path / "runs")
    runs = make_batch("seeds: 2\nparameters: {goal: 100000}", "counting").runs
    code = "import os; os.setpgid(0, 0); from gqc_lab.cli import main; main()"
    command = [sys.executable, "-c", code, "batch", "run", "counting.yaml"]
    process = subprocess.Popen(
        [*command, "--scheduler", "local", "--jobs", "2"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(lambda: all(counted(store, run.id) for run in runs))
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=HANG)
    assert process.returncode == 130, output
    assert "2 interrupted" in output
    assert "Traceback" not in output
    assert processes_of(store) == []


def test_nobody_else_can_use_the_local_cluster(monkeypatch):
    with _start_local(1, {}) as local:
        monkeypatch.setattr("gqc_lab.runs.cluster.Security", lambda: local.security)
        _knock(local.scheduler_address)
        stranger = Security.temporary()
        monkeypatch.setattr("gqc_lab.runs.cluster.Security", lambda: stranger)
        with pytest.raises(BadInput, match="no Dask scheduler answered"):
            _knock(local.scheduler_address)


def test_a_scheduler_that_goes_away_is_named(make_batch, tmp_path):
    store = Store(tmp_path / "runs")
    batch = make_batch("parameters: {goal: 100000}", "counting")
    with LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as doomed:
        heard = Heard()
        heard.started = lambda run: doomed.close(timeout=10)
        with pytest.raises(SchedulerLost, match="goes on from here"):
            run_on(doomed, batch, store, heard)
    wait_for(lambda: processes_of(store) == [])


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("tcp://127.0.0.1:1", "no Dask scheduler answered within 4 s"),
        ("tcp://no.such.host.invalid:8786", "no Dask scheduler answered within 4 s"),
        ("8786", "expected tcp://host:port, or local"),
    ],
)
def test_an_unreachable_scheduler_is_bad_input(make_batch, tmp_path, address, message):
    make_batch("seeds: 1")
    process = start_cli(tmp_path, "tiny.yaml", "--scheduler", address)
    output, _ = process.communicate(timeout=HANG)
    assert process.returncode == 2
    assert f"gqc: --scheduler {address}: {message}" in " ".join(output.split())
    assert "Traceback" not in output
    assert not (tmp_path / "runs").exists()


def test_another_server_is_no_scheduler(make_batch, tmp_path):
    make_batch("seeds: 1")
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"tcp://127.0.0.1:{server.server_port}"
        process = start_cli(tmp_path, "tiny.yaml", "--scheduler", address)
        output, _ = process.communicate(timeout=HANG)
        server.shutdown()
    assert process.returncode == 2
    assert f"gqc: --scheduler {address}: no Dask scheduler answered" in " ".join(output.split())
    assert "Traceback" not in output
    assert not (tmp_path / "runs").exists()


def test_workers_that_do_not_see_the_store_are_named(cluster, make_batch, tmp_path, monkeypatch):
    monkeypatch.setattr("gqc_lab.runs.cluster.DaskExecutor.write_probe", lambda self: None)
    batch = make_batch("seeds: 1")
    with pytest.raises(BadInput) as refusal:
        run_on(cluster, batch, Store(tmp_path / "runs"), Heard())
    assert "tcp://127.0.0.1" in str(refusal.value)
    assert f"cannot see the run store {tmp_path / 'runs'}" in str(refusal.value)
    assert "--runs" in str(refusal.value)


def test_a_worker_says_why_it_cannot_work(make_batch, tmp_path):
    sources = make_batch("seeds: 1", "surroundings").runs[0].inputs["source"]
    probe = tmp_path / "probe"
    probe.write_text("")
    folders = [str(NOTEBOOKS)]

    assert find_problem(str(probe), folders, sources) == ""
    assert "cannot see the run store" in find_problem(str(tmp_path / "none"), folders, sources)
    assert "cannot see the notebook's folder" in find_problem(str(probe), ["/no/such"], sources)
    wrong = {"gqc.schedules": "0" * 64}
    assert find_problem(str(probe), folders, wrong) == (
        "has another version of gqc.schedules; install the same gqc on every machine"
    )


def test_resources_go_to_workers_that_have_them(cluster, make_batch, tmp_path):
    batch, store, heard = make_batch("seeds: 2\nresources: {GPU: 1}"), Store(tmp_path), Heard()
    command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address]
    command += ["--resources", "GPU=1", "--nthreads", "1", "--no-dashboard"]
    added = []

    def note(text):
        heard.notes.append(text)
        if "waiting" in text:
            added.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))

    with contextlib.closing(connect(cluster.scheduler_address, batch, store, note)) as there:
        outcomes = execute_batch(batch, store, heard, executor=there)
    (process,) = added
    process.terminate()
    process.wait()
    assert outcomes.count("finished") == 2
    assert "waiting for a Dask worker with GPU=1" in heard.notes[-1]


def test_the_slurm_example_starts_workers_and_the_batch(make_batch, tmp_path):
    """With a stand-in for dask-jobqueue that starts its workers here instead of asking SLURM."""
    make_batch("seeds: 2\nresources: {GPU: 1}")
    (tmp_path / "dask_jobqueue.py").write_text(
        "from distributed import LocalCluster\n"
        "class SLURMCluster(LocalCluster):\n"
        "    def __init__(self, *, queue, account, job_cpu, cores, processes, memory, walltime,\n"
        "                 job_extra_directives, worker_extra_args):\n"
        "        assert (queue, job_cpu, memory) == ('gpu', 4, '32GB')\n"
        "        assert job_extra_directives == ['--gres=gpu:1']\n"
        "        name, value = worker_extra_args[1].split('=')\n"
        "        super().__init__(n_workers=0, threads_per_worker=cores, host='127.0.0.1',\n"
        "                         dashboard_address='127.0.0.1:0',\n"
        "                         resources={name: float(value)})\n"
        "    def scale(self, jobs):\n"
        "        super().scale(jobs)\n"
    )
    script = Path(__file__).parents[3] / "notebooks" / "batches" / "slurm.py"
    command = [sys.executable, str(script), "tiny.yaml", "--queue", "gpu"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "PATH": path},
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tiny: 2 runs: 2 finished" in done.stdout
