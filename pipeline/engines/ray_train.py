"""Training on a Ray cluster: each worker of Ray Train is one process of the training that ``accelerate launch`` runs.

Ray places the workers, lets them find each other and notices one that is lost. The loop, its checkpoints and its
arithmetic are the command's own. Restarting is done here and not by Ray: errors of ours are raised once, and the number
of workers must divide a batch.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foundation.errors import ConfigError, EngineError, Interrupted, RemoteTraceback, one_line
from foundation.storage.names import temporary_name
from foundation.threads import set_here
from foundation.training.heartbeat import SAY_SECONDS, process_timeout
from pipeline.engines.channel import Message, Terminal, open_channel
from pipeline.engines.config import EngineConfig
from pipeline.engines.open import require_one_process
from pipeline.engines.ray_cluster import nodes, ray_cluster, ray_module, resources_text
from pipeline.engines.train_worker import ClusterWork, Order, train
from pipeline.engines.waiting import Patience

_LISTEN = 0.5
"""seconds between looks at what has happened"""
_TRIES = 5
"""losses of workers without progress between them, after which the command gives up"""
_BEFORE_TORCH = ("OMP_", "GOMP_", "KMP_", "MKL_")
"""beginnings of variables that are read once, as torch is loaded"""
_PASSED_ON = (
    *("TESSERA_", "AWS_", "HF_", "HUGGINGFACE_", "GOOGLE_", "AZURE_", "FSSPEC_", "WANDB_", "TRACKIO_", "TORCH_"),
    *("ACCELERATE_", "FSDP_", "NCCL_", "GLOO_", "TOKENIZERS_", "XDG_CACHE_HOME", "PYTHONPATH"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)
_OF_RAY_TRAIN = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": f"{SAY_SECONDS:g}",
}


def train_on_ray(task: ClusterWork, config: EngineConfig) -> None:
    """Do the work on the workers of Ray Train, with what is left of them after losses.

    Raises:
        ConfigError: no cluster, no GPU, workers that do not divide a batch, or a folder that a worker does not see.
        EngineError: the cluster does not give the workers; or they are lost again and again without progress.
        Interrupted: SIGTERM or SIGINT came; a checkpoint of the last step is saved if a training ran.
        Exception: what the work raises, once.
    """
    require_one_process()
    with ray_cluster(config.address), _shared_token(task.folder) as token, _signals() as got, _variables():
        _Driver(task, config, token, got).run()


@dataclass
class _Signals:
    """Signals that the command got: the first one's number, and whether another one came later."""

    number: int = 0
    at_once: bool = False
    first_at: float = 0.0


