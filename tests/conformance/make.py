"""Write the conformance kit anew: its bundles, its cases, and what is expected of them.

  python -m tests.conformance.make               tests/golden/conformance, all of it: minutes
  python -m tests.conformance.make --cases       only the cases, on the bundles that are there

Expected is what upstream's goldens say where they say it, else what the Python runtime gives on the kit's own bundles.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from clean_lm.delay_pattern import UNKNOWN, delay, prefill_length
from clean_lm.generation import Generation
from clean_lm.language_model import LanguageModel
from clean_lm.windows import Window
from export.bundle import export
from tests.conformance.run import KIT, begin, check, opened, run
from tests.support import GOLDEN, Golden

BUNDLES = ("text", "standard", "stereo", "melody")
VOCAB = 180  # pieces in spiece.model, which has no sentinels here: the kit stays small
SOUND = 1e-5  # of the largest sample
STATES = 1e-5  # of the largest state
LOGITS = 1e-4  # of the largest logit
MARGIN = 5e-5  # how near a second choice may come: at greedy codes, of the largest logit; at drawn, of all probability

GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 0.0, "cfg_coef": 3.0, "cfg_coef_beta": None}
DRAWN = GREEDY | {"temperature": 1.0, "top_k": 250}
UPSTREAM, RUNTIME, SENTENCEPIECE = "upstream", "runtime", "sentencepiece"
BOTH = ["text", "standard"]  # one language model in two lowerings
Case = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", action="store_true", help="leave the bundles as they are")
    parser.add_argument("folder", type=Path, nargs="?", default=KIT)
    args = parser.parse_args()
    if not args.cases:
        write_bundles(args.folder / "bundles")
    write(args.folder, cases(args.folder))
    size = sum(path.stat().st_size for path in args.folder.rglob("*") if path.is_file())
    print(f"wrote {args.folder} ({size / 1e6:.1f} MB)")


# Bundles


def write_bundles(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as temporary:
        t5 = write_t5(Path(temporary))
        for name, golden, attention, codec, texts in (
            ("text", "text", "ort", None, t5),
            ("standard", "text", "standard", folder / "text", folder / "text"),
            ("stereo", "stereo", "ort", None, None),
            ("melody", "melody", "ort", folder / "text", None),
        ):
            export(GOLDEN / golden / "state_dict.bin", codec, texts, folder / name, attention)


def write_t5(folder: Path) -> Path:
    """The golden T5, whose 64 tokens are given company by random ones: a real tokenizer has 180."""
    tensors = load_file(GOLDEN / "_t5" / "t5-base" / "model.safetensors")
    known = tensors["shared.weight"]
    more = torch.randn(VOCAB - len(known), known.shape[1], generator=torch.Generator().manual_seed(0)) * known.std()
    save_file(tensors | {"shared.weight": torch.cat([known, more])}, folder / "model.safetensors")
    config = json.loads((GOLDEN / "_t5" / "t5-base" / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": VOCAB}))
    (folder / "tokenizer_config.json").write_text('{"extra_ids": 0}')
    shutil.copy(GOLDEN / "_t5" / "spiece" / "spiece.model", folder)
    return folder


# Cases


def cases(folder: Path) -> list[Case]:
    """All of them, what is expected filled in and compared with what the runtime gives."""
    text, stereo, melody = map(open_golden, ("text", "stereo", "melody"))
    made = [
        *arithmetic(text, stereo),
        *resampling(text),
        *tokens(),
        *text_states(text),
        *codec(text, stereo),
        *logits(text, stereo, melody),
        *greedy(text, stereo, melody),
        *in_windows(text, stereo),
        *drawn(text, stereo, melody),
        *whole(text, stereo, melody),
        *takes_of_prompts(text, stereo, melody),
        *batches(text, stereo, melody),
        *seams(),
    ]
    return [complete(case, folder / "bundles") for case in made]


def open_golden(name: str) -> Golden:
    meta = json.loads((GOLDEN / name / "meta.json").read_text(encoding="utf-8"))
    arrays: dict[str, np.ndarray] = {}
    for file in ("codec", "audio", "golden"):
        if (path := GOLDEN / name / f"{file}.npz").exists():
            arrays |= dict(np.load(path))
    return Golden(GOLDEN / name, arrays, meta)


def case(
    name: str,
    do: str,
    given: Mapping[str, Any],
    expected: Mapping[str, Any] | None = None,
    bundles: Sequence[str] = (),
    source: str = UPSTREAM,
    **within: float,
) -> Case:
    """expected: None where the runtime says it. within: of each output that need not be equal."""
    said = dict.fromkeys(expected or {}, source)
    return {
        "name": name, "do": do, "bundles": list(bundles), "given": dict(given), "expected": dict(expected or {}),
        "within": within, "source": said,
    }  # fmt: skip


def complete(case: Case, bundles: Path) -> Case:
    """A case with what the runtime says of outputs that upstream does not; raises where the two differ."""
    paths = [bundles / name for name in case["bundles"]] or [None]
    found = run(case, paths[0])
    for name, value in found.items():
        case["expected"].setdefault(name, value)
        case["source"].setdefault(name, RUNTIME)
        case["within"].setdefault(name, 0)
    failed = [row for path in paths for row in check(case, path) if not row.passed]
    if failed:
        raise AssertionError(f"the runtime itself fails: {failed}")
    if case["do"] in ("generate", "generate_takes") and case["given"]["uniform"] is None:
        case["margin"] = margin(case, bundles / case["bundles"][0])
    return case


def margin(case: Case, bundle: Path) -> float:
    """How near any of a generation's second choices came to its code; raises where rounding could make it that one."""
    given, lm = case["given"], opened(bundle).lm
    greedy = given["sampling"]["temperature"] == 0
    generation: Generation = begin(lm, **given)
    asked = np.concatenate([unknown(lm, window) for window in generation.windows], axis=1)
    nearest = np.inf
    for done in generation:
        places = asked[:, done - 1]
        scores = np.asarray(generation.decoder.logits, np.float64)[:, places]
        if greedy:
            two = np.sort(scores, axis=2)[:, :, -2:]
            near = (two[:, :, 1] - two[:, :, 0]) / np.abs(scores).max()
        else:
            near = distance(scores, given["sampling"], generation.uniform[done - 1][:, places])
        nearest = min(nearest, float(near.min()))
    if nearest < MARGIN:
        raise AssertionError(f"{case['name']}: a second choice is within {nearest:.1e}: take another seed or case")
    return float(f"{nearest:.2g}")


