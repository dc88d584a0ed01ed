"""A server that segments the sounding objects in uploads: a video, or an image with its audio, to JSON with COCO masks.

    python -m pcmanet.examples.serve                                      # the bundled model, http://127.0.0.1:8000
    python -m pcmanet.examples.serve --model you/your-pcmanet --device cuda:0 --batch-size 4
    PCMANET_TOKEN=secret python -m pcmanet.examples.serve --host 0.0.0.0 --max-seconds 120

    curl -F video=@clip.mp4 http://127.0.0.1:8000/segment
    curl -F video=@clip.mp4 "http://127.0.0.1:8000/segment?frames_per_second=4&threshold=0.6"
    curl -F image=@photo.jpg -F audio=@recording.wav http://127.0.0.1:8000/segment
    curl http://127.0.0.1:8000/model                                      # classes and limits; /health, /docs

Requires FastAPI (`pip install "pcmanet[serve]"`, included in the `.venv` of `make install`). `examples/Dockerfile` runs it in a
container.

The response has the `model`, the `video` as it was named, `frames`, and `notes` on what was unusual about the file. A
frame is a line of the `segments.jsonl` of `pcmanet segment`: `timestamp` in seconds, and `segments` with `label`,
`score` (the confidence, 0 to 1) and `segmentation`, the mask in COCO's run-length encoding. Errors are
`{"error": reason and remedy}`:

    400, 405, 422   not what /segment accepts: the form, a parameter, or the content of a file
    401             the variable PCMANET_TOKEN is set, and the request has no `Authorization: Bearer` header with it
    408, 413        the upload takes too long, or is too large
    429             the maximum number of requests is in progress; `Retry-After` says when to try again
    500, 503        an error that is in the server log; the server is stopping

One process holds one model and computes one upload at a time, because a single video uses all CPU threads, and on a
GPU a batch of `--batch-size` windows of ten frames. For more throughput, run more processes behind a load balancer:
one per GPU, or on a CPU one per 4 threads with `--threads 4`. Uploads are read while others are computed. To segment
many videos that are already on the server, `pcmanet segment` is faster, because it needs no uploads and can resume.

Uploads are temporary files without a name, which the system removes even when the server is killed. SIGTERM and Ctrl-C
finish the requests in progress, for at most `--shutdown-seconds`. If a client disconnects, its video is stopped at the
next window.
"""

import argparse
import asyncio
import math
import os
import re
import secrets
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, File, HTTPException, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from PIL import Image, ImageOps, UnidentifiedImageError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import pcmanet
from modeling_pcmanet.image_processing_pcmanet import PCMANetImageProcessor
from modeling_pcmanet.media_pcmanet import MediaError, MediaReader
from pcmanet.checkpoints import load_segmenter
from pcmanet.cli.results import describe_result
from pcmanet.dataset_scripts.problems import IMAGE_ERRORS
from pcmanet.examples.uploads import (
    Limits,
    RefusedVideoError,
    check_decoded,
    check_pixels,
    probe_audio,
    probe_video,
    read_audio_within,
)
from pcmanet.files import DEFAULT_MODEL
from pcmanet.options import non_negative_integer, port, positive, positive_integer
from pcmanet.pipelines import AudioVisualSegmentationPipeline


PATH = "/segment"
FORM = (
    "the form fields `video`, or `image` and `audio`; a video without an audio track also accepts `audio`. Parameters such as "
    "`threshold` are part of the URL"
)
AUDIO_REMEDY = "Upload a file with an audio track as `audio`."
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
LONGEST_NAME = 100  # characters of the name of an upload in responses
SECONDS_BETWEEN_CHECKS = 0.2  # whether the client is still connected
RETRY_SECONDS = 5
CLIENT_CLOSED_REQUEST = 499  # in the log only: nobody receives it

Upload = Annotated[UploadFile | None, File()]


@dataclass(frozen=True)
class ServerLimits(Limits):
    """What the server accepts.

    Attributes:
        frames: Maximum number of network frames of a video.
        requests: Maximum number of requests in progress: uploading, waiting or being computed.
        upload_seconds: Longest time to receive an upload.
    """

    frames: int = 600
    requests: int = 8
    upload_seconds: float = 60.0

    def check_frames(self, seconds: float, rate: float, name: str) -> None:
        """Refuse a video with too many network frames."""
        frames = max(1, math.ceil(seconds * rate))
        if frames > self.frames:
            raise RefusedVideoError(
                f"{name} has {seconds:.1f} s, at {rate:g} frames per second {frames} network frames. This server accepts up to "
                f"{self.frames}. Lower `frames_per_second` to {self.frames / seconds:.3g}, or cut the video."
            )