@dataclass
class _Driver:
    """The command's side: attempts one after the other."""

    task: ClusterWork
    config: EngineConfig
    token: str
    got: _Signals
    attempt: int = 0
    losses: int = 0
    channel: Any = field(default_factory=open_channel)

    def __post_init__(self) -> None:
        cluster_gpus = sum(int(each.gpus) for each in nodes())
        self.use_gpu = cluster_gpus > 0 if self.task.on_gpus is None else self.task.on_gpus
        enough = cluster_gpus > 0 or not self.use_gpu
        fix = "--machine.device cpu, or a cluster with GPUs"
        ConfigError.unless(enough, "the cluster has no GPU", field="machine.device", found=resources_text(), fix=fix)
        self.asked = self.config.workers or _largest_divisor(self.task.batch_size, self._places())
        if self.task.batch_size % self.asked:
            found, fix = f"{self.asked} for batches of {self.task.batch_size}", "choose a divisor of the batch size"
            raise ConfigError("do not share batches evenly", field="--workers", found=found, fix=fix)
        grows = self.config.address or os.environ.get("RAY_ADDRESS")
        if not grows and self.asked > self._most():
            what, expected = "are more than this machine holds", f"at most {self._most()}"
            fix = "give fewer, or the --address of a larger cluster"
            raise ConfigError(what, field="--workers", found=self.asked, expected=expected, fix=fix)
        self.seen = self.task.done()
        fix = "fewer --workers, an idle cluster, or a larger TESSERA_PROCESS_TIMEOUT"
        self.patience = Patience(lambda: self.current.wait_text(), fix, "--engine ray")

    def _places(self) -> int:
        """Workers that the living nodes could hold; without GPUs one on each node, whose cores it uses all."""
        if self.use_gpu:
            return sum(int(each.gpus) for each in nodes())
        return sum(each.cpus >= 1 for each in nodes())

    def _most(self) -> int:
        """Workers that the living nodes can hold at most."""
        return sum(int(each.gpus if self.use_gpu else each.cpus) for each in nodes())

    def run(self) -> None:
        n_workers = self.asked
        while True:
            self.attempt += 1
            attempt = self.current = _Attempt(self, n_workers)
            attempt.run()
            attempt.raise_errors()
            if self.got.number:
                raise Interrupted(self.got.number)
            if attempt.failure is None:
                return
            if not attempt.is_unplaced:
                self._note_loss(attempt)
            if self.losses:
                before = n_workers
                n_workers = _largest_divisor(self.task.batch_size, min(self.asked, self._most()))
                if n_workers != before or not attempt.is_unplaced:
                    print(f"ray: goes on from the last checkpoint, workers: {n_workers}", file=sys.stderr)

    def _note_loss(self, attempt: _Attempt) -> None:
        """Count a loss, or give up.

        Raises:
            EngineError: several in a row without progress.
        """
        now = self.task.done()
        self.losses = 1 if now - self.seen else self.losses + 1
        self.seen |= now
        reason = attempt.reason()
        if self.losses >= _TRIES:
            what = "workers are lost again and again, and nothing is done between"
            found, fix = f"{self.losses} times in a row; at last: {reason}", "see to that, then run the command again"
            raise EngineError(what, field="--engine ray", found=found, fix=fix)
        print(f"ray: a worker is lost: {reason}", file=sys.stderr)
        self.patience.moved()


class _Attempt:
    """One start of the workers, to its end."""

    def __init__(self, driver: _Driver, n_workers: int) -> None:
        self.driver, self.n_workers = driver, n_workers
        self.failure: BaseException | None = None
        self.begun: set[int] = set()
        self.ended: dict[int, Message] = {}
        self._stop_sent = False

    @property
    def has_begun(self) -> bool:
        """Whether all workers were there."""
        return len(self.begun) == self.n_workers

    @property
    def is_unplaced(self) -> bool:
        """Whether the cluster had no room for the workers."""
        cause = getattr(self.failure, "controller_failure", None)
        return type(cause).__name__ == "WorkerGroupStartupTimeoutError"

    def run(self) -> None:
        """Start the workers, print what they say, pass a signal on; returns when they have ended.

        Raises:
            Interrupted: a signal came before the workers, or a second one.
            EngineError: the cluster does not give the workers.
        """
        thread = threading.Thread(target=self._fit, name="ray train", daemon=True)
        thread.start()
        ray, channel = ray_module(), self.driver.channel
        while True:
            is_over = not thread.is_alive()
            for message in ray.get(channel.listen.remote(_LISTEN if not is_over else 0.05)):
                self._hear(message)
            if is_over:
                return
            self._look_around()

    def _hear(self, message: Message) -> None:
        if message.kind in ("out", "err"):
            stream = sys.stdout if message.kind == "out" else sys.stderr
            stream.write(message.content)
            stream.flush()
        elif message.attempt != self.driver.attempt:
            return
        elif message.kind == "began":
            self.begun.add(message.rank)
        else:
            self.ended[message.rank] = message

    def _look_around(self) -> None:
        """Pass a signal on; say what is waited for, and give up in time."""
        driver = self.driver
        if driver.got.number and (driver.got.at_once or not self.begun):
            raise Interrupted(driver.got.number)
        if driver.got.number and not self._stop_sent:
            self._stop_sent = True
            driver.channel.stop.remote(driver.got.number)
        if not self.has_begun:
            driver.patience.wait()

    def wait_text(self) -> str:
        """What is waited for, and what there is."""
        each = "a GPU and a core" if self.driver.use_gpu else "a core"
        begun = f"{len(self.begun)} of {self.n_workers} workers with {each} each have begun"
        return f"{begun}; the cluster has {resources_text()}"

    def _fit(self) -> None:
        from ray.train.torch import TorchConfig, TorchTrainer

        driver, api = self.driver, ray_module().train
        passed_on = _passed_on()
        order = Order(driver.task, driver.channel, driver.attempt, driver.token, passed_on, Terminal.here())
        variables = {name: value for name, value in passed_on.items() if name.startswith(_BEFORE_TORCH)}
        try:
            with tempfile.TemporaryDirectory(prefix="tessera-ray-", ignore_cleanup_errors=True) as unused:
                TorchTrainer(
                    train,
                    train_loop_config={"order": order},
                    torch_config=TorchConfig(timeout_s=math.ceil(_timeout_seconds())),
                    scaling_config=api.ScalingConfig(
                        num_workers=self.n_workers,
                        use_gpu=driver.use_gpu,
                        placement_strategy="PACK" if driver.use_gpu else "SPREAD",
                    ),
                    run_config=api.RunConfig(
                        storage_path=unused,
                        failure_config=api.FailureConfig(max_failures=0, controller_failure_limit=0),
                        worker_runtime_env={"env_vars": variables},
                    ),
                ).fit()
        except BaseException as error:
            self.failure = error

    def raise_errors(self) -> None:
        """Raise what the work raised, of the lowest rank; that another worker was lost is no error of the work."""
        for _, message in sorted(self.ended.items()):
            if message.kind == "error":
                error, text = message.content
                raise error from (None if isinstance(error, Interrupted) else RemoteTraceback(f"\n{text}"))

    def reason(self) -> str:
        """Why the workers ended, in a line."""
        failures = getattr(self.failure, "worker_failures", {})
        lost = [f"worker {rank}: {_short(error)}" for rank, error in failures.items() if rank not in self.ended]
        told = [one_line(each.content[0]) for _, each in sorted(self.ended.items()) if each.kind == "lost"]
        return next(iter([*lost, *told]), _short(self.failure))


