"""The benchmark, run whole on the tiny model: what it writes, how it counts. Nothing is asserted about speed."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench import __main__ as command
from bench import contenders, huggingface, machine, measure, ours, upstream
from bench.contenders import NAMES, OPENVINO, Files
from bench.measure import BANDWIDTH, DECODE, ENCODE, MACHINE, PREFILL, STEP, WHOLE, Point, Sample
from bench.numpy_loop import draw
from bench.optimum import Optimum
from bench.plot import spread
from bench.report import markdown
from bench.summary import all_steps, at_length, medians, summarise
from bench.weights import read_bytes, weight_bytes
from bench.workload import GUIDED, NULL, REFERENCE, Mode, Model, fill_random
from clean_lm.generation import Sampling
from tests.support import ROOT, feed

pytestmark = pytest.mark.bench

TOLERANCE = 1e-5  # of the largest logit
INT8_KL, INT4_KL = 0.01, 1.0  # nats a code, of OpenVINO's weights on the demo's model and random codes, unguided
MODES = [Mode(GUIDED, True, 1), Mode(NULL, False, 1), Mode("takes", False, 3), Mode("guided takes", True, 2)]
WEIGHTS = ("fp32", "int8", "int4")  # OpenVINO's
THEIRS = [] if contenders.missing(OPENVINO) else [f"{OPENVINO} {weights}" for weights in WEIGHTS]
RELEASED = Model(24, 16, 64, 4, 2048, (0, 1, 2, 3), 768, 32_000, 50.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory, traces):
    """One run of everything, from the demo's checkpoint: the folder it wrote to, and its files.

    PyTorch on one thread: where other programs run, several wait for each other in every one of its small operations.
    """
    work, threads = tmp_path_factory.mktemp("bench"), torch.get_num_threads()
    torch.set_num_threads(1)
    arguments = ["--size", "tiny", "--work", work, "--ckpt", ROOT / "demo", "--rounds", 2, "--steps", 2, "--takes", 2]
    arguments += ["--variants", "fp32", "int8", "--contenders", *NAMES, "--openvino", *WEIGHTS]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**traces, "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(name, value)
        command.main([str(argument) for argument in arguments])
    yield SimpleNamespace(
        work=work,
        files=Files(ROOT / "demo", work / "bundle", work / "growing", work / "openvino"),
        results=json.loads((work / "results.json").read_text(encoding="utf-8")),
    )
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def fp32(run):
    return contenders.open_ours(run.files, "fp32", REFERENCE)


def test_results(run):
    results = run.results
    assert results["groups"] == [["clean_lm fp32", "clean_lm int8", *THEIRS, "optimum-style", "transformers"]]
    assert results["workload"]["prefill"] == 301
    assert results["workload"]["workload_steps"] == 1202
    assert results["summary"]["bandwidth"] > 0
    for name, modes in results["summary"]["contenders"].items():
        assert list(modes) == [GUIDED, NULL, *(["2 null-text takes"] if name.startswith("clean_lm") else [])]
        assert [modes[mode]["rows"] for mode in (GUIDED, NULL)] == [2, 1]
        for said in (modes[GUIDED], modes[NULL]):
            assert list(said["step"]) == ["100", "750", "1490"]
            assert all(seconds > 0 for seconds in [*said["step"].values(), said["prefill"]])
            assert said["growth"] == said["step"]["1490"] / said["step"]["100"]
            new, whole = (said["extrapolated"][key] for key in ("real_time_new", "real_time"))
            assert new == pytest.approx(whole * 24 / 30)
    assert set(results["summary"]["codecs"]) == {"clean_lm", "transformers"}
    processes = results["processes"]
    assert list(processes) == results["groups"][0]
    for name in ("clean_lm fp32", "clean_lm int8"):
        assert 0 < processes[name]["stream"]["first"] <= processes[name]["stream"]["new"]
        assert processes[name]["load"] > 0
    assert processes["transformers"]["load"] is None
    if machine.available() is not None:
        assert 0 <= results["others"] <= 1
        assert all(said["memory"]["opened"] > 0 for said in processes.values())
        assert all(said["memory"]["peak"] >= said["memory"]["opened"] for said in processes.values())


def test_every_contender_is_measured_in_every_round(run):
    for turn in range(2):
        order = [s["contender"] for s in run.results["samples"] if (s["round"], s["what"]) == (turn, STEP)]
        names = run.results["groups"][0]
        assert order[: len(names)] == names[turn:] + names[:turn]
        assert sorted(order) == sorted(6 * names + names[:2])  # clean_lm's takes
    assert all(len(s["values"]) == 2 for s in run.results["samples"] if s["what"] == STEP)


def test_report(run):
    text = (run.work / "results.md").read_text(encoding="utf-8")
    assert text == markdown(run.results | {"summary": keyed(run.results["summary"])})
    assert "random weights" in text
    assert "Extrapolated: encode + prefill + 1202 steps + decode" in text
    if not upstream.installed():
        assert "| audiocraft | not installed |" in text
    for table in text.split("\n\n"):
        rows = [line for line in table.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1, table
    assert (run.work / "results.png").read_bytes().startswith(b"\x89PNG")


def keyed(tree):
    """JSON's keys are texts: cache lengths back to numbers."""
    if not isinstance(tree, dict):
        return tree
    return {int(key) if key.isdigit() else key: keyed(value) for key, value in tree.items()}


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_the_growing_cache_gives_our_logits_and_tokens(run, fp32, mode):
    optimum = Optimum(run.files.growing, run.files.bundle, fp32.coder)
    codes = fp32.model.codes(mode.takes, 12)
    decoder, growing = fp32._decoder(mode), optimum.run(mode, 0)
    for columns in (codes[:, :, :9], codes[:, :, 9:10], codes[:, :, 10:11]):
        feed(decoder, columns, np.zeros(codes.shape[:2]))
        growing(columns)
        assert np.abs(decoder.logits - growing.logits).max() <= TOLERANCE * np.abs(decoder.logits).max()
    greedy = fp32.lm.generate_codes(codes, fp32._texts(mode), frames=40, sampling=Sampling(use_sampling=False))
    np.testing.assert_array_equal(optimum.generate(mode, codes, 40, top_k=1), greedy)


