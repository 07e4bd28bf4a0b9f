"""The options of a request in one table: what is read from JSON, a form or a table, and what is said of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clean_lm import audio, loudness
from clean_lm.musical_time import FASTEST, MOST_BEATS, SLOWEST
from clean_lm.options import one_of, shown
from clean_lm.request import JOINS, MOST_RETRIES, RATES, SIDES

AUDIO = ("input", "melody", "style")  # what is sent as files


@dataclass(frozen=True)
class Option:
    """One option. kind: a JSON type, as OpenAPI names it."""

    kind: str
    words: str
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None


OPTIONS = {
    "text": Option("string", "a description"),
    "negative_text": Option("string", "a description to lead away from"),
    "style_start": Option("number", "second at which the excerpt of the style begins; drawn by the seed", least=0),
    "style_length": Option("number", "seconds of the excerpt"),
    "style_levels": Option("integer", "how closely to follow the style (audiocraft's eval_q)", least=1),
    "duration": Option("number", "seconds in all, the prompt included; default: the model's"),
    "extend_stride": Option("number", "seconds from one window to the next; default: the model's"),
    "takes": Option("integer", "how many; each is drawn with a seed of its own, seed + n - 1", least=1),
    "seed": Option("integer", "default: a new one", least=0, most=2**64 - 1),
    "top_k": Option("integer", "draw from the k most probable codes; 0: off", least=0),
    "top_p": Option(
        "number",
        "draw from the most probable codes up to this sum; 0: off; if given, top_k is ignored",
        least=0,
        most=1,
    ),
    "temperature": Option("number", "0: greedy", least=0),
    "cfg_coef": Option("number", "guidance: how much the text counts"),
    "cfg_coef_beta": Option("number", "double guidance: how much more the text counts than a melody or style"),
    "fade_in": Option("number", "seconds at the beginning that are brought up from silence", least=0),
    "fade_out": Option("number", "seconds at the end that are brought down to silence", least=0),
    "bpm": Option("number", "beats a minute of the track; lengths are then in whole bars", least=SLOWEST, most=FASTEST),
    "beats_per_bar": Option("integer", "of the track, with bpm", least=1, most=MOST_BEATS),
    "offset": Option("number", "with bpm: seconds from the beginning of the track to its first bar line", least=0),
    "prompt_bars": Option(
        "integer",
        "with bpm: bars to continue from; default: as many as fit into prompt_seconds, and as the track has",
        least=1,
    ),
    "bars": Option(
        "integer", "with bpm: of the result, the prompt's among them; default: as many as fit into duration", least=1
    ),
    "loop": Option("boolean", "let the end meet the beginning, so that the result can be repeated without a click"),
    "until_silence": Option("boolean", "end where the music has been quiet for a bar, or without bpm for 2 s"),
    "retry_silent": Option(
        "integer",
        "how often to draw a take again whose first beat is near-silent although the prompt is not",
        least=0,
        most=MOST_RETRIES,
    ),
    "spread": Option("boolean", "takes of different temperatures, from 0.8 to 1.25 times temperature"),
    "rank": Option("boolean", "takes in the order of how well they go on from the prompt"),
    "prompt_seconds": Option("number", "seconds of the track to continue from"),
    "side": Option("string", "which end of the track", choices=SIDES),
    "join": Option(
        "string",
        "splice: the new part joined to the untouched track. rendered: the prompt as the codec "
        "renders it, then the new part. append: the track without the prompt, then what rendered gives",
        choices=JOINS,
    ),
    "match_level": Option("boolean", "with splice: bring the new part to the track's level at the seam"),
    "channel": Option("string", "what a mono model is given of a track with several channels", choices=audio.CHANNELS),
    "rate": Option("string", "whose sample rate and channels the result has", choices=RATES),
    "strategy": Option(
        "string",
        "level of the result, as in audiocraft's audio_write; default: clip, with splice the track's own",
        choices=tuple(loudness.HEADROOM_DB),
    ),
}
TRUTHS = {"true": True, "1": True, "false": False, "0": False}


def read_options(given: Mapping[str, Any], form: bool, others: Sequence[str] = AUDIO) -> dict[str, Any]:
    """The options of a request in their own types, those alone that are given and not null. Raises ValueError, naming
    one.

    form: values are texts, as in a form or a table, where an empty one is left out. others: what else may be given, for
    the message.
    """
    if unknown := sorted(set(given) - OPTIONS.keys()):
        known = ", ".join([*others, *OPTIONS])
        raise ValueError(f"{shown(unknown[0])}: unknown option, expected some of {known}")
    found = {}
    for name, value in given.items():
        kind = OPTIONS[name].kind
        if value is None or (form and value == ""):
            continue
        found[name] = from_text(name, kind, value) if form else value
        require_kind(name, kind, found[name])
        if OPTIONS[name].choices:
            one_of(name, found[name], OPTIONS[name].choices)
    return found


def from_text(name: str, kind: str, text: str) -> Any:
    """A form's value in the type of its option. Raises ValueError."""
    try:
        if kind == "integer":
            return int(text)
        if kind == "number":
            return float(text)
        if kind == "boolean":
            return TRUTHS[text.lower()]
    except (ValueError, KeyError):
        raise ValueError(f"{name}: got {shown(text)}, expected {kind_words(kind)}") from None
    return text


def require_kind(name: str, kind: str, value: Any) -> None:
    """Raise ValueError for a value of another type."""
    types = {"integer": (int,), "number": (int, float), "boolean": (bool,), "string": (str,)}[kind]
    if not isinstance(value, types) or (isinstance(value, bool) and kind != "boolean"):
        raise ValueError(f"{name}: got {shown(value)}, expected {kind_words(kind)}")


def kind_words(kind: str) -> str:
    names = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "a text"}
    return names[kind]