@contextlib.contextmanager
def _shared_token(folder: Path) -> Iterator[str]:
    """The name of a file that is in the folder while the context lasts."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = temporary_name(folder / "workers")
    path.touch()
    try:
        yield path.name
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
            if is_new:
                folder.rmdir()  # if nothing was written


@contextlib.contextmanager
def _signals() -> Iterator[_Signals]:
    """Notes SIGTERM and SIGINT instead of ending."""
    from foundation.training.stop_signal import REPEAT_SECONDS

    got, previous = _Signals(), {}

    def note(number: int, _frame: object) -> None:
        if not got.number:
            got.number, got.first_at = number, time.monotonic()
        elif time.monotonic() - got.first_at >= REPEAT_SECONDS:
            got.at_once = True

    if threading.current_thread() is threading.main_thread():
        previous = {each: signal.signal(each, note) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield got
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _variables() -> Iterator[None]:
    """Settings of Ray Train, in the environment while the context lasts; what the user has set stays."""
    seconds = f"{_timeout_seconds():g}"
    new = {**_OF_RAY_TRAIN, "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": seconds}
    new = {name: value for name, value in new.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


def _passed_on() -> dict[str, str]:
    """Variables that the workers get: with their work, since Ray logs a runtime environment."""
    names = [each for each in os.environ if each.startswith(_PASSED_ON + _BEFORE_TORCH) and each not in set_here()]
    return {name: os.environ[name] for name in names}


def _timeout_seconds() -> float:
    return process_timeout().total_seconds()


def _largest_divisor(n: int, at_most: int) -> int:
    """The largest divisor of ``n`` up to ``at_most``, at least 1."""
    return next((each for each in range(min(n, at_most), 1, -1) if n % each == 0), 1)


def _short(error: BaseException | None) -> str:
    """Ray's errors are pages: the line that gives a reason, else the first."""
    for cause in ("controller_failure", "health_check_failure"):
        error = getattr(error, cause, error)
    lines = [each.strip() for each in str(error).splitlines() if each.strip()] or [type(error).__name__]
    line = next((each for each in lines if " because " in each), lines[0])
    where = [each for each in lines if each.startswith(("pid:", "ip:"))]
    return ", ".join([line.partition(" Worker exit detail")[0][:300], *where])
