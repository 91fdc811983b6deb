"""Draw pairs of slices for the harmonizer, in an order that can be taken up again."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import numpy as np

from bids_harmony.training.balance import balance
from bids_harmony.training.data import TrainingSet

Loaded = TypeVar("Loaded")
#: A slice with less brain than this share teaches nothing.
LEAST_BRAIN = 0.05


@dataclass(frozen=True)
class Pairs:
    """Slices of one batch; all arrays are (n,) int.

    Attributes
    ----------
    sites : numpy.ndarray
        Number of each source's site in the order of the sampler's ``sources``.
    source_scans, source_slices : numpy.ndarray
        Scan and slice of the source.
    reference_scans, reference_slices : numpy.ndarray
        Scan and slice of the reference, at the same height.
    """

    sites: np.ndarray
    source_scans: np.ndarray
    source_slices: np.ndarray
    reference_scans: np.ndarray
    reference_slices: np.ndarray


class PairSampler:
    """Draw source slices with reference slices of the same height, age and sex.

    A site's share grows with the root of what it counts for (:mod:`.balance`): small sites are
    seen, not memorised. Heights agree within ``near`` slices, so that neither position nor age
    nor sex tells a discriminator where a slice comes from (science.md §10).

    Parameters
    ----------
    data : TrainingSet
        All scans.
    reference : numpy.ndarray
        Numbers of the reference scans to draw from.
    sources : sequence of numpy.ndarray
        Numbers of the scans of each source site.
    batch : int
        Pairs per draw.
    seed : int or sequence of int
        Seed; give ``[seed, rank]`` where several processes train together.
    age_width : float
        Of :func:`bids_harmony.training.balance.balance`, years.
    near : int
        Greatest difference of slice numbers in a pair.
    """

    def __init__(
        self,
        data: TrainingSet,
        reference: np.ndarray,
        sources: Sequence[np.ndarray],
        *,
        batch: int,
        seed: int | Sequence[int],
        age_width: float = 5.0,
        near: int = 2,
    ) -> None:
        self.data, self.batch, self.near = data, batch, near
        # A scan without a usable slice (a cut-off field of view) cannot be drawn.
        full = data.filled.max(axis=1) > LEAST_BRAIN
        reference = reference[full[reference]]
        self.sites = [balance(data, s[full[s]], reference, age_width) for s in sources]
        share = np.sqrt([site.weight for site in self.sites])
        self.share = share / share.sum()
        self.rng = np.random.default_rng(seed)

    def draw(self) -> Pairs:
        """Draw the next batch."""
        return Pairs(*np.array([self._pair() for _ in range(self.batch)]).T)

    def _pair(self) -> tuple[int, int, int, int, int]:
        number = int(self.rng.choice(len(self.share), p=self.share))
        site = self.sites[number]
        i = int(self.rng.choice(len(site.source), p=site.chance))
        j = int(self.rng.choice(len(site.reference), p=site.partners(i)))
        source, reference = int(site.source[i]), int(site.reference[j])
        here, there = (self.data.filled[scan] > LEAST_BRAIN for scan in (source, reference))
        both = np.flatnonzero(here & there)
        which = int(self.rng.choice(both if len(both) else np.flatnonzero(here)))
        beside = which + int(self.rng.integers(-self.near, self.near + 1))
        choices = np.flatnonzero(there)
        nearest = int(choices[np.argmin(np.abs(choices - beside))])
        return number, source, which, reference, nearest

    def state_dict(self) -> dict[str, Any]:
        """Return the state of chance, from which :meth:`load_state_dict` goes on."""
        return deepcopy(dict(self.rng.bit_generator.state))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state that :meth:`state_dict` gave."""
        self.rng.bit_generator.state = deepcopy(state)


class Prefetcher(Generic[Loaded]):
    """Draw and read batches in the background, in the sampler's order.

    Parameters
    ----------
    sampler : PairSampler
        Draws the batches; it belongs to this object from now on.
    load : callable
        Reads what a batch needs, in the background thread.
    ahead : int
        Batches read ahead of the one in use.

    Attributes
    ----------
    waited, spent : float
        Seconds the caller has waited for batches, and seconds since the first was asked for.
    """

    def __init__(
        self, sampler: PairSampler, load: Callable[[Pairs], Loaded], ahead: int = 4
    ) -> None:
        self._sampler, self._load = sampler, load
        self._queue: queue.Queue[tuple[Any, Loaded | None, BaseException | None]]
        self._queue = queue.Queue(ahead)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._state = sampler.state_dict()
        self._begun = 0.0
        self.waited = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Loaded:
        """Return the next batch; what went wrong in the background is raised here."""
        if self._thread is None:
            self._begun = time.perf_counter()
            self._thread = threading.Thread(target=self._fill, daemon=True)
            self._thread.start()
        asked = time.perf_counter()
        self._state, batch, error = self._queue.get()
        self.waited += time.perf_counter() - asked
        if error is not None:
            raise error
        return batch  # type: ignore[return-value]

    @property
    def spent(self) -> float:
        """Seconds since the first batch was asked for."""
        return time.perf_counter() - self._begun if self._thread else 0.0

    @property
    def waited_share(self) -> float:
        """Share of the time that the caller waited for data, 0 to 1."""
        return self.waited / self.spent if self.spent else 0.0

    def state_dict(self) -> dict[str, Any]:
        """State of chance after the batch last handed out: what was read ahead is read again."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; only before the first batch."""
        if self._thread is not None:
            raise RuntimeError("The state cannot be set after the first batch.")
        self._sampler.load_state_dict(state)
        self._state = state

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _fill(self) -> None:
        while not self._stop.is_set():
            item: tuple[Any, Loaded | None, BaseException | None]
            try:
                pairs = self._sampler.draw()
                item = (self._sampler.state_dict(), self._load(pairs), None)
            except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
                item = (self._sampler.state_dict(), None, error)
            while not self._stop.is_set():
                try:
                    self._queue.put(item, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if item[2] is not None:
                return
