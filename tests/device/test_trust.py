"""The statistics against planted answers: coverage under correlation, drift, throttling; percentiles; flags."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from rlprune_edge.device import trust
from rlprune_edge.measurements import Ceiling, Interval, Process, Work

_PLAIN = Process(
    candidate_ns=(),
    reference_ns=(),
    candidate_loop=1,
    reference_loop=1,
    warmup_runs=10,
    steady=True,
    import_ns=1,
    session_ns=1,
    first_run_ns=1,
    memory_before_bytes=60_000_000,
    memory_peak_bytes=80_000_000,
)


def _blocks(values: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(v) for v in row) for row in values)


def _correlated(rng: np.random.Generator, count: int, rho: float, sigma: float) -> np.ndarray:
    """AR(1) noise with that lag-1 correlation and standard deviation."""
    shocks = rng.standard_normal(count) * sigma * np.sqrt(1 - rho**2)
    shocks[0] = rng.standard_normal() * sigma
    for i in range(1, count):
        shocks[i] += rho * shocks[i - 1]
    return shocks


def _simulate(
    seed: int, *, pairs: int, runs: int, gain: float, drift: float = 0.0, step: float = 1.0, sigma: float = 0.02
) -> Process:
    """Pairs in A B B A order on a board that slows down by `drift`, and by `step` from a random moment on."""
    rng = np.random.default_rng(seed)
    total = 2 * pairs * runs
    when = np.arange(total) / total
    speed = (1 + drift * when) * np.where(when > rng.uniform(0.2, 0.8), step, 1.0)
    speed = speed * np.exp(_correlated(rng, total, 0.6, sigma))
    blocks = speed.reshape(2 * pairs, runs)
    is_candidate = np.array([i % 4 in (0, 3) for i in range(2 * pairs)])
    own, others = blocks[is_candidate] * 1e6, blocks[~is_candidate] * 1e6 * gain
    return replace(_PLAIN, candidate_ns=_blocks(own), reference_ns=_blocks(others))


@pytest.mark.parametrize(
    ("n", "rank"), [(6, 1), (8, 1), (10, 2), (15, 4), (16, 4), (20, 6), (30, 10), (64, 24), (100, 40), (662, 306)]
)
def test_ranks_are_those_of_the_binomial(n: int, rank: int) -> None:
    assert trust.order_statistic_ranks(n) == (rank, n + 1 - rank)


def test_five_values_give_no_95_percent_interval() -> None:
    assert [trust.order_statistic_ranks(n) for n in (1, 3, 5)] == [None, None, None]
    assert trust.median_interval([3.0, 1.0, 2.0]) == Interval(2.0, 1.0, 3.0)


@pytest.mark.parametrize("n", [6, 7, 100, 1001])
def test_the_rank_is_the_last_whose_coverage_is_enough(n: int) -> None:
    def coverage(k: int) -> float:
        return 1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n

    found = trust.order_statistic_ranks(n)
    assert found is not None
    assert coverage(found[0]) >= trust.CONFIDENCE > coverage(found[0] + 1)


def test_the_rank_of_very_many_values_is_the_normal_approximations() -> None:
    low, high = trust.order_statistic_ranks(20_000) or (0, 0)
    assert low + high == 20_001
    assert low == pytest.approx(10_000 - 1.96 * math.sqrt(20_000) / 2, abs=1)


def test_block_medians_cover_the_truth_where_single_samples_do_not() -> None:
    blocks_cover = samples_cover = 0
    for seed in range(300):
        values = np.exp(_correlated(np.random.default_rng(seed), 128, 0.9, 0.02))
        of_blocks = trust.median_interval([float(np.median(b)) for b in values.reshape(8, 16)])
        of_samples = trust.median_interval([float(v) for v in values])
        blocks_cover += of_blocks.low <= 1 <= of_blocks.high
        samples_cover += of_samples.low <= 1 <= of_samples.high
    assert blocks_cover / 300 >= 0.93
    assert samples_cover / 300 <= 0.60


def test_a_drifting_clock_does_not_change_the_ratio() -> None:
    drifting = [_simulate(seed, pairs=16, runs=8, gain=1.25, drift=0.20, sigma=0.01) for seed in range(20)]
    errors = [abs(found.value / 1.25 - 1) for p in drifting if (found := trust.speedup([p])) is not None]
    assert len(errors) == 20
    assert max(errors) < 0.01


def test_a_throttle_step_does_not_change_the_ratio() -> None:
    throttled = [_simulate(seed, pairs=16, runs=8, gain=1.25, step=1.5, sigma=0.01) for seed in range(20)]
    errors = [abs(found.value / 1.25 - 1) for p in throttled if (found := trust.speedup([p])) is not None]
    assert np.percentile(errors, 95) < 0.02


def test_the_same_model_twice_is_found_the_same() -> None:
    inside = 0
    for seed in range(100):
        found = trust.speedup([_simulate(seed, pairs=16, runs=8, gain=1.0, drift=0.1, step=1.5)])
        assert found is not None
        inside += found.low <= 1 <= found.high
    assert inside >= 95


def test_a_gain_of_five_percent_is_found() -> None:
    found = 0
    for seed in range(100):
        processes = [_simulate(1000 * k + seed, pairs=16, runs=8, gain=1.05, drift=0.1) for k in range(3)]
        speedup = trust.speedup(processes)
        assert speedup is not None
        found += speedup.low > 1
    assert found >= 90


def test_latency_is_the_median_of_block_medians_in_milliseconds() -> None:
    process = replace(_PLAIN, candidate_ns=((1_000_000, 2_000_000, 9_000_000), (3_000_000,), (4_000_000, 4_000_000)))
    found = trust.latency([process])
    assert (found.value, found.low, found.high) == (3.0, 1.0, 9.0)
    assert trust.reference_latency([process]) is None
    assert trust.speedup([process]) is None


def test_across_processes_one_disturbed_interval_does_not_decide_but_a_different_value_does() -> None:
    calm = [Interval(1.0, 0.99, 1.01), Interval(1.0, 0.98, 1.01)]
    assert trust.across([*calm, Interval(1.0, 0.2, 7.0)]) == Interval(1.0, 0.98, 1.01)
    assert trust.across([*calm, Interval(1.3, 1.29, 1.31)]) == Interval(1.0, 0.99, 1.3)


def test_percentiles_wait_for_enough_runs() -> None:
    def known(runs: int, loop: int = 1) -> list[str]:
        values = np.linspace(1e6, 2e6, runs).reshape(1, runs)
        process = replace(_PLAIN, candidate_ns=_blocks(values), candidate_loop=loop)
        return [name for name, value in trust.percentiles([process]).items() if value is not None]

    assert known(63) == ["p50"]
    assert known(64) == ["p50", "p90"]
    assert known(130) == ["p50", "p90", "p95"]
    assert known(662) == ["p50", "p90", "p95", "p99"]
    assert known(662, loop=4) == ["p50"]


def test_percentiles_are_the_median_over_processes_and_the_fewest_runs_decide() -> None:
    few = replace(_PLAIN, candidate_ns=((3_000_000,) * 10,))
    many = [replace(_PLAIN, candidate_ns=((n * 1_000_000,) * 64,)) for n in (1, 2)]
    assert trust.percentiles([*many, few])["p50"] == 2.0
    assert trust.percentiles([*many, few])["p90"] is None
    assert trust.percentiles(many)["p90"] == 1.5


def _flags(values: np.ndarray, **changes: object) -> set[str]:
    fields = {"candidate_ns": _blocks(values * 1e6), **changes}
    return set(trust.flags([replace(_PLAIN, **fields)]))  # type: ignore[arg-type]


def test_flags_for_planted_trouble() -> None:
    rng = np.random.default_rng(5)
    calm = np.exp(rng.standard_normal((8, 16)) * 0.01)
    two_speeds = np.where(rng.random((8, 16)) < 0.5, 1.0, 1.6)
    wandering = np.exp(_correlated(rng, 128, 0.9, 0.02)).reshape(8, 16)
    assert _flags(calm) == set()
    assert _flags(np.exp(rng.standard_normal((8, 16)) * 0.085)) == {"noisy"}
    assert _flags(two_speeds) >= {"noisy", "very_noisy", "multimodal"}
    assert _flags(wandering) == {"correlated"}
    assert _flags(calm[:4], steady=False, candidate_loop=9) == {"few_blocks", "not_steady", "mean_of_k"}


def test_processes_that_disagree_are_flagged() -> None:
    rng = np.random.default_rng(6)
    blocks = [_blocks(speed * 1e6 * np.exp(rng.standard_normal((8, 16)) * 0.01)) for speed in (1.0, 1.0, 1.2)]
    processes = [replace(_PLAIN, candidate_ns=b) for b in blocks]
    assert "processes_differ" in trust.flags(processes)
    assert "processes_differ" not in trust.flags(processes[:2])


@pytest.mark.parametrize("pairs", [8, 16])
def test_a_busy_machine_has_a_wider_interval(pairs: int) -> None:
    calm = _simulate(3, pairs=pairs, runs=8, gain=1.25)
    busy = replace(calm, flags=("busy",))
    for figure in (trust.latency, trust.reference_latency, trust.speedup):
        known, doubtful = figure([calm]), figure([busy])
        assert known is not None
        assert doubtful is not None
        assert doubtful.value == known.value
        assert doubtful.low < known.low
        assert doubtful.high > known.high
    assert "busy" in trust.flags([busy])


def test_weights_that_fit_the_cache_need_not_come_from_memory() -> None:
    ceiling = Ceiling(flops_per_second=50e9, bytes_per_second=5e9, cache_bytes=1e6)
    assert trust.fastest_possible_ms(Work(flops=1e9, weight_bytes=1e6), ceiling) == pytest.approx(0.9 * 20)
    assert trust.fastest_possible_ms(Work(flops=1e3, weight_bytes=1e6), ceiling) == pytest.approx(0, abs=1e-4)
    assert trust.fastest_possible_ms(Work(flops=1e3, weight_bytes=101e6), ceiling) == pytest.approx(0.9 * 20)


def test_memory_is_that_of_the_hungriest_process() -> None:
    other = replace(_PLAIN, memory_before_bytes=70_000_000, memory_peak_bytes=85_000_000)
    assert trust.memory_mb([_PLAIN, other]) == (85.0, 20.0)
    assert trust.memory_mb([replace(_PLAIN, memory_peak_bytes=None)]) == (None, None)