@pytest.fixture(scope="module")
def theirs(run):
    """OpenVINO by the way to store weights."""
    pytest.importorskip("openvino")
    return {weights: contenders.open_openvino(run.files, weights) for weights in WEIGHTS}


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_openvino_has_our_logits(fp32, theirs, mode):
    codes, decoder = fp32.model.codes(mode.takes, 12), fp32._decoder(mode)
    runs = {weights: contender.run(mode, 0) for weights, contender in theirs.items()}
    for columns in (codes[:, :, :9], codes[:, :, 9:10], codes[:, :, 10:11]):
        feed(decoder, columns, np.zeros(codes.shape[:2]))
        for run in runs.values():
            run(columns)
        assert np.abs(decoder.logits - runs["fp32"].logits).max() <= TOLERANCE * np.abs(decoder.logits).max()
        if not mode.text:
            assert divergence(decoder.logits, runs["int8"].logits) < INT8_KL
            assert INT8_KL < divergence(decoder.logits, runs["int4"].logits) < INT4_KL


def divergence(ours, theirs):
    """The mean KL divergence of two arrays of logits [B, K, card], in nats."""
    log_p, log_q = (torch.from_numpy(logits).log_softmax(dim=-1) for logits in (ours, theirs))
    return float((log_p.exp() * (log_p - log_q)).sum(dim=-1).mean())


def test_openvino_runs_fused_attention_on_compressed_weights(fp32, theirs):
    """What its CPU plugin makes of the graph: one operation for attention and cache, no cache of its own beside it."""
    for weights, stored in (("fp32", "f32"), ("int8", "u8"), ("int4", "u4")):
        run = theirs[weights].run(MODES[0], 0)
        run(fp32.model.codes(1, 3))
        nodes = theirs[weights].compiled.get_runtime_model().get_ops()
        kinds = [node.get_rt_info()["layerType"].astype(str) for node in nodes]
        products = [node for node, kind in zip(nodes, kinds, strict=True) if kind == "FullyConnected"]
        assert kinds.count("ScaledDotProductAttention") == fp32.model.layers
        assert {node.input(1).get_element_type().get_type_name() for node in products} == {stored}
        assert len(products) == 6 * fp32.model.layers + 1
        [state, *others] = run.reader.request.query_state()
        assert len(others) == 2 * fp32.model.layers - 1
        assert tuple(state.state.shape) == (2, fp32.model.heads, 3, fp32.model.head_dim)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_transformers_has_our_logits(run, fp32, mode):
    theirs = huggingface.Run(huggingface.Transformers(run.files.checkpoint), mode, 0)
    codes, decoder = fp32.model.codes(mode.takes, 12), fp32._decoder(mode)
    for columns in (codes[:, :, :9], codes[:, :, 9:10], codes[:, :, 10:11]):
        feed(decoder, columns, np.zeros(codes.shape[:2]))
        theirs(torch.from_numpy(columns).flatten(0, 1))
        logits = theirs.logits.numpy().reshape(decoder.logits.shape)
        assert np.abs(decoder.logits - logits).max() <= TOLERANCE * np.abs(decoder.logits).max()


def test_whole_generations_have_the_whole_length(run, fp32):
    audio = fp32.model.prompt(REFERENCE.prompt)
    for contender in (fp32, contenders.open_optimum(run.files), contenders.open_transformers(run.files)):
        assert contender.continue_audio(MODES[1], audio, REFERENCE).shape == (1, 1, 30 * 32_000)


