"""Pages of a store: its tasks, the tree of their groups, the contact sheet, and every case."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hssl.errors import HsslError
from hssl.files import read_json
from hssl.grouping import GROUPS, plot_tree
from hssl.palette import label_colours
from hssl.runs.run import WEIGHTS
from hssl.store import CaseRecord, Store, contact_sheet, summarise, widest_slice
from hssl.suggestion import suggest
from hssl.viewer.pictures import case_thumbnail
from hssl.viewer.places import NotThereError, Place
from hssl.viewer.site import NIIVUE, NO_NIIVUE, Site
from hssl.viewer.volumes import Layer, case_affine, label_entries, source_voxel_ml, to_nifti

SUGGESTED = 5
"""Suggestions of what to draw."""
ON_A_PAGE = 100
"""Cases in a list."""
MEDIA = "application/octet-stream"


def store_routes(site: Site) -> list[Route]:
    """The addresses of stores."""
    pages = _StorePages(site)
    case = "/store/{store}/case/{task}/{case}"
    return [
        Route("/store/{store}", pages.overview),
        Route("/store/{store}/sheet.png", pages.sheet),
        Route("/store/{store}/groups/{run}.png", pages.groups),
        Route("/store/{store}/task/{task}", pages.task),
        Route("/store/{store}/task/{task}/next", pages.next),
        Route(case, pages.case),
        Route(case + "/image.nii", pages.image),
        Route(case + "/mask.nii", pages.mask),
        Route(case + "/slice.png", pages.slice),
    ]


def opened(site: Site, request: Request) -> tuple[Place, Store]:
    """The store of an address."""
    place = site.places.find("store", request.path_params["store"])
    return place, site.places.store(place)


def find_case(store: Store, task: str, case: str) -> CaseRecord:
    """A case of a store by its names in an address.

    Raises:
        NotThereError: There is no such case.
    """
    for record in store.index.cases:
        if (record.task, record.id) == (task, case):
            return record
    raise NotThereError(f"the store has no case '{case}' of a task '{task}'")


def case_page(
    site: Site, store: Store, case: CaseRecord, layers: list[Layer], *, at: int | None = None, **values: Any
) -> Response:
    """The page that draws a stored case, with any layers over it, and begins at a slice, or where most is drawn."""
    affine = case_affine(store, case)
    scene = {
        "layers": [layer.model_dump() for layer in layers],
        "affine": affine.tolist(),
        "shape": case.shape,
        "window": [0, 1],
        "keys": [2, 1, 0],
        "start": start(store, case) if at is None else [min(at, case.shape[0] - 1), *(n // 2 for n in case.shape[1:])],
    }
    return site.page(
        "case", scene=scene, case=case, layers=layers, problem="" if NIIVUE.exists() else NO_NIIVUE, **values
    )


def start(store: Store, case: CaseRecord) -> list[int]:
    """Slice, row and column to look at first: the middle of the slice that shows most of the mask."""
    slices, rows, columns = case.shape
    if not case.has_label or not (label := store.label(case)).any():
        return [slices // 2, rows // 2, columns // 2]
    number = widest_slice(label)
    down, across = label[number].nonzero()
    return [number, int(down.mean().round()), int(across.mean().round())]


class _StorePages:
    def __init__(self, site: Site) -> None:
        self.site = site

    def overview(self, request: Request) -> Response:
        place, store = opened(self.site, request)
        trees = [
            (run.path.name, other.id)
            for other, run in self.site.places.runs_on(place, "pretrain")
            if (run.path / GROUPS).exists()
        ]
        summaries = summarise(store)
        doubts: dict[str, list[str]] = {}
        for row in summaries:
            for line in (*row.doubts, *row.skipped, *row.duplicates):
                doubts.setdefault(line, []).append(row.task)
        return self.site.page("store", place=place, summaries=summaries, doubts=doubts, trees=trees)

    def sheet(self, request: Request) -> Response:
        place, store = opened(self.site, request)
        for case in store.index.cases:
            self.site.places.array(store, "images", case)
            self.site.places.array(store, "labels", case)
        target = self.site.folder / f"{place.id}-{store.hash[:16]}.png"
        content = self.site.computed(("sheet", target), lambda: contact_sheet(store, target).read_bytes())
        return Response(content, media_type="image/png")

    def groups(self, request: Request) -> Response:
        opened(self.site, request)
        run = self.site.places.run(self.site.places.find("run", request.path_params["run"]))
        path = run.path / GROUPS
        if not path.exists():
            raise NotThereError("this run has found no groups")
        drawn = self.site.computed(("groups", path, path.stat().st_mtime_ns), lambda: _tree(path))
        return Response(drawn, media_type="image/svg+xml")

    def task(self, request: Request) -> Response:
        place, store = opened(self.site, request)
        task = request.path_params["task"]
        if task not in store.tasks:
            raise NotThereError(f"the store has no task '{task}'")
        wanted = request.query_params.get("find", "").lower()
        cases = [case for case in store.cases(task) if wanted in case.id.lower() or wanted in case.subject.lower()]
        first = whole(request.query_params.get("first", "0"))
        split = store.split(task)
        part = {subject: name for name in ("train", "val", "test") for subject in getattr(split, name)}
        (row,) = (row for row in summarise(store) if row.task == task)
        return self.site.page(
            "task",
            place=place,
            info=store.tasks[task],
            row=row,
            colours=label_colours(store.tasks[task].labels),
            entries=[(case, part.get(case.subject, "no part")) for case in cases[first : first + ON_A_PAGE]],
            find=wanted,
            first=first,
            total=len(cases),
            step=ON_A_PAGE,
        )

    def next(self, request: Request) -> Response:
        """What to draw next in a task."""
        place, store = opened(self.site, request)
        task, slices = request.path_params["task"], "slices" in request.query_params
        if task not in store.tasks:
            raise NotThereError(f"the store has no task '{task}'")
        runs = [
            (other, run)
            for other, run in self.site.places.runs_on(place)
            if run.info.complete
            and (run.path / WEIGHTS).exists()
            and (run.info.task is None or run.info.task.name == task)
        ]
        wanted = request.query_params.get("run", "")
        path = next((other.path for other, _ in runs if other.id == wanted), None)
        for case in store.cases(task, part="train"):
            self.site.places.array(store, "images", case)
            if case.has_label:
                self.site.places.array(store, "labels", case)
        key = ("next", place.id, store.hash, task, slices, path)
        found, problem = None, ""
        try:
            found = self.site.computed(key, lambda: suggest(store, task=task, count=SUGGESTED, slices=slices, run=path))
        except HsslError as error:
            problem = str(error)
        return self.site.page(
            "next",
            place=place,
            task=task,
            slices=slices,
            runs=runs,
            wanted=wanted,
            found=found,
            items=found.items if found else [],
            problem=problem,
        )

    def case(self, request: Request) -> Response:
        place, store = opened(self.site, request)
        case = find_case(store, request.path_params["task"], request.path_params["case"])
        listed = store.cases(case.task)
        at = listed.index(case)
        layers = [Layer(name="image", url=request.url.path + "/image.nii", kind="image")]
        if case.has_label:
            entries = self._entries(store, case)
            layers.append(Layer(name="mask", url=request.url.path + "/mask.nii", kind="mask", labels=entries))
        return case_page(
            self.site,
            store,
            case,
            layers,
            title=case.id,
            at=whole(request.query_params["slice"]) if "slice" in request.query_params else None,
            trail=[("store/" + place.id, place.name), (f"store/{place.id}/task/{case.task}", case.task)],
            facts=_facts(store, case),
            before=_address(place, listed[at - 1]) if at else None,
            after=_address(place, listed[at + 1]) if at + 1 < len(listed) else None,
        )

    def image(self, request: Request) -> Response:
        _, store = opened(self.site, request)
        case = find_case(store, request.path_params["task"], request.path_params["case"])
        image = store.image(self.site.places.array(store, "images", case))
        return Response(to_nifti(image, case_affine(store, case)), media_type=MEDIA)

    def mask(self, request: Request) -> Response:
        _, store = opened(self.site, request)
        case = find_case(store, request.path_params["task"], request.path_params["case"])
        mask = store.label(self.site.places.array(store, "labels", case))
        return Response(to_nifti(mask, case_affine(store, case)), media_type=MEDIA)

    def slice(self, request: Request) -> Response:
        _, store = opened(self.site, request)
        case = find_case(store, request.path_params["task"], request.path_params["case"])
        self.site.places.array(store, "images", case)
        if case.has_label:
            self.site.places.array(store, "labels", case)
        given = request.query_params.get("number")
        number = start(store, case)[0] if given is None else whole(given)
        if number >= case.shape[0]:
            raise NotThereError(f"case '{case.id}' has no slice {number}")
        colours = label_colours(store.tasks[case.task].labels) if "mask" in request.query_params else None
        return Response(case_thumbnail(store, case, number, colours), media_type="image/png")

    @staticmethod
    def _entries(store: Store, case: CaseRecord) -> list[Any]:
        return label_entries(store, case.task, case.label_voxels, source_voxel_ml(case))


def _address(place: Place, case: CaseRecord) -> tuple[str, str, str]:
    return place.id, case.task, case.id


def _facts(store: Store, case: CaseRecord) -> list[tuple[str, str]]:
    split = store.split(case.task)
    part = next((name for name in ("train", "val", "test") if case.subject in getattr(split, name)), "none")
    spacing = store.tasks[case.task].preprocessing.stored_spacing(case.geometry)
    slices, rows, columns = case.shape
    thickness, height, width = (f"{length:.3g}" for length in spacing)
    low, high = case.intensity
    return [
        ("subject", case.subject),
        ("part of the split", part),
        ("stored", f"{slices} slices of {rows} x {columns} pixels"),
        ("spacing", f"{thickness} x {height} x {width} mm"),
        ("intensity", f"{low:g} to {high:g} in the file are 0 to 1 here"),
    ]


def _tree(path: Path) -> bytes:
    """The tree of the groups of a pre-training as SVG; the groups alone where they were set by hand."""
    from matplotlib.figure import Figure  # slow to import, as is what follows

    from hssl.benchmark.run.records import Groups

    found = read_json(path, Groups, hint="the pre-training writes it: train again")
    if found.tree is None:
        raise NotThereError("the groups of this run were set by hand: there is no tree")
    figure = Figure(figsize=(7, 0.4 * len(found.groups) + 1.2), layout="constrained")
    axes = figure.subplots()
    plot_tree(axes, found.groups, np.array(found.tree), grey="0.5")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", transparent=False)
    return stream.getvalue()


def whole(text: str, digits: int = 9) -> int:
    """A number of an address.

    Raises:
        NotThereError: It is no whole number from 0 on.
    """
    if not text.isascii() or not text.isdecimal() or len(text) > digits:
        raise NotThereError(f"'{text}' is no number")
    return int(text)