@dataclass(frozen=True)
class Settings:
    """The parameters of a request, as in `pcmanet segment`.

    Attributes:
        frames_per_second: Network frames per second of video.
        threshold: Probability that the pixels of a mask must exceed; None for the default of the model.
        minimum_area: Smallest mask as a fraction of the frame.
    """

    frames_per_second: float
    threshold: float | None
    minimum_area: float


class Segmentation:
    """Segment uploads with one model.

    Args:
        segmenter: The pipeline.
        limits: What is accepted.
        batch_size: Windows per batch.
    """

    def __init__(self, segmenter: AudioVisualSegmentationPipeline, limits: ServerLimits, batch_size: int = 1) -> None:
        self._segmenter = segmenter
        self._batch_size = batch_size
        self.limits = limits

    def warm_up(self) -> None:
        """Segment a black frame, so that the first request does not wait for the optimized model."""
        rate = self._segmenter.processor.feature_extractor.sampling_rate
        frames = {"frames": np.zeros((1, 64, 64, 3), np.uint8), "audio": np.zeros(rate), "sampling_rate": rate}
        list(self._segmenter.stream(frames))  # unlike a call, it does not log that it found nothing

    def describe(self) -> dict[str, Any]:
        """Describe the model and the limits."""
        config = self._segmenter.model.config
        return {
            "model": self.name,
            "version": pcmanet.__version__,
            "description": config.description,
            "classes": [
                config.id2label[index] for index in sorted(config.id2label) if config.num_labels == 1 or index
            ],
            "device": str(self._segmenter.device),
            "limits": {
                "megabytes": self.limits.megabytes,
                "seconds": self.limits.seconds,
                "pixels": self.limits.pixels,
                "frames": self.limits.frames,
                "requests": self.limits.requests,
                "upload_seconds": self.limits.upload_seconds,
            },
        }

    @property
    def name(self) -> str:
        """Name of the checkpoint."""
        path = self._segmenter.model.name_or_path
        return Path(path).name if Path(path).is_dir() else path

    def segment_video(
        self, video: UploadFile, audio: UploadFile | None, settings: Settings, stopped: threading.Event
    ) -> dict[str, Any]:
        """Segment a video, until `stopped` is set.

        Raises:
            ValueError: If it cannot be used, or exceeds a limit.
        """
        name = _shown_name(video)
        info = probe_video(video.file, name, self.limits, needs_audio=audio is None)
        if audio is not None:
            probe_audio(audio.file, _shown_name(audio), self.limits)
        self.limits.check_frames(info.seconds, settings.frames_per_second, name)
        reader = MediaReader(video.file, audio=audio is None)
        reader.name = name
        audio_arguments, notes = ({}, []) if audio is None else self._read_audio(audio)
        with reader:
            frames = self._stream(name, reader, reader.size, settings, stopped, **audio_arguments)
            reader.finish()
        return {"model": self.name, "video": name, "frames": frames, "notes": [*reader.notes.texts, *notes]}

    def segment_image(
        self, image: UploadFile, audio: UploadFile, settings: Settings, stopped: threading.Event
    ) -> dict[str, Any]:
        """Segment an image that is shown while the audio plays, until `stopped` is set.

        Raises:
            ValueError: If one of them cannot be used, or exceeds a limit.
        """
        picture = _read_image(image, self.limits)
        seconds = probe_audio(audio.file, _shown_name(audio), self.limits)
        self.limits.check_frames(seconds, settings.frames_per_second, _shown_name(audio))
        audio_arguments, notes = self._read_audio(audio)
        number = max(1, math.floor(seconds * settings.frames_per_second))
        # A view: the image is in memory once, although it is every frame.
        repeated = np.broadcast_to(np.asarray(picture), (number, picture.height, picture.width, 3))
        clip = {"frames": repeated, **audio_arguments}
        name = _shown_name(image)
        frames = self._stream(name, clip, (picture.height, picture.width), settings, stopped)
        return {"model": self.name, "video": name, "frames": frames, "notes": notes}

    def _read_audio(self, audio: UploadFile) -> tuple[dict[str, Any], list[str]]:
        """Return the pipeline arguments for an audio file that was probed, and the notes on it."""
        reader = MediaReader(audio.file, video=False)
        reader.name = _shown_name(audio)
        with reader:
            waveform, sampling_rate = read_audio_within(reader, self.limits)
            reader.finish()
        return {"audio": waveform, "sampling_rate": sampling_rate}, reader.notes.texts

    def _stream(
        self,
        name: str,
        clip: Any,
        size: tuple[int, int],
        settings: Settings,
        stopped: threading.Event,
        **audio: Any,
    ) -> list[dict[str, Any]]:
        """Return the records of a clip; when `stopped` is set, those so far.

        Raises:
            RefusedVideoError: If there are more than the limits accept, although the file declared fewer.
        """
        rate = settings.frames_per_second
        most = min(self.limits.seconds, self.limits.frames / rate)
        stream = self._segmenter.stream(
            clip,
            batch_size=self._batch_size,
            frames_per_second=rate,
            threshold=settings.threshold,
            minimum_area=settings.minimum_area,
            **audio,
        )
        records = []
        with closing(stream):
            for number, result in enumerate(stream):
                check_decoded(result["timestamp"], most, name, f" at {rate:g} network frames per second")
                records.append(describe_result(number, result, size))
                if stopped.is_set():
                    break
        return records