def unknown(lm: LanguageModel, window: Window) -> np.ndarray:
    """Which codes of the columns that a window draws are generated: bool [K, columns]."""
    known = np.zeros((1, lm.codebooks, window.known), np.int64)
    columns = delay(known, lm.delays, window.frames, lm.special_token)[0]
    return columns[:, prefill_length(window.known, lm.delays) :] == UNKNOWN


def distance(scores: np.ndarray, sampling: Mapping[str, Any], uniform: np.ndarray) -> np.ndarray:
    """From each draw to the nearest place where another code begins, [B, K]; what is not kept has no width."""
    p = np.exp((scores - scores.max(axis=2, keepdims=True)) / sampling["temperature"])
    p /= p.sum(axis=2, keepdims=True)
    order = np.sort(p, axis=2)[:, :, ::-1]
    if sampling["top_p"] > 0:
        least = np.where(order.cumsum(axis=2) - order > sampling["top_p"], np.inf, order).min(axis=2, keepdims=True)
    else:
        least = order[:, :, [min(sampling["top_k"] or p.shape[2], p.shape[2]) - 1]]
    p = np.where(p >= least, p, 0)
    edges = p.cumsum(axis=2) / p.sum(axis=2, keepdims=True)
    return np.abs(edges[:, :, :-1] - uniform[:, :, None]).min(axis=2)