def test_whole_generations_are_measured_in_every_round(run, tmp_path):
    out = ["--json", str(tmp_path / "a.json"), "--markdown", str(tmp_path / "a.md"), "--plot", str(tmp_path / "a.png")]
    where = ["--size", "tiny", "--work", str(run.work), "--ckpt", str(ROOT / "demo")]
    which = ["--contenders", "clean_lm", "openvino", "--variants", "int8", "--openvino", "int4", "--full"]
    command.main([*where, *out, *which, "--rounds", "2", "--steps", "1", "--parts", "steps", "prefill", "codec"])
    results = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    names = ["clean_lm int8", *(f"{OPENVINO} int4" for _ in THEIRS[:1])]
    whole = [(s["round"], s["contender"], s["mode"]) for s in results["samples"] if s["what"] == WHOLE]
    assert sorted(whole) == sorted((turn, name, mode) for turn in range(2) for name in names for mode in (GUIDED, NULL))
    text = (tmp_path / "a.md").read_text(encoding="utf-8")
    for name in names:
        cell = results["summary"]["contenders"][name][NULL]
        measured, extrapolated = (f"{cell[kind]['seconds']:.1f}" for kind in ("whole", "extrapolated"))
        assert f"| {measured} | {extrapolated} | {cell['whole']['real_time']:.2f} |" in text
    assert "the median of 2 generations" in text


def test_what_a_step_reads(run, fp32):
    """Every weight but the embedding, 4 bytes each; 2 x layers x dim numbers of cache a column and row."""
    c = huggingface.load(run.files.checkpoint).config
    weights = weight_bytes(ours.graph_file(run.files.bundle, "fp32"))
    assert weights["embedding"] == 4 * c.codebooks * (c.card + 1) * c.dim
    assert weights["layers.0.linear1"] == 4 * c.dim * c.hidden
    text, null = (read_bytes(ours.graph_file(run.files.bundle, "fp32"), text) for text in (True, False))
    assert text - null == c.layers * 4 * (2 * c.dim**2 + 2 * c.dim)  # cross_q, cross_out, norm_cross
    column = 2 * c.layers * c.dim * 4
    assert fp32.step_bytes(MODES[0], 100) == text + 100 * 2 * column
    assert fp32.step_bytes(MODES[2], 100) == null + 100 * 3 * column
    theirs = contenders.open_transformers(run.files).step_bytes(MODES[0], 0)
    assert abs(theirs - text) < 0.01 * text  # the small constants of the graph


def test_workload():
    assert REFERENCE.frames(RELEASED) == (300, 1500)
    assert (REFERENCE.prefill(RELEASED), REFERENCE.capacity(RELEASED)) == (301, 1503)
    assert (REFERENCE.steps(RELEASED)[0], REFERENCE.steps(RELEASED)[-1], len(REFERENCE.steps(RELEASED))) == (
        301, 1502, 1202,
    )  # fmt: skip


def test_between_and_beyond_sampled_lengths():
    sampled = {100: 1.0, 750: 2.0, 1490: 6.0}
    at = np.array([100, 425, 750, 1120, 1490, 1502])
    np.testing.assert_allclose(at_length(sampled, at), [1, 1.5, 2, 4, 6, 6 + 12 * 4 / 740])
    assert at_length({100: 1.0, 200: 3.0}, np.array([50]))[0] == 0
    np.testing.assert_array_equal(at_length({750: 2.0}, at), np.full(6, 2.0))
    line = {at: 0.01 + 2e-5 * at for at in sampled}
    exact = sum(0.01 + 2e-5 * at for at in range(301, 1503))
    assert all_steps(line, range(301, 1503)) == pytest.approx(exact)


def test_turns_rotate():
    points = [Point(STEP, NULL, 100), Point(STEP, NULL, 750)]
    for turn, first in ((0, "abc"), (1, "bca"), (2, "cab"), (3, "abc")):
        order = list(measure.in_turn("abc", points, turn))
        assert "".join(name for _, name in order) == 2 * first
        assert [point for point, _ in order] == [points[0]] * 3 + [points[1]] * 3


def test_groups_hold_the_yardstick():
    sizes = {"fp32": 4, "int8": 2, "int4": 1, "other": 4}
    assert measure.groups(sizes, None, "fp32") == measure.groups(sizes, 11, "fp32") == [list(sizes)]
    assert measure.groups(sizes, 8, "fp32") == [["fp32", "int8", "int4"], ["fp32", "other"]]
    assert measure.groups(sizes, 1, "fp32") == [["fp32", name] for name in ("int8", "int4", "other")]


