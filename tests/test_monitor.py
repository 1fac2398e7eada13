"""The monitor: as few false alarms as promised, changes found and dated, a state that goes on, files of predictions."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from conftest import one_line
from uflow import cli
from uflow.conformal import conformal_p_value
from uflow.monitor import BETS, LOG_CONSTANTS, Alarm, Monitor, largest_flag_rate, monitor_lines, read_observations


def p_values(calibration: np.ndarray, parts: np.ndarray) -> list[float]:
    return [conformal_p_value(calibration, part) for part in parts]


def watch(values: Sequence[float], count: int, **options: float) -> Monitor:
    monitor = Monitor(count, **options)
    for value in values:
        monitor.add(value)
    return monitor


# The promise ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "defects"), [(19, 0.0), (60, 0.0), (60, 0.1)])
def test_false_alarms_are_as_rare_as_promised(count: int, defects: float) -> None:
    """Few calibration images, of which every stream has others: what p-values counted in them alone do not survive."""
    rng = np.random.default_rng(count)
    alarms, streams = 0, 60
    for _ in range(streams):
        parts = np.where(rng.random(120) < defects, -9, rng.normal(size=120))
        alarms += watch(p_values(rng.normal(size=count), parts), count, false_alarm=0.3).alarm is not None
    assert alarms / streams <= 0.3
    assert alarms > 0  # and the promise is used, not avoided


def test_ranks_are_uniform_and_the_stake_is_never_expected_to_grow() -> None:
    """Mean wealth of many streams, each of calibration images and parts of its own, with no flagged share to bet on."""
    rng = np.random.default_rng(0)
    wealth = []
    for _ in range(500):
        parts = p_values(rng.normal(size=9), rng.normal(size=6))
        wealth.append(watch(parts, 9, alpha=0.1, defective=0.9).wealth)
    assert np.mean(wealth) == pytest.approx(1, abs=4 * np.std(wealth) / np.sqrt(len(wealth)))
    assert np.std(wealth) > 0.05


def test_bets_are_densities() -> None:
    x = (np.arange(200_000) + 0.5) / 200_000
    logs = LOG_CONSTANTS[:, None] + (BETS - 1) @ np.stack([np.log(x), np.log1p(-x)])
    np.testing.assert_allclose(np.exp(logs).mean(axis=1), 1, rtol=0.03)


def test_the_share_flagged_stays_below_its_bound() -> None:
    rng = np.random.default_rng(1)
    limits = np.sort(rng.random((4000, 99)), axis=1)[:, 4]  # uniform numbers: the share below the fifth is the fifth
    assert np.mean(limits > largest_flag_rate(99, 5, 0.01)) == pytest.approx(0.01, abs=0.006)


# Changes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words", "within"),
    [
        (lambda x: x - 1.0, "parts look stranger", 110),
        (lambda x: x + 1.5, "parts look calmer", 45),
        (lambda x: 3 * x, "", 75),
        (lambda x: x - 9, "more parts are flagged", 15),
    ],
)
def test_a_change_is_found_and_dated(change: Callable[[np.ndarray], np.ndarray], words: str, within: int) -> None:
    delays, dates, said = [], [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        calibration, before, after = rng.normal(size=100), rng.normal(size=200), change(rng.normal(size=150))
        alarm = watch(p_values(calibration, np.concatenate([before, after])), 100).alarm
        assert alarm is not None
        assert alarm.part > 200
        delays.append(alarm.part - 200)
        dates.append(alarm.since - 201)
        said.append(words in alarm.change)
    assert np.median(delays) <= within
    assert abs(np.median(dates)) <= 10
    assert np.mean(said) >= 0.7


def test_defects_at_a_tolerated_rate_hide_no_change() -> None:
    rng = np.random.default_rng(3)
    parts = np.concatenate([rng.normal(size=100), rng.normal(size=100) - 1.5])
    parts[rng.random(200) < 0.08] = -20
    alarm = watch(p_values(rng.normal(size=100), parts), 100).alarm
    assert alarm is not None
    assert 100 < alarm.part <= 160


def test_after_a_restart_it_watches_anew() -> None:
    monitor = watch([0.06] * 60, 99)
    assert monitor.alarm is not None
    first = monitor.alarm
    assert monitor.add(0.5) is first  # it stands until somebody has looked
    monitor.restart()
    assert (monitor.alarm, monitor.parts, monitor.wealth) == (None, 0, 1.0)
    assert watch([0.06] * 60, 99).alarm == first
    for value in [0.06] * first.part:
        alarm = monitor.add(value)
    assert alarm == first


# State and input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [0, 70])
def test_a_state_goes_on_where_it_was(parts: int) -> None:
    rng = np.random.default_rng(5)
    values = p_values(rng.normal(size=50), np.concatenate([rng.normal(size=80), rng.normal(size=60) - 2]))
    whole = watch(values, 50, seed=7)
    again = Monitor.from_dict(json.loads(json.dumps(watch(values[:parts], 50, seed=7).to_dict(), allow_nan=False)))
    for value in values[parts:]:
        again.add(value)
    assert again.to_dict() == whole.to_dict()
    assert isinstance(again.alarm, Alarm)
    assert watch(values, 50, seed=8).wealth != whole.wealth


@pytest.mark.parametrize(
    "damage",
    [
        {"version": 0},
        {"gaps": [1.0]},
        {"gaps": [float("nan")] * 48},
        {"log_best": None},
        {"alarm": {"at": 3}},
        {"alpha": 2},
        {"alpha": True},
        {"parts": None},
        {"parts": "2"},
        {"calibration_images": 10**12},
        {"calibration_images": 10**400},
        {"parts": -1},
        {"parts": 0},
        {"seed": -1},
        {"gaps": [-1.0] + [1.0] * 47},
        {"gaps": [9.0] + [1.0] * 47},
        {"alarm": {"part": 7, "since": 1, "change": "parts look calmer"}},
        {"alarm": {"part": 1, "since": 2, "change": "parts look calmer"}},
    ],
)
def test_damaged_states_are_one_line(damage: dict[str, object]) -> None:
    content = watch([0.5, 0.02], 49).to_dict()
    for bad in (content | damage, {key: value for key, value in content.items() if key not in damage}, None):
        with pytest.raises(ValueError, match="the monitor's state is damaged") as error:
            Monitor.from_dict(bad)
        one_line(error)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.02, 0.015, float("nan"), float("inf"), -0.02])
def test_p_values_of_another_model_are_refused(value: float) -> None:
    monitor = Monitor(50)
    with pytest.raises(
        ValueError, match=r"of 50 calibration images is a multiple of 1/51 up to 1, got .*another model"
    ):
        monitor.add(value)
    assert monitor.parts == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration_images": 0}, "the number of calibration images, 1 to 1000000, got 0"),
        ({"calibration_images": 10**12}, "the number of calibration images, 1 to 1000000, got 1000000000000"),
        ({"seed": -1}, "seed is a whole number from 0 on, got -1"),
        ({"alpha": 1.0}, "alpha is a probability"),
        ({"false_alarm": 0}, "false_alarm is a share"),
        ({"defective": 1}, "defective is a share"),
    ],
)
def test_bad_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Monitor(**({"calibration_images": 50} | options))


def line(p_value: float | None = 0.5, **changes: object) -> str:
    return json.dumps({"image": "a.png", "p_value": p_value, "calibration_images": 99} | changes)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "there is no line to watch"),
        ([line(), "{"], "line 2 is no prediction"),
        (["[]"], "line 1 is no prediction"),
        (['{"image": "a.png"}'], "line 1 is no prediction"),
        (["[" * 100_000], "line 1 is no prediction"),
        (['"an error"'], "line 1 is no prediction"),
        ([line(float("nan"))], "line 1 is no prediction"),
        ([line(7)], "line 1 is no prediction"),
        ([line(calibration_images=-3)], "line 1 is no prediction"),
        ([line(calibration_images=float("inf"))], "line 1 is no prediction"),
        ([line(alpha="0.1")], "line 1 is no prediction"),
        ([line(None)], "line 1 has no p-value that is uniform"),
        ([line(), "", line(calibration_images=9)], "line 3 is of a model calibrated on 9 images.* of one on 99"),
    ],
)
def test_files_that_cannot_be_watched_are_one_line(lines: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_observations(lines)
    one_line(error)


def test_images_that_could_not_be_judged_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    lines = [line(0.5), '{"image": "b.png", "error": "cut short"}', line(0.25)]
    assert [each.p_value for each in read_observations(lines)] == [0.5, 0.25]
    assert "1 images could not be judged, and are left out" in caplog.text


def call(*arguments: object) -> int:
    """Call the command; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["uflow", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
    return int(exit_info.value.code or 0)


def test_the_command_says_since_when(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(2)
    file, calibration = tmp_path / "predictions.jsonl", rng.normal(size=99)
    values = p_values(calibration, np.concatenate([rng.normal(size=60), rng.normal(size=60) - 1.5]))
    file.write_text("\n".join(line(value, image=f"{i}.png") for i, value in enumerate(values, 1)) + "\n")
    alarm = monitor_lines(read_observations(file.read_text().splitlines()), Monitor(99))
    assert alarm is not None
    assert call("monitor", file) == 4
    text = capsys.readouterr().out
    assert f"more parts are flagged since about part {alarm.since} ({alarm.since}.png)" in text
    assert f"noticed at part {alarm.part} ({alarm.part}.png), 120 parts in all" in text
    file.write_text("\n".join(map(line, values[:60])))
    assert call("monitor", file) == 0
    assert capsys.readouterr().out == "No change in 60 parts\n"