def arithmetic(text: Golden, stereo: Golden) -> list[Case]:
    seeds = {"0": (5, 4), "7": (3, 8), str(2**32 + 5): (2, 3), str(2**64 - 1): (2, 4)}
    made = [
        case(f"uniforms: seed {seed}", "uniforms", {"seed": seed, "steps": steps, "codebooks": codebooks})
        for seed, (steps, codebooks) in seeds.items()
    ]
    for g, what in ((text, "delays 0 1 2 3"), (stereo, "delays 0 0 1 1 2 2 3 3")):
        codes, columns, delays = g["pat.codes"][0], g["pat.seq"][0], g["pat.delays"].tolist()
        given = {"codes": codes, "delays": delays, "frames": 23, "special": 64}
        made.append(case(f"delay: {what}", "delay", given, {"columns": columns}))
        made.append(case(f"delay: {what}, 9 frames known", "delay", given | {"codes": codes[:, :9]}))
        made.append(case(f"undelay: {what}", "undelay", {"columns": columns, "delays": delays}, {"codes": codes}))
    later = {"codes": codes[:2, :1], "delays": [2, 5], "frames": 3, "special": 64}
    made.append(case("delay: delays 2 5, 1 frame known", "delay", later))
    return made + [window(row) for row in window_rows()]


def window_rows() -> list[Mapping[str, Any]]:
    """Of upstream's: one window, several, one a frame short, and what is refused."""
    rows = json.loads((GOLDEN / "_windows" / "windows.json").read_text(encoding="utf-8"))
    fine = [row for row in rows if "error" not in row]
    longer = [row for row in fine if row["duration"] > row["max_duration"]]
    short = [row for row in longer if row["out_T"] < row["total_gen_len"]]
    refused = [row for row in rows if "error" in row and row["duration"] > row["max_duration"]]
    prompted = [row for row in longer if row["prompt_T"] > 0]
    return [fine[0], fine[2], longer[0], *prompted[:: len(prompted) // 4], *short[:3], refused[0]]


def window(row: Mapping[str, Any]) -> Case:
    name = f"windows: {row['duration']:g} s of {row['max_duration']:g} every {row['extend_stride']:g}"
    given = {name: row[name] for name in ("duration", "max_duration", "extend_stride")}
    given |= {"frame_rate": 50.0, "prompt": row["prompt_T"]}
    if "error" in row:
        return case(f"{name}, prompt {row['prompt_T']}, refused", "windows", given, {"refused": True})
    stride = int(50.0 * row["extend_stride"])
    cut = [[i * stride, max(0, known), frames] for i, (known, frames) in enumerate(row["windows"])]
    return case(f"{name}, prompt {row['prompt_T']}", "windows", given, {"windows": cut})


def resampling(text: Golden) -> list[Case]:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 500)).astype(np.float32)
    prompt, mono = text["prompt44100"][0], text["prompt_resampled"][0]
    made = [
        ("44100 stereo to 32000 mono", prompt, 44100, 32000, 1, {"audio": mono}),
        ("48000 to 16000", noise, 48000, 16000, 2, None),
        ("22050 mono to 32000 stereo", noise[:1, :200], 22050, 32000, 2, None),
        ("the same rate, to mono", noise[:, :50], 32000, 32000, 1, None),
        ("three samples", noise[:, :3], 44100, 32000, 1, None),
    ]
    return [
        case(
            f"convert: {name}", "convert",
            {"audio": audio, "from_rate": before, "to_rate": after, "channels": channels}, expected, audio=SOUND,
        )
        for name, audio, before, after, channels, expected in made
    ]  # fmt: skip


