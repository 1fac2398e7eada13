"""Has the line changed? A test of p-values that may be looked at after every part. Needs no torch."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from .conformal import check_alpha, limit_rank
from .schema import parse, read_json
from .segmentation import log10_binomial_sf

__all__ = ["Alarm", "Monitor", "Observation", "monitor_lines", "read_observations"]

log = logging.getLogger("uflow")

FORMAT_VERSION = 1
MAX_CALIBRATION_IMAGES = 10**6  # a damaged number must not ask for all memory
# Densities of the beta law that unflagged parts are bet to follow: a, b. Those with a < b say that parts look
# stranger, those with a > b calmer, the last two that there are more, or fewer, extremes of both kinds.
BETS = np.array(
    [(1.0, 2.0), (1.0, 4.0), (0.5, 1.0), (0.25, 1.0), (2.0, 1.0), (4.0, 1.0), (1.0, 0.5), (0.5, 0.5), (2.0, 2.0)]
)
LOG_CONSTANTS = np.array([math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) for a, b in BETS])
FLAGGED_BETS = (0.5, 0.9)  # shares of flagged parts that are bet on, where larger than the share that is tolerated
LUCK_SHARE = 0.1  # of the false-alarm rate: that the calibration images were a lucky choice
EDGE = 1e-9  # p-values are kept this far from 0 and 1, where a density may be infinite

Change = Literal["more parts are flagged", "parts look stranger", "parts look calmer", "parts vary otherwise"]


@dataclass(frozen=True)
class Alarm:
    """What a monitor says when the line has changed.

    Attributes:
        part: number of the part at which it was noticed; the first part is 1.
        since: number of the part from which on the change is most likely.
        change: what has changed, in words.
    """

    part: int
    since: int
    change: Change


class _State(TypedDict):
    """What `Monitor.to_dict` gives, besides its version."""

    calibration_images: int
    alpha: float
    false_alarm: float
    defective: float
    seed: int
    parts: int
    alarm: Alarm | None
    gaps: list[float]
    log_wealth: list[list[float]] | None
    log_best: list[list[float]] | None
    best_start: list[list[int]]


class Monitor:
    """Watches whether good parts stay as they were when the threshold was calibrated.

    *The promise.* As long as the line has not changed, the chance that there is ever an alarm, however many parts come
    and however often one looks, is at most `false_alarm`. Not changed means: unflagged parts are exchangeable with the
    calibration images that are not flagged, and each part is defective with a chance of at most `defective`, whatever
    defects look like. After an alarm, `restart` begins a new watch with the same promise.

    *How.* Parts are ranked among the n calibration images *and all unflagged parts before*, ties broken at random: then
    the ranks are independent and uniform, which p-values of one finite calibration set are not (Vovk, Nouretdinov,
    Gammerman, "Testing exchangeability on-line", ICML 2003). Only the stored p-values are needed: they say between
    which two calibration images a part lies, and each of those gaps holds the next part with a chance proportional to
    1 + the number of parts in it. Against uniform ranks the monitor bets, by a mixture of beta densities (Fedorova et
    al., "Plug-in martingales for testing exchangeability on-line", ICML 2012, arXiv 1204.3251, on betting functions),
    and on the share of flagged parts. Bets begin anew at each part k with a share 1 / (k (k + 1)) of the stake, which
    sums to 1: so a late change is found nearly as quickly as an early one (restarts as in Vovk et al., "Retrain or not
    retrain", arXiv 2102.10439; sums over starts as in Shin, Ramdas, Rinaldo, "E-detectors", arXiv 2203.03532). The
    wealth is a nonnegative supermartingale from 1, so it ever reaches 1 / rate with a chance of at most the rate
    (Ville 1939). The start that earned most says since when.

    *What it does not see.* A change that leaves p-values uniform, as dimmer light does for a network that does not
    mind: then the promise of alpha still holds too. A slow drift, to which the ranks get used. Parts that were not
    independent before, such as lots, count as a change.

    Args:
        calibration_images: n, the number of images that the p-values were counted in.
        alpha: parts with a p-value up to this are flagged.
        false_alarm: the promised chance of a false alarm.
        defective: share of parts that may be defective without that being a change.
        seed: of the random numbers that break ties; the same parts and seed give the same answers.

    Raises:
        ValueError: numbers out of their range.

    >>> watch = Monitor(calibration_images=99)
    >>> alarms = [watch.add(p) for p in [0.3, 0.9, 0.5, 0.7, 0.2, 0.8, 0.4, 0.6] * 5 + [0.06, 0.07, 0.09] * 20]
    >>> next(alarm for alarm in alarms if alarm)
    Alarm(part=51, since=41, change='parts look stranger')
    """

    def __init__(
        self,
        calibration_images: int,
        alpha: float = 0.05,
        *,
        false_alarm: float = 0.01,
        defective: float = 0.1,
        seed: int = 0,
    ) -> None:
        check_alpha(alpha)
        if not isinstance(calibration_images, int) or not 1 <= calibration_images <= MAX_CALIBRATION_IMAGES:
            raise ValueError(
                f"a monitor needs the number of calibration images, 1 to {MAX_CALIBRATION_IMAGES}, got "
                f"{calibration_images!r}"
            )
        for name, share in (("false_alarm", false_alarm), ("defective", defective)):
            if not 0 < share < 1:
                raise ValueError(f"{name} is a share between 0 and 1, got {share}")
        if not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seed is a whole number from 0 on, got {seed}")
        self.calibration_images, self.alpha, self.seed = calibration_images, alpha, seed
        self.false_alarm, self.defective = false_alarm, defective
        self._flagged_ranks = max(limit_rank(alpha, calibration_images), 1)
        good = largest_flag_rate(calibration_images, self._flagged_ranks, LUCK_SHARE * false_alarm)
        self._flag_rate = good + defective * (1 - good)
        self._flagged_bets = (None, *(bet for bet in FLAGGED_BETS if bet > self._flag_rate))
        self.restart()

    def restart(self) -> None:
        """Begin anew at part 1, as after a repair; the parts before are forgotten."""
        self.parts = 0
        self.alarm: Alarm | None = None
        # How many lie in each gap between calibration images that are not flagged: the next to come counts as one.
        self._gaps = np.ones(self.calibration_images + 1 - self._flagged_ranks)
        shape = (len(self._flagged_bets), len(BETS) + 1)
        self._log_wealth = np.full(shape, -np.inf)  # of each bet, all starts together
        self._log_best = np.full(shape, -np.inf)  # of the start that earned most
        self._best_start = np.zeros(shape, np.int64)

    @property
    def wealth(self) -> float:
        """What a stake of 1 has become: large where the parts do not look like the calibration images. Can be inf."""
        together = np.logaddexp.reduce(self._log_wealth, axis=None) - math.log(self._log_wealth.size)
        with np.errstate(over="ignore"):
            return float(np.exp(together) + 1 / (self.parts + 1))  # what has not been staked yet

    def add(self, p_value: float) -> Alarm | None:
        """Take note of the next part.

        Args:
            p_value: of the part, as `Prediction.p_value` has it: a multiple of 1 / (calibration_images + 1).

        Returns:
            The alarm, from the part at which it was raised on; None as long as there is none.

        Raises:
            ValueError: a p-value that n calibration images cannot give.
        """
        log_bets = self._log_bets(self._rank(p_value))
        self.parts += 1
        log_stake = -math.log(self.parts) - math.log(self.parts + 1)
        self._log_wealth = np.logaddexp(self._log_wealth, log_stake) + log_bets
        anew = self._log_best < log_stake
        self._best_start[anew] = self.parts
        self._log_best = np.where(anew, log_stake, self._log_best) + log_bets
        if self.alarm is None and self.wealth >= 1 / (self.false_alarm * (1 - LUCK_SHARE)):
            self.alarm = self._alarm()
        return self.alarm

    def _rank(self, p_value: float) -> int:
        steps = p_value * (self.calibration_images + 1)
        rank = round(steps) if math.isfinite(steps) else 0
        if not (1 <= rank <= self.calibration_images + 1 and abs(steps - rank) < 1e-3):
            raise ValueError(
                f"a p-value of {self.calibration_images} calibration images is a multiple of "
                f"1/{self.calibration_images + 1} up to 1, got {p_value}: is it of another model?"
            )
        return rank

    def _log_bets(self, rank: int) -> NDArray[np.float64]:
        """ln of what each bet multiplies its stake by."""
        log_bets = np.zeros(self._log_wealth.shape)
        is_flagged = rank <= self._flagged_ranks
        for row, bet in enumerate(self._flagged_bets):
            if bet is not None:
                gain = bet / self._flag_rate if is_flagged else (1 - bet) / (1 - self._flag_rate)
                log_bets[row] += math.log(gain)
        if not is_flagged:
            gap = rank - self._flagged_ranks - 1
            random = np.random.default_rng((self.seed, self.parts)).random()
            uniform = (self._gaps[:gap].sum() + random * self._gaps[gap]) / self._gaps.sum()
            self._gaps[gap] += 1
            uniform = min(max(uniform, EDGE), 1 - EDGE)
            log_bets[:, 1:] += LOG_CONSTANTS + (BETS - 1) @ (math.log(uniform), math.log1p(-uniform))
        return log_bets

    def _alarm(self) -> Alarm:
        row, column = np.unravel_index(np.argmax(self._log_best), self._log_best.shape)
        change: Change = "more parts are flagged"
        if row == 0:
            a, b = BETS[int(column) - 1]
            change = "parts look stranger" if a < b else "parts look calmer" if a > b else "parts vary otherwise"
        return Alarm(self.parts, int(self._best_start[row, column]), change)

    # State: a watch that lasts longer than a process ------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """All it knows, ready for JSON; `from_dict` goes on from there."""
        return {
            "version": FORMAT_VERSION,
            "calibration_images": self.calibration_images,
            "alpha": self.alpha,
            "false_alarm": self.false_alarm,
            "defective": self.defective,
            "seed": self.seed,
            "parts": self.parts,
            "alarm": None if self.alarm is None else asdict(self.alarm),
            "gaps": self._gaps.tolist(),
            # Before the first part nothing is staked: minus infinity is no number of JSON.
            "log_wealth": self._log_wealth.tolist() if self.parts else None,
            "log_best": self._log_best.tolist() if self.parts else None,
            "best_start": self._best_start.tolist(),
        }

    @classmethod
    def from_dict(cls, content: Any) -> Monitor:
        """Read what `to_dict` made.

        Raises:
            ValueError: another version, missing entries, or numbers that do not fit.
        """
        try:
            entries = dict(content)
            if entries.pop("version") != FORMAT_VERSION:
                raise ValueError(f"version {content['version']}, and this uflow reads {FORMAT_VERSION}")
            parse(_State, entries, "it")
            count, gaps = entries["calibration_images"], len(entries["gaps"])
            if not count * (1 - entries["alpha"]) <= gaps <= count:  # before arrays of such a length are made
                raise ValueError(f"{count} calibration images and {gaps} gaps between them")
            options = {name: entries[name] for name in ("false_alarm", "defective", "seed")}
            found = cls(count, entries["alpha"], **options)
            found._gaps = _array_like(entries["gaps"], found._gaps)
            found._best_start = _array_like(entries["best_start"], found._best_start)
            if entries["parts"]:
                found._log_wealth = _array_like(entries["log_wealth"], found._log_wealth)
                found._log_best = _array_like(entries["log_best"], found._log_best)
            found.parts = entries["parts"]
            found.alarm = None if entries["alarm"] is None else Alarm(**entries["alarm"])
            found._check_counts()
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise ValueError(f"the monitor's state is damaged: {error}") from None
        return found

    def _check_counts(self) -> None:
        """Raise ValueError where numbers of parts contradict one another."""
        unflagged = float(self._gaps.sum()) - len(self._gaps)
        alarm = Alarm(1, 1, "parts look stranger") if self.alarm is None else self.alarm
        if not (
            0 <= unflagged <= self.parts
            and (self._gaps >= 1).all()
            and ((self._best_start >= 0) & (self._best_start <= self.parts)).all()
            and 1 <= alarm.since <= alarm.part
            and (self.alarm is None or alarm.part <= self.parts)
        ):
            raise ValueError(f"its numbers of parts contradict one another, of {self.parts} in all")


def largest_flag_rate(count: int, flagged_ranks: int, chance: float) -> float:
    """The share of good parts that a threshold flags, which is exceeded with a probability of at most `chance`.

    Over the choice of `count` calibration images, the share that the `flagged_ranks` lowest ranks hold follows the law
    Beta(flagged_ranks, count + 1 - flagged_ranks), whose tail is that of a binomial (DLMF 8.17.5).

    >>> round(largest_flag_rate(99, 5, 0.001), 3)
    0.142
    """
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        below = float(10 ** log10_binomial_sf(flagged_ranks, count, middle))
        low, high = (middle, high) if below < 1 - chance else (low, middle)
    return high


def _array_like(values: Any, model: NDArray[Any]) -> NDArray[Any]:
    array = np.array(values, model.dtype)
    if array.shape != model.shape:
        raise ValueError(f"an array of shape {array.shape}, where {model.shape} is expected")
    return array


# Files of predictions -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Observation:
    """What a line of `predictions.jsonl` says for a monitor."""

    image: str | None
    p_value: float
    calibration_images: int
    alpha: float | None

    def __post_init__(self) -> None:
        if not (0 < self.p_value <= 1 and self.calibration_images >= 1):
            raise ValueError(f"p_value {self.p_value} of {self.calibration_images} calibration images")


def read_observations(lines: Iterable[str]) -> list[Observation]:
    """The p-values of the lines that `uflow predict` writes; a warning says how many images could not be judged.

    Raises:
        ValueError: no lines; one that is not of a calibrated model, or of another model than the first. The message
            names the line.
    """
    found: list[Observation] = []
    failed = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            content = parse(dict[str, Any], read_json(line, "it"), "it")
            if "error" in content:
                failed += 1
                continue
            kept = {name: content.get(name) for name in ("image", "alpha")}
            kept |= {name: content[name] for name in ("p_value", "calibration_images")}
            is_calibrated = None not in (kept["p_value"], kept["calibration_images"])
            if is_calibrated:
                found.append(parse(Observation, kept, "it"))
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"line {number} is no prediction with p_value and calibration_images: give what uflow predict wrote"
            ) from error
        if not is_calibrated:
            raise ValueError(
                f"line {number} has no p-value that is uniform on good parts: calibrate its model on a random sample "
                "of good images, see uflow calibrate"
            )
        if found[-1].calibration_images != found[0].calibration_images:
            raise ValueError(
                f"line {number} is of a model calibrated on {found[-1].calibration_images} images, and the lines "
                f"before of one on {found[0].calibration_images}: watch each model by itself"
            )
    if failed:
        log.warning("%d images could not be judged, and are left out", failed)
    if not found:
        raise ValueError("there is no line to watch: give the predictions.jsonl that uflow predict wrote")
    return found


def monitor_lines(observations: Iterable[Observation], monitor: Monitor) -> Alarm | None:
    """Let a monitor look at predictions, in order; its first alarm, or None."""
    for observation in observations:
        if (alarm := monitor.add(observation.p_value)) is not None:
            return alarm
    return None
