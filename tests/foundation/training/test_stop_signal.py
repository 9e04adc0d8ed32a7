import signal
import threading

import pytest
from accelerate import Accelerator
from support.other_systems import windows

from foundation.training import stop_signal
from foundation.training.stop_signal import StopSignal, request_stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_remembered_and_the_handlers_before_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    accelerator = Accelerator(cpu=True)
    with StopSignal() as stop:
        assert not stop.agreed(accelerator)
        signal.raise_signal(number)
        assert stop.agreed(accelerator) and stop.number == number
        signal.raise_signal(number)  # at once: the same request
    assert signal.getsignal(number) is before


def test_ctrl_break_of_windows_stops_too() -> None:
    with windows():
        ctrl_break = stop_signal.signal.SIGBREAK
        with StopSignal() as stop:
            signal.raise_signal(ctrl_break)
            assert stop.agreed(Accelerator(cpu=True)) and stop.number == ctrl_break


def test_a_second_request_acts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_signal, "REPEAT_SECONDS", 0.0)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in its background jobs
    try:
        with pytest.raises(KeyboardInterrupt), StopSignal():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_training_that_no_signal_reaches_is_stopped_by_a_request_from_any_thread() -> None:
    assert not request_stop(signal.SIGTERM), "no training"
    accelerator, answers = Accelerator(cpu=True), []
    with StopSignal() as stop:
        thread = threading.Thread(target=lambda: answers.append(request_stop(signal.SIGTERM)))
        thread.start()
        thread.join()
        assert answers == [True] and stop.agreed(accelerator) and stop.number == signal.SIGTERM
    assert not request_stop(signal.SIGTERM), "it is over"