def seams() -> list[Case]:
    """Back to a track's own rate and channels, and joined to it."""
    rng = np.random.default_rng(1)
    track, made = (rng.uniform(-0.5, 0.5, (2, n)).astype(np.float32) for n in (400, 300))
    rates = [
        ("32000 mono to 44100 stereo", made[:1], 32000, 44100, 2), ("32000 to 22050", made, 32000, 22050, 1),
        ("the same rate", made[:, :50], 32000, 32000, 2), ("one sample", made[:, :1], 32000, 48000, 2),
    ]  # fmt: skip
    cuts = [("at the end", 400, 20, 100), ("in the middle", 250, 30, 300), ("shorter than a crossfade", 400, 90, 7)]
    cuts += [("nothing before it", 0, 20, 0)]
    levels = [("louder", made * np.float32(0.3)), ("quieter", made * np.float32(1.9)), ("at most 12 dB", made * 0.01)]
    levels += [("silence", made * 0)]
    return [
        *(
            case(
                f"to source: {name}", "to_source",
                {"audio": audio, "rate": rate, "source_rate": to, "source_channels": channels}, audio=SOUND,
            )
            for name, audio, rate, to, channels in rates
        ),
        *(
            case(
                f"splice: {name}", "splice",
                {"source": track, "generated": made, "seam": seam, "crossfade": fade, "lead": lead}, audio=SOUND,
            )
            for name, seam, fade, lead in cuts
        ),
        *(
            case(
                f"match level: {name}", "match_level",
                {"source": track, "generated": audio, "seam": 380, "lead": 250, "rate": 200}, gain=SOUND,
            )
            for name, audio in levels
        ),
    ]  # fmt: skip


def tokens() -> list[Case]:
    known = dict(json.loads((GOLDEN / "_t5" / "spiece" / "tokens.json").read_text(encoding="utf-8")))
    texts = {
        "empty": "", "a space": " ", "a description": "warm analog synth pad with slow drums",
        "spaces": "Warm   Analog\tSynth\npad ", "an emoji": "🎸", "an emoji after a word": "drums🎸",
        "kanji": "日本 techno",
        "a ligature": "\ufb01lm scene", "a combining accent": "e\u0301clair", "full width": "\uff37ide \uff21scii",
        "a no-break space": "no-break\u00a0space",
        "accents": next(text for text in known if text.startswith("naïve")),
        "numbers": next(text for text in known if text.startswith("120 bpm")),
    }  # fmt: skip
    return [
        case(f"tokens: {name}", "tokens", {"text": text}, {"ids": known[text]}, BOTH[:1], SENTENCEPIECE)
        for name, text in texts.items()
    ] + [case("tokens: of a bundle that shares", "tokens", {"text": "drums🎸"}, None, BOTH[1:])]


def text_states(text: Golden) -> list[Case]:
    kept = text["t5.desc.attention_mask"][0].astype(bool)
    ids, states = text["t5.desc.input_ids"][0][kept].tolist(), text["t5.desc.hidden"][0][kept]
    return [
        case("text states: of ids", "token_states", {"ids": ids}, {"states": states}, BOTH, states=STATES),
        case("text states", "text_states", {"text": "slow café drums 🎸"}, None, BOTH, states=STATES),
    ]


