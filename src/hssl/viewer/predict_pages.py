"""Predict here: a file is given, and its mask and uncertainty are seen and taken away."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from hssl.viewer.places import NotThereError
from hssl.viewer.site import NIIVUE, NO_NIIVUE, Site, answer_json, chosen
from hssl.viewer.store_pages import MEDIA, whole
from hssl.viewer.uploads import MAX_BYTES, Job, TooLargeError, Uploads


def predict_routes(site: Site) -> list[Route]:
    """The addresses of predictions."""
    pages = _PredictPages(site)
    return [
        Route("/predict", pages.form, methods=["GET"]),
        Route("/predict", pages.upload, methods=["POST"]),
        Route("/predict/{job}", pages.state),
        Route("/predict/{job}/{layer}.nii", pages.volume),
        Route("/predict/{job}/{layer}/file", pages.file),
    ]


class _PredictPages:
    def __init__(self, site: Site) -> None:
        self.site, self.uploads = site, Uploads(site.folder / "uploads")

    def form(self, request: Request) -> Response:
        networks = [(place, run.task) for place, run in self.site.places.networks()]
        return self.site.page(
            "predict",
            networks=networks,
            wanted=request.query_params.get("run", ""),
            limit=MAX_BYTES // 2**20,
            problem="" if NIIVUE.exists() else NO_NIIVUE,
        )

    async def upload(self, request: Request) -> Response:
        run = self.site.places.run(self.site.places.find("run", chosen(request, "run")))
        channel = request.query_params.get("channel", "")
        length = request.headers.get("content-length")
        try:
            job = await self.uploads.receive(
                chosen(request, "name"),
                run,
                whole(channel) if channel else None,
                whole(length, digits=18) if length else None,
                request.stream(),
            )
        except TooLargeError as error:
            return PlainTextResponse(f"{error}\n", 413)
        self.uploads.begin(job, self.site.root)
        return answer_json({"job": job.id})

    def state(self, request: Request) -> Response:
        job = self._job(request)
        return answer_json({"state": job.state, "error": job.error, "scene": job.scene, "name": job.file.name})

    def volume(self, request: Request) -> Response:
        job, layer = self._job(request), request.path_params["layer"]
        if job.state != "done" or layer not in ("image", "mask", "uncertainty"):
            raise NotThereError("there is no such volume of this prediction")
        return Response(job.volume(layer), media_type=MEDIA)

    def file(self, request: Request) -> Response:
        job = self._job(request)
        path = {"mask": job.mask, "uncertainty": job.uncertainty}.get(request.path_params["layer"])
        if path is None or not path.is_file():
            raise NotThereError("there is no such file of this prediction")
        return FileResponse(path, media_type=MEDIA, filename=path.name)

    def _job(self, request: Request) -> Job:
        job = self.uploads.find(request.path_params["job"])
        if job is None:
            raise NotThereError("this prediction is not kept any more: give the file again")
        return job