def test_ratios_are_of_one_group():
    """The machine was twice as slow when the second group was measured: the ratio does not show it."""
    columns = REFERENCE.prefill(RELEASED)
    samples = [Sample(0, 0, "clean_lm", ENCODE, "", 0, (0.5,)), Sample(0, 0, "clean_lm", DECODE, "", 0, (2.0,))]
    for group, rate in ((0, 20.0), (1, 10.0)):
        samples += [Sample(group, 0, MACHINE, BANDWIDTH, NULL, at, (rate,)) for at in (100, 1490)]
    for group, name, factor in ((0, "clean_lm fp32", 1), (1, "clean_lm fp32", 2), (1, "clean_lm int8", 1)):
        samples += [Sample(group, 0, name, STEP, NULL, at, (factor, factor, 9.0)) for at in (100, 1490)]
        samples.append(Sample(group, 0, name, PREFILL, NULL, columns, (3.0 * factor,)))
    names = ("clean_lm fp32", "clean_lm int8")
    read = {(name, NULL, at): 5 for name in names for at in (100, 1490)}
    coders: dict[str, str] = dict.fromkeys(names, "clean_lm")
    rows = {(name, NULL): 1 for name in names}
    found = summarise(samples, read, coders, rows, names[0], REFERENCE, RELEASED)
    assert medians(samples)[names[0], STEP, NULL, 100] == 2
    int8 = found["contenders"][names[1]][NULL]
    assert int8["step_to_yardstick"] == {100: 0.5, 1490: 0.5}
    assert int8["prefill_to_yardstick"] == 0.5
    assert int8["of_bandwidth"] == {100: 0.5, 1490: 0.5}
    assert int8["extrapolated"]["seconds"] == 0.5 + 3.0 + 1202 * 1.0 + 2.0
    assert int8["extrapolated"]["real_time"] == 30 / 1207.5
    assert {"what": f"{NULL} prefill: {names[1]} / {names[0]}", "ratio": 0.5} in found["goals"]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.uint8])
def test_caches_of_any_type_are_filled(dtype):
    cache = np.zeros((2, 4, 300_000, 1), dtype)
    fill_random(cache)
    assert cache.astype(np.float32).std() > (0.9 if cache.dtype.kind == "f" else 60)
    assert cache[-1, -1, -100:].any()


def test_draw():
    logits = np.log(np.array([[[0.1, 0.4, 0.2, 0.3]]]))
    uniform = np.linspace(0, 1, 1000, endpoint=False)
    drawn = np.array([draw(logits, np.full((1, 1, 1), u), 3)[0, 0] for u in uniform])
    np.testing.assert_allclose(np.bincount(drawn) / 1000, [0, 4 / 9, 2 / 9, 3 / 9], atol=2e-3)


def test_labels_are_kept_apart():
    assert spread([1.0, 1.1, 5.0], 1.0) == [1.0, 2.0, 5.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "expected 1 or more"),
        (["--variants", "int3"], "holds the variants fp32, int8, not int3"),
    ],
)
def test_refusals(run, arguments, message):
    bundle = ["--size", "tiny", "--work", str(run.work), "--ckpt", str(ROOT / "demo")]
    with pytest.raises(SystemExit, match=message):
        command.main([*bundle, *arguments])


def test_interrupted(run, monkeypatch, tmp_path, capsys):
    """What was measured until then is written."""
    calls = iter(range(8))

    def stop(*arguments):
        if next(calls) == 7:
            raise KeyboardInterrupt
        return (1.0,)

    monkeypatch.setattr(measure, "measure", stop)
    out = ["--json", str(tmp_path / "a.json"), "--markdown", str(tmp_path / "a.md"), "--plot", str(tmp_path / "a.png")]
    where = [
        "--size",
        "tiny",
        "--work",
        str(run.work),
        "--ckpt",
        str(ROOT / "demo"),
        "--contenders",
        "clean_lm",
        "--variants",
        "fp32",
    ]
    command.main([*where, *out, "--parts", "steps", "prefill", "--rounds", "1"])
    assert "interrupted" in capsys.readouterr().err
    results = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert sum(s["what"] in (STEP, PREFILL) for s in results["samples"]) == 7
    assert (tmp_path / "a.png").exists()


@pytest.mark.parametrize("part", ["prefill", "codec", "takes"])
def test_a_part_alone(run, tmp_path, part):
    out = ["--json", str(tmp_path / "a.json"), "--markdown", str(tmp_path / "a.md"), "--plot", str(tmp_path / "a.png")]
    where = ["--size", "tiny", "--work", str(run.work), "--ckpt", str(ROOT / "demo")]
    command.main([*where, *out, "--contenders", "clean_lm", "--parts", part, "--rounds", "1", "--steps", "1"])
    samples = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["samples"]
    assert {s["what"] for s in samples} - {BANDWIDTH} <= {part, ENCODE, DECODE, STEP}
    assert (tmp_path / "a.png").exists()