def codec(text: Golden, stereo: Golden) -> list[Case]:
    def both(name: str, given: tuple[str, str], upstream: Mapping[str, Any], bundles: Sequence[str]) -> list[Case]:
        wav, (codes, sound) = upstream[given[0]][0], (upstream[f"{given[1]}.{half}"][0] for half in ("codes", "audio"))
        return [
            case(f"encode: {name}", "encode", {"audio": wav}, {"codes": codes}, bundles),
            case(f"decode: {name}", "decode", {"codes": codes}, {"audio": sound}, bundles, audio=SOUND),
        ]

    made = [
        *both("mono", ("enc.wav", "enc"), text.arrays, BOTH),
        *both("one sample", ("enc_len.1.wav", "enc_len.1"), text.arrays, ["text"]),
        *both("a sample more than a frame", ("enc_len.641.wav", "enc_len.641"), text.arrays, ["text"]),
        *both("stereo, left and right in turn", ("st2.wav", "st2"), stereo.arrays, ["stereo"]),
    ]
    for name, g, key, bundles in (("mono", text, "enc", BOTH), ("stereo", stereo, "st2", ["stereo"])):
        codes, sound = g[f"{key}.codes"][0], g[f"{key}.audio"][0]
        for size, parts in ((4, [1, 2, 10]), (1, [7, 7]), (30, [5])):
            given = {"codes": codes, "parts": [*parts, codes.shape[1] - sum(parts)], "size": size}
            what = f"decode stream: {name}, {size} frames at a time"
            made.append(case(what, "decode_stream", given, {"audio": sound}, bundles, audio=SOUND))
    return made


def told(g: Golden, said: Mapping[str, Any]) -> dict[str, Any]:
    """What upstream's generation was told: texts, and melodies where there are any."""
    wav = said["wav"] and [g["cond.desc.self_wav"][0] if heard else None for heard in said["wav"]]
    return {"texts": g.texts(said["descriptions"]), "self_wav": wav}


def logits(text: Golden, stereo: Golden, melody: Golden) -> list[Case]:
    made = []
    for g, name, bundles in (
        (text, "two", BOTH), (text, "none_p17", BOTH), (stereo, "two", ["stereo"]),
        (melody, "none_p17", ["melody"]), (melody, "dbl_beta5", ["melody"]),
    ):  # fmt: skip
        said, codes, steps = g.meta["gen"][name], g[f"gen.{name}.tokens"], 12
        delays = g["pat.delays"].tolist()
        first = said["prompt_T"] + min(delays) + 1
        columns = delay(codes, delays, codes.shape[2], 64)[:, :, : first + steps - 1]
        sampling = GREEDY | {"cfg_coef_beta": said["kwargs"].get("cfg_coef_beta")}
        given = {"columns": columns, "calls": [first] + [1] * (steps - 1), **told(g, said), "sampling": sampling}
        expected = {"logits": g[f"gen.{name}.step_logits"][:steps]}
        label = f"logits: {g.meta['name']}, {LABELS[name]}"
        made.append(case(label, "logits", given, expected, bundles, logits=LOGITS))
    return made


LABELS = {
    "none": "null text", "desc": "a text", "desc_p17": "a text, a prompt of 17",
    "none_p17": "null text, a prompt of 17", "p1": "a text, a prompt of 1", "coef1": "a text, cfg_coef 1",
    "two": "two texts",
    "mixed_p9": "a text and null text, a prompt of 9", "p29of30": "a text, all but one frame known",
    "len1": "one frame", "textonly": "a text, no melody", "wavonly": "a melody, null text",
    "dbl_beta5": "double guidance", "dbl_beta5_p17": "double guidance, a prompt of 17",
}  # fmt: skip


def generation(g: Golden, said: Mapping[str, Any], prompt: np.ndarray | None, **more: Any) -> dict[str, Any]:
    batch = len(said["descriptions"])
    return {"prompt": prompt, **told(g, said), "batch": batch, "seed": None, "uniform": None, **more}


def greedy(text: Golden, stereo: Golden, melody: Golden) -> list[Case]:
    made = []
    for g, names, bundles in (
        (text, "none desc desc_p17 none_p17 p1 coef1 two mixed_p9 p29of30 len1", BOTH),
        (stereo, "none desc_p17 mixed_p9", ["stereo"]),
        (melody, "none desc desc_p17 none_p17 mixed_p9 coef1 textonly wavonly dbl_beta5 dbl_beta5_p17", ["melody"]),
    ):
        for name in names.split():
            said, codes = g.meta["gen"][name], g[f"gen.{name}.tokens"]
            kwargs = {key: value for key, value in said["kwargs"].items() if key in GREEDY}
            given = generation(g, said, g.get(f"gen.{name}.prompt"), sampling=GREEDY | kwargs, frames=codes.shape[2])
            label = f"greedy: {g.meta['name']}, {LABELS[name]}"
            made.append(case(label, "generate", given, {"codes": codes}, bundles))
    return made


