"""clean-lm batch: what it reads, what it writes, and that no row is lost, doubled or changed by how it is run.

One Ray of two local nodes serves the whole file: each job connects to it as to a cluster. One test starts its own.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray.cluster_utils import Cluster

from clean_lm import audio_files, cli
from clean_lm.audio import AudioError
from clean_lm.batch import plan, rows, store
from clean_lm.batch.worker import Worker
from tests.support import ROOT

# Ray warns of its own settings, and leaves files open.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
BUNDLE = ROOT / "tests" / "golden" / "conformance" / "bundles" / "text"
SECONDS = 1.0


DEADLY = """
import os, sys
sys.addaudithook(lambda event, args: event == "open" and "deadly.txt" in str(args[0]) and os.kill(os.getpid(), 9))
"""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes on this machine, whose processes are killed when they open a deadly.txt."""
    folder = tmp_path_factory.mktemp("deadly")
    (folder / "sitecustomize.py").write_text(DEADLY)
    with pytest.MonkeyPatch.context() as patch:
        paths = [folder, ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
        found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100_000_000})
        found.add_node(num_cpus=1, object_store_memory=100_000_000)
        found.wait_for_nodes()
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.fixture
def cluster(nodes: Cluster) -> str:
    return str(nodes.address)


@pytest.fixture(scope="module")
def tracks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three tracks, of which two have one length."""
    folder = tmp_path_factory.mktemp("tracks")
    (folder / "deadly.txt").write_text("see `nodes`")
    for number, seconds in enumerate((2.0, 2.0, 1.3)):
        rng = np.random.default_rng(number)
        audio_files.write(folder / f"t{number}.wav", rng.uniform(-0.5, 0.5, (1, int(seconds * 16000))), 16000)
    return folder


def listed(path: Path, *given: dict[str, Any]) -> Path:
    """A list of rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path


def many(tracks: Path, count: int = 10) -> list[dict[str, Any]]:
    """Rows that are alike, of two texts of one length and none, on two tracks."""
    texts = ("slow house", "drums bass", None)
    return [
        {"id": f"r{n}", "input": str(tracks / f"t{n % 2}.wav"), "text": texts[n % 3], "seed": 50 + n}
        for n in range(count)
    ]


def job(source: Path, output: Path, *options: str, address: str | None = None) -> int:
    """Run the command in this process; its exit status."""
    where = ["--address", address] if address else []
    given = ["--bundle", str(BUNDLE), "--duration", str(SECONDS + 1), "--prompt-seconds", "1", "--actors", "2"]
    return cli.main(["batch", str(source), "-o", str(output), *given, *where, *options])


def lines(output: Path) -> dict[str, dict[str, Any]]:
    """The results of a job, by id."""
    found = pq.read_table(output / "results.parquet").to_pylist()
    assert len({line["id"] for line in found}) == len(found)
    return {line["id"]: line for line in found}


