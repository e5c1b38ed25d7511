"""Pages of a benchmark: its report, and every case with the masks that its arms have left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hssl.errors import RunError, name_bad_file
from hssl.files import read_json
from hssl.prediction import Predictor
from hssl.runs.run import INFO, WEIGHTS
from hssl.sources.base import Affine
from hssl.store import CaseRecord, Store, widest_slice
from hssl.viewer.places import EXPERIMENT, NotThereError, Place
from hssl.viewer.security import REPORT_POLICY
from hssl.viewer.site import Site
from hssl.viewer.store_pages import MEDIA, case_page, find_case
from hssl.viewer.volumes import (
    Layer,
    case_affine,
    difference,
    difference_entries,
    label_entries,
    source_voxel_ml,
    to_nifti,
)

Row = Mapping[str, Any]
REPORT = "report.html"
CELL = ("task", "label_budget", "seed")
NO_STORE = "The store of this benchmark is not among the given folders: give it as a PATH of hssl view too."


def benchmark_routes(site: Site) -> list[Route]:
    """The addresses of benchmarks."""
    pages = _BenchmarkPages(site)
    case = "/benchmark/{benchmark}/case/{task}/{case}"
    return [
        Route("/benchmark/{benchmark}", pages.overview),
        Route("/benchmark/{benchmark}/report.html", pages.report),
        Route(case, pages.case),
        Route(case + "/{run}/mask.nii", pages.mask),
        Route(case + "/{run}/difference.nii", pages.difference),
    ]


class _BenchmarkPages:
    def __init__(self, site: Site) -> None:
        self.site = site

    def _opened(self, request: Request) -> tuple[Place, list[Row], str]:
        """The benchmark of an address, its finished runs, and the path of its store."""
        # The room of benchmarks takes seconds to import.
        from hssl.benchmark.run.ledger import LEDGER, Ledger, row_key
        from hssl.benchmark.run.records import Recorded
        from hssl.benchmark.statistics import same_cells

        place = self.site.places.find("benchmark", request.path_params["benchmark"])
        hint = "the same 'hssl benchmark' writes it again"
        recorded = read_json(self.site.places.guard(place.path / EXPERIMENT), Recorded, hint=hint)
        wanted = {cell.key for cell in recorded.cells}
        found = {row_key(row): row for row in Ledger(self.site.places.guard(place.path / LEDGER)).rows()}
        return place, same_cells(row for key, row in found.items() if key in wanted), recorded.experiment.store

    def overview(self, request: Request) -> Response:
        from hssl.benchmark.statistics import case_values

        place, rows, _ = self._opened(request)
        choices = {name: list(dict.fromkeys(str(row[name]) for row in rows)) for name in CELL}
        chosen = {name: request.query_params.get(name, values[0] if values else "") for name, values in choices.items()}
        cell = [row for row in rows if all(str(row[name]) == value for name, value in chosen.items())]
        dice = {row["arm"]: case_values(row) for row in cell}
        cases = list(dict.fromkeys(case for values in dice.values() for case in values))
        worst_first = sorted(cases, key=lambda case: min(values.get(case, 1.0) for values in dice.values()))
        return self.site.page(
            "benchmark",
            place=place,
            has_report=(place.path / REPORT).is_file(),
            choices=choices,
            chosen=chosen,
            arms=list(dice),
            cases=[(case, [values.get(case) for values in dice.values()]) for case in worst_first],
            part=cell[0]["part"] if cell else "",
        )

    def report(self, request: Request) -> Response:
        place = self.site.places.find("benchmark", request.path_params["benchmark"])
        path = self.site.places.guard(place.path / REPORT)
        if not path.is_file():
            raise NotThereError("this benchmark has no report yet: make it with 'hssl report'")
        headers = {"content-security-policy": REPORT_POLICY}
        return Response(path.read_bytes(), media_type="text/html; charset=utf-8", headers=headers)

    def case(self, request: Request) -> Response:
        place, rows, store_path = self._opened(request)
        found, case = self._stored(request, rows, store_path)
        store = self.site.places.store(found)
        wanted = {name: request.query_params.get(name) for name in CELL[1:]}
        cell = [row for row in self._of_case(rows, case) if all(str(row[n]) == v for n, v in wanted.items() if v)]
        layers = self._layers(request, place, store, case, cell, f"{self.site.root}/store/{found.id}/case")
        absent = [row["arm"] for row in cell if not self._kept(place, row)]
        facts = [(f"Dice of {row['arm']}", _dice(row, case)) for row in cell]
        if absent:
            facts.append(
                ("no mask is kept of", f"{', '.join(absent)} (keep_weights: true in the experiment keeps all)")
            )
        query = urlencode({name: cell[0][name] for name in CELL}) if cell else ""
        return case_page(
            self.site,
            store,
            case,
            layers,
            title=case.id,
            trail=[(f"benchmark/{place.id}?{query}", place.name)],
            facts=facts,
            before=None,
            after=None,
        )

    def _layers(
        self, request: Request, place: Place, store: Store, case: CaseRecord, cell: Sequence[Row], address: str
    ) -> list[Layer]:
        own = f"{address}/{quote(case.task, safe='')}/{quote(case.id, safe='')}"
        entries = label_entries(store, case.task, case.label_voxels, source_voxel_ml(case))
        unknown = label_entries(store, case.task, None, None)
        layers = [
            Layer(name="image", url=f"{own}/image.nii", kind="image"),
            Layer(name="truth", url=f"{own}/mask.nii", kind="mask", labels=entries),
        ]
        for row in cell:
            kept = self._kept(place, row)
            if not kept:
                continue
            number = widest_slice(store.label(case))
            note = "" if kept == WEIGHTS else f"Slice {number} alone is kept: the one with the largest truth."
            url = f"{request.url.path}/{row['config_hash']}"
            arm = row["arm"]
            layers += [
                Layer(name=arm, url=f"{url}/mask.nii", kind="mask", labels=unknown, shown=False, note=note),
                Layer(
                    name=f"{arm}: difference",
                    url=f"{url}/difference.nii",
                    kind="mask",
                    labels=difference_entries(),
                    shown=False,
                    note=note,
                ),
            ]
        return layers

    def mask(self, request: Request) -> Response:
        mask, _, affine = self._predicted(request)
        return Response(to_nifti(mask, affine), media_type=MEDIA)

    def difference(self, request: Request) -> Response:
        mask, truth, affine = self._predicted(request)
        return Response(to_nifti(difference(truth, mask), affine), media_type=MEDIA)

    def _predicted(self, request: Request) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Affine]:
        """The mask that a run has left of a case, the truth where the mask is known, and where they lie."""
        place, rows, store_path = self._opened(request)
        found, case = self._stored(request, rows, store_path)
        store = self.site.places.store(found)
        row = next((r for r in self._of_case(rows, case) if r["config_hash"] == request.path_params["run"]), None)
        kept = self._kept(place, row) if row is not None else ""
        if row is None or not kept:
            raise NotThereError("no mask of this run is kept")
        folder = _folder(place, row)
        truth = np.asarray(store.label(self.site.places.array(store, "labels", case)))
        self.site.places.array(store, "images", case)
        if kept == WEIGHTS:
            key = ("mask", folder, case.task, case.id)
            mask = self.site.computed(key, lambda: Predictor(folder).mask(store.image(case)))
            return mask, truth, case_affine(store, case)
        number = widest_slice(truth)
        with name_bad_file(folder / kept, RunError):
            planes = np.load(self.site.places.guard(folder / kept), allow_pickle=False)
            plane = planes[case.id]
        mask, known = np.zeros_like(truth), np.zeros_like(truth)
        mask[number], known[number] = plane, truth[number]
        return mask, known, case_affine(store, case)

    def _stored(self, request: Request, rows: Sequence[Row], path: str) -> tuple[Place, CaseRecord]:
        """The store of a benchmark, and the case of an address."""
        place = self.site.places.store_with(rows[0]["store_hash"] if rows else None, path)
        if place is None:
            raise NotThereError(NO_STORE)
        store = self.site.places.store(place)
        return place, find_case(store, request.path_params["task"], request.path_params["case"])

    @staticmethod
    def _of_case(rows: Sequence[Row], case: CaseRecord) -> list[Row]:
        return [row for row in rows if row["task"] == case.task and any(s["case"] == case.id for s in row["scores"])]

    def _kept(self, place: Place, row: Row) -> str:
        """The file that a run's masks come from: weights, else one slice of each case; empty where both are gone."""
        from hssl.benchmark.run.worker import OVERLAYS

        folder = _folder(place, row)
        for path in (folder / INFO, folder / WEIGHTS, folder / OVERLAYS):
            self.site.places.guard(path)
        if (folder / WEIGHTS).is_file() and (folder / INFO).is_file():
            return WEIGHTS
        return OVERLAYS if (folder / OVERLAYS).is_file() else ""


def _folder(place: Place, row: Row) -> Path:
    return place.path / "runs" / Path(str(row["config_hash"])).name


def _dice(row: Row, case: CaseRecord) -> str:
    """Dice of each label of a case, in words."""
    scores = [score for score in row["scores"] if score["case"] == case.id]
    return ", ".join(f"{s['name']} {'–' if s['dice'] is None else format(s['dice'], '.3f')}" for s in scores)