def in_windows(text: Golden, stereo: Golden) -> list[Case]:
    made = []
    for g, name, bundles in ((text, "c", BOTH), (text, "e", BOTH), (text, "f", ["text"]), (stereo, "a", ["stereo"])):
        said = g.meta["win"][name]
        length = {name: said[name] for name in ("duration", "max_duration", "extend_stride")}
        prompt = g.get(f"win.{name}.prompt")
        given = generation(g, said, prompt, sampling=GREEDY | {"cfg_coef": said["cfg_coef"]}, **length)
        count, rows = len(said["windows_prompt_len_and_max_gen_len"]), len(said["descriptions"])
        label = f"windows: {g.meta['name']}, {count} of them, rows {rows}, prompt {said['prompt_T']}"
        made.append(case(label, "generate", given, {"codes": g[f"win.{name}.tokens"]}, bundles))
    return made


def drawn(text: Golden, stereo: Golden, melody: Golden) -> list[Case]:
    def of(g: Golden, name: str, **more: Any) -> dict[str, Any]:
        return generation(g, g.meta["gen"][name], g.get(f"gen.{name}.prompt"), **{"frames": 30, **more})

    edges = np.zeros((33, 1, 4), np.float32)
    edges[::2] = 1 - 2**-24
    takes = of(text, "none_p17", sampling=DRAWN | {"top_k": 20}, seed="3")
    takes |= {"prompt": text["gen.none_p17.prompt"].repeat(3, axis=0), "texts": None, "batch": 3}
    cut = {"duration": 1.0, "max_duration": 0.5, "extend_stride": 0.3}
    windows = of(text, "desc_p17", sampling=DRAWN, seed="2") | cut
    del windows["frames"]
    cold, hot = DRAWN | {"top_k": 0, "temperature": 0.7}, DRAWN | {"top_k": 20, "temperature": 1.2}
    top_p, double = DRAWN | {"top_k": 2, "top_p": 0.8}, DRAWN | {"top_k": 20, "cfg_coef_beta": 5.0}
    made = [
        ("all codes, temperature 0.7", of(text, "desc", sampling=cold, seed="3"), BOTH),
        ("top_k 20, temperature 1.2", of(text, "desc_p17", sampling=hot, seed="2"), BOTH),
        ("top_p 0.8, which goes before top_k", of(text, "none", sampling=top_p, seed="2"), BOTH),
        ("a batch of two texts", of(text, "two", sampling=DRAWN, seed="2"), BOTH),
        ("a seed of 64 bits", of(text, "none", sampling=DRAWN, seed=str(2**64 - 3)), BOTH),
        ("three takes of one prompt", takes, BOTH),
        ("smallest and largest draws", of(text, "none", sampling=DRAWN | {"top_k": 8}, uniform=edges), BOTH),
        ("windows, draws go on", windows, BOTH),
        ("stereo", of(stereo, "desc_p17", sampling=DRAWN, seed="2"), ["stereo"]),
        ("melody, double guidance", of(melody, "dbl_beta5_p17", sampling=double, seed="2"), ["melody"]),
    ]
    return [case(f"drawn: {name}", "generate", given, None, bundles) for name, given, bundles in made]