def sounds(output: Path) -> dict[str, str]:
    """What every audio file of a job holds."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(output.rglob("*.wav"))}


def alone(row: dict[str, Any], path: Path) -> str:
    """What the command line makes of a row."""
    given = ["--seed", str(row["seed"]), "--duration", str(SECONDS + 1), "--prompt-seconds", "1"]
    text = ["--text", row["text"]] if row["text"] else []
    command = ["continue", row["input"], "-o", str(path), "--bundle", str(BUNDLE), *given, *text, "--overwrite"]
    assert cli.main(command) == 0
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_each_row_is_the_command_lines(tmp_path, tracks, cluster):
    """Two actors, batches of several rows, bad rows among them, then the rest of the job."""
    given = many(tracks, 20)
    bad = [{"id": "lost", "input": "nowhere.wav"}, {"id": "odd", "text": "slow", "takes": "two"}]
    source = listed(tmp_path / "rows.jsonl", *given[:16], *bad)
    assert job(source, tmp_path / "out", "--json", address=cluster) == 1
    found = lines(tmp_path / "out")
    assert [line["id"] for line in found.values()] == [row["id"] for row in [*given[:16], *bad]]
    assert found["lost"]["state"] == found["odd"]["state"] == "failed"
    assert "nowhere.wav: not found" in found["lost"]["error"]
    assert "takes: got 'two', expected a whole number" in found["odd"]["error"]
    assert max(line["together"] or 0 for line in found.values()) > 1
    first = sounds(tmp_path / "out")
    expected = {f"{row['id']}.wav": alone(row, tmp_path / "alone.wav") for row in given[:16]}
    assert first == expected

    (tmp_path / "out" / "r15.wav").unlink()
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.wav")}
    listed(source, *given, bad[0], {**bad[1], "takes": 2})
    assert job(source, tmp_path / "out", "--resume", address=cluster) == 1
    again = lines(tmp_path / "out")
    assert [again[row["id"]]["state"] for row in given] == ["done"] * 20
    assert again["odd"]["state"] == "done"
    assert [take["file"] for take in again["odd"]["takes"]] == ["odd-1.wav", "odd-2.wav"]
    assert all(path.stat().st_mtime_ns == before for path, before in written.items())  # none was drawn again
    assert sounds(tmp_path / "out")["r15.wav"] == expected["r15.wav"]  # whose file was gone
    assert not list((tmp_path / "out").rglob("*.partial"))
    assert not (tmp_path / "out" / "parts").exists()


def test_what_a_result_says(tmp_path, tracks, cluster):
    given = {"id": "one", "input": str(tracks / "t0.wav"), "takes": 2, "bpm": 120, "prompt_bars": 1, "rank": True}
    source = listed(tmp_path / "rows.jsonl", {**given, "bars": 2, "join": "splice", "seed": 7})
    assert job(source, tmp_path / "out", address=cluster) == 0
    (line,) = lines(tmp_path / "out").values()
    assert (line["seed"], line["seam"], line["bars"], line["bpm"]) == (7, 2.0, 2, 120.0)
    assert (line["sample_rate"], line["channels"], line["state"], line["error"]) == (16000, 1, "done", None)
    assert len(line["model"]) == len(line["parameters"]) == 64
    assert line["variant"] == "fp32"
    assert line["real_time_factor"] > 0
    assert {take["seed"] for take in line["takes"]} == {7, 8}
    for take in line["takes"]:
        wav, _ = audio_files.read(tmp_path / "out" / take["file"])
        assert take["peak_db"] == pytest.approx(20 * np.log10(np.abs(wav).max()), abs=0.02)
        assert take["rms_db"] == pytest.approx(10 * np.log10((wav**2).mean()), abs=0.02)
        assert take["log_probability"] < 0
        assert take["first_beat_db"] is not None


def killer(most: int, stop: threading.Event, killed: list[int]) -> threading.Thread:
    """Kills workers of Ray's that draw, at random moments."""
    rng = np.random.default_rng(3)

    def kill() -> None:
        while len(killed) < most and not stop.wait(float(rng.uniform(0.2, 1.5))):
            if found := workers():
                killed.append(int(rng.choice(found)))
                os.kill(killed[-1], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def workers() -> list[int]:
    """The processes that draw."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"MapWorker" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds the workers in /proc")
def test_killed_workers_lose_and_double_nothing(tmp_path, tracks, cluster):
    given = many(tracks, 30)
    source, stop, killed = listed(tmp_path / "rows.jsonl", *given), threading.Event(), []
    thread = killer(4, stop, killed)
    try:
        status = job(source, tmp_path / "out", "--together", "3", address=cluster)
    finally:
        stop.set()
        thread.join()
    assert len(killed) > 1
    assert status == 0
    assert [line["state"] for line in lines(tmp_path / "out").values()] == ["done"] * 30
    found = sounds(tmp_path / "out")
    assert len(found) == 30
    for row in given[::9]:
        assert found[f"{row['id']}.wav"] == alone(row, tmp_path / "alone.wav")


def test_a_row_that_ends_its_workers_is_a_failure_and_no_other_is(tmp_path, tracks, cluster):
    given = many(tracks, 4)
    deadly = {**given[0], "id": "deadly", "input": f"file://{tracks}/deadly.txt"}
    source = listed(tmp_path / "rows.jsonl", *given[:2], deadly, *given[2:])
    assert job(source, tmp_path / "out", address=cluster) == 1
    found = lines(tmp_path / "out")
    assert {line["id"] for line in found.values() if line["state"] == "done"} == {row["id"] for row in given}
    assert found["deadly"]["error"] == "the worker that drew it ended each time (killed, or out of memory)"
    assert "deadly.wav" not in sounds(tmp_path / "out")


def test_a_machine_that_goes_takes_no_row_with_it(tmp_path, tracks, nodes):
    given = many(tracks, 24)
    source = listed(tmp_path / "rows.jsonl", *given)
    node, gone = nodes.add_node(num_cpus=1, object_store_memory=100_000_000), threading.Event()
    nodes.wait_for_nodes()

    def remove() -> None:
        while not list((tmp_path / "out").glob("*.wav")):
            gone.wait(0.05)
        nodes.remove_node(node, allow_graceful=False)
        gone.set()

    thread = threading.Thread(target=remove)
    thread.start()
    status = job(source, tmp_path / "out", "--together", "2", "--actors", "3", address=str(nodes.address))
    thread.join()
    assert (status, gone.is_set()) == (0, True)
    assert [line["state"] for line in lines(tmp_path / "out").values()] == ["done"] * 24
    found = sounds(tmp_path / "out")
    assert found[f"{given[17]['id']}.wav"] == alone(given[17], tmp_path / "alone.wav")


def test_a_job_of_its_own_is_interrupted_and_goes_on(tmp_path, tracks):
    """Without a cluster, as a program: Ctrl-C ends it when what is being drawn is done."""
    given = many(tracks, 40)
    source = listed(tmp_path / "rows.jsonl", *given)
    options = ["--bundle", str(BUNDLE), "--duration", str(SECONDS + 1), "--prompt-seconds", "1", "--actors", "1"]
    command = [sys.executable, "-m", "clean_lm", "batch", str(source), "-o", str(tmp_path / "out"), *options]
    process = subprocess.Popen(
        [*command, "--together", "2", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "progress":
            process.send_signal(signal.SIGINT)
            break
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    last = json.loads(said.splitlines()[-1])
    found = lines(tmp_path / "out")
    assert 0 < last["done"] == len(found) < 40
    assert last["left"] == 40 - last["done"]
    assert {f"{identity}.wav" for identity in found} == set(sounds(tmp_path / "out"))  # nothing half, nothing unsaid
    assert "--resume goes on" in errors


@pytest.mark.parametrize(("kind", "name"), [("csv", "rows.csv"), ("parquet", "rows.parquet")])
def test_tables_are_read_as_json_lines_are(tmp_path, kind, name):
    given = [
        {"id": "a", "input": "x/a.wav", "text": "slow", "takes": 2, "loop": True, "temperature": 0.5},
        {"id": "b", "input": "/b.wav", "text": None, "takes": None, "loop": None, "temperature": None},
    ]
    expected = rows.read_rows(str(listed(tmp_path / "rows.jsonl", *given)))
    table = pa.Table.from_pylist(given)
    if kind == "parquet":
        pq.write_table(table, tmp_path / name)
    else:
        cells = ["" if value is None else value for row in given for value in row.values()]
        text = [",".join(map(str, part)) for part in (table.column_names, cells[:6], cells[6:])]
        (tmp_path / name).write_text("\n".join(text), encoding="utf-8-sig")
    assert rows.read_rows(str(tmp_path / name)) == expected
    assert expected[0].files == {"input": (f"{tmp_path}/x/a.wav",)}
    assert expected[0].options == {"text": "slow", "takes": 2, "loop": True, "temperature": 0.5}
    assert expected[1] == rows.Row("b", {"input": ("/b.wav",)})


def test_a_folder_is_a_list_of_its_audio(tmp_path):
    for name in ("a.wav", "deep/b.flac", "deep/notes.txt", ".hidden/c.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [row.id for row in rows.read_rows(str(tmp_path))] == ["a", "deep/b"]
    (tmp_path / "a.mp3").touch()
    with pytest.raises(AudioError, match=r"a\.mp3 and a\.wav have one name"):
        rows.read_rows(str(tmp_path))


def test_a_jobs_output_in_a_folder_is_none_of_its_tracks(tmp_path):
    for name in ("a.wav", "out/a.wav", "out/job.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [row.id for row in rows.read_rows(str(tmp_path))] == ["a"]


def test_cells_of_tables(tmp_path):
    """Whole numbers of a column that lacks some, as pandas writes them, decimals, empty lists."""
    lacking = float("nan")
    table = {
        "id": [1.0, 2.0],
        "takes": [2.0, lacking],
        "temperature": pa.array([Decimal("0.50"), None]),
        "melody": [["a.wav"], []],
    }
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    first, second = rows.read_rows(str(tmp_path / "rows.parquet"))
    assert (first.id, first.options) == ("1", {"takes": 2, "temperature": 0.5})
    assert second == rows.Row("2")


BAD = {
    "[1]": "got [1], expected a JSON object",
    "{": "not JSON",
    '{"id": 1.5}': "id: got 1.5, expected a text or a whole number",
    '{"input": ["a", "b"]}': "input: got ['a', 'b'], expected a path",
    '{"tempo": 3}': "'tempo': unknown option",
    '{"duration": true}': "duration: got True, expected a number",
    '{"id": "a//b"}': "id: got 'a//b', expected a name",
    '{"bundle": "nowhere"}': "nowhere",
    '{"input": ""}': "input: got '', expected a text",
    '{"id": "\\ud800"}': "expected Unicode text",
    '{"id": "Parts/x"}': "expected another name than the job's own",
    '{"id": "\udcff"}': "not JSON: 'utf-8' codec can't decode",
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_row_is_a_result(tmp_path, line):
    text = line + "\n" + '{"id": "good"}'
    (tmp_path / "rows.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    bad, good = plan.plan(rows.read_rows(str(tmp_path / "rows.jsonl")), plan.Settings(str(BUNDLE)))
    assert bad.error is not None
    assert BAD[line] in bad.error
    assert good.error is None
    (result,) = Worker(str(tmp_path / "out"), 1).run([bad])
    pa.Table.from_pylist([result], store.SCHEMA)
    assert (result["state"], result["error"]) == ("failed", bad.error)


def test_lists_that_cannot_be_a_job(tmp_path):
    (tmp_path / "rows.csv").write_text("id,tempo\na,3\n")
    with pytest.raises(ValueError, match="'tempo': unknown column"):
        rows.read_rows(str(tmp_path / "rows.csv"))
    with pytest.raises(OSError, match=r"rows\.txt: not found"):
        rows.read_rows(str(tmp_path / "rows.txt"))
    for name, said in (("rows.txt", "expected a folder of audio, or a list"), ("rows.jsonl", "holds no rows")):
        (tmp_path / name).write_text("\n")
        with pytest.raises(AudioError, match=said):
            rows.read_rows(str(tmp_path / name))
    settings = plan.Settings(str(BUNDLE))
    with pytest.raises(AudioError, match="id: 'a' comes twice"):
        plan.plan([rows.Row("a"), rows.Row("a")], settings)
    with pytest.raises(AudioError, match=r"output: 'a-1\.wav' comes twice"):
        plan.plan([rows.Row("A", options={"takes": 2}), rows.Row("a-1")], settings)
    with pytest.raises(FileNotFoundError, match="a bundle is the folder"):
        plan.plan([rows.Row("a")], plan.Settings(str(tmp_path)))


def test_names_and_seeds_depend_on_the_id_alone():
    assert plan.output_names("a/b c.wav", 1, ".flac") == ("a/b c.wav.flac",)
    assert plan.output_names("../x\\y:z", 2, ".wav") == ("%2E./x%5Cy%3Az-1.wav", "%2E./x%5Cy%3Az-2.wav")
    settings = plan.Settings(str(BUNDLE), seed=3)
    first, second = plan.plan([rows.Row("a"), rows.Row("b")], settings)
    (alone,) = plan.plan([rows.Row("b")], settings)
    assert second.options["seed"] == alone.options["seed"] != first.options["seed"]
    assert second.parameters == alone.parameters


def test_what_changes_a_rows_audio_changes_its_hash(tmp_path):
    changes = [{"options": {"duration": 3.0}}, {"files": {"input": ("x.wav",)}}, {"variant": "fp32"}]
    found = {
        plan.plan([rows.Row("a", **change)], plan.Settings(str(BUNDLE)))[0].parameters for change in [{}, *changes]
    }
    assert len(found) == 4


def test_groups_are_of_one_model_and_no_larger_than_asked(tracks):
    tasks = plan.plan(
        [rows.row_of(row, n, "", False) for n, row in enumerate(many(tracks, 11))], plan.Settings(str(BUNDLE))
    )
    found = list(plan.groups(tasks, 4))
    assert sorted(task.id for group in found for task in group) == sorted(task.id for task in tasks)
    assert max(map(plan.size, found)) == 4
    assert [task.files for group in found for task in group] == sorted((task.files for task in tasks), key=str)


def test_the_models_hash_is_of_all_that_a_text_goes_through(tmp_path):
    """Of every file that the variant uses, the tokenizer among them, and of no other."""
    folder = Path(shutil.copytree(BUNDLE, tmp_path / "bundle"))
    document = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    graphs = {info["file"] for info in document["graphs"].values()}
    hashes = {plan.Bundles().hash(str(folder), None)}
    for name in (*graphs, "tokenizer.json"):
        document["files"][name]["sha256"] = hashlib.sha256(name.encode()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
        hashes.add(plan.Bundles().hash(str(folder), None))
    assert len(hashes) == 1 + len(graphs) + 1
    document["files"]["README.md"] = document["files"]["tokenizer.json"]
    (folder / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    assert plan.Bundles().hash(str(folder), None) in hashes


def test_an_output_folder_is_taken_only_when_it_is_free(tmp_path, tracks):
    source = listed(tmp_path / "rows.jsonl", {"id": "t0", "input": str(tracks / "t0.wav")})
    assert job(source, tracks) == 1  # would write over the track itself
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "t0.wav").write_bytes(b"mine")
    assert job(source, tmp_path / "out") == 1
    assert (tmp_path / "out" / "t0.wav").read_bytes() == b"mine"
    folder = store.Folder(str(tmp_path / "other"))
    results = store.Results(folder)
    results.begin(False, [])
    with pytest.raises(AudioError, match="holds the results of a job; --resume goes on"):
        store.Results(folder).begin(False, [])
    store.Results(folder).begin(True, ["a.wav"])
    for name in ("a.wav", "b.wav"):
        folder.write(name, b"")
    assert store.Results(folder).begin(True, ["a.wav"]) >= {"a.wav", "b.wav"}  # a job's, which goes on
    with pytest.raises(AudioError, match=r"b\.wav: is there already, and not by a job"):
        store.Results(folder).begin(True, ["a.wav", "b.wav"])
    folder.write("job.json", b"{}")
    with pytest.raises(AudioError, match=r"job\.json: not readable"):
        store.Results(folder).begin(True, [])


def test_options_of_the_job_are_checked_before_it_begins(tmp_path, tracks, capsys):
    assert job(tracks, tmp_path / "out", "--takes", "0") == 1
    assert "--takes: got 0, expected 1 or more" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_results_of_an_id_are_its_last(tmp_path):
    results = store.Results(store.Folder(str(tmp_path)))
    line = {"id": "a", "place": 0, "parameters": "p", "takes": []}
    for state in ("failed", "done"):
        results.add({**line, "state": state})
        results.flush()
    for state in ("done", "failed"):
        results.add({**line, "id": "b", "place": 1, "state": state})
        results.flush()
    assert len(results.folder.parts()) == 4
    assert results.done() == {"a": "p"}
    results.finish({"b": 0, "a": 1})
    assert [(line["id"], line["state"]) for line in pq.read_table(tmp_path / "results.parquet").to_pylist()] == [
        ("b", "failed"),
        ("a", "done"),
    ]
    assert results.done() == {"a": "p"}


def test_rows_are_drawn_together_only_where_they_come_out_as_alone(tmp_path, tracks, monkeypatch):
    """What is compared decides: where the first columns differ, as with weights of 4 bits, each row is drawn alone."""
    tasks = plan.plan(rows.read_rows(str(listed(tmp_path / "r.jsonl", *many(tracks, 6)))), plan.Settings(str(BUNDLE)))
    found = {}
    for equal in (True, False):
        monkeypatch.setattr("clean_lm.batch.together.same", lambda these, those, equal=equal: equal)
        results = Worker(str(tmp_path / f"{equal}"), 1).run(tasks)
        assert all(result["state"] == "done" for result in results)
        found[equal] = {result["id"]: result["together"] for result in results}
    assert set(found[True].values()) == {2, 4}  # with a text, and without
    assert set(found[False].values()) == {1}
    assert sounds(tmp_path / "True") == sounds(tmp_path / "False")


def test_the_extra_is_named_where_it_lacks(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "clean_lm.batch", None)
    assert cli.main(["batch", str(tmp_path), "-o", str(tmp_path / "out")]) == 1
    assert "pip install 'clean_lm[batch]'" in capsys.readouterr().err
