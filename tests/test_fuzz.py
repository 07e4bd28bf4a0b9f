"""A short round of the campaign in tests/fuzz, and what it would find: every kind of "other" is seen once."""

import json
import os
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clean_lm.manifest import BundleError, Manifest
from tests.fuzz.__main__ import campaign, one, table
from tests.fuzz.outcomes import OTHER, Case, attempt
from tests.fuzz.targets import BUNDLE, TARGETS

pytestmark = pytest.mark.runtime

ROUNDS, SEED = 6, 2026
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.parametrize("target", TARGETS)
def test_a_short_round(target):
    for number in range(ROUNDS):
        _, _, what, outcome = one(target, number, SEED)
        assert outcome.kind != OTHER, f"--target {target} --seed {SEED} --first {number} --rounds 1: {what}: {outcome}"


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_json_in_any_field(data):
    tree = json.loads((BUNDLE / "manifest.json").read_text())
    at = data.draw(st.sampled_from(sorted(tree)))
    tree[at] = data.draw(JSON)
    assert attempt(Case(lambda: Manifest.parse(BUNDLE, tree) and None, (BundleError,), at)).kind != OTHER


def test_what_must_not_happen_is_seen():
    def divide() -> None:
        raise ZeroDivisionError("here")

    def two_screens() -> None:
        raise BundleError("a\x1b[31m")

    def leave() -> None:
        raise SystemExit(1)

    for run, message in ((divide, "ZeroDivisionError: here"), (two_screens, "not printable"), (leave, "exit 1")):
        outcome = attempt(Case(run, (BundleError,), ""))
        assert outcome.kind == OTHER
        assert message in outcome.message
    assert attempt(Case(lambda: "sounds otherwise", (), "")).message == "sounds otherwise"


def test_a_process_that_ends_is_found_out(monkeypatch):
    """Its turn is tried again input by input, so that only the one that ended it is counted."""
    monkeypatch.setitem(TARGETS, "manifest", lambda rng, folder: Case(_end, (), "end"))
    found = list(campaign(["manifest"], range(2), 0))
    assert Counter(outcome.kind for *_, outcome in found) == {OTHER: 2}
    assert table({"manifest": Counter({OTHER: 2})})[-1].split() == ["all", "2", "0", "0", "2"]


def _end() -> None:
    os._exit(3)