def takes_of_prompts(text: Golden, stereo: Golden, melody: Golden) -> list[Case]:
    """Several takes of several prompts, negative texts, and guidance in two calls."""

    def of(g: Golden, name: str, **more: Any) -> dict[str, Any]:
        return generation(
            g, g.meta["gen"][name], g.get(f"gen.{name}.prompt"), **{"frames": 30, "negatives": None, **more}
        )

    two_step = GREEDY | {"two_step_cfg": True}
    negatives = text.texts([text.meta["gen"]["two"]["descriptions"][1], None])
    both = DRAWN | {"top_k": 20, "two_step_cfg": False}
    cut = {"duration": 1.0, "max_duration": 0.5, "extend_stride": 0.3}
    windows = of(text, "mixed_p9", sampling=both, takes=2, seed="3") | cut
    del windows["frames"]
    made = [
        ("two prompts of two takes", of(text, "mixed_p9", sampling=both, takes=2, seed="3"), BOTH),
        ("three takes of nothing", of(text, "none", sampling=both, takes=3, seed="2"), BOTH),
        ("negative texts", of(text, "mixed_p9", sampling=both, takes=2, seed="2", negatives=negatives), BOTH),
        ("a negative text alone", of(text, "none", sampling=both, takes=1, seed="2", negatives=negatives[:1]), BOTH),
        ("two prompts of two takes, in windows", windows, BOTH),
        ("stereo, two prompts of two takes", of(
            stereo, "mixed_p9", sampling=both, takes=2, seed="3", frames=16), ["stereo"]),
        ("melody, two prompts of two takes", of(melody, "mixed_p9", sampling=both, takes=2, seed="2"), ["melody"]),
        ("melody, three takes of nothing", of(melody, "none", sampling=both, takes=3, seed="2"), ["melody"]),
        ("melody, guidance in two calls, two takes", of(
            melody, "mixed_p9", sampling=both | {"two_step_cfg": True}, takes=2, seed="2"), ["melody"]),
        ("melody, guidance in two calls, top_p", of(
            melody, "two", sampling=both | {"two_step_cfg": True, "top_p": 0.8}, takes=1, seed="2"), ["melody"]),
    ]  # fmt: skip
    greedy = of(melody, "twostep", sampling=two_step, takes=1)
    expected = {"codes": melody["gen.twostep.tokens"]}
    return [
        case("takes: melody, guidance in two calls, greedy", "generate_takes", greedy, expected, ["melody"]),
        *(case(f"takes: {name}", "generate_takes", given, None, bundles) for name, given, bundles in made),
    ]


def batches(text: Golden, stereo: Golden, melody: Golden) -> list[Case]:
    """Several prompts, descriptions and melodies in one call."""
    prompt = text["prompt44100"][0]
    two, codes = np.stack([prompt, prompt[:, ::-1] * np.float32(0.5)]), text["gen.mixed_p9.prompt"]
    short, long = melody["chroma.wav"][0][:, :12_000], melody["chroma.wav"][0]
    sampling = DRAWN | {"top_k": 20, "two_step_cfg": False}
    nothing = {
        "audio": None, "sample_rate": None, "codes": None, "descriptions": [None], "negatives": None, "melodies": None,
        "melody_sample_rate": None, "style_features": None, "takes": 1, "seed": "1", "duration": 0.6,
        "max_duration": 30.0, "extend_stride": 18.0, "sampling": sampling,
    }  # fmt: skip
    cut = {"duration": 0.8, "max_duration": 0.4, "extend_stride": 0.25}
    told = {"descriptions": ["slow café drums 🎸", None]}
    sound, heard = {"audio": two, "sample_rate": 44100}, {"melodies": [short, long], "melody_sample_rate": 32000}
    unlike = {"negatives": [None, "fast punk guitar"]}
    seeds = {"seed": ["5", str(2**64 - 1), "5", "7"], "takes": 2}
    made = [
        ("two prompts and descriptions", sound | told, BOTH),
        ("two prompts and descriptions, two takes", sound | told | {"takes": 2}, BOTH),
        ("two descriptions, a seed for each take", told | seeds, ["text"]),
        ("two descriptions and a negative one", told | unlike, BOTH),
        ("codes of two prompts, two takes, in windows", told | cut | {"codes": codes, "takes": 2}, ["text"]),
        ("stereo, two prompts", {"audio": np.stack([stereo["e2e.prompt44100"][0]] * 2), "sample_rate": 44100} |
            {"descriptions": [None, None], "takes": 2}, ["stereo"]),
        ("two melodies of two lengths", heard | {"descriptions": [None, None], "takes": 2}, ["melody"]),
        ("a melody and none, guidance in two calls", heard | {"melodies": [None, long], "descriptions": [None, None]} |
            {"sampling": sampling | {"two_step_cfg": True}}, ["melody"]),
        ("two melodies, in windows", sound | heard | cut | {"descriptions": [None, None]}, ["melody"]),
    ]  # fmt: skip
    return [case(f"batch: {name}", "continue_batch", nothing | given, None, bundles) for name, given, bundles in made]


