"""Sensors of Raspberry Pis and Jetsons against planted files and tools; missing and mad ones (F18)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from agent.boards import FakeBoard

from rlprune_agent import programs
from rlprune_agent.clock import ClockLoop
from rlprune_agent.load import Load
from rlprune_agent.sensors import Sensors, hottest

_PMIC = """     VDD_CORE_A current(7)=2.00000000A
      3V3_SYS_A current(1)=0.50000000A
     VDD_CORE_V volt(15)=0.75000000V
      3V3_SYS_V volt(9)=3.30000000V
        EXT5V_V volt(24)=5.08530000V
         BATT_V volt(25)=0.00000000V"""


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeBoard:
    fake = FakeBoard(tmp_path)
    monkeypatch.setenv("PATH", f"{fake.bin}{os.pathsep}{os.environ['PATH']}")
    return fake


def _reasons(reading: dict[str, Any]) -> dict[str, str]:
    return dict(reason.split(": ", 1) for reason in reading["missing"])


def test_a_raspberry_pi(board: FakeBoard) -> None:
    board.cpus()
    board.zone(0, "cpu-thermal", "51234")
    board.write("sys/class/hwmon/hwmon0/name", "cpu_thermal")
    board.write("sys/class/hwmon/hwmon1/name", "rpi_volt")
    board.write("sys/class/hwmon/hwmon1/in0_lcrit_alarm", "1")
    board.write("proc/vmstat", "pswpin 17")
    board.write("proc/sys/kernel/random/boot_id", "a-boot")
    board.tool(
        "vcgencmd",
        'case "$*" in get_throttled) echo throttled=0x50005;; '
        '"measure_clock arm") echo "frequency(48)=1500398464";; *) exit 1;; esac',
    )
    reading = Sensors(board.root, ["vcgencmd", "thermal", "cpufreq"]).read_all()
    assert reading["throttled"] == 0x50005
    assert reading["arm_mhz"] == pytest.approx(1500.398464)
    assert reading["undervoltage_alarm"] is True
    assert hottest(reading) == 51.234
    assert reading["governor"]["cpu3"] == "ondemand"
    assert reading["online"] == "0-3"
    assert reading["swapped_in_pages"] == 17
    assert set(_reasons(reading)) == {"cooling"}


def test_a_jetson(board: FakeBoard) -> None:
    board.zone(0, "cpu-thermal", "45500")
    board.zone(1, "gpu-thermal", "-256000")  # switched off
    board.zone(2, "PMIC-Die", "100000")  # says so whatever happens
    board.cdev(0, 0, "pwm-fan", 3)
    board.cdev(0, 1, "cpufreq-cpu0", 0)
    board.write("sys/class/thermal/thermal_zone0/cdev0_trip_point", "1")
    board.tool("nvpmodel", 'printf "NVPM WARN: fan mode is not set!\\nNV Power Mode: 15W\\n2\\n"')
    sensors = Sensors(board.root, ["thermal", "nvpmodel"])
    reading = sensors.read_all()
    assert reading["power_mode"] == "15W"
    assert hottest(reading) == 45.5
    assert reading["cooling"] == {}
    board.write("sys/class/thermal/cooling_device1/cur_state", "2")
    assert sensors.read()["cooling"] == {"cpufreq-cpu0": 2}
    assert "throttled" not in reading


def _ina(board: FakeBoard, chip: str, rails: list[tuple[str, str, str]]) -> None:
    folder = f"sys/bus/i2c/devices/{chip}/hwmon/hwmon3"
    for n, (label, millivolt, milliampere) in enumerate(rails, 1):
        board.write(f"{folder}/in{n}_label", label)
        board.write(f"{folder}/in{n}_input", millivolt)
        board.write(f"{folder}/curr{n}_input", milliampere)
    board.write(f"{folder}/in7_label", "sum of shunt voltages")
    board.write(f"{folder}/in7_input", "9999")
    board.write(f"{folder}/curr7_input", "9999")


def test_power_of_a_jetson_is_its_input_rail_or_the_sum(board: FakeBoard) -> None:
    _ina(board, "1-0040", [("VDD_CPU", "5000", "300"), ("NC", "5000", "9999"), ("VDD_SOC", "5000", "100")])
    meter = Sensors(board.root, ["ina3221"]).power_meter()
    assert (meter.rail, meter.read_mw()) == ("sum of VDD_CPU, VDD_SOC", 2000.0)
    _ina(board, "1-0041", [("VDD_IN", "5000", "1200")])
    meter = Sensors(board.root, ["ina3221"]).power_meter()
    assert (meter.sensor, meter.rail, meter.read_mw()) == ("ina3221", "VDD_IN", 6000.0)


def test_power_of_an_older_jetson_comes_from_iio(board: FakeBoard) -> None:
    folder = "sys/bus/i2c/devices/6-0040/iio:device0"
    for n, (name, milliwatt) in enumerate([("POM_5V_IN", "2345"), ("POM_5V_GPU", "40"), ("POM_5V_CPU", "700")]):
        board.write(f"{folder}/rail_name_{n}", name)
        board.write(f"{folder}/in_power{n}_input", milliwatt)
    meter = Sensors(board.root, ["ina3221"]).power_meter()
    assert (meter.rail, meter.read_mw()) == ("POM_5V_IN", 2345.0)


def test_power_of_a_pi_5_is_the_sum_of_rails_with_a_current(board: FakeBoard) -> None:
    board.tool("vcgencmd", f"cat <<'END'\n{_PMIC}\nEND")
    meter = Sensors(board.root, ["pmic"]).power_meter()
    assert meter.read_mw() == pytest.approx(2000 * 0.75 + 500 * 3.3)


def test_a_board_without_a_power_sensor_says_why(board: FakeBoard) -> None:
    board.tool("vcgencmd", "echo 'error=1 error_msg=\"Command not registered\"'")
    with pytest.raises(OSError, match=r"no INA3221.*Command not registered"):
        Sensors(board.root, ["ina3221", "pmic"]).power_meter()
    with pytest.raises(OSError, match="names no power sensor"):
        Sensors(board.root, ["thermal"]).power_meter()


@pytest.mark.parametrize("temp", ["N/A", "", "-1", "0", "-256000", "4294967295", "12 13"])
def test_a_mad_temperature_is_left_out_and_never_a_zero(board: FakeBoard, temp: str) -> None:
    board.zone(0, "cpu-thermal", temp)
    reading = Sensors(board.root, ["thermal"]).read()
    assert hottest(reading) is None
    assert "no thermal zone" in _reasons(reading)["temperature_c"]


def test_an_input_output_error_leaves_one_zone_out(board: FakeBoard) -> None:
    board.write("sys/class/thermal/thermal_zone0/type", "cpu-thermal")
    board.unreadable("sys/class/thermal/thermal_zone0/temp")
    board.zone(1, "soc-thermal", "40000")
    with pytest.raises(OSError, match="Input/output error"):
        (board.root / "sys/class/thermal/thermal_zone0/temp").read_text()
    assert Sensors(board.root, ["thermal"]).read()["temperature_c"] == {"thermal_zone1 soc-thermal": 40.0}


@pytest.mark.parametrize(
    "script",
    ["echo throttled=N/A", "echo", "echo throttled=-1", "exit 3", "echo VCHI initialization failed; exit 255"],
)
def test_a_mad_tool_is_left_out_with_its_reason(board: FakeBoard, script: str) -> None:
    board.tool("vcgencmd", script)
    reading = Sensors(board.root, ["vcgencmd"]).read_all()
    assert not {"throttled", "arm_mhz", "undervoltage_alarm"} & set(reading)
    assert "vcgencmd get_throttled" in _reasons(reading)["throttled"]


def test_a_tool_that_is_not_there_is_named(board: FakeBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(board.bin))
    reading = Sensors(board.root).read_all()
    reasons = _reasons(reading)
    assert reasons["throttled"] == "vcgencmd is not on PATH"
    assert reasons["power_mode"] == "nvpmodel is not on PATH"
    assert set(reading) == {"missing"}


def test_a_tool_that_hangs_costs_its_deadline_once(board: FakeBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "DEADLINE_SECONDS", 0.2)
    board.tool("vcgencmd", f"echo x >> {board.root}/asked; exec sleep 30")
    sensors = Sensors(board.root, ["vcgencmd"])
    first, second = sensors.read(), sensors.read()
    assert _reasons(first)["throttled"] == _reasons(second)["throttled"] == "vcgencmd did not answer within 0.2 s"
    assert (board.root / "asked").read_text().count("x") == 1


class _Clock:
    def __init__(self) -> None:
        self.ns = 0
        self.calls = False

    def now(self) -> int:
        return self.ns


def test_load_is_what_others_used_since_the_last_look(board: FakeBoard) -> None:
    tick = 10**9 // os.sysconf("SC_CLK_TCK")
    clock = _Clock()

    def stat(user: int, own: int) -> None:
        board.write("proc/stat", f"cpu  {user} 0 50 100000 0 0 0 7 0 0\nprocs_running 3")
        board.write("proc/self/stat", f"9 (a (strange) name) R 8 {'0 ' * 9}{own} 0 0 0 20")

    stat(1000, 100)
    load = Load(board.root, clock.now)
    clock.ns += 100 * tick
    stat(1000 + 60, 100 + 50)  # 50 of the 60 ticks were ours
    assert load.percent() == pytest.approx(10 - 2)  # less two ticks of grace
    clock.ns += 100 * tick
    stat(1060 + 40, 150 + 40)
    assert load.percent() == 0
    assert load.runnable() == 3


def test_pressure_is_taken_where_there_is_one(board: FakeBoard) -> None:
    clock = _Clock()
    board.write("proc/pressure/cpu", "some avg10=97.00 avg60=0.00 avg300=0.00 total=1000\nfull avg10=0.00 total=0")
    load = Load(board.root, clock.now)
    assert load.percent() == 97  # no time has passed: the kernel's own average has to do
    clock.ns += 10**9
    board.write("proc/pressure/cpu", "some avg10=97.00 avg60=0.00 avg300=0.00 total=206000")
    assert load.percent() == pytest.approx(20.0)


def test_the_clock_is_the_least_disturbed_of_nine_loops() -> None:
    clock = _Clock()
    taken = [1_000_000] + [1_300_000] * 4 + [1_100_000] + [9_000_000] * 4

    def now() -> int:
        """Every second call is the end of a loop, which took as long as the next of `taken` says."""
        clock.calls = not clock.calls
        clock.ns += 0 if clock.calls else taken.pop(0)
        return clock.ns

    loop = ClockLoop(now)
    assert loop.ns() == 1_100_000  # of 1000 turns: the first loop took long enough to stay with them
    assert taken == []