def _shown_name(upload: UploadFile) -> str:
    """Return the name of an upload for responses: without folders and control characters."""
    name = "".join(filter(str.isprintable, Path(upload.filename or "").name))
    return name[:LONGEST_NAME] or "upload"


def _read_image(upload: UploadFile, limits: Limits) -> Image.Image:
    """Check the size of an image, and decode it upright."""
    name = _shown_name(upload)
    try:
        image = Image.open(upload.file, formats=IMAGE_FORMATS)
        check_pixels(image.width, image.height, name, limits)
        return PCMANetImageProcessor.to_rgb(ImageOps.exif_transpose(image))
    except RefusedVideoError:
        raise
    except (*IMAGE_ERRORS, Image.DecompressionBombError) as error:
        is_unknown = isinstance(error, UnidentifiedImageError)  # its text names a temporary file
        reason = "it is damaged or has another format" if is_unknown else str(error).removesuffix(".")
        raise RefusedVideoError(
            f"{name} cannot be read as an image: {reason}. Upload a complete {', '.join(IMAGE_FORMATS)} file with 8 bits per channel."
        ) from error


class Gate:
    """Refuse a request before its body is read if it lacks the token, is one too many or too large; stop slow uploads.

    Args:
        app: The application.
        limits: What is accepted.
        token: The expected token; None accepts every request.
    """

    def __init__(self, app: ASGIApp, limits: ServerLimits, token: str | None) -> None:
        self._app = app
        self._limits = limits
        self._token = token
        self._in_progress = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or respond with the reason why not."""
        if scope["type"] != "http" or scope["path"] != PATH:
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(Headers(scope=scope))
        if refusal is not None:
            await self._refuse(refusal, receive, send)
            return
        self._in_progress += 1
        try:
            await self._app(scope, self._limited(receive), send)
        finally:
            self._in_progress -= 1

    def _refusal(self, headers: Headers) -> HTTPException | None:
        """Return why a request is refused, if it is."""
        expected, given = f"Bearer {self._token}", headers.get("authorization", "")
        if self._token is not None and not secrets.compare_digest(given.encode(), expected.encode()):
            received = "another `Authorization` header" if given else "no `Authorization` header"
            message = f"Received {received}. Send `Authorization: Bearer` with the token of this server."
            return HTTPException(401, message, {"WWW-Authenticate": "Bearer"})
        if self._in_progress >= self._limits.requests:
            message = f"{self._in_progress} requests are in progress, as many as this server accepts. Try again in {RETRY_SECONDS} s."
            return HTTPException(429, message, {"Retry-After": str(RETRY_SECONDS)})
        length = headers.get("content-length", "0")
        return self._too_large(int(length)) if length.isdecimal() and int(length) > self._largest else None

    @property
    def _largest(self) -> int:
        """Largest upload in bytes."""
        return self._limits.megabytes * 10**6

    def _too_large(self, size: int) -> HTTPException:
        """Return the error for an upload of at least `size` bytes."""
        return HTTPException(
            413,
            f"The upload has {size / 1e6:.1f} MB or more. This server accepts up to {self._limits.megabytes} MB. Cut the video, "
            "reduce its size, or run `pcmanet segment` on your own computer.",
        )

    async def _refuse(self, refusal: HTTPException, receive: Receive, send: Send) -> None:
        """Respond at once, then discard the body: many clients read the response only after sending everything."""
        answer = _error(
            refusal.status_code, str(refusal.detail), dict(refusal.headers or {}) | {"Connection": "close"}
        )
        await send({"type": "http.response.start", "status": answer.status_code, "headers": answer.raw_headers})
        await send({"type": "http.response.body", "body": answer.body, "more_body": True})
        discarded, message = 0, {"more_body": True}
        limited = self._limited(receive)
        try:
            while message.get("more_body", False) and discarded <= self._largest:
                message = await limited()
                discarded += len(message.get("body", b""))
        except HTTPException:
            pass  # it takes too long, or is too large: the response was sent
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _limited(self, receive: Receive) -> Receive:
        """Return a function that receives a body, and raises HTTPException if it is too large or takes too long."""
        end = asyncio.get_running_loop().time() + self._limits.upload_seconds
        received, is_complete = 0, False

        async def limited() -> Message:
            nonlocal received, is_complete
            if is_complete:
                return await receive()  # waits until the client disconnects
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    408,
                    f"The upload was not complete after {self._limits.upload_seconds:g} s, with {received / 1e6:.1f} MB received. "
                    "Upload a smaller file, or use a faster connection.",
                ) from None
            received += len(message.get("body", b""))
            is_complete = not message.get("more_body", False)
            if received > self._largest:
                raise self._too_large(received)
            return message

        return limited


def create_app(segmentation: Segmentation, token: str | None = None) -> FastAPI:
    """Create the application.

    Args:
        segmentation: The model.
        token: The token that requests must send; None accepts every request.
    """
    app = FastAPI(title="pcmanet", version=pcmanet.__version__, description="Segment the sounding objects in a video.")
    turn = asyncio.Lock()  # of the upload that is being computed
    app.add_middleware(Gate, limits=segmentation.limits, token=token)
    app.add_exception_handler(StarletteHTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(Exception, _on_internal_error)

    @app.get("/health")
    @app.head("/health", include_in_schema=False)  # for load balancers
    async def health() -> dict[str, str]:
        """Report that the server accepts requests."""
        return {"status": "ok"}

    @app.get("/model")
    async def model() -> dict[str, Any]:
        """Describe the model and the limits."""
        return segmentation.describe()

    @app.post(PATH)
    async def segment(
        request: Request,
        video: Upload = None,
        image: Upload = None,
        audio: Upload = None,
        frames_per_second: Annotated[float, Query(gt=0, le=120)] = 1.0,
        threshold: Annotated[float | None, Query(ge=0, le=1)] = None,
        minimum_area: Annotated[float, Query(ge=0, le=1)] = 0.001,
    ) -> Response:
        """Segment a video (with its own audio, or with `audio`), or an `image` that is shown while `audio` plays."""
        settings = Settings(frames_per_second, threshold, minimum_area)
        received = [name for name, _ in (await request.form()).multi_items()]
        if unknown := sorted(request.query_params.keys() - vars(settings)):
            raise HTTPException(
                422, f"Received the parameter {unknown[0]}. The parameters are {', '.join(vars(settings))}."
            )
        if video is not None and sorted(received) in (["video"], ["audio", "video"]):
            work = partial(segmentation.segment_video, video, audio, settings)
        elif image is not None and audio is not None and sorted(received) == ["audio", "image"]:
            work = partial(segmentation.segment_image, image, audio, settings)
        else:
            raise HTTPException(422, f"Received {', '.join(received) or 'no form fields'}. Send {FORM}.")
        return await _compute(request, turn, work)

    return app


async def _compute(
    request: Request, turn: asyncio.Lock, work: Callable[[threading.Event], dict[str, Any]]
) -> Response:
    """Wait for the turn of a request, and respond with its result or the reason why there is none."""
    try:
        async with turn:
            if await request.is_disconnected():
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            return JSONResponse(await _run_while_connected(request, work))
    except ValueError as error:
        message = error.problem if isinstance(error, MediaError) else str(error)
        remedy = f" {AUDIO_REMEDY}" if isinstance(error, MediaError) and error.needs_audio else ""
        raise HTTPException(422, message + remedy) from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        message = "The video needs more memory than this server has. Reduce its size, or cut it."
        raise HTTPException(413, message) from error
    except asyncio.CancelledError:  # at the end of `--shutdown-seconds`
        raise HTTPException(503, "The server stopped before the video was done. Send it again.") from None


async def _run_while_connected(request: Request, work: Callable[[threading.Event], dict[str, Any]]) -> dict[str, Any]:
    """Run the work of a request in a thread, and stop it at the next window if the client disconnects."""
    stopped = threading.Event()
    task = asyncio.create_task(asyncio.to_thread(work, stopped))
    try:
        while not (await asyncio.wait({task}, timeout=SECONDS_BETWEEN_CHECKS))[0]:
            if await request.is_disconnected():
                stopped.set()
        return task.result()
    finally:
        stopped.set()  # after a cancellation, the thread is still running


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return the response for an error."""
    return JSONResponse({"error": message}, status, headers)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Respond to an error with its reason."""
    assert isinstance(error, StarletteHTTPException)
    message = str(error.detail)
    if error.status_code in (404, 405):
        message = f"Received {request.method} {request.url.path}. Send POST {PATH}, GET /model or GET /health."
    elif error.status_code == 400:
        message = f"The body cannot be read as a multipart form: {message} Send {FORM}."
    return _error(error.status_code, message, dict(error.headers or {}))


async def _on_invalid_request(_: Request, error: Exception) -> Response:
    """Respond to parameters that are out of range, or fields that are not files."""
    assert isinstance(error, RequestValidationError)
    problems = [
        f"Received {problem['loc'][-1]}={str(problem['input'])[:LONGEST_NAME]!r}: {problem['msg']}."
        for problem in error.errors()
    ]
    return _error(422, f"{' '.join(problems)} See /docs for the parameters.")


async def _on_internal_error(_: Request, __: Exception) -> Response:
    """Respond to an error of the server, which is in its log."""
    return _error(500, "Internal error. The server log contains the reason; please report it.")


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    limits = ServerLimits()
    model = os.environ.get("PCMANET_MODEL") or DEFAULT_MODEL  # a container is configured by variables
    parser.add_argument("--model", default=model, help="Hub id or folder (default: the bundled model)")
    parser.add_argument("--device", help="for example cpu or cuda:0 (default: an accelerator if available)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this computer only)")
    parser.add_argument("--port", type=port, default=8000, help="port to listen on (default: 8000)")
    parser.add_argument(
        "--batch-size", type=positive_integer, default=1, help="windows of ten frames per batch (default: 1)"
    )
    parser.add_argument("--threads", type=positive_integer, help="CPU threads of the network (default: all)")
    parser.add_argument(
        "--max-megabytes", type=positive_integer, default=limits.megabytes, help="largest upload, in MB"
    )
    parser.add_argument("--max-seconds", type=positive, default=limits.seconds, help="longest video, in seconds")
    parser.add_argument(
        "--max-frames", type=positive_integer, default=limits.frames, help="maximum network frames of a video"
    )
    parser.add_argument(
        "--max-requests", type=positive_integer, default=limits.requests, help="maximum requests in progress"
    )
    parser.add_argument(
        "--upload-seconds", type=positive, default=limits.upload_seconds, help="longest upload, in seconds"
    )
    parser.add_argument(
        "--shutdown-seconds", type=non_negative_integer, default=30, help="time to finish requests at the end"
    )
    return parser.parse_args()


def read_token() -> str | None:
    """Return the token that requests must send, or None if the variable PCMANET_TOKEN is not set.

    Raises:
        ValueError: If no request can send it. That an empty one accepts every request could be a mistake.
    """
    token = os.environ.get("PCMANET_TOKEN")
    if token is not None and not re.fullmatch("[!-~]+", token):
        found = "has other characters" if token else "is empty"
        raise ValueError(
            f"PCMANET_TOKEN {found}. Set it to visible ASCII characters without spaces, or unset it to accept every request."
        )
    return token


def main() -> None:
    """Serve until the process is stopped."""
    args = parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    try:
        token = read_token()
        segmenter = load_segmenter(args.model, args.device)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    limits = ServerLimits(
        megabytes=args.max_megabytes,
        seconds=args.max_seconds,
        frames=args.max_frames,
        requests=args.max_requests,
        upload_seconds=args.upload_seconds,
    )
    segmentation = Segmentation(segmenter, limits, args.batch_size)
    segmentation.warm_up()
    uvicorn.run(
        create_app(segmentation, token),
        host=args.host,
        port=args.port,
        server_header=False,
        timeout_graceful_shutdown=args.shutdown_seconds,
    )


if __name__ == "__main__":
    main()