def whole(text: Golden, stereo: Golden, melody: Golden) -> list[Case]:
    sound = {"audio": text["prompt44100"][0], "sample_rate": 44100, "melody": None, "melody_sample_rate": None}
    both = {"audio": stereo["e2e.prompt44100"][0], "sample_rate": 44100}
    heard = {"melody": melody["chroma.wav"][0], "melody_sample_rate": 32000}
    nothing = {"audio": None, "sample_rate": None}
    short = {"duration": 0.6, "max_duration": 30.0, "extend_stride": 18.0}
    cut = {"duration": 0.8, "max_duration": 0.4, "extend_stride": 0.25}
    most = {"description": None, "takes": 1, "seed": "1", "sampling": GREEDY, **short}
    drawn, said = {"sampling": DRAWN | {"top_k": 20}}, {"description": "slow café drums 🎸"}
    made = [
        ("greedy", sound | most, {"codes": text["e2e.none.tokens"]}, BOTH),
        ("stereo, greedy", sound | both | most, {"codes": stereo["e2e.none.tokens"]}, ["stereo"]),
        ("a description, two takes", sound | most | said | drawn | {"takes": 2, "duration": 0.3}, None, ["text"]),
        ("a description, in windows", sound | most | said | drawn | cut, None, BOTH),
        ("a description, no prompt", sound | most | said | drawn | nothing | {"duration": 0.2}, None, ["text"]),
        ("a melody, no prompt", nothing | heard | most, {"codes": melody["gen.wavonly.tokens"]}, ["melody"]),
        ("a melody, in windows", sound | heard | most | cut, None, ["melody"]),
    ]  # fmt: skip
    return [
        case(f"whole: {name}", "continue", given, expected, bundles, audio=SOUND)
        for name, given, expected, bundles in made
    ]


# Files


def write(folder: Path, cases: Sequence[Case]) -> None:
    """cases.json, one case a line, and arrays.bin, every array once."""
    store = Store()
    lines = ",\n".join(json.dumps(store.put(case), ensure_ascii=False) for case in cases)
    head = '{"format": "clean_lm conformance", "version": 1, "cases": [\n'
    (folder / "cases.json").write_text(f"{head}{lines}\n]}}\n", encoding="utf-8")
    (folder / "arrays.bin").write_bytes(store.data)


class Store:
    """Arrays one after the other, each where its first bytes are a multiple of 4."""

    def __init__(self):
        self.data, self.places = bytearray(), {}

    def put(self, value: Any) -> Any:
        """A value with its arrays replaced by where they lie: codes int32, all else float32."""
        if isinstance(value, Mapping):
            return {name: self.put(item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.put(item) for item in value]
        if not isinstance(value, np.ndarray):
            return value
        dtype = "float32" if value.dtype.kind == "f" else "int32"
        content = value.astype(np.dtype(dtype).newbyteorder("<")).tobytes()
        if content not in self.places:
            self.places[content] = len(self.data)
            self.data += content
        return {"dtype": dtype, "shape": list(value.shape), "at": self.places[content]}


if __name__ == "__main__":
    main()
