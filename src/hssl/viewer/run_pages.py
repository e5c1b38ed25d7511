"""Pages of a run: its curves while it trains, and what its network sees and says."""

from __future__ import annotations

import threading
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hssl.config import FinetuneConfig
from hssl.objectives import WATCH
from hssl.palette import distinct_colours
from hssl.runs import Run
from hssl.runs.run import WEIGHTS
from hssl.store import CaseRecord, Store
from hssl.viewer import network_views
from hssl.viewer.network_views import OwnMasks
from hssl.viewer.places import NotThereError, Place
from hssl.viewer.site import Site, answer_json

POINTS = 400
"""Of a curve, at most."""
NO_STORE = "The store that this run was made from is not among the given folders: give it as a PATH of hssl view too."


def run_routes(site: Site) -> list[Route]:
    """The addresses of runs."""
    pages = _RunPages(site)
    return [
        Route("/run/{run}", pages.overview),
        Route("/run/{run}/metrics.json", pages.metrics),
        Route("/run/{run}/views.png", pages.views),
        Route("/run/{run}/own-masks.json", pages.own_masks),
        Route("/run/{run}/own-masks/{step:int}.png", pages.own_mask_sheet),
        Route("/run/{run}/map.json", pages.map),
    ]


class _RunPages:
    def __init__(self, site: Site) -> None:
        self.site = site
        # The sheets of a run by step: they are what shows how its own masks grow, and the checkpoints go.
        self._drawn: dict[str, dict[int, OwnMasks]] = {}
        self._lock = threading.Lock()

    def _opened(self, request: Request) -> tuple[Place, Run]:
        place = self.site.places.find("run", request.path_params["run"])
        return place, self.site.places.run(place)

    def _with_store(self, request: Request) -> tuple[Place, Run, Place, Store]:
        place, run = self._opened(request)
        found = self.site.places.store_of(run)
        if found is None:
            raise NotThereError(NO_STORE)
        return place, run, found, self.site.places.store(found)

    def _guarded(self, store: Store, cases: list[CaseRecord]) -> None:
        for case in cases:
            self.site.places.array(store, "images", case)
            if case.has_label:
                self.site.places.array(store, "labels", case)

    def overview(self, request: Request) -> Response:
        place, run = self._opened(request)
        store = self.site.places.store_of(run)
        tuned = isinstance(run.config, FinetuneConfig)
        return self.site.page(
            "run",
            place=place,
            said=str(repr(run)).partition("\n")[2].splitlines(),
            what=repr(run).splitlines()[0].partition(": ")[2],
            store=store,
            has_network=bool(_version(run)),
            tuned=tuned,
            predicts=tuned and run.info.complete and (run.path / WEIGHTS).exists(),
            no_store=NO_STORE,
            no_network="It keeps no weights." if run.info.complete else "It has no checkpoint yet.",
        )

    def metrics(self, request: Request) -> Response:
        _, run = self._opened(request)
        curves = run.metrics()
        step = max((curve[-1][0] for curve in curves.values()), default=0)
        told = [
            {"name": name.removeprefix(WATCH), "kind": _kind(name), "points": _thinned(curve)}
            for name, curve in curves.items()
        ]
        return answer_json(
            {
                "complete": run.info.complete,
                "step": step,
                "steps": run.config.steps,
                "network": _version(run),
                "curves": told,
            }
        )

    def views(self, request: Request) -> Response:
        place, run, _, store = self._with_store(request)
        self._guarded(
            store, [case for task in network_views.run_tasks(run, store) for case in store.cases(task, part="train")]
        )
        curves = run.metrics()
        step = max((curve[-1][0] for curve in curves.values()), default=0)
        png = self.site.computed(("views", place.id, step), lambda: network_views.draw_views(run, store, step))
        return Response(png, media_type="image/png")

    def own_masks(self, request: Request) -> Response:
        place, run, _, store = self._with_store(request)
        self._guarded(store, store.cases(run.task.name, part="train"))
        key = ("own masks", place.id, _version(run))
        found = self.site.computed(key, lambda: network_views.draw_own_masks(run, store))
        with self._lock:
            drawn = self._drawn.setdefault(place.id, {})
            drawn[found.step] = found
            sheets = [{"step": each.step, "believed": each.believed} for _, each in sorted(drawn.items())]
        return answer_json({"complete": run.info.complete, "sheets": sheets})

    def own_mask_sheet(self, request: Request) -> Response:
        found = self._drawn.get(request.path_params["run"], {}).get(request.path_params["step"])
        if found is None:
            raise NotThereError("this step has not been drawn")
        return Response(found.png, media_type="image/png")

    def map(self, request: Request) -> Response:
        place, run, store_place, store = self._with_store(request)
        self._guarded(store, [case for case, _ in network_views.map_slices(run, store)])
        key = ("map", place.id, _version(run))
        return answer_json(self.site.computed(key, lambda: _map(run, store, store_place)))


def _map(run: Run, store: Store, place: Place) -> dict[str, Any]:
    found = network_views.place_slices(run, store)
    tasks = list(dict.fromkeys(case.task for case, _ in found.slices))
    colours = dict(zip(tasks, distinct_colours(len(tasks)), strict=True))
    slices = []
    for (case, number), point, near in zip(found.slices, found.points.tolist(), found.near, strict=True):
        labels = store.tasks[case.task].labels
        shown = set(store.label_slice(case, number).ravel().tolist()) if case.has_label else set()
        slices.append(
            {
                "task": case.task,
                "case": case.id,
                "subject": case.subject,
                "slice": number,
                "x": point[0],
                "y": point[1],
                "near": near,
                "labels": [name for value, name in labels.items() if value in shown],
            }
        )
    return {"store": place.id, "step": found.step, "colours": colours, "slices": slices}


def _version(run: Run) -> str:
    """Which network a run has now: changes with each checkpoint; empty where it has none."""
    try:
        if run.info.complete:
            return str((run.path / WEIGHTS).stat().st_mtime_ns)
        return "" if run.latest_step is None else f"step {run.latest_step}"
    except OSError:
        return ""


def _kind(name: str) -> str:
    if name.startswith(WATCH):
        return "watched"
    return {"learning_rate": "rate", "validation_dice": "score"}.get(name, "loss")


def _thinned(curve: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most so many points of a curve, evenly spread, the last among them."""
    every = -(-len(curve) // POINTS)
    return curve[::-1][::every][::-1]
