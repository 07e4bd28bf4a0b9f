"""The simulation of a large job: it agrees with its formula where that is exact, and loses and doubles no row."""

import itertools
import json
import math
import re
from dataclasses import replace

import pytest

from bench import scale
from bench.scale import IDEAL, Job, Simulation, formula
from tests.support import ROOT

pytestmark = pytest.mark.bench

SMALL = Job(rows=20_000, machines=10, actors=4, plan=1e-3, price=2.0)
EVEN = replace(SMALL, **IDEAL)
ROUGH = replace(SMALL, rows=4000, deadly=3, actor_hours=1.0, machine_hours=3.0, spot_hours=2.0)
CLOSE = 0.03  # of the formula


def within(job: Job, close: float = CLOSE) -> dict[str, float]:
    """What the simulation finds, once it is seen to agree with the formula."""
    found, expected = Simulation(job).run(), formula(job)
    assert found["makespan"] == pytest.approx(expected["makespan"], rel=close)
    return found


def test_without_failures_and_skew_it_is_the_formula():
    found, expected = within(EVEN), formula(EVEN)
    assert found["lost"] == found["ends"] == found["apart"] == 0
    assert found["utilisation"] == pytest.approx(
        EVEN.groups * EVEN.seconds(8) / (expected["makespan"] * EVEN.pool), rel=CLOSE
    )
    assert found["cost"] == pytest.approx(2 * found["machine_hours"])
    assert found["machine_hours"] == pytest.approx(10 * found["makespan"] / 3600)
    within(replace(EVEN, arrive=1800.0))
    within(replace(EVEN, storage=5e6))  # slower than the actors


def test_skew_of_speed_and_length_is_in_the_formula():
    """But for the tail: an actor that has just begun a long group has another one waiting."""
    job = replace(EVEN, rows=80_000, machines=50, actors=1, spread=0.1, noise=0.05, mixed=0.2)
    found = within(job, 2 * CLOSE)
    assert found["makespan"] > formula(job)["makespan"]
    assert found["tail"] < scale.IN_FLIGHT * 2 * job.seconds(8) * 1.3


def test_every_row_is_once_with_failures():
    simulation = Simulation(ROUGH)
    found = simulation.run()
    assert simulation.arrived.max() == 1
    assert found["done"] + found["failed"] == ROUGH.rows
    assert simulation.failed >= 3
    assert not any(simulation.arrived[row] for row in simulation.deadly)
    assert found["ends"] > 50
    assert 0.02 < found["lost"] < 0.5
    assert found["makespan"] > 1.05 * Simulation(replace(EVEN, rows=4000)).run()["makespan"]


def test_deadly_rows_alone_fail():
    found = Simulation(replace(EVEN, rows=4000, deadly=3)).run()
    assert (found["done"], found["failed"]) == (3997, 3)
    single = EVEN.row * scale.ATTEMPTS + EVEN.load * (scale.ATTEMPTS + 1)  # and they are each drawn so often alone
    assert single <= found["apart"] < single + EVEN.row / 2


@pytest.mark.parametrize("job", [EVEN, replace(SMALL, rows=4000)], ids=["even", "rough"])
def test_more_machines_are_never_slower_by_more_than_the_tail(job):
    found = [Simulation(replace(job, machines=machines)).run() for machines in (5, 10, 20, 40)]
    for fewer, more in itertools.pairwise(found):
        assert more["makespan"] < fewer["makespan"] + more["tail"] + more["apart"]
    assert found[-1]["makespan"] < 0.5 * found[0]["makespan"]


def test_the_driver_saturates_where_the_formula_says():
    """At so many actors that each group takes the driver as long as they take together for one."""
    slow = replace(EVEN, schedule=10.0, rows=8000)
    most = formula(slow)["most_actors"]
    assert most == pytest.approx(8 * 45 * 0.7 / 10, rel=0.01)
    machines = math.floor(most / slow.actors)  # 25 actors: 6 machines are too few, 12 too many
    below, above = (within(replace(slow, machines=count)) for count in (machines - 2, machines * 2))
    assert below["driver_share"] < 0.75
    assert above["driver_share"] > 0.95
    assert above["makespan"] == pytest.approx(Simulation(replace(slow, machines=30)).run()["makespan"], rel=CLOSE)


def test_constants_are_the_codes():
    run, store = ((ROOT / "clean_lm" / "batch" / name).read_text() for name in ("run.py", "store.py"))
    assert int(re.findall(r"^ATTEMPTS = (\d+)", run, re.M)[0]) == scale.ATTEMPTS
    assert int(re.findall(r"max_tasks_in_flight_per_actor=(\d+)", run)[0]) == scale.IN_FLIGHT
    seconds, rows = re.findall(r"^FLUSH_SECONDS, FLUSH_ROWS = ([\d.]+), (\d+)", store, re.M)[0]
    assert (float(seconds), int(rows)) == (scale.FLUSH_SECONDS, scale.FLUSH_ROWS)


def test_the_command_prints_both(capsys):
    given = ["--rows", "2000", "--machines", "3", "--actors", "2", "--ideal"]
    scale.main([*given, "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said["ratio"] == pytest.approx(said["simulation"]["makespan"] / said["formula"]["makespan"])
    assert (said["job"]["rows"], said["job"]["spread"], said["simulation"]["done"]) == (2000, 0, 2000)
    scale.main(given)
    assert f"simulation / formula: {said['ratio']:.3f}" in capsys.readouterr().out
